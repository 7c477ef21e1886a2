"""Importing from a bucket of an S3-compatible store, with its tenant's own key.

Only addresses that the operator allows are called: a tenant must not be able to have the control
plane call what the tenant cannot reach. Requests are signed with AWS's Signature Version 4; the
key is kept sealed, and only until all is fetched.

Source: AWS General Reference, "Create a signed AWS API request"; Amazon S3 API, ListObjectsV2.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

import httpx
import msgspec

from sublet.core.clock import Clock
from sublet.core.errors import Invalid, Unavailable
from sublet.models.formats.layout import MOST_FILES

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_EMPTY: Final = hashlib.sha256(b"").hexdigest()
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION: Final = re.compile(r"[a-z0-9-]{1,40}")
_LONGEST_LIST: Final = 4 << 20
_SECONDS: Final = 60.0


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """What a bucket is read with."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    key: str
    size: int
    etag: str


class Bucket:
    """The objects beneath a prefix, or one object. As `importing.Remote`."""

    def __init__(
        self,
        source: Mapping[str, str],
        secret: str | None,
        *,
        allowed: Sequence[str],
        clock: Clock,
    ) -> None:
        """Raises Invalid: the address is not allowed, or something is no name."""
        endpoint = source["endpoint"].rstrip("/")
        if endpoint not in allowed:
            told = ", ".join(allowed) or "none"
            raise Invalid(
                f"{endpoint[:200]!r} is no address that this instance imports from; it does from:"
                f" {told} (its operator sets SUBLET_MODELS_S3)"
            )
        if not _BUCKET.fullmatch(source["bucket"]):
            raise Invalid(f"{source['bucket'][:100]!r} can be no bucket")
        if not _REGION.fullmatch(source["region"]):
            raise Invalid(f"{source['region'][:100]!r} can be no region")
        self._endpoint = endpoint
        self._bucket = source["bucket"]
        self._prefix = source["prefix"]
        self._region = source["region"]
        self._secret = None if secret is None else msgspec.json.decode(secret, type=Secret)
        self._clock = clock
        self._objects: dict[str, _Object] = {}
        self._http = httpx.Client(timeout=_SECONDS, follow_redirects=False, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def files(self) -> Sequence[tuple[str, int]]:
        found = self._list()
        single = next((one for one in found if one.key == self._prefix), None)
        if single is not None:
            self._objects = {single.key.rpartition("/")[2]: single}
        else:
            folder = (
                self._prefix
                if not self._prefix or self._prefix.endswith("/")
                else f"{self._prefix}/"
            )
            self._objects = {
                one.key.removeprefix(folder): one
                for one in found
                if one.key.startswith(folder) and not one.key.endswith("/")
            }
        if not self._objects:
            raise Invalid(f"there is nothing beneath {self._prefix[:200]!r} in {self._bucket}")
        return [(path, one.size) for path, one in self._objects.items()]

    def read(self, path: str, offset: int, count: int) -> bytes:
        one = self._objects[path]
        headers = {"range": f"bytes={offset}-{offset + count - 1}", "if-match": one.etag}
        answer = self._get(f"/{self._bucket}/{quote(one.key, safe='/-_.~')}", {}, headers)
        if answer.status_code == httpx.codes.PRECONDITION_FAILED:
            raise Invalid(f"{path} was changed while it was fetched: import it again")
        self._check(answer)
        return answer.content

    def _list(self) -> list[_Object]:
        found: list[_Object] = []
        query = {"list-type": "2", "prefix": self._prefix, "max-keys": "1000"}
        while True:
            answer = self._get(f"/{self._bucket}", query, {})
            self._check(answer)
            page = _read(answer.content)
            found += page[0]
            if len(found) > MOST_FILES:
                raise Invalid(
                    f"there are more than {MOST_FILES} objects beneath {self._prefix[:200]!r}"
                )
            if page[1] is None:
                return found
            query = {**query, "continuation-token": page[1]}

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            return
        code = re.search(rb"<Code>([A-Za-z]{1,60})</Code>", answer.content[:4096])
        said = f"{answer.status_code}{f' {code[1].decode()}' if code else ''}"
        if answer.status_code >= 500 or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise Unavailable(f"{self._endpoint} answered {said}")
        raise Invalid(f"{self._endpoint} refused to give from bucket {self._bucket}: {said}")

    def _get(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> httpx.Response:
        told = "&".join(
            f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items())
        )
        sent = dict(headers)
        if self._secret is not None:
            sent |= self._signed(path, told, sent)
        try:
            return self._http.get(
                f"{self._endpoint}{path}{f'?{told}' if told else ''}", headers=sent
            )
        except httpx.HTTPError as error:
            raise Unavailable(
                f"{self._endpoint} does not answer: {type(error).__name__}"
            ) from error

    def _signed(self, path: str, query: str, headers: Mapping[str, str]) -> dict[str, str]:
        assert self._secret is not None
        date = f"{self._clock.now():%Y%m%dT%H%M%SZ}"
        added = {"x-amz-date": date, "x-amz-content-sha256": _EMPTY}
        if self._secret.session_token is not None:
            added["x-amz-security-token"] = self._secret.session_token
        signed = {**headers, **added, "host": urlsplit(self._endpoint).netloc}
        names = ";".join(sorted(signed))
        canonical = "\n".join(
            (
                "GET", path, query, *(f"{name}:{signed[name]}" for name in sorted(signed)), "",
                names, _EMPTY,
            )
        )  # fmt: skip
        scope = f"{date[:8]}/{self._region}/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{self._secret.secret_access_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        to_sign = f"{_ALGORITHM}\n{date}\n{scope}\n{digest}"
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        credential = f"{self._secret.access_key_id}/{scope}"
        added["authorization"] = (
            f"{_ALGORITHM} Credential={credential},SignedHeaders={names},Signature={signature}"
        )
        return added


def _read(content: bytes) -> tuple[list[_Object], str | None]:
    """Return the objects of a page, and where the next one begins."""
    if len(content) > _LONGEST_LIST or b"<!" in content:  # no entities: none to expand
        raise Invalid("the store's list of objects is not one")
    try:
        root = ET.fromstring(content)  # noqa: S314 -- see above
    except ET.ParseError:
        raise Invalid("the store's list of objects is not XML") from None
    found = []
    for one in root.iterfind("{*}Contents"):
        size = one.findtext("{*}Size", "")
        if not re.fullmatch(r"[0-9]{1,15}", size):
            raise Invalid("the store's list of objects has one without a size")
        found.append(
            _Object(
                key=one.findtext("{*}Key", ""), size=int(size), etag=one.findtext("{*}ETag", "")
            )
        )
    more = root.findtext("{*}IsTruncated") == "true"
    return found, root.findtext("{*}NextContinuationToken") if more else None

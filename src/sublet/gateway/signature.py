"""AWS's Signature Version 4: who signed a request, when, and whether anybody changed it since.

    read ──► check_time ──► (the key is looked up, the body is read) ──► verify ──► Seen.take

A signature covers the method, the path, the query, the headers that it names and the body. It is
good for five minutes on either side of its date, and for one request: a client that signs two
requests alike within one second is told to try again, which it does with a new date.

Source: AWS General Reference, "Create a signed AWS API request". Tests hold it to the signer
that boto3 uses.
"""

import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from sublet.gateway.failures import Failure, Kind

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SKEW: Final = timedelta(minutes=5)
GOOD_FOR: Final = 2 * SKEW  # from a clock as far ahead as can be to its end
_SERVICES: Final = frozenset({"bedrock", "bedrock-mantle", "bedrock-runtime"})
_HEADERS: Final = re.compile(r"^[a-z0-9!#$%&'*+.^_`|~-]+(;[a-z0-9!#$%&'*+.^_`|~-]+)*\Z")
_SIGNATURE: Final = re.compile(r"^[0-9a-f]{64}\Z")
_PART: Final = re.compile(r"^[A-Za-z0-9_-]{1,128}\Z")
_FORM: Final = "%Y%m%dT%H%M%SZ"
_DATE: Final = re.compile(r"^[0-9]{8}T[0-9]{6}Z\Z")
# Proxies on the way add or change them, so no client can be asked to sign them.
_ON_THE_WAY: Final = frozenset({b"x-amzn-trace-id"})

Header = tuple[bytes, bytes]


class Rejected(Failure):
    """A caller who is not let in, with the code that AWS has for why."""

    def __init__(self, code: str, message: str, *, status: int = 403) -> None:
        super().__init__(Kind.UNAUTHORIZED, message, headers=[(b"www-authenticate", b"Bearer")])
        self.aws_code = code
        self.aws_status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What a request says of its signature."""

    access_key_id: str
    scope: str  # date/region/service/aws4_request
    headers: tuple[str, ...]  # the names that were signed, sorted
    signature: str  # 64 hex digits
    date: str  # 20260131T120000Z

    @property
    def at(self) -> datetime:
        return datetime.strptime(self.date, _FORM).replace(tzinfo=UTC)


def read(authorization: str, headers: Iterable[Header]) -> Signed:
    """Read the header `Authorization` of a signed request.

    Raises:
        Rejected: it is not whole, or not one that can be checked here.
    """
    fields = {}
    for part in authorization.removeprefix(ALGORITHM).split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or name in fields:
            raise _incomplete("'Authorization' must be Credential=…, SignedHeaders=…, Signature=…")
        fields[name] = value
    if fields.keys() != {"Credential", "SignedHeaders", "Signature"}:
        raise _incomplete("'Authorization' must have Credential, SignedHeaders and Signature")
    access_key_id, *scope = fields["Credential"].split("/")
    if len(scope) != 4 or scope[3] != "aws4_request" or not all(map(_PART.match, scope)):
        raise _incomplete("Credential must be ID/DATE/REGION/SERVICE/aws4_request")
    if not _PART.match(access_key_id):
        raise _incomplete("Credential must begin with the id of an access key")
    if scope[2] not in _SERVICES:
        raise Rejected(
            "InvalidSignatureException",
            f"Credential should be scoped to the service 'bedrock', not {scope[2]!r}",
        )
    if not _SIGNATURE.match(fields["Signature"]) or not _HEADERS.match(fields["SignedHeaders"]):
        raise _incomplete("Signature must be 64 hex digits, SignedHeaders names in lower case")
    present = _gather(headers)
    date = b" ".join(present.get(b"x-amz-date", ())).decode("latin-1")
    if not _is_date(date):
        raise _incomplete("the header X-Amz-Date must be there once, such as 20260131T120000Z")
    if scope[0] != date[:8]:
        raise Rejected(
            "InvalidSignatureException",
            f"the date in Credential is not that of X-Amz-Date: {scope[0]!r} != {date[:8]!r}",
        )
    if b"x-amz-security-token" in present:
        raise Rejected(
            "UnrecognizedClientException",
            "X-Amz-Security-Token: no session tokens are issued here; use an access key as it is",
        )
    names = fields["SignedHeaders"].split(";")
    if names != sorted(set(names)):
        raise _incomplete("SignedHeaders must be sorted, each name once")
    signed = {name.encode() for name in names}
    needed = {b"host"} | {name for name in present if name.startswith(b"x-amz-")}
    if missing := needed - _ON_THE_WAY - signed:
        told = ", ".join(sorted(name.decode("latin-1")[:50] for name in missing))
        raise Rejected("InvalidSignatureException", f"these headers must be signed: {told}")
    return Signed(
        access_key_id=access_key_id,
        scope="/".join(scope),
        headers=tuple(names),
        signature=fields["Signature"],
        date=date,
    )


def check_time(signed: Signed, *, now: datetime) -> None:
    """Raises Rejected: it was signed too long ago, or by a clock that is too far ahead."""
    bound = now - SKEW if signed.at < now else now + SKEW
    if abs(signed.at - now) <= SKEW:
        return
    which, relation = ("expired", "earlier") if signed.at < now else ("not yet current", "later")
    raise Rejected(
        "InvalidSignatureException",
        f"Signature {which}: {signed.date} is now {relation} than {bound:%Y%m%dT%H%M%SZ}"
        f" ({now:%Y%m%dT%H%M%SZ} {'-' if signed.at < now else '+'} 5 min.): set the clock of the"
        " machine that signs",
    )


def verify(
    signed: Signed,
    *,
    secret: str,
    method: str,
    target: bytes,
    headers: Iterable[Header],
    body: bytes,
) -> None:
    """Check a signature against the request as it came.

    Args:
        signed: what `read` made of it.
        secret: of the access key.
        method: in capitals.
        target: path and query as on the wire, with their escapes.
        headers: all of them, names in lower case.
        body: all of it.

    Raises:
        Rejected: the secret is another one, or something that was signed was changed.
    """
    present = _gather(headers)
    path, _, query = target.partition(b"?")
    digest = hashlib.sha256(body).hexdigest()
    told = b"".join(present.get(b"x-amz-content-sha256", ())).decode("latin-1")
    if told and not hmac.compare_digest(told.encode(), digest.encode()):
        raise Rejected(
            "InvalidSignatureException",
            "X-Amz-Content-SHA256 is not the SHA-256 of the body: it was changed on its way, or was"
            " not signed at all",
        )
    lines = []
    for name in signed.headers:
        values = present.get(name.encode())
        if values is None:
            raise Rejected("InvalidSignatureException", f"the signed header {name!r} is missing")
        lines.append(name.encode() + b":" + b",".join(b" ".join(v.split()) for v in values))
    canonical = b"\n".join(
        (
            method.encode(),
            _canonical_path(path),
            _canonical_query(query),
            *lines,
            b"",
            ";".join(signed.headers).encode(),
            digest.encode(),
        )
    )
    to_sign = "\n".join(
        (ALGORITHM, signed.date, signed.scope, hashlib.sha256(canonical).hexdigest())
    )
    key = f"AWS4{secret}".encode()
    for part in signed.scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    expected = hmac.digest(key, to_sign.encode(), "sha256").hex()
    if not hmac.compare_digest(expected, signed.signature):
        raise Rejected(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check"
            " the secret access key, and that nothing on the way changes the request.",
        )


class Seen:
    """Signatures that were used, for as long as they could be used again."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, datetime] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def take(self, signed: Signed, *, now: datetime) -> None:
        """Note one that was verified.

        Raises:
            Failure: it was used before. Signed anew, by a second later, it is another one.
        """
        while self._until:
            oldest, until = next(iter(self._until.items()))
            if until > now:
                break
            del self._until[oldest]
        if signed.signature in self._until:
            raise replayed()
        # From now, not from its date: so they end in the order in which they came.
        self._until[signed.signature] = now + GOOD_FOR


def replayed() -> Failure:
    return Failure(
        Kind.REPLAYED,
        "this signature was used before, and each is good for one request: sign it anew (its date"
        " has seconds, so two requests that are alike need one between them)",
    )


def _incomplete(why: str) -> Rejected:
    return Rejected("IncompleteSignatureException", why, status=400)


def _is_date(text: str) -> bool:
    if not _DATE.match(text):
        return False
    try:
        datetime.strptime(text, _FORM).replace(tzinfo=UTC)
    except ValueError:
        return False
    return True


def _gather(headers: Iterable[Header]) -> dict[bytes, list[bytes]]:
    present: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        present.setdefault(bytes(name), []).append(bytes(value))
    return present


def _canonical_path(path: bytes) -> bytes:
    """Return it without empty and dot segments, escaped once more: as all services but S3 do."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    ends = b"/" if kept and path.endswith(b"/") else b""
    return quote(b"/" + b"/".join(kept) + ends, safe="/~").encode()


def _canonical_query(query: bytes) -> bytes:
    pairs = []
    for part in query.split(b"&") if query else ():
        name, _, value = part.partition(b"=")
        pairs.append(tuple(quote(unquote_to_bytes(each), safe="-_.~") for each in (name, value)))
    return "&".join("=".join(pair) for pair in sorted(pairs)).encode()

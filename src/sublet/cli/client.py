"""Talking to the API: one call each, and whatever goes wrong as a `Failure`.

Slow to import, so only commands that call the API import it, when they run.
"""

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote
from uuid import uuid4

import httpx

from sublet.cli.failure import ExitCode, Failure
from sublet.cli.instance import Instance

Document = dict[str, Any]

_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")

# Most answers take milliseconds; an audit of a large ledger takes minutes.
_TIMEOUT: Final = httpx.Timeout(30, connect=5)
_BYTES: Final = "application/octet-stream"
_PATIENT: Final = httpx.Timeout(1800, connect=5)
# Not what cannot connect, where a second try would meet the same; nor what is only slow.
_BROKE_OFF: Final = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class BrokenOff(Failure):
    """A stream that ended in the middle: ask for the rest, or give up."""

    def __init__(self, message: str, *, silent: bool) -> None:
        super().__init__(message, ExitCode.UNREACHABLE)
        self.silent = silent  # nothing came for a while, which need not be a fault


class _Lost(Failure):
    """The connection broke off before the answer: what was asked may have happened."""


class Client:
    """The API of one instance, with one key."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._http = httpx.Client(
            base_url=instance.api_url,
            headers={"Authorization": f"Bearer {instance.key}"},
            verify=_trust(instance.api_url, instance.ca_file),
            timeout=_TIMEOUT,
            trust_env=not instance.here,  # no proxy stands between us and this machine
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: object) -> Document:
        return self._call("GET", path, params=params)

    def get_slow(self, path: str) -> Document:
        return self._call("GET", path, timeout=_PATIENT)

    def items(self, path: str, **params: object) -> list[Document]:
        return items_of(self.get(path, **params))

    def post(self, path: str, body: Document) -> Document:
        """Send what is to happen once: with a name, so that it may be sent again."""
        headers = {"Idempotency-Key": str(uuid4())}
        try:
            return self._call("POST", path, body=body, headers=headers)
        except _Lost:
            return self._call("POST", path, body=body, headers=headers)

    def post_slow(self, path: str, body: Document) -> Document:
        return self._call("POST", path, body=body, timeout=_PATIENT)

    def patch(self, path: str, body: Document) -> Document:
        return self._call("PATCH", path, body=body)

    def put(self, path: str, body: Document) -> Document:
        return self._call("PUT", path, body=body)

    def put_bytes(self, path: str, body: bytes, **params: object) -> Document:
        """Send bytes as they are."""
        return self._call("PUT", path, params=params, content=body, timeout=_PATIENT)

    def delete(self, path: str) -> Document:
        return self._call("DELETE", path)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Document | None = None,
        body: Document | None = None,
        silent_seconds: int = 1800,
    ) -> Iterator[httpx.Response]:
        """Open an answer that comes in pieces, at most `silent_seconds` apart.

        Raises:
            Failure: it was refused, or nothing answered.
            BrokenOff: it began and did not end.
        """
        begun = False
        timeout = httpx.Timeout(silent_seconds, connect=5)
        try:
            with self._http.stream(
                method, path, params=_given(params or {}), json=body, timeout=timeout
            ) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                begun = True
                yield response
        except httpx.TransportError as error:
            if not begun:
                raise self._unreachable(error) from None
            raise BrokenOff(
                f"the stream from {self._where} broke off: {_why(error)}",
                silent=isinstance(error, httpx.ReadTimeout),
            ) from None

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Document | None = None,
        body: Document | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout = _TIMEOUT,
    ) -> Document:
        try:
            response = self._http.request(
                method,
                path,
                params=_given(params or {}),
                json=body,
                content=content,
                headers=headers if content is None else {"Content-Type": _BYTES},
                timeout=timeout,
            )
        except _BROKE_OFF as error:
            raise _Lost(self._not_there(error), ExitCode.UNREACHABLE) from None
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        except httpx.InvalidURL as error:
            raise Failure(f"{self._where} is not a URL: {error}", ExitCode.USAGE) from None
        if not response.is_success:
            raise refusal(response)
        if not response.content:
            return {}
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise _foreign(response)
        return document

    def _unreachable(self, error: httpx.TransportError) -> Failure:
        return Failure(self._not_there(error), ExitCode.UNREACHABLE)

    def _not_there(self, error: httpx.TransportError) -> str:
        return f"Sublet does not answer at {self._where}: {_why(error)}"

    @property
    def _where(self) -> str:
        return self.instance.api_url


def part(name: str) -> str:
    """Return `name` fit to be one part of a path."""
    return quote(name, safe="")


def items_of(document: Document) -> list[Document]:
    items = document.get("items")
    if not isinstance(items, list):
        raise Failure("the answer holds no items: is this the API of Sublet?", ExitCode.UNREACHABLE)
    return items


def refusal(response: httpx.Response) -> Failure:
    """Say in one sentence why the API said no."""
    try:
        document = response.json()
    except ValueError:
        return _foreign(response)
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        again = " (try again)" if error.get("retryable") is True else ""
        return Failure(f"{error['message']}{again}")
    if isinstance(document, dict) and "detail" in document:  # the framework's own errors
        return Failure(f"{response.status_code}: {json.dumps(document['detail'])}")
    return _foreign(response)


def _foreign(response: httpx.Response) -> Failure:
    return Failure(
        f"{response.request.url} answered {response.status_code}, but not as Sublet does",
        ExitCode.UNREACHABLE,
    )


def _given(params: Document) -> Document:
    return {name: value for name, value in params.items() if value is not None}


def _why(error: httpx.TransportError) -> str:
    match error:
        case httpx.ConnectTimeout():
            return "no connection within 5 seconds"
        case httpx.TimeoutException():
            return "no answer in time"
        case _ if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return "its certificate is not trusted; point SUBLET_CA to its CA's file"
        case _:
            return _ERRNO.sub("", str(error)) or type(error).__name__


def _trust(url: str, ca_file: str | None) -> ssl.SSLContext:
    if not url.startswith("https://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and trusts nobody
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Failure(f"cannot use the CA file {ca_file}: {why}", ExitCode.USAGE) from None

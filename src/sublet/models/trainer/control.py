"""What a trainer asks of the control plane; it may be starting anew, so each call is repeated."""

import http.client
import logging
import time
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

log = logging.getLogger(__name__)
T = TypeVar("T")

_SECONDS: Final = 20.0  # for one answer
_AWAY_SECONDS: Final = 120.0  # that it may be away
_PAUSE_SECONDS: Final = 0.3


class Over(Exception):
    """Nobody waits for what this run does: another one trains, or the job has ended."""


class Away(Exception):
    """The control plane does not answer."""


class Control:
    def __init__(self, url: str, secret: str) -> None:
        parts = urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        self._connect = kinds[parts.scheme]
        self._host, self._port, self._path = str(parts.hostname), parts.port, parts.path
        self._headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}

    def get(self, path: str, kind: type[T]) -> T:
        return msgspec.json.decode(self._ask("GET", path, None), type=kind)

    def put(self, path: str, said: msgspec.Struct, *, seconds: float = _AWAY_SECONDS) -> bytes:
        return self._ask("PUT", path, msgspec.json.encode(said), seconds=seconds)

    def _ask(
        self, method: str, path: str, body: bytes | None, *, seconds: float = _AWAY_SECONDS
    ) -> bytes:
        """Return the answer.

        Raises:
            Over: this run is over.
            Away: nobody answered in time.
            ValueError: it is refused.
        """
        until = time.monotonic() + seconds
        while True:
            status, answer = self._once(method, path, body)
            if status == http.client.OK:
                return answer
            if status in (http.client.CONFLICT, http.client.NOT_FOUND):
                raise Over(answer.decode(errors="replace")[:300])
            if 400 <= status < 500:
                raise ValueError(f"{path} is refused: {answer.decode(errors='replace')[:300]}")
            if time.monotonic() > until:
                raise Away
            time.sleep(_PAUSE_SECONDS)

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = self._connect(self._host, self._port, timeout=_SECONDS)
        try:
            connection.request(method, self._path + path, body=body, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 503, b""
        finally:
            connection.close()

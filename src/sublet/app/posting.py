"""Calling addresses that tenants named, and nothing of ours.

An address is resolved once, held to what is public, and that very one is called: a name that
changes between two looks leads nowhere else. Redirects are not followed, and no answer is read.
"""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable
from datetime import datetime
from typing import Final
from urllib.parse import SplitResult

from sublet.leases.webhook import Address, is_public, signature

_ANSWER_SECONDS: Final = 5.0


class Poster:
    """Posts signed JSON."""

    def __init__(
        self,
        *,
        allowed: Callable[[Address], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._tls = tls or ssl.create_default_context()

    def post(self, url: SplitResult, body: bytes, secret: str, *, at: datetime) -> int:
        """Return the status of the answer.

        Raises:
            OSError: it cannot be reached, or is not where it may be.
            http.client.HTTPException: it does not speak http.
        """
        assert url.hostname is not None
        connection = _Pinned(
            url.hostname, url.port or 443, self._address(url.hostname, url.port or 443), self._tls
        )
        try:
            connection.request(
                "POST",
                (url.path or "/") + (f"?{url.query}" if url.query else ""),
                body,
                {
                    "Content-Type": "application/json",
                    "User-Agent": "sublet",
                    "Sublet-Signature": signature(secret, body, at=int(at.timestamp())),
                },
            )
            return connection.getresponse().status
        finally:
            connection.close()

    def _address(self, host: str, port: int) -> str:
        """Return an address of a host, if all that it has may be called.

        Raises:
            OSError: it has none, or one that may not.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(one[4][0]).partition("%")[0] for one in found]
        for address in addresses:
            if not self._allowed(ipaddress.ip_address(address)):
                raise OSError(f"{host} is at {address}, which is no public address")
        return addresses[0]


class _Pinned(http.client.HTTPSConnection):
    """A connection to one address of a host, with the certificate of its name."""

    def __init__(self, host: str, port: int, address: str, tls: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=_ANSWER_SECONDS, context=tls)
        self._address = address
        self._pinned_tls = tls

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), _ANSWER_SECONDS)
        self.sock = self._pinned_tls.wrap_socket(plain, server_hostname=self.host)

"""The node's end of a tunnel: connections to one workload, dialled from the inside out.

Run by a shim as `python -I -S tunnel.py SOCKET`, with the address to dial in SUBLET_TUNNEL_URL and
nothing but the standard library. It keeps one request open to the control plane; when that is
answered, somebody has connected: it is joined to the workload's Unix socket, and the next request
is opened. So no port of the node need be open, and nobody reaches the workload who does not come
through Sublet. It lives no longer than its shim, which ends with the workload.

Each way is one HTTP message that goes on: the request's body up, the answer's body down.
"""

import contextlib
import http.client
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

PIECE: Final = 1 << 16
MOST_AT_ONCE: Final = 16
_AGAIN_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_GONE: Final = frozenset({404, 410})


class Tunnel:
    """One connection through HTTP, both ways at a time."""

    def __init__(
        self, url: str, headers: Mapping[str, str], *, patience_seconds: float | None
    ) -> None:
        """Dial; `answer` waits for the other side.

        Raises:
            OSError: nobody answers there.
        """
        address = urlsplit(url)
        secure = address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(str(address.hostname), address.port, timeout=10)
        connection.putrequest("POST", address.path, skip_accept_encoding=True)
        for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        self._socket = connection.sock
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.settimeout(patience_seconds)
        self._connection = connection

    def said(self, seconds: float) -> bool:
        """Wait so long at most for the other side to say anything."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def answer(self) -> http.client.HTTPResponse:
        """Wait until the other side is there, or there is none.

        Raises:
            OSError, http.client.HTTPException: the connection broke off.
        """
        self._answer = self._connection.getresponse()
        self._socket.settimeout(None)
        return self._answer

    def send(self, data: bytes) -> None:
        self._socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def receive(self) -> bytes:
        """Return what comes; b"" at the end."""
        return self._answer.read1(PIECE)

    def hang_up(self) -> None:
        """Let whoever waits in `receive` hear that this is the end, from any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give it back: for the thread that reads alone, for a reader must not lose its file."""
        self.hang_up()
        self._connection.close()


def join(tunnel: Tunnel, read: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
    """Copy both ways until the far side ends. What `read` gives goes up, in a thread."""

    def up() -> None:
        with contextlib.suppress(OSError):
            while data := read():
                tunnel.send(data)

    threading.Thread(target=up, daemon=True).start()
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        while data := tunnel.receive():
            write(data)


def end(here: socket.socket) -> None:
    """Tell whoever is on the other side that this is the end, although a thread still reads there.

    To close it would not: as long as somebody waits in it, the connection stays.
    """
    with contextlib.suppress(OSError):
        here.shutdown(socket.SHUT_RDWR)


# ---- on the node


def _connect(path: str) -> socket.socket:
    """Connect to the workload's socket.

    It lies where the workload may write. A link in its place must not lead us elsewhere, for we
    may open what it may not: so what is there is opened first, and connected to only as itself.

    Raises:
        OSError: nobody listens, or it is no socket.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no socket")
        there = socket.socket(socket.AF_UNIX)
        try:
            there.connect(f"/proc/self/fd/{descriptor}")
        except OSError:
            there.close()
            raise
        return there
    finally:
        os.close(descriptor)


def _serve(tunnel: Tunnel, path: str, room: threading.Semaphore) -> None:
    with contextlib.closing(tunnel), room:
        try:
            there = _connect(path)
        except OSError:
            return  # nobody listens: who connected sees that it ends at once

        def read() -> bytes:
            data = there.recv(PIECE)
            if not data:
                tunnel.hang_up()
            return data

        with there:
            join(tunnel, read, there.sendall)
            end(there)


def _wait(tunnel: Tunnel) -> http.client.HTTPResponse:
    """Wait for somebody to connect, for as long as our shim lives."""
    shim = os.getppid()
    while not tunnel.said(1.0):
        if os.getppid() != shim:
            sys.exit()
    return tunnel.answer()


def main() -> None:
    url, path = os.environ["SUBLET_TUNNEL_URL"], sys.argv[1]
    room = threading.Semaphore(MOST_AT_ONCE)
    failures = 0
    while True:
        with room:  # no more are let in than can be served
            pass
        try:
            tunnel = Tunnel(url, {}, patience_seconds=10)
            answer = _wait(tunnel)
        except (OSError, http.client.HTTPException):
            answer = None
        if answer is not None and answer.status == http.client.OK:
            failures = 0
            threading.Thread(target=_serve, args=(tunnel, path, room), daemon=True).start()
            continue
        if answer is not None and answer.status in _GONE:
            return
        time.sleep(_AGAIN_SECONDS[min(failures, len(_AGAIN_SECONDS) - 1)])
        failures += 1


if __name__ == "__main__":
    main()

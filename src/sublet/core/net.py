"""Listening sockets, and a clear line when there is none to be had."""

import random
import socket
from pathlib import Path
from typing import Final

from sublet.core.errors import Misconfigured, Unavailable

_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_PORTS: Final = 12_000  # to choose from
_TRIES: Final = 200


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody uses just now, for somebody else to listen on a little later.

    It is not one of those that the machine gives to whoever asks for any, or connects from: one
    of those may be gone again before it is listened on.

    Raises:
        Unavailable: none was found.
    """
    lowest = _lowest_ephemeral()
    for _ in range(_TRIES):
        port = random.randrange(max(1024, lowest - _PORTS), lowest)  # noqa: S311 -- no secret
        try:
            listen(host, port).close()
        except Misconfigured:
            continue
        return port
    raise Unavailable(f"no free port was found on {host}")


def _lowest_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 49_152  # IANA's; what other systems use


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket bound to `host` and `port`.

    Args:
        host: an address of this machine.
        port: 0 takes a free one.
        shared: others of ours may bind it, too, and the kernel spreads connections over them.

    Raises:
        Misconfigured: it is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        why = getattr(error, "strerror", None) or str(error)
        raise Misconfigured(
            f"cannot listen on {host}:{port}: {why}; stop what uses it or choose another port"
        ) from error
    return made

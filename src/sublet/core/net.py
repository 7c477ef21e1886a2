"""Listening sockets, and a clear line when there is none to be had."""

import socket

from sublet.core.errors import Misconfigured


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to `host` and `port`.

    Raises:
        Misconfigured: it is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        why = getattr(error, "strerror", None) or str(error)
        raise Misconfigured(
            f"cannot listen on {host}:{port}: {why}; stop what uses it or choose another port"
        ) from error
    return made

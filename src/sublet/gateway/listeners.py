"""The ports of a gateway: plain http on loopback, and https with its certificate."""

import contextlib
import socket
import ssl
from collections.abc import Iterator

from sublet.core.errors import Misconfigured
from sublet.core.net import listen
from sublet.gateway.settings import LOOPBACK, Settings

Listeners = list[tuple[socket.socket, ssl.SSLContext | None]]


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[Listeners]:
    """Open one worker's listeners, before anything else is touched.

    Raises:
        Misconfigured: a port is taken, or the certificate cannot be used.
    """
    wanted: list[tuple[str, int, ssl.SSLContext | None]] = [(LOOPBACK, settings.http_port, None)]
    if settings.certificate is not None:
        wanted.append((settings.host, settings.https_port, tls(settings)))
    with contextlib.ExitStack() as stack:
        sockets = []
        for host, port, context in wanted:
            listener = listen(host, port, shared=settings.workers > 1)
            sockets.append((stack.enter_context(listener), context))
        yield sockets


def tls(settings: Settings) -> ssl.SSLContext:
    assert settings.certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.private_key)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(
            f"cannot use the certificate {settings.certificate} with the key"
            f" {settings.private_key}: {error}"
        ) from None
    return context

import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest

from sublet.core.certificates import Certificates, ensure

NOW = datetime.now(UTC)  # a handshake compares with the machine's own clock
DAY = timedelta(days=1)


@contextmanager
def serving(certificates: Certificates) -> Iterator[int]:
    """Answer one TLS handshake on a port of the loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        secured.sendall(b"hello")
                except OSError:
                    pass  # the client did not like us

        thread = Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def call(certificates: Certificates, name: str, *, ca: Path | None = None) -> bytes:
    client = ssl.create_default_context(cafile=ca or certificates.ca)
    with (
        serving(certificates) as port,
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
        client.wrap_socket(connection, server_hostname=name) as secured,
    ):
        return secured.recv(5)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "gpu.example", "10.0.0.7"])
def test_a_client_that_trusts_the_ca_trusts_the_server(folder: Path, name: str) -> None:
    certificates = ensure(folder, hosts=["gpu.example", "10.0.0.7", ""], now=NOW)
    assert call(certificates, name) == b"hello"


def test_a_name_that_is_not_ours_and_another_ca_are_refused(folder: Path) -> None:
    certificates = ensure(folder / "ours", hosts=[], now=NOW)
    other = ensure(folder / "other", hosts=[], now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        call(certificates, "bank.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        call(certificates, "localhost", ca=other.ca)


def test_keys_are_for_their_owner_only(folder: Path) -> None:
    certificates = ensure(folder / "tls", hosts=[], now=NOW)
    for key in (certificates.server_key, folder / "tls" / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "tls").stat().st_mode) == 0o700


def contents(certificates: Certificates) -> tuple[bytes, bytes]:
    return certificates.ca.read_bytes(), certificates.server.read_bytes()


@pytest.mark.parametrize(
    ("hosts", "later", "renewed"),
    [
        (["a.example"], 0 * DAY, False),
        (["a.example", "localhost"], 300 * DAY, False),
        (["b.example"], 0 * DAY, True),
        ([], 0 * DAY, True),
        (["a.example"], 380 * DAY, True),
        (["a.example"], 9999 * DAY, True),
    ],
)
def test_the_server_is_renewed_when_it_must_be_and_the_ca_stays(
    folder: Path, hosts: list[str], later: timedelta, renewed: bool
) -> None:
    ca, server = contents(ensure(folder, hosts=["a.example"], now=NOW))
    again = contents(ensure(folder, hosts=hosts, now=NOW + later))
    assert again[0] == ca
    assert (again[1] != server) is renewed


@pytest.mark.parametrize("missing", ["server.pem", "server.key", "ca.pem", "ca.key"])
def test_what_is_missing_is_made(folder: Path, missing: str) -> None:
    ensure(folder, hosts=[], now=NOW)
    (folder / missing).unlink()
    assert call(ensure(folder, hosts=[], now=NOW), "localhost") == b"hello"

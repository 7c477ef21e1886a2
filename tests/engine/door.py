"""What an interactive lease runs in tests, and how a tenant talks to it."""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import httpx

from sublet.engine.tunnel import Tunnel

# Says back what it hears, on the socket that it was given; Perl is on every Debian.
_SCRIPT = """
$SIG{CHLD} = 'IGNORE'; $| = 1;
my $s = IO::Socket::UNIX->new(Local => $ENV{SUBLET_SOCKET}, Listen => 9) or die $!;
print "up\n";
for (;;) {
    my $c = $s->accept or next;
    next if fork;
    while (sysread($c, my $b, 65536)) { syswrite($c, $b) }
    exit;
}
"""
ECHO = ("perl", "-MIO::Socket::UNIX", "-e", _SCRIPT)


def talk(url: str, key: str, lease: str, text: bytes) -> bytes:
    """Connect to a lease, say `text`, and return as many bytes as were said back."""
    tunnel = Tunnel(
        f"{url}/v1/leases/{lease}/connect", {"Authorization": f"Bearer {key}"}, patience_seconds=30
    )
    with contextlib.closing(tunnel):
        assert tunnel.answer().status == 200
        # Beside each other: what is not read fills up the way.
        said = threading.Thread(target=tunnel.send, args=(text,))
        said.start()
        heard = b""
        while len(heard) < len(text) and (more := tunnel.receive()):
            heard += more
        said.join()
        return heard


def refused(url: str, key: str, lease: str) -> tuple[int, str]:
    answer = httpx.post(
        f"{url}/v1/leases/{lease}/connect", headers={"Authorization": f"Bearer {key}"}, timeout=120
    )
    return answer.status_code, str(answer.json()["error"]["message"])


def speaks(command: list[str], environment: dict[str, str], text: bytes) -> bytes:
    """Use `sublet lease connect` as ssh uses a ProxyCommand."""
    with started(command, environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text)
        process.stdin.flush()
        heard = b""
        while len(heard) < len(text) and (more := os.read(process.stdout.fileno(), 1 << 16)):
            heard += more
        return heard


def speaks_to_port(command: list[str], environment: dict[str, str], text: bytes) -> bytes:
    """Use `sublet lease connect --listen 0` as a browser does."""
    with started(command, environment) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(b":")[2])  # http://127.0.0.1:…
        with socket.create_connection(("127.0.0.1", port), timeout=120) as there:
            there.sendall(text)
            heard = b""
            while len(heard) < len(text) and (more := there.recv(1 << 16)):
                heard += more
        return heard


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, and kill it in the end, also where the test has failed."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()

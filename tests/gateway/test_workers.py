"""Several worker processes on the same ports: they share the load, and one dying harms no other."""

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from tests.gateway.reader import Reader
from tests.gateway.samples import samples
from tests.gateway.stage import INPUT, OUTPUT, Gateway, Stage, eventually, says

from sublet.core import certificates
from sublet.core.net import free_port
from sublet.tenants import store as tenants

BOTH: Final = {"test", "test.1"}


def children(gateway: Gateway) -> list[int]:
    pid = gateway.process.pid
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def holders(stage: Stage) -> set[str]:
    with stage.db.transaction() as tx:
        rows = tx.execute("SELECT holder FROM open_hold").fetchall()
    return {row["holder"].split(":")[1] for row in rows}


def ask_until_both_hold(stage: Stage, key: str) -> int:
    """Ask over ever new connections until both workers have held money; say how often."""
    asked = 0

    def both() -> bool:
        nonlocal asked
        assert stage.post(key, messages=says(tokens=1), max_tokens=1).status_code == 200
        asked += 1
        return holders(stage) == BOTH

    eventually(both, seconds=60)
    return asked


def test_workers_share_a_port_and_one_that_dies_is_started_again(own_stage: Stage) -> None:
    gateway = own_stage.start(workers=2, purse_seconds=60)
    tenant, key = own_stage.tenant(10**12)
    asked = ask_until_both_hold(own_stage, key)

    def restarted(dead: list[int]) -> bool:
        now = children(gateway)
        return len(now) == 2 and not set(dead) & set(now)

    before = children(gateway)
    for number, dead in enumerate(before, start=1):
        os.kill(dead, signal.SIGKILL)
        eventually(partial(restarted, before[:number]))
        asked += ask_until_both_hold(own_stage, key)
    own_stage.paid(tenant, asked * (INPUT + OUTPUT))
    assert gateway.stop() == 0
    assert holders(own_stage) == set()
    own_stage.check_books()
    assert not list(own_stage.folder.rglob("*.spool"))


def test_what_a_worker_left_is_taken_over_when_there_are_fewer(own_stage: Stage) -> None:
    gateway = own_stage.start(workers=2, purse_seconds=60)
    tenant, key = own_stage.tenant(10**12)
    asked = ask_until_both_hold(own_stage, key)
    gateway.kill()  # its workers go with it
    own_stage.start()
    assert holders(own_stage) == set()
    own_stage.paid(tenant, asked * (INPUT + OUTPUT))
    own_stage.check_books()
    spools = own_stage.folder / "spool"
    assert {path.name for path in spools.iterdir()} == {"test", ".purchases"}
    assert [path.name for path in (spools / ".purchases").iterdir()] == ["test"]


def test_workers_that_cannot_start_say_why_once_and_are_not_tried_again(own_stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gateway = own_stage.start(http_port=taken.getsockname()[1], workers=2, wait=False)
        assert gateway.process.wait(120) == 2
    assert "cannot listen" in gateway.log.read_text()
    first = own_stage.start()
    second = own_stage.start(workers=2, wait=False)
    assert second.process.wait(180) == 2
    assert "another gateway" in second.log.read_text()
    assert first.stop() == 0


# ── what is one gateway's, whichever worker does it ──────────────────────────────────────


def test_one_scrape_shows_what_all_workers_counted_and_none_of_it_is_lost(
    own_stage: Stage,
) -> None:
    gateway = own_stage.start(workers=2, purse_seconds=60)
    _, key = own_stage.tenant(10**12)
    with own_stage.db.transaction() as tx:
        _, operator = tenants.create_key(tx, None, "operator", now=datetime.now(UTC))

    def scrape() -> dict[str, float]:
        headers = {"authorization": f"Bearer {operator}"}
        return samples(httpx.get(f"{gateway.url}/metrics", headers=headers).text)

    def served() -> set[float]:
        name = 'sublet_gateway_requests_total{model="fake",outcome="completed"}'
        return {scrape()[name] for _ in range(12)}  # each by a connection of its own

    asked = ask_until_both_hold(own_stage, key)
    assert served() == {asked}
    eventually(lambda: scrape()["sublet_gateway_workers{}"] == 2)
    eventually(lambda: scrape()["sublet_gateway_held_nanos{}"] > 0)
    before = children(gateway)
    os.kill(before[1], signal.SIGKILL)
    assert served() == {asked}, "what the dead one counted stays"
    eventually(lambda: len(children(gateway)) == 2 and before[1] not in children(gateway))
    asked += ask_until_both_hold(own_stage, key)
    assert served() == {asked}
    found = scrape()
    assert found['sublet_gateway_tokens_total{model="fake",kind="output"}'] == asked
    assert found["sublet_gateway_running{}"] == 0
    assert gateway.stop() == 0


def test_told_to_stop_all_workers_let_their_streams_end_and_take_no_more(own_stage: Stage) -> None:
    gateway = own_stage.start(workers=2, purse_seconds=60)
    readers: list[Reader] = []
    paying = []
    while not readers or holders(own_stage) != BOTH:
        assert len(readers) < 20
        tenant, key = own_stage.tenant()
        paying.append(tenant)
        readers.append(Reader(own_stage, key, tokens=300, delay_ms=10))
    gateway.process.send_signal(signal.SIGTERM)

    def refuses() -> bool:
        try:
            return httpx.get(f"{gateway.url}/healthz").status_code == 503
        except httpx.TransportError:
            return True

    eventually(refuses)
    assert gateway.process.wait(120) == 0
    for reader in readers:
        reader.join()
        assert reader.error is None
        assert "".join(reader.texts) == "tok " * 300
    for tenant in paying:
        own_stage.paid(tenant, INPUT + 300 * OUTPUT)
    assert holders(own_stage) == set()
    own_stage.check_books()
    assert not list(own_stage.folder.rglob("*.spool"))


def test_every_worker_goes_by_its_file_and_certificate_as_they_are_now(
    own_stage: Stage, folder: Path
) -> None:
    file = folder / "gateway.toml"
    file.write_text("requests_per_minute = 50")
    made = certificates.ensure(folder / "tls", hosts=[], now=datetime.now(UTC))
    port = free_port()
    gateway = own_stage.start(
        workers=2, tuning=str(file), https_port=port,
        certificate=str(made.server), private_key=str(made.server_key),
    )  # fmt: skip
    _, key = own_stage.tenant()

    def limit() -> str:
        listed = httpx.get(f"{gateway.url}/v1/models", headers={"x-api-key": key})
        return str(listed.headers["x-ratelimit-limit-requests"])

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", port))

    def both_say(event: str) -> bool:
        return gateway.log.read_text().count(event) == 2

    assert {limit() for _ in range(8)} == {"50"}
    file.write_text("requests_per_minute = 5000\n")
    eventually(lambda: both_say("gateway.tuned"))
    assert {limit() for _ in range(12)} == {"5000"}
    old = {shown() for _ in range(8)}
    other = certificates.ensure(folder / "other", hosts=[], now=datetime.now(UTC))
    other.server_key.replace(made.server_key)
    other.server.replace(made.server)
    eventually(lambda: both_say("gateway.certificate_renewed"))
    new = {shown() for _ in range(12)}
    assert len(old) == len(new) == 1
    assert old != new
    assert gateway.stop() == 0


def test_slow_heads_and_huge_bodies_are_cut_off_and_hold_nobody_up(own_stage: Stage) -> None:
    gateway = own_stage.start(workers=2)
    tenant, key = own_stage.tenant()
    host, port = gateway.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(60)]
        began = time.monotonic()
        ends: list[float] = []

        def trickle(one: socket.socket) -> None:
            one.settimeout(0.5)
            with contextlib.suppress(ConnectionError):
                one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nx-a: ")
                while time.monotonic() < began + 60:
                    one.sendall(b"a")
                    with contextlib.suppress(TimeoutError):
                        assert one.recv(4096).startswith((b"HTTP/1.1 408 ", b""))
                        break
            ends.append(time.monotonic() - began)

        threads = [threading.Thread(target=trickle, args=[one]) for one in slow]
        for thread in threads:
            thread.start()
        memory = sum(map(memory_of, children(gateway)))
        for _ in range(4):
            huge_body(host, int(port), key)
        assert sum(map(memory_of, children(gateway))) - memory < 80_000_000
        for _ in range(8):
            assert own_stage.post(key, messages=says(tokens=1)).status_code == 200
        assert not ends, "they were still there all the while"
        for thread in threads:
            thread.join()
    assert len(ends) == 60
    assert max(ends) < 40, "cut off after 15 seconds, however busy the machine is"
    own_stage.paid(tenant, 8 * (INPUT + OUTPUT))
    assert gateway.stop() == 0


def memory_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def huge_body(host: str, port: int, key: str) -> None:
    """Send a hundred megabytes, as far as they are taken; the answer says that it is too much."""
    size, part = 100_000_000, b"x" * 1_000_000
    with socket.create_connection((host, port), timeout=120) as one:
        one.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
            + key.encode() + b"\r\ncontent-length: %d\r\n\r\n" % size
        )  # fmt: skip
        answer, sent = b"", 0
        with contextlib.suppress(ConnectionError):
            while sent < size:
                one.sendall(part)
                sent += len(part)
        with contextlib.suppress(ConnectionError):
            while more := one.recv(65536):
                answer += more
    assert not answer or answer.startswith(b"HTTP/1.1 413 ")
    assert sent < size or answer

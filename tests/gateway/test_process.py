"""The process: how it starts, how it ends, and what is left after it was killed."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from openai import APIError
from tests.gateway.reader import Reader
from tests.gateway.stage import (
    INPUT,
    MODEL,
    OUTPUT,
    Stage,
    eventually,
    raised,
    says,
)

from sublet.core import certificates
from sublet.core.clock import SystemClock
from sublet.core.db import Database
from sublet.core.migrations import migrate
from sublet.core.net import free_port
from sublet.core.postgres import Postgres


def test_killed_in_the_middle_it_leaks_no_hold_and_charges_nothing_twice(
    own_stage: Stage,
) -> None:
    gateway = own_stage.start()
    tenant, key = own_stage.tenant()
    assert own_stage.post(key, messages=says(tokens=2)).status_code == 200
    readers = [Reader(own_stage, key, tokens=1000, delay_ms=5) for _ in range(4)]
    assert own_stage.open_holds() == 1
    gateway.kill()
    for reader in readers:
        reader.join()
        assert reader.error is not None
    assert own_stage.wallet(tenant).debits_pending > 0
    own_stage.start()
    own_stage.check_books()
    assert own_stage.wallet(tenant).debits_pending == 0
    own_stage.paid(tenant, INPUT + 2 * OUTPUT)
    assert own_stage.post(key, messages=says(tokens=2)).status_code == 200
    own_stage.paid(tenant, 2 * (INPUT + 2 * OUTPUT))


def test_a_name_has_one_process_and_holds_of_other_names_are_left_alone(
    own_stage: Stage,
) -> None:
    own_stage.start()
    tenant, key = own_stage.tenant()
    reader = Reader(own_stage, key, tokens=150, delay_ms=20)
    other = own_stage.start(name="test-2", wait=False)
    same = own_stage.start(wait=False)
    assert same.process.wait(120) == 2
    (line,) = same.log.read_text().splitlines()
    assert line.startswith("another gateway named 'test' is running")
    eventually(lambda: "gateway.started" in other.log.read_text())
    assert other.stop() == 0
    reader.join()
    assert reader.error is None
    own_stage.paid(tenant, INPUT + 150 * OUTPUT)
    own_stage.check_books()


def test_a_taken_port_is_one_clear_line(own_stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = own_stage.start(http_port=port, wait=False)
        assert gateway.process.wait(120) == 2
    (line,) = gateway.log.read_text().splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line


def test_told_to_stop_it_lets_streams_end(own_stage: Stage) -> None:
    gateway = own_stage.start()
    tenant, key = own_stage.tenant()
    reader = Reader(own_stage, key, tokens=60, delay_ms=20)
    assert gateway.stop() == 0
    reader.join()
    assert reader.error is None
    assert "".join(reader.texts) == "tok " * 60
    own_stage.paid(tenant, INPUT + 60 * OUTPUT)
    own_stage.check_books()


def test_what_does_not_end_in_time_is_cut_with_an_error_and_settled(own_stage: Stage) -> None:
    gateway = own_stage.start(drain_seconds=0.3)
    tenant, key = own_stage.tenant()
    reader = Reader(own_stage, key, tokens=4000, delay_ms=5)
    assert gateway.stop() == 0
    reader.join()
    assert isinstance(reader.error, APIError)
    assert reader.error.code == "stopping"
    usage = own_stage.usage(tenant)
    delivered = sum(map(bool, reader.texts))
    assert (usage["outcome"], usage["output_tokens"]) == ("failed", delivered)
    own_stage.paid(tenant, INPUT + delivered * OUTPUT)
    own_stage.check_books()


def test_a_client_that_does_not_read_fills_no_memory_and_holds_nothing_up(
    own_stage: Stage,
) -> None:
    gateway = own_stage.start(drain_seconds=0.3)
    tenant, key = own_stage.tenant()
    before = gateway.memory_bytes()
    host, port = gateway.url.removeprefix("http://").split(":")
    body = json.dumps(
        {"model": MODEL, "stream": True, "messages": says(tokens=2000, text="x" * 60_000)}
    ).encode()
    with socket.create_connection((host, int(port))) as one:
        one.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
            + f"{key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert one.recv(1) == b"H"
        # It generates until every buffer on the way is full, then waits for the client.
        generated = [-1, 0]
        while generated[-1] != generated[-2]:
            threading.Event().wait(0.3)
            generated.append(own_stage.generated())
        assert 0 < generated[-1] < 2000
        assert gateway.memory_bytes() - before < 30_000_000
        assert gateway.stop() == 0
    usage = own_stage.usage(tenant)
    assert usage["outcome"] == "failed"
    assert 0 < usage["output_tokens"] <= generated[-1]
    own_stage.check_books()


def test_https_shows_the_given_certificate(own_stage: Stage) -> None:
    made = certificates.ensure(own_stage.folder / "tls", hosts=[], now=datetime.now(UTC))
    port = free_port()
    own_stage.start(https_port=port, certificate=str(made.server), private_key=str(made.server_key))
    _, key = own_stage.tenant()
    trusted = ssl.create_default_context(cafile=made.ca)
    with httpx.Client(verify=trusted, base_url=f"https://127.0.0.1:{port}") as client:
        assert client.get("/healthz").status_code == 200
        answer = client.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": says(tokens=2)},
            headers={"authorization": f"Bearer {key}"},
        )
        assert answer.json()["usage"]["completion_tokens"] == 2
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://127.0.0.1:{port}/healthz")


def test_a_bad_certificate_is_one_clear_line(own_stage: Stage) -> None:
    nowhere = str(own_stage.folder / "nowhere.pem")
    gateway = own_stage.start(certificate=nowhere, private_key=nowhere, wait=False)
    assert gateway.process.wait(120) == 2
    (line,) = gateway.log.read_text().splitlines()
    assert "cannot use the certificate" in line


@pytest.fixture
def own_postgres(folder: Path) -> Iterator[Postgres]:
    server = Postgres(folder / "postgres")
    server.start()
    yield server
    server.stop()


def test_while_postgres_is_away_streams_end_and_are_settled_later(
    own_postgres: Postgres, folder: Path
) -> None:
    with Database(own_postgres.url) as db:
        migrate(db, clock=SystemClock())
    with raised(own_postgres.url, folder) as stage:
        gateway = stage.start()
        tenant, key = stage.tenant()
        reader = Reader(stage, key, tokens=40, delay_ms=20)
        own_postgres.stop()
        refused = stage.post(key, messages=says(tokens=1))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "unavailable"
        assert refused.headers["x-should-retry"] == "true"
        reader.join()
        assert reader.error is None
        assert "".join(reader.texts) == "tok " * 40
        own_postgres.start()
        eventually(lambda: bool(stage.usages(tenant)), seconds=20)
        stage.paid(tenant, INPUT + 40 * OUTPUT)
        eventually(lambda: stage.post(key, messages=says(tokens=1)).status_code == 200)
        stage.check_books()
        assert gateway.stop() == 0


@pytest.mark.parametrize("killed", [False, True])
def test_cut_off_it_serves_on_what_it_holds_and_loses_nothing(
    own_postgres: Postgres, folder: Path, *, killed: bool
) -> None:
    each = INPUT + OUTPUT
    with Database(own_postgres.url) as db:
        migrate(db, clock=SystemClock())
    with raised(own_postgres.url, folder) as stage:
        gateway = stage.start()
        tenant, key = stage.tenant(10**10)
        with httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=120) as client:

            def ask() -> httpx.Response:
                body = {"model": MODEL, "messages": says(tokens=1), "max_tokens": 1}
                return client.post(f"{stage.url}/v1/chat/completions", json=body)

            served = sum(ask().status_code == 200 for _ in range(8))
            assert served == 8
            own_postgres.stop()
            while (answer := ask()).status_code == 200:
                served += 1
        assert served > 12, "it has money for more than it was asked"
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unavailable"
        assert "does not answer" in answer.json()["error"]["message"]
        if killed:
            gateway.kill()  # what it used is on its disk only
        own_postgres.start()
        if killed:
            gateway = stage.start()
        stage.paid(tenant, served * each)
        assert len(stage.usages(tenant)) == served
        stage.check_books()
        assert gateway.stop() == 0
        assert not list(stage.folder.rglob("*.spool"))


def test_with_a_full_disk_it_serves_on_and_loses_nothing(own_stage: Stage) -> None:
    # No byte can be written to any file: what its disk does not take goes to the ledger at once.
    gateway = own_stage.start(file_bytes=0)
    tenant, key = own_stage.tenant()
    for _ in range(3):
        assert own_stage.post(key, messages=says(tokens=1), max_tokens=1).status_code == 200
    own_stage.paid(tenant, 3 * (INPUT + OUTPUT))
    own_stage.check_books()
    gateway.kill()
    own_stage.start()
    own_stage.check_books()
    own_stage.paid(tenant, 3 * (INPUT + OUTPUT))

"""The disk under a whole Sublet is full, or read-only: it waits, says so, and loses nothing."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from tests.e2e.instance import SUBLET, Instance, until
from tests.faults.disk import BrittleDisk, Disk, brittle_disk, small_disk

from sublet.core.postgres import Postgres

pytestmark = pytest.mark.e2e
LOOP = ["sh", "-c", "while :; do sleep 0.1; done"]
CENT = Decimal("0.01")


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    with small_disk(folder / "disk", megabytes=160) as made:
        yield made


@pytest.fixture
def instance(disk: Disk, folder: Path) -> Iterator[Instance]:
    # What it says is kept where there is room: it is read.
    made = Instance(disk.root / "data", arguments=("--no-model",), log=folder / "up.log")
    try:
        yield made.start()
    finally:
        disk.empty()
        made.clean_up()


def pay_in(instance: Instance, tenant_id: str) -> int:
    """Pay in a cent; return the status, 0 when nobody answered."""
    try:
        return instance.api(
            "POST", f"/v1/tenants/{tenant_id}/credits", {"amount_usd": str(CENT)}
        ).status_code
    except httpx.HTTPError:
        return 0


def use_up_the_log(connection: psycopg.Connection[Any]) -> None:
    while True:
        connection.execute("SELECT pg_logical_emit_message(false, 'x', 'x')")
        connection.execute("SELECT pg_switch_wal()")


def test_a_full_disk_is_waited_for_and_nothing_is_lost(disk: Disk, instance: Instance) -> None:
    tenant_id, key = instance.tenant("full", usd="1")
    lease = instance.lease(key, command=LOOP, max_seconds=600)
    instance.await_lease(lease["id"], "running")
    # Now: to whoever comes when the disk is full, PostgreSQL may not even say hello.
    log = psycopg.connect(Postgres(instance.data / "postgres").url, autocommit=True)
    disk.fill()
    paid: list[int] = []
    # Until PostgreSQL has no room for its tables, payments go on; then they are refused.
    until(lambda: paid.append(pay_in(instance, tenant_id)) or paid.count(503) >= 5)
    assert set(paid) <= {200, 503, 0}, paid
    refused = instance.api("POST", f"/v1/tenants/{tenant_id}/credits", {"amount_usd": str(CENT)})
    assert "No space left on device" in refused.json()["error"]["message"]
    # Then it has none for its log either, gives up, and cannot be started again.
    before = instance.pid_of("postgres")
    with contextlib.closing(log), pytest.raises(psycopg.OperationalError):
        use_up_the_log(log)

    def gave_up() -> bool:
        disk.fill()  # should it have found room to start again, that is used up, too
        return "trying again" in instance.output()

    until(gave_up)
    said = instance.output()
    assert "PostgreSQL did not start" in said and str(instance.data / "postgres") in said
    paid.append(pay_in(instance, tenant_id))
    assert instance.process is not None and instance.process.poll() is None
    disk.empty()
    until(lambda: pay_in(instance, tenant_id) == 200, what="the database")
    paid.append(200)
    assert instance.process.poll() is None and instance.pid_of("postgres") != before

    instance.api("DELETE", f"/v1/leases/{lease['id']}", key=key)
    ended = instance.await_lease(lease["id"], "ended")
    assert ended["end_reason"] in {"released", "credit_exhausted"}
    until(lambda: Decimal(instance.wallet(key)["held_usd"]) == 0, what="the hold's return")
    statement = instance.api("GET", "/v1/statement?limit=1000", key=key).json()["items"]
    payments = [row for row in statement if Decimal(row["amount_usd"]) == CENT]
    # Each that was acknowledged is there. One of which nobody heard may be.
    assert paid.count(200) <= len(payments) <= len(paid)
    instance.verify()


def test_a_read_only_disk_is_refused_with_a_word_and_taken_once_it_is_not(
    disk: Disk, instance: Instance
) -> None:
    tenant_id, key = instance.tenant("read only", usd="1")
    assert instance.stop() == 0
    with disk.read_only():
        began = time.monotonic()
        refused = subprocess.run(
            [SUBLET, "up", *instance.options(), *instance.arguments],
            env=instance.environment(), capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert time.monotonic() < began + 60
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "Read-only file system" in line and str(instance.data) in line
    instance.start()
    assert Decimal(instance.wallet(key)["balance_usd"]) == 1
    assert pay_in(instance, tenant_id) == 200
    instance.verify()


@pytest.fixture
def brittle(folder: Path) -> Iterator[BrittleDisk]:
    with brittle_disk(folder, megabytes=400) as made:
        yield made


@pytest.fixture
def upon_it(brittle: BrittleDisk, folder: Path) -> Iterator[Instance]:
    made = Instance(brittle.root / "data", arguments=("--no-model",), log=folder / "up.log")
    try:
        yield made.start()
    finally:
        made.clean_up()


def test_a_disk_that_turns_read_only_in_the_middle_is_told_and_loses_nothing(
    brittle: BrittleDisk, upon_it: Instance
) -> None:
    instance = upon_it
    tenant_id, key = instance.tenant("brittle", usd="1")
    lease = instance.lease(key, command=LOOP, max_seconds=600)
    instance.await_lease(lease["id"], "running")
    paid = [pay_in(instance, tenant_id) for _ in range(5)]
    assert paid == [200] * 5
    brittle.break_down()
    until(lambda: paid.append(pay_in(instance, tenant_id)) or paid.count(503) >= 3)
    assert 200 not in paid[5:], "nothing can be kept any more, so nothing is said to be"
    until(lambda: "trying again" in instance.output())
    assert "Read-only file system" in instance.output()
    assert instance.process is not None and instance.process.poll() is None
    refused = instance.api("POST", "/v1/leases", {"command": LOOP, "max_seconds": 60}, key=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    instance.kill()
    for pid in instance.processes():  # the workload's, too: the machine is switched off
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not instance.processes(), what="the machine's end")
    brittle.repair()
    instance.start()
    ended = instance.await_lease(lease["id"], "ended")
    assert ended["end_reason"] == "node_lost"
    until(lambda: Decimal(instance.wallet(key)["held_usd"]) == 0, what="the hold's return")
    statement = instance.api("GET", "/v1/statement?limit=1000", key=key).json()["items"]
    payments = [row for row in statement if Decimal(row["amount_usd"]) == CENT]
    assert 5 <= len(payments) <= len(paid)
    instance.verify()

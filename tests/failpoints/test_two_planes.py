"""Two control planes on one database: one leads, and the other takes over when it must."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.failpoints.plane import Plane, runs
from tests.failpoints.test_control import LOOP, Tenant, await_state, tenant

from sublet.core.process import wait_for as poll


def begin(plane: Plane) -> tuple[Tenant, str, dict[str, Any]]:
    """Let a lease run."""
    rich = tenant(plane, "rich", "1")
    lease = rich.lease(LOOP)
    return rich, lease, await_state(plane, lease, "running")


def standby(plane: Plane) -> int:
    pid = plane.start_another()
    plane.until(lambda: plane.said("control.waits_for_engine"))
    return pid


def wait_for(plane: Plane, what: Callable[[], object]) -> None:
    """Wait without starting anybody again."""
    assert poll(lambda: bool(what()), wait_seconds=120), plane.log()[-3000:]


def end(plane: Plane, rich: Tenant, lease: str, running: dict[str, Any]) -> None:
    """The lease goes on under whoever leads, is paid on, and ends as ever."""
    shown = plane.call("GET", f"/v1/leases/{lease}")
    assert (shown["state"], shown["running_at"]) == ("running", running["running_at"])
    plane.until(
        lambda: plane.call("GET", f"/v1/leases/{lease}")["paid_until"] > shown["paid_until"]
    )
    plane.call("DELETE", f"/v1/leases/{lease}", key=rich.key)
    assert await_state(plane, lease, "ended")["end_reason"] == "released"
    plane.until(lambda: float(rich.wallet()["held_usd"]) == 0)
    plane.check(later=timedelta(minutes=1))


def test_the_second_waits_and_takes_over_when_the_first_dies(control: Plane) -> None:
    rich, lease, running = begin(control)
    second = standby(control)
    assert len(control.said("control.leads")) == 1
    os.kill(control.pid, signal.SIGKILL)
    wait_for(control, lambda: len(control.said("control.leads")) == 2)
    control.follow(second)
    end(control, rich, lease, running)
    assert control.deaths == []


def test_one_that_stands_still_in_a_transaction_is_deposed_and_undone(control: Plane) -> None:
    rich, lease, running = begin(control)
    first, second = control.pid, standby(control)
    control.plan("leases.advancing.pay_ahead.before_commit pause")
    wait_for(control, lambda: len(control.said("control.leads")) == 2)
    assert "leases.advancing.pay_ahead.before_commit pause" in control.fired()
    wait_for(control, lambda: not runs(first))
    (deposed,) = control.said("control.deposes")
    assert deposed["connections_ended"] >= 2
    assert [event["pid"] for event in control.said("control.killed")] == [first]
    control.follow(second)
    end(control, rich, lease, running)


def test_one_that_was_asleep_for_a_moment_leads_on(control: Plane) -> None:
    rich, lease, running = begin(control)
    standby(control)
    os.kill(control.pid, signal.SIGSTOP)
    waits = len(control.said("control.waits"))
    wait_for(control, lambda: len(control.said("control.waits")) >= max(waits, 1))
    os.kill(control.pid, signal.SIGCONT)
    end(control, rich, lease, running)
    assert len(control.said("control.leads")) == 1
    assert control.said("control.deposes") == []


def test_whoever_takes_over_may_die_at_it(control: Plane) -> None:
    rich, lease, running = begin(control)
    first = control.pid
    doomed = control.start_another(SUBLET_FAILPOINTS=str(control.points))
    control.until(lambda: control.said("control.waits_for_engine"))
    control.plan("control.depose.counted kill")
    os.kill(first, signal.SIGSTOP)
    wait_for(control, lambda: not runs(doomed))
    # The first wakes, and finds that it was deposed: it counts up again, as if it were new.
    os.kill(first, signal.SIGCONT)
    wait_for(control, lambda: len(control.said("control.leads")) == 2)
    assert len(control.said("control.deposed")) == 1
    end(control, rich, lease, running)


def test_one_with_another_engine_is_refused(control: Plane, folder: Path) -> None:
    begin(control)
    other = folder / "elsewhere"
    other.mkdir()
    for killed in (False, True):
        if killed:
            os.kill(control.pid, signal.SIGKILL)
        pid = control.start_another(SUBLET_DATA=str(other))
        wait_for(control, lambda pid=pid: not runs(pid))
    refusals = [line for line in control.log().splitlines() if line.startswith("sublet: ")]
    assert len(refusals) == 2
    assert f"{folder}/engine leads this database" in refusals[0]
    assert "may run on" in refusals[1] and f"{folder}/engine until" in refusals[1]

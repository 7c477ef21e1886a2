"""Every step of money in the gateway has a name, and may be its last.

As in `test_control.py`: requests of all kinds are served first with nothing armed but one
death, so that there is something to recover; that lists the steps. Then the same with a death
at each of them, or a connection lost around each COMMIT.
"""

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.core.databases import fresh_url
from tests.failpoints.plane import Plane, Zygote, plane
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, raised, says

from sublet.app.leadership import Leadership
from sublet.core.clock import SystemClock
from sublet.core.ids import new_id
from sublet.core.process import wait_for
from sublet.tenants import limits
from sublet.tenants.limit import LimitKind, Standing
from sublet.tenants.tenant import Role, Tenant

TOKENS = 6
EACH = INPUT + TOKENS * OUTPUT  # nanos of one whole request
TIMES = 3


@dataclass(slots=True)
class Customer:
    """Asks until it gets an answer, each time anew, as an SDK does that retries."""

    plane: Plane
    key: str
    answered: set[str] = field(default_factory=set)  # the requests whose answer came whole
    broken: int = 0

    def ask(self, *, stream: bool = False, leave: bool = False) -> int:
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": says(tokens=TOKENS, delay_ms=2),
            "max_tokens": TOKENS,
            "stream": stream,
        }
        headers = {"authorization": f"Bearer {self.key}"}
        url = f"{self.plane.url}/v1/chat/completions"
        status = 0

        def done() -> bool:
            nonlocal status
            try:
                with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as answer:
                    status = answer.status_code
                    if leave:
                        return status == 200 and any(answer.iter_raw())
                    text = "".join(answer.iter_text())
            except httpx.TransportError:
                self.broken += 1
                return False
            if (status == 200 and not stream) or "[DONE]" in text:
                self.answered.add(answer.headers["x-request-id"])
                return True
            return status == 402

        self.plane.until(done)
        return status


@dataclass(slots=True)
class Town:
    plane: Plane
    stage: Stage

    def live(self) -> None:
        """Serve requests of every kind, and look at the whole of it in the end."""
        plane, stage = self.plane, self.stage
        rich, key = stage.tenant(10**12)
        with stage.db.transaction() as tx:
            limits.set_limit(
                tx, rich.id, None, LimitKind.MONTH, 10**12, by=Role.OPERATOR, now=datetime.now(UTC)
            )
        customer = Customer(plane, key)
        for number in range(TIMES):
            assert customer.ask(stream=bool(number % 2)) == 200
        while not self.budget(rich).spent_nanos:  # until the gateway goes by it
            assert customer.ask() == 200
        customer.ask(stream=True, leave=True)
        with ThreadPoolExecutor(4) as threads:
            # Those only ask: whoever starts the gateway again is one, and it is not they.
            crowd = [Customer(Asked(plane), key) for _ in range(4)]  # type: ignore[arg-type]
            asked = [threads.submit(one.ask, stream=True) for one in crowd]
            plane.until(lambda: all(one.done() for one in asked))
            assert [one.result() for one in asked] == [200] * 4
        poor, key = stage.tenant(2 * EACH)
        beggar = Customer(plane, key)
        while beggar.ask() != 402:
            pass
        plane.until(lambda: stage.open_holds() == 0)  # what is idle is returned

        plane.check()
        answered = customer.answered.union(*(one.answered for one in crowd))
        broken = customer.broken + sum(one.broken for one in crowd)
        charged = {usage["request_id"] for usage in stage.usages(rich)}
        # Whoever saw the end of an answer has paid for it; who paid and did not, was cut off.
        assert answered <= charged
        assert len(charged - answered) <= broken + 1  # and the one that left
        assert len(stage.usages(rich)) == len(charged)
        # What a budget holds is returned or spent, whoever died, and nothing is spent twice.
        plane.until(lambda: not self.budget(rich).held_nanos)
        assert 0 < self.budget(rich).spent_nanos <= stage.wallet(rich).debits_posted
        wallet = stage.wallet(poor)
        assert (wallet.balance.nanos, wallet.held.nanos) == (0, 0)
        assert len(beggar.answered) <= 2 == len(stage.usages(poor))
        if not plane.deaths:
            assert len(beggar.answered) == 2

    def budget(self, tenant: Tenant) -> Standing:
        with self.stage.db.transaction() as tx:
            ((_, found),) = limits.list_limits(tx, tenant.id, now=datetime.now(UTC))
        return found

    def leave_something_held(self) -> None:
        _, key = self.stage.tenant(10**12)
        customer = Customer(self.plane, key)

        def held() -> bool:
            customer.ask()
            return self.stage.open_holds() > 0

        self.plane.until(held)


@dataclass(slots=True)
class Asked:
    """A plane for those who may not start it."""

    plane: Plane

    @property
    def url(self) -> str:
        return self.plane.url

    def until(self, what: Any) -> None:
        assert wait_for(what, wait_seconds=90)


@contextmanager
def town(zygote: Zygote, database_url: str, folder: Path) -> Iterator[Town]:
    with (
        raised(database_url, folder) as stage,
        plane(zygote, database_url, folder, part="gateway") as gateway,
    ):
        yield Town(gateway, stage)


@pytest.fixture
def own(zygote: Zygote, database_url: str, folder: Path) -> Iterator[Town]:
    with town(zygote, database_url, folder) as made:
        yield made


def test_a_gateway_goes_by_the_clock_of_the_control_plane_beside_it(own: Town) -> None:
    """Started after the machine's clock was put back, its holds would be overdue when made."""
    leadership = Leadership(
        own.plane.database_url, engine=new_id(), place="here", clock=SystemClock()
    )
    assert leadership.hold()
    own.plane.set_clock(hours=-3)
    own.plane.kill()
    _, key = own.stage.tenant(10**12)
    assert Customer(own.plane, key).ask() == 200
    with own.stage.db.transaction() as tx:
        rows = tx.execute("SELECT expires_at FROM transfer WHERE kind = 'pending'").fetchall()
    leadership.close()
    now = datetime.now(UTC)
    assert rows
    for row in rows:
        assert timedelta(minutes=13) < row["expires_at"] - now < timedelta(minutes=16)
    assert len(own.plane.said("clock.resumed")) == 1


def declared() -> set[str]:
    """Return the names of the steps of requests; those of batches and purchases have tests beside theirs."""
    source = Path("src/sublet/gateway")
    text = "".join(path.read_text() for path in source.rglob("*.py"))
    named = set(re.findall(r'failpoint\("([a-z_.]+)"\)', text))
    elsewhere = ("gateway.batch.", "gateway.purchase.")
    return {name for name in named if not name.startswith(elsewhere)}


@pytest.fixture(scope="module")
def steps(zygote: Zygote, postgres_url: str, template: str) -> set[str]:
    """Every step that is passed, with one death to recover from."""
    folder = Path(tempfile.mkdtemp(prefix="sublet-test-"))
    with fresh_url(postgres_url, template) as url, town(zygote, url, folder) as made:
        made.plane.plan("gateway.hand_over.recorded kill")
        made.live()
        assert len(made.plane.deaths) == 1
        reached = made.plane.reached()
    shutil.rmtree(folder)
    return reached


def test_requests_pass_every_step_that_has_a_name(steps: set[str]) -> None:
    assert declared() - steps == set()
    print(*sorted(steps), sep="\n")


def test_whichever_step_is_the_last_the_books_add_up(own: Town, steps: set[str]) -> None:
    own.plane.plan("* kill")
    for _ in range(6):  # what was idle when it died is returned by the next one, in another way
        own.live()
        killed = {mark.removesuffix(" kill") for mark in own.plane.fired()}
        if killed >= steps:
            break
    print(len(killed), "steps, at each of which it died")
    assert killed >= steps
    own.plane.until(lambda: len(own.plane.deaths) == len(killed))


def test_a_connection_lost_around_any_commit_costs_nothing(own: Town, steps: set[str]) -> None:
    own.plane.plan("* drop")
    commits = {f"{step} drop" for step in steps if step.endswith("_commit")}
    for _ in range(3):
        own.live()
        own.leave_something_held()
        os.kill(own.plane.pid, signal.SIGKILL)  # its next run finds it, and returns it
        own.live()
        if own.plane.fired() >= commits:
            break
    print("cut off at", len(own.plane.fired()), "commits")
    assert not commits - own.plane.fired()

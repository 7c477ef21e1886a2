"""Quota: never exceeded, however many processes buy, die and come back, and however it is counted."""

import heapq
import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest

from sublet.suppliers.quota import (
    DEAD,
    MARGIN,
    PACIFIC,
    Asked,
    Held,
    Limit,
    Measure,
    Share,
    Span,
    Standing,
    Told,
    settle,
)  # fmt: skip

NOON = datetime(2026, 3, 2, 20, tzinfo=UTC)
MINUTE = Limit(id=1, scope="project:x", measure=Measure.TOKENS, span=Span.MINUTE, amount=1000)


class Meter:
    """How a supplier might count: at a request's beginning or end, sliding or on the minute."""

    def __init__(self) -> None:
        self.events: list[tuple[datetime, int]] = []

    def add(self, at: datetime, amount: int) -> None:
        self.events.append((at, amount))

    def most(self, limit: Limit) -> int:
        """Return the most that was counted in any span of the limit."""
        events = sorted(self.events)
        if limit.span is Span.DAY:
            days: dict[object, int] = {}
            for at, amount in events:
                day = at.astimezone(ZoneInfo(limit.zone)).date()
                days[day] = days.get(day, 0) + amount
            return max(days.values(), default=0)
        length = timedelta(minutes=1 if limit.span is Span.MINUTE else 10)
        most = total = start = 0
        for at, amount in events:
            total += amount
            while events[start][0] <= at - length:
                total -= events[start][1]
                start += 1
            most = max(most, total)
        return most


class Process:
    """A gateway as far as quota goes: its shares in memory, which a crash takes away."""

    runs = itertools.count()

    def __init__(self, name: str, limit: Limit) -> None:
        self.name = name
        self.limit = limit
        self.start()

    def start(self) -> None:
        self.instance = f"{self.name}-{next(self.runs)}"
        self.share = Share(limit=self.limit)
        self.generation = object()


class World:
    """Processes, one database, and a supplier that counts in two ways, seconds apart from us."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = Random(seed)
        span = dice.choice(list(Span))
        amount = dice.choice([3, 40, 1000, 30_000])
        zone, asked = dice.choice(["UTC", PACIFIC]), dice.random() < 0.3
        self.limit = replace(MINUTE, span=span, amount=amount, zone=zone, asked=asked)
        self.standing = Standing(limit=self.limit)
        self.now = NOON + timedelta(seconds=dice.random() * 86_400)
        self.processes = [Process(f"g{n}", self.limit) for n in range(dice.randint(1, 5))]
        self.by_beginning, self.by_end = Meter(), Meter()
        self.running: list[tuple[datetime, int, Process, object, int, int]] = []
        self.bought = self.refused = 0

    def lag(self) -> timedelta:
        """Return how much later something reaches the supplier, or its clock is ahead."""
        return timedelta(seconds=3) * self.dice.random() * 0.9

    def settle(self, process: Process) -> None:
        asked = process.share.ask(process.name, process.instance)
        if self.dice.random() < 0.1:  # nothing is heard of it, done or not: it is asked again
            if self.dice.random() < 0.5:
                self.standing = settle(self.standing, asked, self.now)
            self.standing = settle(self.standing, asked, self.now)
        self.standing = settle(self.standing, asked, self.now)
        share = self.standing.shares.get(process.name)
        process.share.answered(asked, 0 if share is None else share.held)

    def buy(self, process: Process) -> None:
        most = self.dice.randint(1, max(1, self.limit.amount // self.dice.choice([1, 3, 20])))
        clock = self.now.timestamp()
        if not process.share.take(most, now=clock):
            process.share.wanted = most
            self.settle(process)
            process.share.wanted = 0
            if not process.share.take(most, now=clock):
                self.refused += 1
                return
        self.bought += 1
        used = most if self.limit.asked else self.dice.randint(0, most)
        self.by_beginning.add(self.now + self.lag(), used)
        length = timedelta(seconds=self.dice.expovariate(1 / 20))
        item = (
            self.now + min(length, timedelta(minutes=9)), next(Process.runs), process,
            process.generation, most, used,
        )  # fmt: skip
        heapq.heappush(self.running, item)

    def end(self) -> None:
        _, _, process, generation, most, used = heapq.heappop(self.running)
        self.by_end.add(self.now + self.lag(), used)
        if process.generation is generation:  # else: it died meanwhile, and nobody tells
            process.share.end(most, used)

    def step(self) -> None:
        until = self.now + timedelta(seconds=self.dice.expovariate(1 / 3))
        while self.running and self.running[0][0] <= until:
            self.now = max(self.now, self.running[0][0])
            self.end()
        self.now = until
        process = self.dice.choice(self.processes)
        chance = self.dice.random()
        if chance < 0.7:
            self.buy(process)
        elif chance < 0.95:
            self.settle(process)
        else:  # killed: its connections break, and the supplier counts what it has done
            for item in [item for item in self.running if item[2] is process]:
                self.running.remove(item)
                if item[3] is process.generation:
                    self.by_end.add(self.now, item[5])
            heapq.heapify(self.running)
            process.start()
            self.settle(process)


def test_no_limit_is_exceeded_in_a_thousand_random_runs() -> None:
    bought = refused = 0
    for seed in range(1000):
        world = World(seed)
        for _ in range(40):
            world.step()
            assert world.standing.counted(world.now) <= world.limit.amount, seed
        for meter in (world.by_end, world.by_beginning):
            assert meter.most(world.limit) <= world.limit.amount, (seed, world.limit)
        bought += world.bought
        refused += world.refused
    assert bought > 5_000 and refused > 5_000  # both were tried often


def test_a_request_of_a_share_that_is_large_enough_asks_nobody() -> None:
    share = Share(limit=MINUTE, held=500)
    assert share.take(200, now=1.0) and share.take(300, now=1.1) and not share.take(1, now=1.2)
    share.end(300, 100)
    assert share.free == 200, "what was not used is free at once"


def test_a_process_alone_gets_nearly_all_of_a_limit() -> None:
    standing, share, got = Standing(limit=MINUTE), Share(limit=MINUTE), 0
    for n in range(60):
        now = NOON + timedelta(milliseconds=500 * n)
        share.wanted = 50
        asked = share.ask("g", "1")
        standing = settle(standing, asked, now)
        share.answered(asked, standing.shares["g"].held)
        if share.take(50, now=now.timestamp()):
            share.end(50, 50)
            got += 50
    assert got == 1000


def test_an_unused_share_serves_another_process_as_soon_as_it_is_told() -> None:
    one, two = Share(limit=MINUTE), Share(limit=MINUTE)
    one.wanted = two.wanted = 1000
    asked = one.ask("one", "1")
    standing = settle(Standing(limit=MINUTE), asked, NOON)
    one.answered(asked, standing.shares["one"].held)
    assert one.free == 1000
    asked = two.ask("two", "1")
    assert settle(standing, asked, NOON).shares.get("two", Held(
        instance="", held=0, told=0, seen_at=NOON
    )).held == 0  # fmt: skip
    two.answered(asked, 0)
    one.wanted = 0
    standing = settle(standing, one.ask("one", "1"), NOON)
    standing = settle(standing, two.ask("two", "1"), NOON)
    assert standing.shares["two"].held == 1000


def test_what_a_dead_process_held_counts_for_one_span_and_not_for_ever() -> None:
    asked = Asked(holder="g", instance="1", used=0, flying=0, wanted=1000)
    standing = settle(Standing(limit=MINUTE), asked, NOON)
    again = replace(asked, instance="2")
    just = settle(standing, again, NOON + timedelta(seconds=1))
    assert just.shares.get("g") is None and just.counted(NOON + timedelta(seconds=2)) == 1000
    later = settle(just, again, NOON + timedelta(seconds=66))
    assert later.shares["g"].held == 1000
    other = replace(asked, holder="h")
    silent = settle(standing, other, NOON + DEAD + timedelta(seconds=1))
    assert "g" not in silent.shares, "nobody of that name ever came back"
    assert silent.left(NOON + DEAD + timedelta(seconds=66)) == 1000


@pytest.mark.parametrize(
    ("now", "midnight"),
    [
        ("2026-03-02T20:00+00:00", "2026-03-02T08:00+00:00"),
        ("2026-03-08T07:59+00:00", "2026-03-07T08:00+00:00"),
        ("2026-03-08T20:00+00:00", "2026-03-08T08:00+00:00"),  # the clock goes forward at two
        ("2026-03-09T08:00+00:00", "2026-03-09T07:00+00:00"),
        ("2026-11-02T07:59+00:00", "2026-11-01T07:00+00:00"),  # a day of 25 hours
    ],
)
def test_a_day_begins_at_the_suppliers_midnight(now: str, midnight: str) -> None:
    limit = replace(MINUTE, span=Span.DAY, zone=PACIFIC)
    at, began = datetime.fromisoformat(now), datetime.fromisoformat(midnight)
    assert limit.counts_from(at) == began - MARGIN
    assert limit.counts_from(limit.returns_at(at)) > began, "and then it is whole again"
    just = began + MARGIN / 2
    assert limit.counts_from(just) < began - timedelta(hours=20), "its clock may be behind ours"


def test_the_suppliers_word_counts_where_it_leaves_less() -> None:
    asked = Asked(
        holder="g", instance="1", used=100, flying=50, wanted=1000,
        told=Told(amount=800, left=300, until=NOON + timedelta(seconds=30)),
    )  # fmt: skip
    standing = settle(Standing(limit=MINUTE), asked, NOON)
    # 800 in all, of which 300 are left: we know of 150, so others used 350.
    assert standing.others == 350
    assert standing.shares["g"].held == 50 + 300
    later = settle(standing, replace(asked, told=None), NOON + timedelta(seconds=31))
    assert later.shares["g"].held == 50 + 650, "theirs is over, ours counts on"
    raised = replace(asked, told=Told(amount=9000, left=9000, until=NOON + timedelta(seconds=5)))
    assert settle(Standing(limit=MINUTE), raised, NOON).shares["g"].held == 900, "never above ours"


def test_repeating_what_was_said_changes_nothing() -> None:
    asked = Asked(holder="g", instance="1", used=100, flying=50, wanted=70)
    once = settle(Standing(limit=MINUTE), asked, NOON)
    assert settle(once, asked, NOON) == once

"""What a contract may say, and what falls due for it."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublet.core.errors import Invalid, Refused
from sublet.core.money import Money, Rate
from sublet.fleet.coming import Capacity, Coming
from sublet.leases.contract import Break, Contract, Delivery, Step, bill, given_back, total

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
USD = 10**9
RATE = Rate(nanos=2 * USD, per=3600)
STEPS = (
    Step(starts_at=NOON, gpus=10, rate=RATE),
    Step(starts_at=NOON + 30 * DAY, gpus=20, rate=Rate(nanos=3 * USD, per=7200)),
)
CONTRACT = Contract(
    id=UUID(int=1), tenant_id=UUID(int=2), pool="h200", name="ramp", steps=STEPS,
    ends_at=NOON + 90 * DAY, signed_at=NOON, notice=timedelta(minutes=10), minimum=Money(0),
    shortfall_percent=100, notice_days=30, recall_days=60, renewal_days=0,
)  # fmt: skip


def due(contract: Contract, start: datetime = NOON, end: datetime = NOON + 999 * DAY) -> int:
    return total(bill(contract, start, end)).nanos


def test_a_contract_is_owed_used_or_not_by_step() -> None:
    assert due(CONTRACT) == (30 * 24 * 10 * 2 + 60 * 24 * 20 * 3 // 2) * USD
    assert due(CONTRACT, end=NOON + DAY) == 24 * 10 * 2 * USD
    assert due(CONTRACT, end=NOON + DAY - timedelta(seconds=1)) == 0, "a day at a time"
    assert due(CONTRACT, start=NOON + DAY, end=NOON + 2 * DAY) == 24 * 10 * 2 * USD


def test_what_is_missing_to_the_minimum_falls_due_at_the_end() -> None:
    plain = due(CONTRACT)
    more = replace(CONTRACT, minimum=Money(plain + 7))
    assert due(more) == plain + 7
    assert bill(more, NOON, more.ends_at)[-1].what == "minimum"
    assert due(more, end=more.ends_at - timedelta(seconds=1)) < plain
    assert due(replace(CONTRACT, minimum=Money(plain))) == plain
    assert due(replace(more, ended_by="operator")) == plain
    assert due(replace(more, ended_by="tenant")) == plain + 7


def test_of_what_is_missing_to_the_minimum_the_agreed_share_is_owed() -> None:
    plain = due(CONTRACT)
    more = replace(CONTRACT, minimum=Money(plain + 100), missing_percent=40)
    assert due(more) == plain + 40
    assert due(replace(more, missing_percent=0)) == plain
    assert due(replace(more, ended_by="late")) == plain, "who was too late gets no minimum"


HOUR = timedelta(hours=1)


def delivered(*there: tuple[int, timedelta, int]) -> tuple[Delivery, ...]:
    return tuple(
        Delivery(place=place, at=STEPS[place].starts_at + after, gpus=gpus)
        for place, after, gpus in there
    )


def test_what_is_late_costs_less_until_it_is_there() -> None:
    # Ten GPUs: none for six hours, then six, and all of them after a day and a half.
    late = replace(
        CONTRACT,
        deliveries=delivered((0, 0 * HOUR, 0), (0, 6 * HOUR, 6), (0, 36 * HOUR, 10)),
        late_percent=50,
    )
    assert due(late, end=NOON + DAY) == (240 * 2 - 60 - 18 * 4) * USD
    assert due(late, end=NOON + 2 * DAY) == due(late, end=NOON + DAY) + (240 * 2 - 12 * 4) * USD
    assert due(CONTRACT) - due(late) == (60 + 30 * 4) * USD
    first, second, third = (line for line in bill(late, NOON, late.ends_at) if line.what == "late")
    assert (first.gpus, first.seconds, second.gpus, second.seconds) == (10, 21_600, 4, 64_800)
    assert third.begins_at == NOON + DAY and third.ends_at == NOON + 36 * HOUR
    assert given_back(late, NOON, NOON + DAY) == [first, second]
    # It lowers what must be paid at least, too.
    least = replace(late, minimum=Money(due(CONTRACT)))
    assert due(least) == due(late)


def test_what_was_taken_back_is_given_back_day_by_day_for_as_long_as_it_lasts() -> None:
    at = NOON + DAY + 18 * HOUR
    lost = Break(id=UUID(int=9), place=0, at=at, gpus=4)
    broken = replace(CONTRACT, breaks=(lost,), shortfall_percent=50)
    first, second, *_ = (line for line in bill(broken, NOON, broken.ends_at) if line.broken)
    assert (first.what, first.amount, first.due_at) == ("broken", Money(-24 * USD), NOON + 2 * DAY)
    assert given_back(broken, NOON, NOON + 3 * DAY) == [second]
    assert second.amount == Money(-4 * 24 * USD)
    # Thirty days less one and three quarters; the next step is whole again.
    assert due(CONTRACT) - due(broken) == (24 + 28 * 4 * 24) * USD
    # Whoever ends it early gets nothing back for what is not owed any more.
    early = {"ends_at": NOON + 3 * DAY, "ended_by": "tenant"}
    assert due(replace(CONTRACT, **early)) - due(replace(broken, **early)) == (24 + 96) * USD
    longer = replace(CONTRACT, steps=STEPS[:1], ends_at=NOON + 31 * DAY)  # it was renewed
    assert due(longer) - due(replace(longer, breaks=(lost,))) == 2 * (24 + 29 * 4 * 24) * USD


def test_who_waits_too_long_ends_it_at_once() -> None:
    deliveries = delivered((0, 0 * HOUR, 10), (1, 0 * HOUR, 15))
    contract = replace(CONTRACT, deliveries=deliveries, late_days=3, minimum=Money(10**18))
    start = STEPS[1].starts_at
    assert not contract.is_too_late(start + 3 * DAY - timedelta(seconds=1))
    assert contract.is_too_late(start + 3 * DAY)
    assert contract.end_by("tenant", start + 3 * DAY) == start + 3 * DAY
    assert contract.end_by("operator", start + 3 * DAY) == contract.ends_at, "its own notice"
    assert not replace(contract, late_days=None).is_too_late(start + 60 * DAY)
    there = (*deliveries, Delivery(place=1, at=start + 2 * DAY, gpus=20))
    assert not replace(contract, deliveries=there).is_too_late(start + 4 * DAY)


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    """Any ramp, early end, recall and late capacity; written down in any time zone."""
    zone = ZoneInfo(
        draw(st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo"]))
    )
    written = datetime(2026, draw(st.integers(1, 12)), 1, draw(st.integers(0, 23)), tzinfo=zone)
    first = written.astimezone(UTC)
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    steps, deliveries, breaks, start = [], [], [], first
    for place, days in enumerate(lengths):
        rate = Rate(nanos=draw(st.integers(1, 10**10)), per=draw(st.sampled_from([7, 3600])))
        gpus = draw(st.integers(1, 110_000))
        steps.append(Step(starts_at=start, gpus=gpus, rate=rate))
        there = sorted(draw(st.sets(st.integers(0, gpus), max_size=4)))
        after = sorted(draw(st.lists(
            st.integers(0, days * 90_000), min_size=len(there), max_size=len(there)
        )))  # fmt: skip
        deliveries += [
            Delivery(place=place, at=start + timedelta(seconds=seconds), gpus=some)
            for seconds, some in zip([0, *after[1:]], there, strict=False)
        ]
        if there:
            after_s = timedelta(seconds=draw(st.integers(0, days * 86_400)))
            lost = draw(st.integers(0, there[0]))
            if lost:
                breaks.append(Break(id=UUID(int=place), place=place, at=start + after_s, gpus=lost))
        start += days * DAY
    early = draw(st.none() | st.integers(1, (start - first) // timedelta(seconds=1)))
    ends_at = start if early is None else first + timedelta(seconds=early)
    kept = [step for step in steps if step.starts_at < ends_at]
    return replace(
        CONTRACT,
        steps=tuple(kept),
        ends_at=ends_at,
        ended_by=None if early is None else draw(st.sampled_from(["tenant", "operator", "late"])),
        minimum=Money(draw(st.integers(0, 10**16))),
        missing_percent=draw(st.integers(0, 100)),
        late_percent=draw(st.integers(0, 100)),
        deliveries=tuple(one for one in deliveries if one.place < len(kept)),
        breaks=tuple(one for one in breaks if one.place < len(kept)),
        shortfall_percent=draw(st.integers(0, 100)),
    )


@settings(max_examples=60, deadline=None)
@given(
    contracts(),
    st.lists(st.integers(0, 210 * 86_400), max_size=6),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
)
def test_bills_that_follow_each_other_add_up_to_one_at_once(
    contract: Contract, cuts: list[int], zone: str
) -> None:
    begin = contract.starts_at - DAY
    end = contract.starts_at + 210 * DAY
    # By its own days, at local midnights (one is 23 hours after the last, another 25), and anyhow.
    by_day = [begin + number * DAY for number in range(212)]
    midnights = [
        datetime.combine(begin.date() + number * DAY, time(), ZoneInfo(zone)).astimezone(UTC)
        for number in range(214)
    ]
    anyhow = [begin, *(begin + timedelta(seconds=cut) for cut in sorted(cuts)), end]
    at_once = due(contract, midnights[0] - DAY, end + 9 * DAY)
    for instants in (by_day, midnights, anyhow):
        pieces = itertools.pairwise([midnights[0] - DAY, *instants, end + 9 * DAY])
        assert (
            sum(due(contract, start, until) for start, until in pieces if start < until) == at_once
        )


@settings(max_examples=60, deadline=None)
@given(contracts())
def test_what_is_owed_is_the_capacity_less_what_was_not_there_and_the_missing_share(
    contract: Contract,
) -> None:
    lines = bill(contract, contract.starts_at - DAY, contract.ends_at)
    of = {what: sum(line.amount.nanos for line in lines if line.what == what)
          for what in ("capacity", "late", "broken", "minimum")}  # fmt: skip
    assert of["late"] <= 0 and of["broken"] <= 0
    # Each line is rounded by itself, half a nano at most.
    assert of["capacity"] + of["late"] + of["broken"] >= -len(lines)
    if contract.ended_by in {"operator", "late"}:
        assert of["minimum"] == 0
    elif contract.missing_percent == 100:
        assert of["capacity"] + of["minimum"] >= contract.minimum.nanos
    # To the GPU-second, whatever the days are cut into.
    seconds = sum(line.gpus * line.seconds for line in lines if line.what == "late")
    late = [one for place in range(len(contract.steps)) for one in contract.late(place)]
    # What is worth less than half a nano is no line; here a GPU-second is worth more.
    if all(50 * step.rate.per < step.rate.nanos * contract.late_percent for step in contract.steps):
        paid = sum(one.gpus * ((one.end - one.start) // timedelta(seconds=1)) for one in late)
        assert seconds == paid
    assert all(one.gpus <= contract.steps[place].gpus
               for place in range(len(contract.steps)) for one in contract.late(place))  # fmt: skip


@given(contracts())
def test_capacity_is_billed_to_the_second_once(contract: Contract) -> None:
    lines = [
        line for line in bill(contract, NOON - DAY, NOON + 999 * DAY) if line.what == "capacity"
    ]
    seconds = sum(line.seconds for line in lines)
    assert seconds == (contract.ends_at - contract.starts_at) // timedelta(seconds=1)


def steps(*days_and_gpus: tuple[float, int]) -> tuple[Step, ...]:
    return tuple(
        Step(starts_at=NOON + days * DAY, gpus=gpus, rate=RATE) for days, gpus in days_and_gpus
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": ()}, "at least one"),
        ({"steps": steps((0, 10), (0, 20))}, "steps 1 and 2 overlap"),
        ({"steps": steps((0, 10), (20, 20), (10, 30))}, "steps 2 and 3 overlap"),
        ({"steps": steps((0, 0))}, "step 1: gpus must be at least 1"),
        ({"steps": steps((0, 10), (1, 33))}, "33 GPUs are more than pool h200 has: 32"),
        ({"steps": steps((-1, 10))}, "in the past"),
        ({"ends_at": NOON + 30 * DAY}, "its last step starts at"),
        ({"ends_at": NOON + 30.5 * DAY}, "not a whole number of days"),
        ({"ends_at": NOON + 30 * 366 * DAY}, "at most twenty years"),
        ({"shortfall_percent": 101}, "shortfall_percent"),
        ({"recall_days": -1}, "must not be negative"),
        ({"late_days": -1}, "must not be negative"),
        ({"late_percent": 101}, "late_percent"),
        ({"missing_percent": -1}, "missing_percent"),
        ({"steps": (Step(starts_at=NOON, gpus=1, rate=Rate(nanos=0, per=1)),)}, "more than zero"),
        (
            {"steps": (Step(starts_at=NOON + timedelta(microseconds=1), gpus=1, rate=RATE),)},
            "whole second",
        ),
    ],
)
def test_what_cannot_be_signed_is_refused(changes: dict[str, Any], match: str) -> None:
    CONTRACT.check(capacity=Capacity(gpus=32), now=NOON)
    with pytest.raises(Invalid, match=match):
        replace(CONTRACT, **changes).check(capacity=Capacity(gpus=32), now=NOON)


def test_either_side_ends_it_by_its_own_notice() -> None:
    at = NOON + 10 * DAY + timedelta(milliseconds=1)
    assert CONTRACT.end_by("tenant", at) == NOON + 40 * DAY + timedelta(seconds=1)
    assert CONTRACT.end_by("operator", at) == NOON + 70 * DAY + timedelta(seconds=1)
    assert CONTRACT.end_by("tenant", NOON + 80 * DAY) == CONTRACT.ends_at, "never later than else"
    with pytest.raises(Refused, match="no right to recall"):
        replace(CONTRACT, recall_days=None).end_by("operator", at)
    with pytest.raises(Refused, match="already"):
        replace(CONTRACT, ended_by="tenant").end_by("operator", at)
    with pytest.raises(Refused, match="already"):
        CONTRACT.end_by("tenant", CONTRACT.ends_at)


def test_a_step_may_stand_on_what_comes_by_its_start() -> None:
    start = STEPS[1].starts_at
    hall = Coming(id=UUID(int=3), pool="h200", name="hall 2", gpus=8, ready_at=start)
    with_hall = Capacity(gpus=12, coming=(hall,))
    CONTRACT.check(capacity=with_hall, now=NOON)
    later = replace(hall, ready_at=start + timedelta(seconds=1))
    with pytest.raises(
        Invalid, match="20 GPUs are more than pool h200 has: 12, and 0 are declared"
    ):
        CONTRACT.check(capacity=Capacity(gpus=12, coming=(later,)), now=NOON)
    with pytest.raises(Invalid, match="has: 11, and 8 are declared to come by then"):
        CONTRACT.check(capacity=Capacity(gpus=11, coming=(hall,)), now=NOON)

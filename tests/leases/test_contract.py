"""What a contract may say, and what falls due for it."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublet.core.errors import Invalid, Refused
from sublet.core.money import Money, Rate
from sublet.leases.contract import Contract, Step, bill, total

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


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    steps, start = [], NOON
    for days in lengths:
        rate = Rate(nanos=draw(st.integers(1, 10**10)), per=draw(st.sampled_from([7, 3600])))
        steps.append(Step(starts_at=start, gpus=draw(st.integers(1, 110_000)), rate=rate))
        start += days * DAY
    early = draw(st.none() | st.integers(1, (start - NOON) // timedelta(seconds=1)))
    return replace(
        CONTRACT,
        steps=tuple(steps),
        ends_at=start if early is None else NOON + timedelta(seconds=early),
        ended_by=None if early is None else draw(st.sampled_from(["tenant", "operator"])),
        minimum=Money(draw(st.integers(0, 10**16))),
    )


@settings(max_examples=40)
@given(contracts(), st.lists(st.integers(0, 210 * 86_400), max_size=6))
def test_bills_that_follow_each_other_add_up_to_one_at_once(
    contract: Contract, cuts: list[int]
) -> None:
    end = NOON + 210 * DAY
    by_day = [NOON - DAY + number * DAY for number in range(212)]
    anyhow = [NOON - DAY, *(NOON + timedelta(seconds=cut) for cut in sorted(cuts)), end]
    at_once = due(contract, NOON - DAY, end)
    for instants in (by_day, anyhow):
        pieces = itertools.pairwise(instants)
        assert sum(due(contract, start, until) for start, until in pieces) == at_once
    if contract.ended_by != "operator":
        assert at_once >= contract.minimum.nanos


@given(contracts())
def test_capacity_is_billed_to_the_second_once(contract: Contract) -> None:
    lines = [
        line for line in bill(contract, NOON - DAY, NOON + 210 * DAY) if line.what == "capacity"
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
        ({"steps": (Step(starts_at=NOON, gpus=1, rate=Rate(nanos=0, per=1)),)}, "more than zero"),
        (
            {"steps": (Step(starts_at=NOON + timedelta(microseconds=1), gpus=1, rate=RATE),)},
            "whole second",
        ),
    ],
)
def test_what_cannot_be_signed_is_refused(changes: dict[str, Any], match: str) -> None:
    CONTRACT.check(gpus=32, now=NOON)
    with pytest.raises(Invalid, match=match):
        replace(CONTRACT, **changes).check(gpus=32, now=NOON)


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

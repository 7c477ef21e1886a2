"""Buckets that refill by the minute, per key."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.gateway.failures import Failure, Kind
from sublet.gateway.limits import Bucket, Limiter, Subject
from sublet.gateway.openai import CHAT
from sublet.tenants.limit import Limit, LimitBook, LimitKind
from sublet.tenants.tenant import Role, TenantId

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)

KEY, OTHER, TENANT = UUID(int=1), UUID(int=2), UUID(int=3)


def limiter() -> Limiter:
    return Limiter(requests_per_minute=60, tokens_per_minute=600)


def of(limits: Limiter, key: UUID = KEY) -> tuple[Subject, ...]:
    return limits.find(key, TENANT)


def book(**kinds: int) -> LimitBook:
    """Limits of the tenant."""
    made = [
        Limit(
            id=UUID(int=9), tenant_id=TenantId(TENANT), api_key_id=None, kind=LimitKind(kind),
            set_by=Role.OPERATOR, amount=amount, set_at=NOON,
        )
        for kind, amount in kinds.items()
    ]  # fmt: skip
    return LimitBook.read(1, made)


def headers(limits: Limiter, now: float) -> dict[str, str]:
    standing = limits.standing(of(limits), now=now)
    return {k.decode(): v.decode() for k, v in CHAT.limits(standing, datetime.now(UTC))}


def test_one_request_too_many_is_told_when_to_come_back() -> None:
    limits = limiter()
    for _ in range(60):
        limits.enter(of(limits), now=0)
    with pytest.raises(Failure) as refused:
        limits.enter(of(limits), now=0.25)
    assert refused.value.kind is Kind.RATE_LIMITED
    assert "60 requests a minute" in refused.value.message
    assert dict(refused.value.headers)[b"retry-after-ms"] == b"750"
    assert dict(refused.value.headers)[b"retry-after"] == b"1"
    limits.enter(of(limits), now=1)
    limits.enter(of(limits, OTHER), now=0)


def test_tokens_are_reserved_and_what_was_not_used_returns() -> None:
    limits = limiter()
    limits.reserve(of(limits), 600, now=0)
    with pytest.raises(Failure) as refused:
        limits.reserve(of(limits), 100, now=0)
    assert refused.value.kind is Kind.RATE_LIMITED
    limits.give_back(of(limits), 590, now=0)
    limits.reserve(of(limits), 100, now=0)
    assert headers(limits, 0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "60",
        "x-ratelimit-reset-requests": "0ms",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "490",
        "x-ratelimit-reset-tokens": "11s",
    }


def test_more_than_the_whole_limit_is_not_worth_a_retry() -> None:
    limits = limiter()
    with pytest.raises(Failure) as refused:
        limits.reserve(of(limits), 601, now=0)
    assert refused.value.kind is Kind.OVER_LIMIT
    assert dict(refused.value.headers)[b"x-should-retry"] == b"false"


def test_a_key_at_rest_costs_no_memory() -> None:
    limits = limiter()
    limits.enter(of(limits), now=0)
    limits.forget(now=0.5)
    assert limits._subjects
    limits.forget(now=1)
    assert not limits._subjects


@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0, 30)), max_size=30))
def test_no_minute_sees_more_than_twice_the_limit(steps: list[tuple[int, float]]) -> None:
    limits, now, taken = limiter(), 0.0, 0
    for tokens, pause in steps:
        now += pause
        try:
            limits.reserve(of(limits), tokens, now=now)
        except Failure:
            continue
        taken += tokens
        assert taken <= 600 + now * 10 + 1


def test_what_passes_for_one_key_is_gone_for_its_tenants_others() -> None:
    limits = limiter()
    limits.put(book(requests_per_minute=2, tokens_per_minute=100))
    limits.enter(of(limits), now=0)
    limits.enter(of(limits, OTHER), now=0)
    with pytest.raises(Failure, match="this tenant's limit is 2 requests a minute"):
        limits.enter(of(limits), now=0)
    # Refused by one, it took nothing of the other.
    assert of(limits)[0].requests == Bucket(60, 59.0, 0)
    assert headers(limits, 0)["x-ratelimit-limit-requests"] == "2"
    limits.put(LimitBook.read(2, []))
    limits.enter(of(limits), now=0)
    assert headers(limits, 0)["x-ratelimit-limit-requests"] == "60"


def test_a_limit_that_is_changed_keeps_what_was_used() -> None:
    limits = limiter()
    limits.put(book(tokens_per_minute=100))
    limits.reserve(of(limits), 80, now=0)
    limits.put(book(tokens_per_minute=200))
    with pytest.raises(Failure, match="120 are left"):
        limits.reserve(of(limits), 121, now=0)


def test_answers_at_the_same_time_are_counted_until_they_end() -> None:
    limits = limiter()
    limits.put(book(streams=2))
    limits.begin(of(limits))
    limits.begin(of(limits, OTHER))
    with pytest.raises(Failure, match="2 are on their way: 0 are left"):
        limits.begin(of(limits))
    limits.end(of(limits, OTHER))
    limits.begin(of(limits))


def test_what_passed_at_another_gateway_is_taken_out_here() -> None:
    here, there = limiter(), limiter()
    for one in (here, there):
        one.put(book(streams=3))
    of(here)
    here.hear(there.tell("there"))  # nothing passed yet
    there.enter(of(there), now=0)
    here.hear(there.tell("there"))  # heard of for the first time: from now on it counts
    for _ in range(9):
        there.enter(of(there), now=0)
    there.reserve(of(there), 500, now=0)
    there.begin(of(there))
    here.hear(there.tell("there"))
    assert headers(here, 0)["x-ratelimit-remaining-requests"] == "51"
    assert headers(here, 0)["x-ratelimit-remaining-tokens"] == "100"
    assert of(here)[1].elsewhere == 1
    there.give_back(of(there), 400, now=0)
    there.end(of(there))
    here.hear(there.tell("there"))
    assert headers(here, 0)["x-ratelimit-remaining-tokens"] == "500"
    assert of(here)[1].elsewhere == 0
    here.hear([])  # it died: what it let run is not there for ever
    assert of(here)[1].elsewhere == 0


@pytest.mark.parametrize(
    ("kind", "began", "returns"),
    [
        (LimitKind.DAY, datetime(2026, 1, 31, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (LimitKind.MONTH, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (LimitKind.LIFETIME, datetime(1970, 1, 1, tzinfo=UTC), None),
    ],
)
def test_a_budget_is_of_a_day_or_month_in_utc(
    kind: LimitKind, began: datetime, returns: datetime | None
) -> None:
    for at in (NOON, began if returns is not None else NOON):
        assert kind.began(at) == began
        assert kind.returns(at) == returns

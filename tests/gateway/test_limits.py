"""Buckets that refill by the minute, per key."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.gateway.failures import Failure, Kind
from sublet.gateway.limits import Limiter
from sublet.gateway.openai import CHAT

KEY, OTHER = UUID(int=1), UUID(int=2)


def limiter() -> Limiter:
    return Limiter(requests_per_minute=60, tokens_per_minute=600)


def headers(limits: Limiter, now: float) -> dict[str, str]:
    standing = limits.standing(KEY, now=now)
    return {k.decode(): v.decode() for k, v in CHAT.limits(standing, datetime.now(UTC))}


def test_one_request_too_many_is_told_when_to_come_back() -> None:
    limits = limiter()
    for _ in range(60):
        limits.enter(KEY, now=0)
    with pytest.raises(Failure) as refused:
        limits.enter(KEY, now=0.25)
    assert refused.value.kind is Kind.RATE_LIMITED
    assert "60 requests a minute" in refused.value.message
    assert dict(refused.value.headers)[b"retry-after-ms"] == b"750"
    assert dict(refused.value.headers)[b"retry-after"] == b"1"
    limits.enter(KEY, now=1)
    limits.enter(OTHER, now=0)


def test_tokens_are_reserved_and_what_was_not_used_returns() -> None:
    limits = limiter()
    limits.reserve(KEY, 600, now=0)
    with pytest.raises(Failure) as refused:
        limits.reserve(KEY, 100, now=0)
    assert refused.value.kind is Kind.RATE_LIMITED
    limits.give_back(KEY, 590, now=0)
    limits.reserve(KEY, 100, now=0)
    assert headers(limits, 0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "60",
        "x-ratelimit-reset-requests": "0ms",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "490",
        "x-ratelimit-reset-tokens": "11s",
    }


def test_more_than_the_whole_limit_is_not_worth_a_retry() -> None:
    with pytest.raises(Failure) as refused:
        limiter().reserve(KEY, 601, now=0)
    assert refused.value.kind is Kind.OVER_LIMIT
    assert dict(refused.value.headers)[b"x-should-retry"] == b"false"


def test_a_key_at_rest_costs_no_memory() -> None:
    limits = limiter()
    limits.enter(KEY, now=0)
    limits.forget(now=0.5)
    assert limits._pairs
    limits.forget(now=1)
    assert not limits._pairs


@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0, 30)), max_size=30))
def test_no_minute_sees_more_than_twice_the_limit(steps: list[tuple[int, float]]) -> None:
    limits, now, taken = limiter(), 0.0, 0
    for tokens, pause in steps:
        now += pause
        try:
            limits.reserve(KEY, tokens, now=now)
        except Failure:
            continue
        taken += tokens
        assert taken <= 600 + now * 10 + 1

"""Replicas follow the load: within their bounds, at once upwards, and without flapping."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sublet.models.deployment import Scaling
from sublet.models.scaling import SETTLE, Load, Scale, scale

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)

bounds = st.tuples(st.integers(0, 5), st.integers(1, 20)).map(
    lambda pair: Scaling(
        min_replicas=min(pair), max_replicas=max(pair), outstanding_tokens=1000, idle_seconds=100
    )
)
loads = st.builds(
    Load,
    requests=st.integers(0, 50),
    outstanding_tokens=st.integers(0, 30_000),
    first_token_ms=st.none() | st.integers(1, 10_000),
    asked_at=st.none() | st.integers(0, 500).map(lambda ago: NOON - ago * SECOND),
)


@given(bounds, loads, st.integers(0, 40), st.integers(0, 40), st.none() | st.integers(0, 40))
def test_the_bounds_hold_whatever_was_and_is(
    scaling: Scaling, load: Load, before: int, ready: int, worth: int | None
) -> None:
    after = scale(Scale(target=before), scaling, load, ready=ready, now=NOON, worth=worth)
    assert scaling.min_replicas <= after.target <= scaling.max_replicas
    if worth is not None:
        assert after.target <= max(worth, scaling.min_replicas)


@given(bounds, st.integers(1, 30_000), st.integers(0, 20))
def test_a_steady_load_is_answered_once_and_then_nothing_changes(
    scaling: Scaling, tokens: int, before: int
) -> None:
    load, now = Load(requests=1, outstanding_tokens=tokens, asked_at=NOON), NOON
    state = Scale(target=before)
    seen = []
    for _ in range(3000):  # most of an hour
        state = scale(state, scaling, load, ready=state.target, now=now)
        seen.append(state.target)
        now += SECOND
    steps = [b - a for a, b in pairwise(seen) if a != b]
    assert all(step > 0 for step in steps) or all(step < 0 for step in steps)
    assert len(set(seen[-1000:])) == 1
    needed = -(-tokens // 1000)
    assert seen[-1] >= min(needed, scaling.max_replicas)


@given(st.lists(st.floats(0.9, 1.1), min_size=600, max_size=600), st.integers(500, 15_000))
def test_noise_about_a_load_makes_no_replica_come_and_go(noise: list[float], tokens: int) -> None:
    scaling = Scaling(min_replicas=0, max_replicas=40, outstanding_tokens=1000)
    state, now, seen = Scale(target=0), NOON, []
    for each in noise:
        load = Load(requests=3, outstanding_tokens=int(tokens * each), asked_at=now)
        state = scale(state, scaling, load, ready=state.target, now=now)
        seen.append(state.target)
        now += SECOND
    assert seen == sorted(seen), "one was let go, and came back or would"


def test_it_grows_at_once_and_shrinks_one_at_a_time() -> None:
    scaling = Scaling(min_replicas=1, max_replicas=8, outstanding_tokens=1000)
    state = scale(
        Scale(target=1), scaling, Load(requests=9, outstanding_tokens=6500), ready=1, now=NOON
    )
    assert state == Scale(target=7)
    calm = Load(requests=1, outstanding_tokens=100, asked_at=NOON)
    now = NOON
    gone = []
    while state.target > 1:
        before = state.target
        state = scale(state, scaling, calm, ready=before, now=now)
        if state.target != before:
            gone.append(now)
            assert state.target == before - 1
        now += SECOND
    assert all(b - a >= SETTLE for a, b in pairwise(gone))
    assert gone[0] - NOON >= SETTLE


def test_late_first_tokens_add_one_replica_and_not_before_the_last_is_up() -> None:
    scaling = Scaling(min_replicas=1, max_replicas=3, first_token_ms=500, outstanding_tokens=10_000)
    late = Load(requests=2, outstanding_tokens=900, first_token_ms=800, asked_at=NOON)
    one = Scale(target=1)
    assert scale(one, scaling, late, ready=1, now=NOON).target == 2
    assert scale(Scale(target=2), scaling, late, ready=1, now=NOON).target == 2
    assert scale(Scale(target=3), scaling, late, ready=3, now=NOON).target == 3
    assert scale(one, scaling, replace(late, requests=0), ready=1, now=NOON).target == 1


def test_it_goes_to_zero_when_idle_and_comes_when_asked() -> None:
    scaling = Scaling(min_replicas=0, max_replicas=2, idle_seconds=100)
    asked = Load(asked_at=NOON)
    state = scale(Scale(target=0), scaling, asked, ready=0, now=NOON)
    assert state.target == 1
    for seconds, target in ((1, 1), (99, 1), (100, 0), (500, 0)):
        assert scale(state, scaling, asked, ready=1, now=NOON + seconds * SECOND).target == target
    running = replace(asked, requests=1)  # a long request is no idleness
    assert scale(state, scaling, running, ready=1, now=NOON + 500 * SECOND).target == 1
    assert scale(Scale(target=0), scaling, Load(), ready=0, now=NOON).target == 0

"""What could have been sold, against the plainest way to count it."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.money import Money, Rate
from sublet.planner.idle.hindsight import (
    DEFAULT_PRICES,
    RUN_EDGES_S,
    Prices,
    best_mix,
    by_length,
    firm_gpu_seconds,
    hours_of,
    idle_runs,
)
from sublet.planner.idle.timeline import HOUR_S, Spans, Timeline, from_spans

QUARTER_S = HOUR_S // 4


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Draw up to two and a half days in quarters of an hour, a few GPUs, and gaps."""
    steps = draw(st.integers(1, 40))
    lengths = draw(st.lists(st.integers(1, 24), min_size=steps, max_size=steps))
    start = draw(st.integers(0, 200)) * QUARTER_S
    times = start + np.concatenate([[0], np.cumsum(lengths)]) * QUARTER_S
    counts = st.lists(st.integers(0, 6), min_size=steps, max_size=steps)
    return Timeline(
        times=times.astype(np.int64),
        known=np.array(draw(st.lists(st.booleans(), min_size=steps, max_size=steps))),
        total=np.array(draw(counts), dtype=np.int64),
        running=np.array(draw(counts), dtype=np.int64),
        pending=np.array(draw(counts), dtype=np.int64),
    )


def quarters(timeline: Timeline) -> dict[int, int]:
    """Return {quarter of an hour since the epoch: idle GPUs}, one by one."""
    idle = {}
    for (first, last), gpus in zip(pairwise(timeline.times), timeline.idle, strict=True):
        for quarter in range(first // QUARTER_S, last // QUARTER_S):
            idle[int(quarter)] = int(gpus)
    return idle


@given(timelines())
def test_runs_hold_all_that_was_idle_and_no_more(timeline: Timeline) -> None:
    lengths, gpus = idle_runs(timeline)
    assert int(np.dot(lengths, gpus)) == timeline.gpu_seconds(timeline.idle)
    found = by_length(lengths, gpus)
    assert sum(run.gpu_seconds for run in found) == timeline.gpu_seconds(timeline.idle)
    assert [run.at_least_s for run in found] == list(RUN_EDGES_S)


@given(timelines())
def test_the_kth_gpu_is_idle_as_long_as_k_are(timeline: Timeline) -> None:
    idle = quarters(timeline)
    expected = []
    for level in range(1, max(idle.values()) + 1):
        run = 0
        for quarter in range(min(idle), max(idle) + 2):
            if idle.get(quarter, 0) >= level:
                run += 1
            elif run:
                expected.append(run * QUARTER_S)
                run = 0
    lengths, gpus = idle_runs(timeline)
    assert sorted(np.repeat(lengths, gpus).tolist()) == sorted(expected)


@given(timelines())
def test_a_firm_window_is_idle_from_its_first_second_to_its_last(timeline: Timeline) -> None:
    idle = quarters(timeline)
    for hours, gpu_seconds in firm_gpu_seconds(hours_of(timeline)).items():
        width = 4 * hours
        windows = {quarter // width for quarter in idle}
        least = [min(idle.get(w * width + i, 0) for i in range(width)) for w in windows]
        assert gpu_seconds == sum(least) * hours * HOUR_S


@given(timelines())
def test_every_idle_second_is_sold_once_and_no_other_mix_of_lengths_is_dearer(
    timeline: Timeline,
) -> None:
    mix = best_mix(hours_of(timeline), DEFAULT_PRICES)
    sold = mix.interruptible.gpu_seconds + sum(part.gpu_seconds for part in mix.firm.values())
    assert sold == timeline.gpu_seconds(timeline.idle)
    assert mix.interruptible.gpu_seconds >= 0
    free = Rate(nanos=0, per=HOUR_S)
    for left_out in DEFAULT_PRICES.firm:
        prices = Prices(
            firm={**DEFAULT_PRICES.firm, left_out: free},
            interruptible=DEFAULT_PRICES.interruptible,
        )
        assert best_mix(hours_of(timeline), prices).worth.nanos <= mix.worth.nanos + 4


def test_a_length_that_pays_no_more_than_a_shorter_one_is_not_sold() -> None:
    day = 24 * HOUR_S
    nothing = Spans(
        start=np.zeros(0, np.int64), end=np.zeros(0, np.int64), gpus=np.zeros(0, np.int64)
    )
    idle = from_spans(nothing, nothing, start=0, end=day, gpus=2)
    same = Rate(nanos=500_000_000, per=HOUR_S)
    prices = Prices(firm={24: same, 4: DEFAULT_PRICES.firm[4], 1: same}, interruptible=same)
    mix = best_mix(hours_of(idle), prices)
    assert {hours: sold.gpu_seconds for hours, sold in mix.firm.items()} == {
        24: 0,
        4: 2 * day,
        1: 0,
    }
    assert mix.worth == Money(48 * 850_000_000)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), st.integers(1, 9)), max_size=30))
def test_a_timeline_of_jobs_holds_their_gpu_seconds(jobs: list[tuple[int, int, int]]) -> None:
    spans = Spans(
        start=np.array([job[0] for job in jobs], dtype=np.int64),
        end=np.array([job[0] + job[1] for job in jobs], dtype=np.int64),
        gpus=np.array([job[2] for job in jobs], dtype=np.int64),
    )
    whole = from_spans(spans, spans, start=0, end=100, gpus=None)
    assert whole.gpu_seconds(whole.running) == spans.gpu_seconds()
    at = [
        sum(gpus for start, length, gpus in jobs if start <= t < start + length) for t in range(100)
    ]
    assert whole.total.max(initial=0) == max(at)
    part = whole.within(10, 40)
    assert part.gpu_seconds(part.pending) == sum(at[10:40])


@given(timelines())
def test_a_curve_holds_the_worst_of_each_slot(timeline: Timeline) -> None:
    curve = timeline.to_curve(step_seconds=HOUR_S)
    at = {
        int(t): i
        for i, (first, last) in enumerate(pairwise(timeline.times))
        for t in range(first, last, QUARTER_S)
    }
    for slot in range(len(curve)):
        start = curve.start + slot * HOUR_S
        steps = [at.get(start + i * QUARTER_S) for i in range(4)]
        known = [i for i in steps if i is not None and timeline.known[i]]
        if len(known) < 4:
            assert np.isnan(curve.total[slot])
        else:
            assert curve.total[slot] == min(timeline.total[i] for i in known)
            assert curve.running[slot] == max(timeline.running[i] for i in known)

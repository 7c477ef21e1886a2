"""`sublet audit`: how much sat idle, where, for how long, and what it would have brought."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sublet.core.errors import Invalid
from sublet.planner.idle.hindsight import (
    DEFAULT_PRICES,
    Hours,
    Mix,
    Prices,
    Run,
    best_mix,
    by_length,
    firm_gpu_seconds,
    hours_of,
    idle_runs,
)
from sublet.planner.idle.inputs import Kind, Record
from sublet.planner.idle.jobs import Jobs
from sublet.planner.idle.timeline import HOUR_S, Ints, Spans, Timeline, from_curves, from_spans

if TYPE_CHECKING:
    from sublet.planner.idle.replay import Replay

HOURS_OF_WEEK = 168
_MONDAY = 72  # hours from a Monday's midnight to the epoch, a Thursday's


class Capacity(StrEnum):
    """Where the number of GPUs comes from."""

    RECORD = "record"  # the file says how many there were
    GIVEN = "given"  # the caller does
    PEAK = "peak"  # nobody does: as many as ever ran at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What to look at, and at which prices."""

    prices: Prices = DEFAULT_PRICES
    start: int | None = None  # seconds since the epoch; None: from where the record is whole
    end: int | None = None
    capacity: Mapping[str, int] = field(default_factory=dict)  # GPUs by pool; "": of the only one
    quotas: Mapping[str, int] = field(default_factory=dict)  # nominal GPUs by quota
    policy: str | None = None  # whose decisions to replay as well


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAudit:
    """One pool. GPU-seconds are whole; nothing unknown is in any of them."""

    name: str
    timeline: Timeline
    capacity: Capacity
    gpu_seconds: int  # that there were
    running_gpu_seconds: int  # of them, held by jobs
    idle_gpu_seconds: int
    idle_beside_waiting_gpu_seconds: int  # idle while jobs of the pool waited for as many
    pending_gpu_seconds: int
    over_gpu_seconds: int  # demand above what there was
    over_seconds: int
    most_over: int  # GPUs
    unknown_seconds: int
    runs: Sequence[Run]
    hours: Hours
    firm: Mapping[int, int]  # window hours → GPU-seconds, were all sold in that length alone
    mix: Mix
    idle_by_hour_of_week: Sequence[float | None]  # mean GPUs; Monday 00 UTC first
    replay: "Replay | None"  # None: not asked for, or the past is too short


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaAudit:
    """What one quota's jobs (an account's, a virtual cluster's) used of one pool."""

    pool: str
    name: str  # "" where the record names none
    jobs: int
    running_gpu_seconds: int
    pending_gpu_seconds: int
    peak_gpus: int  # held at once
    nominal_gpus: int | None  # as given
    idle_gpu_seconds: int  # below its nominal quota, or else below its own peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    record: Record
    scope: Scope
    pools: Sequence[PoolAudit]  # the most idle first
    quotas: Sequence[QuotaAudit]
    notes: Sequence[str]

    @property
    def start(self) -> int:
        return min(int(pool.timeline.times[0]) for pool in self.pools)

    @property
    def end(self) -> int:
        return max(int(pool.timeline.times[-1]) for pool in self.pools)


def audit(record: Record, scope: Scope, *, progress: Callable[[str, int, int], None]) -> Audit:
    """Work out what sat idle.

    Args:
        record: what the files say.
        scope: period, prices, capacities, quotas.
        progress: told what is done, and for how many pools of how many.

    Raises:
        Invalid: the period holds nothing, or a capacity or quota is given for what is not there.
    """
    notes = list(record.notes)
    scope = _with_the_only_pool(record, scope)
    timelines: dict[str, tuple[Timeline, Capacity]] = {}
    quotas: list[QuotaAudit] = []
    for kind, jobs in record.jobs:
        start, end = _period(kind, jobs, scope, notes)
        for name, frame in sorted(_by(jobs.frame, "pool").items()):
            given = scope.capacity.get(name)
            running, pending = _spans(frame, end)
            timeline = from_spans(running, pending, start=start, end=end, gpus=given)
            timelines[name] = timeline, Capacity.PEAK if given is None else Capacity.GIVEN
            quotas += _quotas(name, frame, scope, start=start, end=end)
    for name, curves in record.curves.items():
        if name in timelines:
            raise Invalid(
                f"pool {name} is told by a demand curve and by jobs: give the curve another name,"
                " as in NAME=FILE"
            )
        timelines[name] = _of_curve(from_curves(curves), scope, name), Capacity.RECORD
    _check_names(scope, timelines, quotas)
    pools = []
    for done, (name, (timeline, capacity)) in enumerate(timelines.items()):
        progress("working it out", done, len(timelines))
        pools.append(_pool(name, timeline, capacity, scope.prices))
    if scope.policy is not None:
        pools = _replayed(pools, scope, scope.policy, progress)
    return Audit(
        record=record,
        scope=scope,
        pools=sorted(pools, key=lambda pool: -pool.idle_gpu_seconds),
        quotas=sorted(quotas, key=lambda quota: -quota.running_gpu_seconds),
        notes=[*notes, *_doubts(pools)],
    )


def _with_the_only_pool(record: Record, scope: Scope) -> Scope:
    """Return the scope with every capacity under its pool's name."""
    if "" not in scope.capacity:
        return scope
    pools = {name for _, jobs in record.jobs for name in jobs.frame["pool"].unique()}
    if len(pools) != 1:
        raise Invalid(
            f"there are {len(pools)} pools of jobs: say whose capacity it is, as in --capacity"
            f" {min(pools, default='POOL')}=N"
        )
    return replace(scope, capacity={pools.pop(): scope.capacity[""]})


def _period(kind: Kind, jobs: Jobs, scope: Scope, notes: list[str]) -> tuple[int, int]:
    start, end = scope.start, scope.end
    if start is None:
        start = jobs.first_end
        if start is None:
            raise Invalid("no job in the record has ended: say from when it is whole with --from")
        notes.append(
            f"looked at from the first end of a job in the {kind.value} record, when it begins to"
            " be whole; if it begins later, say so with --from"
        )
    if end is None:
        end = jobs.last_known
        assert end is not None
    if start >= end:
        raise Invalid("the period holds nothing: --from must lie before --to, and in the record")
    first, last = jobs.first_known, jobs.last_known
    beyond = [("before", first, first is not None and start < first)]
    beyond += [("after", last, last is not None and end > last)]
    notes += [
        f"the {kind.value} record speaks of nothing {side} {_when(instant)} UTC: that part of"
        " the period counts as idle"
        for side, instant, is_beyond in beyond
        if is_beyond and instant is not None
    ]
    return start, end


def _when(instant: int) -> str:
    return f"{datetime.fromtimestamp(instant, UTC):%Y-%m-%d %H:%M}"


def _of_curve(timeline: Timeline, scope: Scope, name: str) -> Timeline:
    first, last = int(timeline.times[0]), int(timeline.times[-1])
    start = first if scope.start is None else max(first, scope.start)
    end = last if scope.end is None else min(last, scope.end)
    if start >= end:
        raise Invalid(f"pool {name} has no sample between --from and --to")
    timeline = timeline.within(start, end)
    given = scope.capacity.get(name)
    if given is not None:
        raise Invalid(f"pool {name} is told by a demand curve, which says how many GPUs there were")
    return timeline


def _check_names(
    scope: Scope, timelines: Mapping[str, object], quotas: Sequence[QuotaAudit]
) -> None:
    for given, there, option in (
        (set(scope.capacity), set(timelines), "--capacity"),
        (set(scope.quotas), {quota.name for quota in quotas}, "--quota-gpus"),
    ):
        unknown = sorted(given - there)
        if unknown:
            known = ", ".join(sorted(name for name in there if name)[:20]) or "none"
            raise Invalid(f"{option} names {unknown[0]!r}, but the record has {known}")


def _by(frame: pl.DataFrame, column: str) -> dict[str, pl.DataFrame]:
    parts = frame.partition_by(column, as_dict=True)
    return {str(name): part for (name,), part in parts.items()}


def _spans(frame: pl.DataFrame, end: int) -> tuple[Spans, Spans]:
    """Return when jobs held GPUs, and when they waited; what is not over lasts until `end`."""

    def spans(rows: pl.DataFrame, first: str) -> Spans:
        return Spans(
            start=rows[first].to_numpy().astype(np.int64, copy=False),
            end=rows["until"].to_numpy().astype(np.int64, copy=False),
            gpus=rows["gpus"].to_numpy().astype(np.int64, copy=False),
        )

    ran = frame.filter(pl.col("start").is_not_null())
    running = ran.with_columns(
        until=pl.col("end").fill_null(pl.max_horizontal("start", pl.lit(end)))
    )
    waited = frame.filter(pl.col("submit").is_not_null()).with_columns(
        until=pl.coalesce("start", "end", pl.max_horizontal("submit", pl.lit(end)))
    )
    waited = waited.filter(pl.col("submit") < pl.col("until"))
    return spans(running, "start"), spans(waited, "submit")


def _quotas(
    pool: str, frame: pl.DataFrame, scope: Scope, *, start: int, end: int
) -> list[QuotaAudit]:
    found = []
    for name, rows in _by(frame, "quota").items():
        running, pending = _spans(rows, end)
        running = running.within(start, end)
        nominal = scope.quotas.get(name)
        times, levels = running.levels()
        peak = int(levels.max(initial=0))
        below = nominal if nominal is not None else peak
        # What it borrowed above its quota does not make up for what it left idle below.
        inside = int(np.dot(np.minimum(levels[:-1], below), np.diff(times))) if len(times) else 0
        found.append(
            QuotaAudit(
                pool=pool,
                name=name,
                jobs=rows.height,
                running_gpu_seconds=running.gpu_seconds(),
                pending_gpu_seconds=pending.within(start, end).gpu_seconds(),
                peak_gpus=peak,
                nominal_gpus=nominal,
                idle_gpu_seconds=below * (end - start) - inside,
            )
        )
    return found


def _pool(name: str, timeline: Timeline, capacity: Capacity, prices: Prices) -> PoolAudit:
    idle = timeline.idle
    over = np.where(timeline.known, np.maximum(timeline.running - timeline.total, 0), 0)
    runs = by_length(*idle_runs(timeline))
    hours = hours_of(timeline)
    return PoolAudit(
        name=name,
        timeline=timeline,
        capacity=capacity,
        gpu_seconds=timeline.gpu_seconds(timeline.total),
        running_gpu_seconds=timeline.gpu_seconds(np.minimum(timeline.running, timeline.total)),
        idle_gpu_seconds=timeline.gpu_seconds(idle),
        idle_beside_waiting_gpu_seconds=timeline.gpu_seconds(np.minimum(idle, timeline.pending)),
        pending_gpu_seconds=timeline.gpu_seconds(timeline.pending),
        over_gpu_seconds=timeline.gpu_seconds(over),
        over_seconds=int(np.dot(over > 0, timeline.seconds)),
        most_over=int(over.max(initial=0)),
        unknown_seconds=int(np.dot(~timeline.known, timeline.seconds)),
        runs=runs,
        hours=hours,
        firm=firm_gpu_seconds(hours),
        mix=best_mix(hours, prices),
        idle_by_hour_of_week=_by_hour_of_week(timeline),
        replay=None,
    )


def _replayed(
    pools: Sequence[PoolAudit], scope: Scope, policy: str, progress: Callable[[str, int, int], None]
) -> list[PoolAudit]:
    from sublet.planner.idle.replay import replay  # noqa: PLC0415 -- its libraries are slow to load

    found = []
    for done, pool in enumerate(pools):
        progress(f"replaying {policy}", done, len(pools))
        came = replay(pool.timeline, scope.prices, policy=policy)
        found.append(replace(pool, replay=came))
    return found


def _by_hour_of_week(timeline: Timeline) -> list[float | None]:
    first, end = int(timeline.times[0]) // HOUR_S, -(-int(timeline.times[-1]) // HOUR_S)
    cut = timeline.split_at(np.arange(first, end + 1, dtype=np.int64) * HOUR_S)
    hour: Ints = (cut.times[:-1] // HOUR_S + _MONDAY) % HOURS_OF_WEEK
    known = np.where(cut.known, cut.seconds, 0)
    seconds = np.bincount(hour, weights=known, minlength=HOURS_OF_WEEK)
    idle = np.bincount(hour, weights=known * cut.idle, minlength=HOURS_OF_WEEK)
    return [
        round(float(gpus / of), 3) if of else None for gpus, of in zip(idle, seconds, strict=True)
    ]


def _doubts(pools: Sequence[PoolAudit]) -> list[str]:
    """Say what of the result rests on a guess, or on a record that contradicts itself."""
    doubts = []
    guessed = sorted(pool.name for pool in pools if pool.capacity is Capacity.PEAK)
    if guessed:
        doubts.append(
            f"how many GPUs {_list(guessed)} had is not in the record: taken as the most ever in"
            f" use at once; say it with --capacity {guessed[0]}=N"
        )
    doubts += [
        f"pool {pool.name}: jobs held up to {pool.most_over:,} GPUs more than there were, for"
        f" {pool.over_seconds / HOUR_S:,.1f} h in all: is its capacity too low?"
        for pool in pools
        if pool.over_seconds and pool.capacity is Capacity.GIVEN
    ]
    doubts += [
        f"pool {pool.name}: nothing is known of {pool.unknown_seconds / HOUR_S:,.1f} h between its"
        " first and last sample, and they count nowhere"
        for pool in pools
        if pool.unknown_seconds
    ]
    return doubts


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more pools"

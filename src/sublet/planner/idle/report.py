"""An audit as a document: what `--json` prints, and what the page and the terminal are drawn from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sublet.core.money import NANOS, Money, Rate
from sublet.planner.idle.audit import Audit, PoolAudit, QuotaAudit
from sublet.planner.idle.hindsight import RUN_EDGES_S, WINDOW_HOURS, Prices
from sublet.planner.idle.timeline import HOUR_S, Timeline

if TYPE_CHECKING:
    from sublet.planner.idle.replay import Replay

_ANY: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A timeline in even columns: means over what is known of each, None where nothing is."""

    start: int
    step_s: int
    total: Sequence[float | None]
    running: Sequence[float | None]
    pending: Sequence[float | None]
    least_idle: Sequence[int | None]


def document(audit: Audit) -> dict[str, Any]:
    """Return the audit as JSON's values. Shares are of 1; GPU-hours are rounded to a hundredth."""
    record, scope = audit.record, audit.scope
    pools = [_pool(pool) for pool in audit.pools]
    return {
        "from": iso(audit.start),
        "to": iso(audit.end),
        "files": [
            {
                "name": file.name, "kind": file.kind.value, "lines": file.lines,
                "rows": file.rows, "skipped": file.skipped,
            }
            for file in record.files
        ],
        "prices_usd_per_gpu_hour": prices_document(scope.prices),
        "policy": scope.policy,
        "total": _total(audit),
        "pools": pools,
        "quotas": [_quota(quota, audit) for quota in audit.quotas],
        "skipped": record.skipped,
        "faults": [
            {"file": fault.file, "line": fault.line, "why": fault.why} for fault in record.faults
        ],
        "notes": list(audit.notes),
    }  # fmt: skip


def prices_document(prices: Prices) -> dict[str, str]:
    firm = {f"{hours}h": _per_hour(prices.firm[hours]) for hours in WINDOW_HOURS}
    return {**firm, "interruptible": _per_hour(prices.interruptible)}


def series(timelines: Sequence[Timeline], *, points: int) -> Series:
    """Add timelines up in at most `points` columns; what one does not know, the sum does not."""
    first = min(int(timeline.times[0]) for timeline in timelines)
    last = max(int(timeline.times[-1]) for timeline in timelines)
    least_step = (last - first) / max(points - 1, 1)
    unit = HOUR_S if least_step > HOUR_S else 60
    step = max(math.ceil(least_step / unit), 1) * unit
    start = first // unit * unit
    edges = np.arange(start, last + step, step, dtype=np.int64)
    count = len(edges) - 1
    sums = {name: np.zeros(count) for name in ("total", "running", "pending")}
    least = np.zeros(count)
    anything = np.zeros(count, dtype=np.bool_)
    for timeline in timelines:
        cut = timeline.split_at(edges)
        column = (cut.times[:-1] - start) // step
        weights = np.where(cut.known, cut.seconds, 0)
        seconds = np.bincount(column, weights=weights, minlength=count)
        known = seconds > 0
        anything |= known
        for name, values in sums.items():
            held = getattr(cut, name)
            if name == "running":
                held = np.minimum(held, cut.total)
            gpu_seconds = np.bincount(column, weights=weights * held, minlength=count)
            values[known] += gpu_seconds[known] / seconds[known]
        starts = np.flatnonzero(np.diff(column, prepend=-1))
        lowest = np.minimum.reduceat(np.where(cut.known, cut.idle, _ANY), starts)
        counts = known[column[starts]]
        least[column[starts][counts]] += lowest[counts]

    def shown(values: Any) -> list[float | None]:
        return [
            round(float(value), 1) if known else None
            for value, known in zip(values, anything, strict=True)
        ]

    return Series(
        start=start,
        step_s=step,
        total=shown(sums["total"]),
        running=shown(sums["running"]),
        pending=shown(sums["pending"]),
        least_idle=[
            int(value) if known else None for value, known in zip(least, anything, strict=True)
        ],
    )


def iso(instant: int) -> str:
    return f"{datetime.fromtimestamp(instant, UTC):%Y-%m-%dT%H:%M:%SZ}"


def hours(gpu_seconds: int) -> float:
    return round(gpu_seconds / HOUR_S, 2)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _usd(money: Money) -> str:
    """Write an estimate to the cent, rounded half to even."""
    cents = round(money.nanos / (NANOS // 100))
    return f"{cents // 100}.{cents % 100:02d}"


def _per_hour(rate: Rate) -> str:
    return str(rate.charge(HOUR_S)).partition(" ")[0]


def _total(audit: Audit) -> dict[str, Any]:
    pools = audit.pools
    summed = {
        name: sum(getattr(pool, name) for pool in pools)
        for name in (
            "gpu_seconds", "running_gpu_seconds", "idle_gpu_seconds", "pending_gpu_seconds",
            "idle_beside_waiting_gpu_seconds",
        )
    }  # fmt: skip
    runs = [
        (sum(pool.runs[i].runs for pool in pools), sum(pool.runs[i].gpu_seconds for pool in pools))
        for i in range(len(RUN_EDGES_S))
    ]
    firm = {h: sum(pool.firm[h] for pool in pools) for h in WINDOW_HOURS}
    mix = {
        h: (
            sum(pool.mix.firm[h].gpu_seconds for pool in pools),
            _sum([pool.mix.firm[h].worth for pool in pools]),
        )
        for h in WINDOW_HOURS
    }
    rest = (
        sum(pool.mix.interruptible.gpu_seconds for pool in pools),
        _sum([pool.mix.interruptible.worth for pool in pools]),
    )
    weeks: list[float | None] = []
    for values in zip(*(pool.idle_by_hour_of_week for pool in pools), strict=True):
        known = [value for value in values if value is not None]
        weeks.append(round(sum(known), 3) if known else None)
    return {
        **_use(summed),
        **_sellable(summed["idle_gpu_seconds"], runs, firm, mix, rest),
        "idle_by_hour_of_week": weeks,
        "replay": _replays([pool.replay for pool in pools if pool.replay is not None]),
    }


def _pool(pool: PoolAudit) -> dict[str, Any]:
    sums = {
        name: getattr(pool, name)
        for name in (
            "gpu_seconds", "running_gpu_seconds", "idle_gpu_seconds", "pending_gpu_seconds",
            "idle_beside_waiting_gpu_seconds",
        )
    }  # fmt: skip
    timeline = pool.timeline
    known = np.flatnonzero(timeline.known)
    return {
        "name": pool.name,
        "gpus": int(timeline.total[known[-1]]) if len(known) else 0,
        "capacity": pool.capacity.value,
        "from": iso(int(timeline.times[0])),
        "to": iso(int(timeline.times[-1])),
        "unknown_hours": round(pool.unknown_seconds / HOUR_S, 2),
        "over_gpu_hours": hours(pool.over_gpu_seconds),
        "over_hours": round(pool.over_seconds / HOUR_S, 2),
        "most_over_gpus": pool.most_over,
        **_use(sums),
        **_sellable(
            pool.idle_gpu_seconds,
            [(run.runs, run.gpu_seconds) for run in pool.runs],
            pool.firm,
            {h: (pool.mix.firm[h].gpu_seconds, pool.mix.firm[h].worth) for h in WINDOW_HOURS},
            (pool.mix.interruptible.gpu_seconds, pool.mix.interruptible.worth),
        ),
        "idle_by_hour_of_week": list(pool.idle_by_hour_of_week),
        "replay": _replays([] if pool.replay is None else [pool.replay]),
    }


def _use(sums: Mapping[str, int]) -> dict[str, Any]:
    return {
        "gpu_hours": hours(sums["gpu_seconds"]),
        "running_gpu_hours": hours(sums["running_gpu_seconds"]),
        "idle_gpu_hours": hours(sums["idle_gpu_seconds"]),
        "idle_share": _share(sums["idle_gpu_seconds"], sums["gpu_seconds"]),
        "waiting_gpu_hours": hours(sums["pending_gpu_seconds"]),
        "idle_beside_waiting_gpu_hours": hours(sums["idle_beside_waiting_gpu_seconds"]),
    }


def _sellable(
    idle: int,
    runs: Sequence[tuple[int, int]],
    firm: Mapping[int, int],
    mix: Mapping[int, tuple[int, Money]],
    rest: tuple[int, Money],
) -> dict[str, Any]:
    at_least = np.cumsum([gpu_seconds for _, gpu_seconds in reversed(runs)])[::-1]
    return {
        "idle_runs": [
            {
                "at_least_s": low,
                "below_s": high,
                "runs": count,
                "gpu_hours": hours(gpu_seconds),
                "share": _share(gpu_seconds, idle),
                "share_at_least": _share(int(at_least[i]), idle),
            }
            for i, (low, high, (count, gpu_seconds)) in enumerate(
                zip(RUN_EDGES_S, [*RUN_EDGES_S[1:], None], runs, strict=True)
            )
        ],
        "hindsight_firm_alone": {
            f"{h}h": {"gpu_hours": hours(firm[h]), "share": _share(firm[h], idle)}
            for h in WINDOW_HOURS
        },
        "hindsight_mix": {
            **{
                f"{h}h": {
                    "gpu_hours": hours(mix[h][0]),
                    "share": _share(mix[h][0], idle),
                    "worth_usd": _usd(mix[h][1]),
                }
                for h in WINDOW_HOURS
            },
            "interruptible": {
                "gpu_hours": hours(rest[0]),
                "share": _share(rest[0], idle),
                "worth_usd": _usd(rest[1]),
            },
        },
        "hindsight_firm_gpu_hours": hours(sum(sold for sold, _ in mix.values())),
        "hindsight_worth_usd": _usd(_sum([*(worth for _, worth in mix.values()), rest[1]])),
    }


def _replays(replays: Sequence["Replay"]) -> dict[str, Any] | None:
    """Return what a policy would have sold of some pools together; None where of none."""
    if not replays:
        return None
    summed = {
        name: sum(getattr(one, name) for one in replays)
        for name in (
            "idle_hours",
            "firm_hours",
            "broken_hours",
            "interruptible_hours",
            "late_hours",
        )
    }
    promised = summed["firm_hours"] + summed["broken_hours"]
    worth, ceiling = _sum([one.worth for one in replays]), _sum([one.ceiling for one in replays])
    return {
        "from": iso(min(one.start for one in replays)),
        "to": iso(max(one.end for one in replays)),
        "idle_gpu_hours": round(summed["idle_hours"], 2),
        "firm_gpu_hours": round(summed["firm_hours"], 2),
        "broken_gpu_hours": round(summed["broken_hours"], 2),
        "broken_share": round(summed["broken_hours"] / promised, 6) if promised else None,
        "interruptible_gpu_hours": round(summed["interruptible_hours"], 2),
        "evictions": sum(one.evictions for one in replays),
        "late_gpu_hours": round(summed["late_hours"], 2),
        "worth_usd": _usd(worth),
        "hindsight_worth_usd": _usd(ceiling),
        "worth_share": round(worth.nanos / ceiling.nanos, 6) if ceiling.nanos else None,
    }


def _quota(quota: QuotaAudit, audit: Audit) -> dict[str, Any]:
    pool = next(pool for pool in audit.pools if pool.name == quota.pool)
    seconds = int(pool.timeline.times[-1] - pool.timeline.times[0])
    return {
        "pool": quota.pool,
        "name": quota.name,
        "jobs": quota.jobs,
        "running_gpu_hours": hours(quota.running_gpu_seconds),
        "share": _share(quota.running_gpu_seconds, pool.running_gpu_seconds),
        "waiting_gpu_hours": hours(quota.pending_gpu_seconds),
        "mean_gpus": round(quota.running_gpu_seconds / seconds, 2),
        "peak_gpus": quota.peak_gpus,
        "nominal_gpus": quota.nominal_gpus,
        "idle_gpu_hours": hours(quota.idle_gpu_seconds),
        "idle_below": "peak" if quota.nominal_gpus is None else "nominal quota",
    }


def _sum(amounts: Sequence[Money]) -> Money:
    total = Money(0)
    for amount in amounts:
        total = total + amount
    return total

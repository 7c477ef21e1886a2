"""What came of a run: sums while it goes, and the document at its end."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sublet.core.money import NANOS
from sublet.simulation.demand import DAY_STEPS
from sublet.simulation.scenario import STEP, TIERS
from sublet.simulation.table import COLUMNS, Ints, Leases

if TYPE_CHECKING:
    from sublet.simulation.run import Simulation

USES: Final = ("internal", *TIERS, "leaving", "idle", "down")
_HOUR: Final = 3_600


class Tally:
    """Sums over a run. Uses have shape (uses, steps): GPU-seconds of the whole fleet."""

    def __init__(self, *, pools: int, steps: int) -> None:
        self.use = np.zeros((len(USES), steps), dtype=np.int64)
        self.offered = np.zeros(steps, dtype=np.int64)  # GPUs for sale when a step begins
        self.refused: Counter[str] = Counter()
        self.admitted = np.zeros(len(TIERS), dtype=np.int64)
        self.evictions = np.zeros(len(TIERS), dtype=np.int64)
        self.worst_evictions = 0  # of one request
        self.work_lost = 0  # GPU-seconds since the last checkpoints of those that gave way
        self.lost = 0  # leases whose node failed
        self.outbid = 0
        self.completed = self.exhausted = self.resumed = self.reclaims = 0
        self.broken = 0  # reservations that could not start
        self.late_contract = 0
        self.ended_gpu_seconds = self.served_gpu_seconds = 0
        self.waits: Counter[int] = Counter()  # GPUs of internal jobs by the seconds they waited
        self.late = 0  # GPU-seconds of internal jobs beyond the notice
        self.longest = np.zeros(pools, dtype=np.int64)  # wait in each pool, in seconds

    def uses(self, step: int, *, internal: Ints, sold: Ints, leaving: Ints, idle: Ints) -> None:
        row = [internal.sum(), *sold.sum(axis=0), leaving.sum(), idle.sum()]
        self.use[:-1, step] = row

    def evicted(self, leases: Leases, rows: Ints, *, lost: bool, market: bool) -> None:
        if lost:
            self.lost += len(rows)
            return
        if market:
            self.outbid += len(rows)
        np.add.at(self.evictions, leases.tier[rows], 1)
        self.worst_evictions = max(self.worst_evictions, int(leases.evictions[rows].max()))

    def waited(self, pool: int, *, seconds: int, gpus: int, notice: int) -> None:
        self.waits[seconds] += gpus
        self.late += max(seconds - notice, 0) * gpus
        self.longest[pool] = max(int(self.longest[pool]), seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run's result."""

    rules: str
    pricing: str
    violations: int
    broken_laws: dict[str, int]
    messages: tuple[str, ...]
    checks: int
    shortage_share: float  # of internal GPU-hours wanted: late beyond the notice
    revenue_nanos: int  # charged less credited
    revenue_by_tier: tuple[int, ...]
    credits_by_tier: tuple[int, ...]
    evictions: int
    worst_evictions: int
    work_lost_gpu_hours: float
    gpu_hours: dict[str, float]
    admitted: dict[str, int]
    refused: dict[str, int]
    waits: dict[str, float]  # seconds from pending to free, over GPUs: p50, p99, max
    reclaims: int
    counts: dict[str, int]
    daily: NDArray[np.float64]  # GPU-hours, shape (uses, days)
    absorption: NDArray[np.float64]  # share of what was not internal's that was sold, by day
    history: str  # a digest of every lease that ended and of what internal jobs held
    ended: tuple[Ints, ...]  # where they were kept: rows of `table.COLUMNS`

    def csv(self) -> Iterator[bytes]:
        """Yield lines of text, one a lease that ended, under a header."""
        yield (",".join(COLUMNS) + "\n").encode()
        for rows in self.ended:
            for row in rows.tolist():
                yield (",".join(map(str, row)) + "\n").encode()

    @classmethod
    def of(cls, run: "Simulation") -> "Outcome":
        tally, till, scenario = run.tally, run.till, run.scenario
        use = tally.use.copy()
        gpus = sum(pool.gpus for pool in scenario.pools)
        use[-1] = gpus * STEP - use[:-1].sum(axis=0)
        daily = use.reshape(len(USES), -1, DAY_STEPS).sum(axis=2) / _HOUR
        sold = daily[1 : 1 + len(TIERS)].sum(axis=0)
        could = sold + daily[USES.index("idle")] + daily[USES.index("leaving")]
        wanted = int(run.world.demand[:, run.world.first :].sum()) * STEP
        admitted = tally.admitted.tolist()
        run.laws.broken["no_double_sale"] += int(
            tally.ended_gpu_seconds != tally.served_gpu_seconds
        )
        return cls(
            rules=scenario.conduct.rules,
            pricing=run.rules.pricing or scenario.conduct.pricing,
            violations=run.laws.violations,
            broken_laws=dict(run.laws.broken),
            messages=tuple(run.laws.first),
            checks=run.laws.checks,
            shortage_share=tally.late / wanted if wanted else 0.0,
            revenue_nanos=int(till.revenue.sum() - till.credits.sum()),
            revenue_by_tier=tuple(till.revenue.tolist()),
            credits_by_tier=tuple(till.credits.tolist()),
            evictions=int(tally.evictions.sum()),
            worst_evictions=tally.worst_evictions,
            work_lost_gpu_hours=tally.work_lost / _HOUR,
            gpu_hours={name: float(hours) for name, hours in zip(USES, daily.sum(axis=1), strict=True)},
            admitted=dict(zip(TIERS, admitted, strict=True)),
            refused=dict(sorted(tally.refused.items())),
            waits=quantiles(tally.waits),
            reclaims=tally.reclaims,
            counts={
                "completed": tally.completed, "resumed": tally.resumed,
                "node_lost": tally.lost, "credit_exhausted": tally.exhausted,
                "reservations_broken": tally.broken, "contract_parts_late": tally.late_contract,
                "outbid": tally.outbid, "priced_by_the_book": run.tariff.fallbacks,
            },
            daily=daily,
            absorption=sold / np.maximum(could, 1e-9),
            history=run.history.hexdigest(),
            ended=tuple(run.kept or ()),
        )  # fmt: skip


def quantiles(waits: Counter[int]) -> dict[str, float]:
    """Return how long GPUs were waited for, in seconds, over GPUs."""
    if not waits:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    seconds = np.array(sorted(waits), dtype=np.int64)
    share = np.cumsum([waits[one] for one in seconds.tolist()]) / sum(waits.values())

    def at(level: float) -> float:
        return float(seconds[min(int(np.searchsorted(share, level - 1e-12)), len(seconds) - 1)])

    return {"p50": at(0.5), "p99": at(0.99), "max": float(seconds[-1])}


def document(outcome: Outcome, *, clairvoyant_nanos: int) -> dict[str, Any]:
    """Return a run as JSON's values; the six figures that are compared come last."""
    return {
        "rules": outcome.rules,
        "pricing": outcome.pricing,
        "history": outcome.history,
        "checks": outcome.checks,
        "broken_laws": outcome.broken_laws,
        "messages": list(outcome.messages),
        "gpu_hours": {name: round(hours, 1) for name, hours in outcome.gpu_hours.items()},
        "revenue_usd": _by_tier(outcome.revenue_by_tier),
        "credits_usd": _by_tier(outcome.credits_by_tier),
        "net_usd": _usd(outcome.revenue_nanos),
        "clairvoyant_usd": _usd(clairvoyant_nanos),
        "admitted": outcome.admitted,
        "refused": outcome.refused,
        "reclaims": outcome.reclaims,
        "reclaim_seconds": outcome.waits,
        "worst_evictions_of_one": outcome.worst_evictions,
        "work_lost_gpu_hours": round(outcome.work_lost_gpu_hours, 1),
        "counts": outcome.counts,
        "absorption": [round(float(share), 4) for share in outcome.absorption],
        "violations": outcome.violations,
        "shortage_share": outcome.shortage_share,
        "revenue_share": outcome.revenue_nanos / clairvoyant_nanos if clairvoyant_nanos else 0.0,
        "evictions": outcome.evictions,
    }


def _usd(nanos: int) -> float:
    return round(nanos / NANOS, 2)


def _by_tier(nanos: tuple[int, ...]) -> dict[str, float]:
    return {tier: _usd(amount) for tier, amount in zip(TIERS, nanos, strict=True)}

"""How good a policy's decisions were.

Every figure is a ratio of two sums over the days of the scored part; its 95 % interval comes
from drawing days with replacement, because the hours of a day are not separate observations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from sublet.planner.curve import HOUR_SECONDS, Curve, Floats
from sublet.planner.policies import Decisions
from sublet.planner.portfolio import Prices, portfolio
from sublet.planner.signals import Ints, held
from sublet.planner.windows import Span, Windows, days, summed

MOST_LACKING: Final = 0.001  # of internal use; a policy above it is no candidate
_DRAWS: Final = 1_000
_SEED: Final = 20_200_801


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A ratio, and the interval in which it lies with 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmScore:
    """Windows of one length, each sold by itself."""

    sold: Share  # of idle GPU-hours
    kept: Share  # of idle GPU-hours
    clairvoyant: Share  # of idle GPU-hours
    broken: Share  # of those sold
    oversold: Share  # of the windows
    kept_of_clairvoyant: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    name: str
    firm: Mapping[int, FirmScore]  # by the windows' hours
    shortage: Share  # of internal GPU-hours: waited longer than the notice
    waited: Share  # of internal GPU-hours: waited at all
    interruptible: Share  # of idle GPU-hours, in the portfolio
    evictions_per_gpu_day: Share  # of lent GPU-days
    revenue: Share  # of the clairvoyant's on the same grid
    broken: Share  # of the portfolio's firm GPU-hours

    @property
    def holds_the_gate(self) -> bool:
        """Is internal demand served within the notice, all but a thousandth of it?"""
        return self.shortage.value <= MOST_LACKING


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What decisions are scored against."""

    curve: Curve
    scored: Span
    grids: Mapping[int, Windows]
    prices: Prices
    notice_seconds: int
    best_revenue: Floats  # the clairvoyant's on the same grid, shape (days,)


def score(name: str, decisions: Decisions, field: Field) -> Score:
    """Play `decisions` against what came, and say how good they were."""
    curve, scored = field.curve, field.scored
    of_day = days(curve, scored)
    count = int(of_day[-1]) + 1 if len(of_day) else 0
    step_hours = curve.step_seconds / HOUR_SECONDS
    part = slice(scored.first, scored.last)

    def by_day(values: Floats) -> Floats:
        return summed(values, of_day, count)

    idle = by_day(np.nan_to_num(curve.idle[part])) * step_hours
    # Demand above what there is cannot be served by anybody, so it is not counted as use.
    used = by_day(np.nan_to_num(np.fmin(curve.running[part], held(curve.total)[part]))) * step_hours
    firm = {}
    for hours, grid in field.grids.items():
        sold = decisions.promises[hours]
        starts = of_day[grid.slots - scored.first]

        def sums(values: Floats, starts: Ints = starts) -> Floats:
            return summed(values, starts, count)

        kept = np.minimum(sold, grid.kept)
        firm[hours] = FirmScore(
            sold=ratio(sums(sold) * hours, idle),
            kept=ratio(sums(kept) * hours, idle),
            clairvoyant=ratio(sums(grid.kept) * hours, idle),
            broken=ratio(sums(sold - kept), sums(sold)),
            oversold=ratio(sums((sold > kept).astype(np.float64)), sums(np.ones(len(sold)))),
            kept_of_clairvoyant=ratio(sums(kept), sums(np.floor(grid.kept))),
        )
    takings = portfolio(
        curve,
        scored,
        field.grids,
        decisions.portfolio,
        field.prices,
        notice_seconds=field.notice_seconds,
        lends_interruptible=decisions.lends_interruptible,
        preempts=decisions.preempts,
    )
    promised = takings.firm_hours + takings.broken_hours
    return Score(
        name=name,
        firm=firm,
        shortage=ratio(takings.lacking_hours, used),
        waited=ratio(takings.waited_hours, used),
        interruptible=ratio(takings.interruptible_hours, idle),
        evictions_per_gpu_day=ratio(
            takings.evictions, (promised + takings.interruptible_hours) / 24
        ),
        revenue=ratio(takings.revenue, field.best_revenue),
        broken=ratio(takings.broken_hours, promised),
    )


def ratio(part: Floats, whole: Floats) -> Share:
    """Return the ratio of two sums over days, by day; nothing of nothing is nothing."""
    if not whole.sum() > 0:
        return Share(value=0.0, low=0.0, high=0.0)
    draws = np.random.default_rng(_SEED).integers(0, len(whole), (_DRAWS, len(whole)))
    wholes = whole[draws].sum(axis=1)
    ratios = part[draws].sum(axis=1)[wholes > 0] / wholes[wholes > 0]
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Share(value=float(part.sum() / whole.sum()), low=float(low), high=float(high))

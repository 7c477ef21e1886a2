"""What a policy would have sold of a pool, deciding from the past alone, and what came of it.

The same decisions that `sublet backtest` scores, in GPU-hours and at the audit's prices.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sublet.core.errors import Invalid
from sublet.core.money import NANOS, Money, Rate
from sublet.planner.curve import DAY_SECONDS, HOUR_SECONDS
from sublet.planner.idle import hindsight
from sublet.planner.idle.timeline import Timeline
from sublet.planner.policies import POLICIES, Task
from sublet.planner.portfolio import Prices, portfolio
from sublet.planner.windows import LENGTHS, span, windows

# The first week is learnt from, and not scored.
_LEARNS_SECONDS: Final = 7 * DAY_SECONDS
_STEP_SECONDS: Final = 600
_NOTICE_SECONDS: Final = 600
CONFIDENCE: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """GPU-hours, from the second week on."""

    start: int
    end: int
    idle_hours: float
    firm_hours: float  # promised and kept
    broken_hours: float  # promised and not kept
    interruptible_hours: float
    evictions: int  # GPUs taken back from interruptible leases and broken promises
    late_hours: float  # of internal jobs, that waited longer than the notice
    worth: Money  # net of refunds and credits for what was broken
    ceiling: Money  # the best mix of the same time in hindsight


def replay(timeline: Timeline, prices: hindsight.Prices, *, policy: str) -> Replay | None:
    """Replay the decisions of `policy` over a pool's past.

    Returns:
        what came of them; None where the past is too short to learn a week and sell an hour.

    Raises:
        Invalid: no policy is called that.
    """
    if policy not in POLICIES:
        raise Invalid(f"no policy is called {policy[:40]!r}; there are {', '.join(POLICIES)}")
    curve = timeline.to_curve(step_seconds=_STEP_SECONDS)
    scored = span(curve, curve.start + _LEARNS_SECONDS, curve.end)
    grids = {hours: windows(curve, hours, scored) for hours in LENGTHS}
    if scored.last <= scored.first or not len(grids[LENGTHS[0]].slots):
        return None
    paid = _floats(prices)
    task = Task(
        curve=curve, grids=grids, confidence=CONFIDENCE, prices=paid, train_until=scored.first
    )
    decisions = POLICIES[policy](task)
    takings = portfolio(
        curve,
        scored,
        grids,
        decisions.portfolio,
        paid,
        notice_seconds=_NOTICE_SECONDS,
        lends_interruptible=decisions.lends_interruptible,
        preempts=decisions.preempts,
    )
    start, end = (curve.start + slot * _STEP_SECONDS for slot in (scored.first, scored.last))
    same = hindsight.hours_of(timeline.within(start, min(end, int(timeline.times[-1]))))
    idle = np.nansum(curve.idle[scored.first : scored.last]) * _STEP_SECONDS / HOUR_SECONDS
    return Replay(
        start=start,
        end=end,
        idle_hours=float(idle),
        firm_hours=float(takings.firm_hours.sum()),
        broken_hours=float(takings.broken_hours.sum()),
        interruptible_hours=float(takings.interruptible_hours.sum()),
        evictions=round(float(takings.evictions.sum())),
        late_hours=float(takings.lacking_hours.sum()),
        worth=Money(round(float(takings.revenue.sum()) * NANOS)),
        ceiling=hindsight.best_mix(same, prices).worth,
    )


def _floats(prices: hindsight.Prices) -> Prices:
    def per_hour(rate: Rate) -> float:
        return rate.charge(HOUR_SECONDS).nanos / NANOS

    firm = {hours: per_hour(prices.firm[hours]) for hours in LENGTHS}
    return Prices(firm=firm, interruptible=per_hour(prices.interruptible))

"""Replaying decisions over a pool's history as they would have been made, and scoring them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sublet.core.errors import Invalid
from sublet.planner import bounds
from sublet.planner.curve import Curve
from sublet.planner.policies import POLICIES, Task
from sublet.planner.portfolio import DEFAULT_PRICES, Prices
from sublet.planner.score import Field, Score, score
from sublet.planner.windows import LENGTHS, span, windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a back-test is run with. Instants are seconds since the epoch."""

    policies: Sequence[str] = ("default",)
    train_until: int | None = None  # for what is fitted once; None: until the scored part starts
    start: int | None = None  # of the scored part; None: a week after the history starts
    end: int | None = None  # None: where the history ends
    skip_days: Sequence[int] = ()  # instants at which days start that nobody knows or scores
    notice_seconds: int = 600
    confidence: float = 0.99
    prices: Prices = DEFAULT_PRICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    scores: Sequence[Score]  # those that hold the gate first, then by revenue
    seconds: float  # of wall time


def backtest(
    curve: Curve, setting: Setting, *, told: Callable[[str], None] = lambda _: None
) -> Report:
    """Run policies over `curve` and score them.

    Args:
        curve: a pool's history.
        setting: what to run and how.
        told: is told the name of each policy before it runs.

    Raises:
        Invalid: a policy is unknown, the confidence is no share, or nothing is left to score.
    """
    began = time.monotonic()
    unknown = [name for name in setting.policies if name not in POLICIES]
    if unknown:
        raise Invalid(f"no policy is called {unknown[0]!r}; there are {', '.join(POLICIES)}")
    if not 0 < setting.confidence < 1:
        raise Invalid(f"the confidence must lie between 0 and 1, not at {setting.confidence}")
    field, task = prepare(curve, setting)
    scores = []
    for name in dict.fromkeys(setting.policies):
        told(name)
        scores.append(score(name, POLICIES[name](task), field))
    scores.sort(key=lambda one: (not one.holds_the_gate, -one.revenue.value))
    return Report(scores=scores, seconds=time.monotonic() - began)


def prepare(curve: Curve, setting: Setting) -> tuple[Field, Task]:
    """Return what policies are scored against, and what they are asked.

    Raises:
        Invalid: nothing is left to score, or the training ends after the scoring starts.
    """
    curve = curve.without_days(setting.skip_days)
    field = _field(curve, setting)
    start = curve.start + field.scored.first * curve.step_seconds
    until = start if setting.train_until is None else setting.train_until
    if until > start:
        raise Invalid(
            "the training must end before the scored part starts: see --train-until and --from"
        )
    return field, Task(
        curve=curve,
        grids=field.grids,
        confidence=setting.confidence,
        prices=setting.prices,
        train_until=curve.slot(until),
    )


def _field(curve: Curve, setting: Setting) -> Field:
    week = 7 * 86_400
    scored = span(
        curve,
        curve.start + week if setting.start is None else setting.start,
        curve.end if setting.end is None else setting.end,
    )
    grids = {hours: windows(curve, hours, scored) for hours in LENGTHS}
    if not len(grids[1].slots):
        raise Invalid(
            "nothing is left to score: the history must be longer than a week, and what lies"
            " between --from and --to must hold samples"
        )
    return Field(
        curve=curve,
        scored=scored,
        grids=grids,
        prices=setting.prices,
        notice_seconds=setting.notice_seconds,
        best_revenue=bounds.on_grid(curve, scored, grids, setting.prices),
    )


def document(report: Report) -> Mapping[str, object]:
    """Return the report as `sublet backtest --json` prints it: all shares of 1."""
    return {
        "policies": [
            {
                "name": one.name,
                "shortage_share": one.shortage.value,
                "interruptible_share": one.interruptible.value,
                "evictions_per_gpu_day": one.evictions_per_gpu_day.value,
                "revenue_share": one.revenue.value,
                "firm": {
                    f"{hours}h": {
                        "sold_share": firm.sold.value,
                        "kept_share": firm.kept.value,
                        "clairvoyant_share": firm.clairvoyant.value,
                        "broken_share": firm.broken.value,
                        "oversold_share": firm.oversold.value,
                    }
                    for hours, firm in one.firm.items()
                },
            }
            for one in report.scores
        ],
        "seconds": report.seconds,
    }

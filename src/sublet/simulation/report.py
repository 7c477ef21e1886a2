"""Many runs beside each other, over seeds."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np

from sublet.core.money import NANOS
from sublet.planner.curve import Floats
from sublet.simulation.outcome import Outcome
from sublet.simulation.play import Played
from sublet.simulation.scenario import TIERS

_DRAWS: Final = 2_000


def comparison(played: Sequence[Played]) -> list[dict[str, Any]]:
    """Return a row for each variant, over its seeds, the best revenue first.

    Variants that make internal jobs wait for more than a thousandth come last, whatever they
    earned.
    """
    rows = []
    by_name = sorted(played, key=lambda one: one.variant.name)
    for name, group in groupby(by_name, key=lambda one: one.variant.name):
        runs = list(group)
        outcomes = [one.outcome for one in runs]
        shares = np.array([share(one) for one in runs])
        low, high = interval(shares)
        shortage = float(np.mean([one.shortage_share for one in outcomes]))
        rows.append(
            {
                "name": name,
                "revenue_share": float(shares.mean()),
                "low": low,
                "high": high,
                "revenue": _percent(float(shares.mean())),
                "interval": f"{100 * low:.1f}-{100 * high:.1f}" if len(runs) > 1 else "",
                "net": f"{np.mean([one.revenue_nanos for one in outcomes]) / NANOS:,.0f}",
                "sold": _percent(float(np.mean([sold_share(one) for one in outcomes]))),
                "shortage_share": shortage,
                "shortage": _percent(shortage, 3),
                "evictions": round(float(np.mean([one.evictions for one in outcomes]))),
                "worst": max(one.worst_evictions for one in outcomes),
                "wait": f"{max(one.waits['p99'] for one in outcomes):.0f} s",
                "violations": sum(one.violations for one in outcomes),
            }
        )
    return sorted(rows, key=lambda row: (row["shortage_share"] > 0.001, -row["revenue_share"]))


def share(one: Played) -> float:
    bound = one.clairvoyant_nanos
    return one.outcome.revenue_nanos / bound if bound else 0.0


def sold_share(outcome: Outcome) -> float:
    """Return how much of what internal jobs left was sold, over GPU-hours."""
    sold = sum(outcome.gpu_hours[tier] for tier in TIERS)
    left = sold + outcome.gpu_hours["idle"] + outcome.gpu_hours["leaving"]
    return sold / left if left else 0.0


def interval(values: Floats) -> tuple[float, float]:
    """Return where 95 % of the means lie, from drawing seeds with replacement."""
    dice = np.random.default_rng(0)
    means = values[dice.integers(len(values), size=(_DRAWS, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _percent(part: float, digits: int = 1) -> str:
    return f"{100 * part:.{digits}f} %"

"""The forecast as quantiles, recalibrated online, and how good they were.

A forecast's quantile is as many spreads above its middle as that share of the outcomes of the
last eight weeks was, among windows that had ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from sublet.planner.curve import Floats
from sublet.planner.outlook import HOURS_A_DAY, Outlook
from sublet.planner.signals import Ints

BAND: Final = (0.50, 0.90, 0.95, 0.99)
_RECENT_HOURS: Final = 56 * HOURS_A_DAY
_FEWEST: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class BandScore:
    """How one quantile of the highest demand in a window fared."""

    coverage: float  # share of the windows whose demand stayed below it
    pinball_gpus: float  # mean pinball loss
    missed_gpus: Floats  # how far each window's demand rose above it, (rows,); NaN: no forecast


def depths_at(forecasts: Outlook, row: int) -> Floats:
    """Return the depths of `BAND` at one row, from windows that had ended; NaN: too few."""
    ended = slice(
        max(row + 1 - forecasts.hours - _RECENT_HOURS, 0), max(row + 1 - forecasts.hours, 0)
    )
    fall = (forecasts.idle[ended] - forecasts.kept[ended]) / np.maximum(forecasts.total[ended], 1.0)
    depths = (fall - forecasts.middle[ended]) / forecasts.usual[ended]
    depths = depths[~np.isnan(depths)]
    if len(depths) < _FEWEST:
        return np.full(len(BAND), np.nan)
    return np.asarray(np.quantile(depths, BAND))


def band_scores(forecasts: Outlook, rows: Ints) -> Mapping[float, BandScore]:
    """Score the band at `rows`, by quantile; rows that were not forecast do not count."""
    depths = np.array([depths_at(forecasts, row) for row in rows.tolist()]).reshape(-1, len(BAND))
    total = forecasts.total[rows]
    high = forecasts.middle[rows, None] + depths * forecasts.usual[rows, None]
    # In GPUs above the last sample's demand, which is the same as below its idle ones.
    missed = (forecasts.idle - forecasts.kept)[rows, None] - high * total[:, None]
    missed[np.isnan(missed).any(axis=1)] = np.nan
    known = ~np.isnan(missed[:, 0])
    out = {}
    for place, share in enumerate(BAND):
        above = missed[known, place]
        loss = np.maximum(share * above, (share - 1) * above)
        out[share] = BandScore(
            coverage=float((above <= 0).mean()) if len(above) else float("nan"),
            pinball_gpus=float(loss.mean()) if len(above) else float("nan"),
            missed_gpus=missed[:, place],
        )
    return out

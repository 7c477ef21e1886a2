"""How deep to stay: by what each depth would have broken so far.

For every depth of a ladder it is known what it would have sold at each hour in the past, from
the forecast as it was then, and how much of that would have been broken. At each decision the
shallowest depth is taken whose broken GPU-windows stay within the promised share of those sold,
with two kinds of caution:

- the days differ, so the excess of broken over allowed must be below zero by `_CAUTION` times
  its own standard error, computed over blocks of a day (or of a window, where that is longer);
- what was seen is mixed with what is usual elsewhere, as if `_PRIOR_WINDOWS` more windows had
  been seen of which a hundredth broke at a depth of one spread, a quarter of that a spread
  deeper; and a part of one window is charged as broken, for what has never been seen at all, a
  larger one for days, of which few are seen;
- a depth that sells on a few days only has proven nothing: its sales must be spread over
  `_FEWEST_BLOCKS` blocks and more, and over twice as many where a block is a single window.

The past counts half as much every two weeks, because demand drifts. Where no depth of the
ladder is good enough, nothing is sold.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sublet.planner.curve import Floats
from sublet.planner.outlook import HOURS_A_DAY, Outlook
from sublet.planner.signals import Ints

DEPTHS: Final[Floats] = np.round(
    np.concatenate([np.arange(-1, 3, 0.1), np.arange(3, 6, 0.25), np.arange(6, 13, 1.0)]), 2
)

_HALF_LIFE_DAYS: Final = 14.0
_OLDEST_DAYS: Final = 90
_AIM: Final = 0.9  # of what may break: half of all estimates are too low
_CAUTION: Final = 0.5
_PRIOR_WINDOWS: Final = 20.0
_PRIOR_BROKEN: Final[Floats] = np.minimum(0.01 * 4.0 ** (1.0 - DEPTHS), 1.0)
_UNSEEN: Final[Floats] = 0.05 * 2.0 ** (-0.5 * np.maximum(DEPTHS, 0.0))
_FEWEST_BLOCKS: Final = 4.0
_DAYS_UNSEEN: Final = 1.5  # days are few: more of what they can do has not been seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What was decided at some of an outlook's slots; arrays have shape (decisions,)."""

    gpus: Floats  # to sell firm, whole
    depth: Floats  # the depth that was taken; NaN where none was good enough
    windows: Floats  # how many windows' worth of evidence there was


class Ladder:
    """What every depth would have sold and broken, as far as it is known."""

    def __init__(self, outlook: Outlook) -> None:
        self._hours = outlook.hours
        self._block = max(HOURS_A_DAY, outlook.hours)
        self.sellable = outlook.sellable(DEPTHS)
        over = ~np.isnan(outlook.kept) & ~np.isnan(outlook.spread)
        sold = np.where(over[:, None], self.sellable, 0.0)
        kept = np.nan_to_num(outlook.kept)
        broken = np.where(over[:, None], np.maximum(sold - kept[:, None], 0.0), 0.0)
        self._sold = _running_sums(sold)
        self._broken = _running_sums(broken)
        self._over = _running_sums(over[:, None].astype(np.float64))
        self._ready = ~np.isnan(outlook.spread)

    def choose(self, rows: Ints, *, confidence: float) -> Chosen:
        """Decide at each of `rows`, which index the outlook's slots."""
        allowed = _AIM * (1 - confidence)
        gpus, depth = np.zeros(len(rows)), np.full(len(rows), np.nan)
        windows = np.zeros(len(rows))
        for place, row in enumerate(rows.tolist()):
            # The window of an hourly row has ended by now if it started `hours` rows ago.
            ended = row - self._hours + 1
            windows[place] = self._over[max(ended, 0), 0] / self._hours
            if ended < self._block or not self._ready[row]:
                continue
            good = np.flatnonzero(self._excess(row, ended, allowed) <= 0)
            if len(good):
                depth[place] = DEPTHS[good[0]]
                gpus[place] = self.sellable[row, good[0]]
        return Chosen(gpus=gpus, depth=depth, windows=windows)

    def _excess(self, row: int, ended: int, allowed: float) -> Floats:
        """Return by how much each depth broke too much, at worst, in GPU-rows; shape (depths,)."""
        blocks = min(ended // self._block, _OLDEST_DAYS * HOURS_A_DAY // self._block)
        edges = ended - np.arange(blocks, -1, -1) * self._block
        broken = np.diff(self._broken[edges], axis=0)
        sold = np.diff(self._sold[edges], axis=0)
        age_days = np.arange(blocks - 1, -1, -1) * self._block / HOURS_A_DAY
        weight = 0.5 ** (age_days / _HALF_LIFE_DAYS)
        excess = weight[:, None] * (broken - allowed * sold)
        error = np.sqrt((excess**2).sum(axis=0))
        weighed = weight[:, None] * sold
        usual = weighed.sum(axis=0) / (weight.sum() * self._block)
        prior = _PRIOR_WINDOWS * self._hours * np.maximum(usual, 1.0) * (_PRIOR_BROKEN - allowed)
        unseen = _UNSEEN * self._hours * np.maximum(np.maximum(usual, self.sellable[row]), 1.0)
        if self._hours >= HOURS_A_DAY:
            unseen = _DAYS_UNSEEN * unseen
        spread_over = weighed.sum(axis=0) ** 2 / np.maximum((weighed**2).sum(axis=0), 1e-9)
        worst = excess.sum(axis=0) + _CAUTION * error + prior + unseen
        fewest = _FEWEST_BLOCKS if self._hours < self._block else 2 * _FEWEST_BLOCKS
        return np.where(spread_over < fewest, np.inf, worst)


def _running_sums(values: Floats) -> Floats:
    return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])

"""Other forecasts of the same windows, for a portfolio, which follows whoever earned most.

The second opinion mixes what was forecast by the regressions, by boosted trees and by plain
quantiles: by how well each mixture has forecast so far. The third is that of the trees.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from sublet.planner.curve import Curve, Floats
from sublet.planner.outlook import HIGH, HOURS_A_DAY, MIDDLE, Outlook, Past, hourly
from sublet.planner.signals import signals
from sublet.planner.trees import fit_forest

_DOUBTS: Final = np.linspace(0.0, 1.0, 9)  # weights of the plain quantiles that are compared
_FADE_HOURS: Final = 56.0 * HOURS_A_DAY
_DOUBTED: Final = 1.0  # how much likelier the plain quantiles are held to be, as a logarithm
_FIRST_TREES_HOURS: Final = 7 * HOURS_A_DAY
_TREES_EVERY: Final = 4  # that part of what was seen, and a day at least
_TREES_EVERY_HOURS: Final = 28 * HOURS_A_DAY  # at most
_FEWEST_ROWS: Final = 100
_MOST_ROWS: Final = 3_000


def opinions(curve: Curve, lengths: tuple[int, ...]) -> Sequence[Mapping[int, Outlook]]:
    """Return what `outlooks` does, a second opinion and a third."""
    known = signals(curve, hourly(curve))
    first, second, third = {}, {}, {}
    for hours in lengths:
        past = Past.of(curve, hours, known, last=False)
        trees = _by_trees(past)
        count = past.doubts_by_count()
        first[hours] = past.outlook(past.fitted, count)
        second[hours] = past.outlook(*_by_merit(past, (past.fitted, trees)))
        third[hours] = past.outlook(trees, count)
    return first, second, third


def _by_merit(past: Past, fitted: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Return all of `fitted` mixed, and weights of the plain quantiles, by what each lost.

    Each mixture counts by its mean pinball loss over windows that had ended, the more so the
    more of them were seen, and a window counts half as much every eight weeks.

    Source: the exponentially weighted average of Cesa-Bianchi and Lugosi, "Prediction,
    Learning, and Games", 2006, chapter 2.
    """
    shares = np.array([MIDDLE, HIGH])
    mixtures = [doubt * past.plain + (1 - doubt) * one for one in fitted for doubt in _DOUBTS]
    doubts = np.tile(_DOUBTS, len(fitted))
    missed = past.fall[:, None, None] - np.stack(mixtures, axis=1)
    loss = np.maximum(shares * missed, (shares - 1) * missed).sum(axis=2)
    known = ~np.isnan(loss).any(axis=1)
    fade = 0.5 ** (1 / _FADE_HOURS)
    lost, seen = np.zeros(len(doubts)), 0.0
    doubt = np.ones(len(loss))
    trust = np.zeros((len(loss), len(fitted)))
    trust[:, 0] = 1.0
    for row in range(past.hours, len(loss)):
        if known[row - past.hours]:
            lost, seen = lost * fade + loss[row - past.hours], seen * fade + 1
        if seen:
            worse = lost / max(float(lost.min()), 1e-12) - 1
            weight = np.exp(_DOUBTED * doubts - worse * seen / max(past.hours, 4))
            weight /= weight.sum()
            doubt[row] = weight @ doubts
            trusted = (weight * (1 - doubts)).reshape(len(fitted), -1).sum(axis=1)
            if trusted.sum() > 0:
                trust[row] = trusted / trusted.sum()
    mixed = sum((trust[:, place, None] * one for place, one in enumerate(fitted)), np.zeros(1))
    return mixed, doubt


def _by_trees(past: Past) -> Floats:
    """Return middle and high end by trees grown anew as more is seen; the regressions' before."""
    known = past.known
    columns = np.concatenate([known.levels[:, None], known.others], axis=1)
    out = past.fitted.copy()
    usable = ~np.isnan(past.fall) & ~np.isnan(known.idle)
    at = _FIRST_TREES_HOURS
    while at < len(out):
        every = at // _TREES_EVERY // HOURS_A_DAY * HOURS_A_DAY
        until = at + min(max(every, HOURS_A_DAY), _TREES_EVERY_HOURS)
        ended = np.flatnonzero(usable[: max(at - past.hours + 1, 0)])
        if len(ended) >= _FEWEST_ROWS:
            stride = -(-len(ended) // _MOST_ROWS)
            rows = ended[::-stride][::-1]
            forest = fit_forest(columns[rows], past.fall[rows], (MIDDLE, HIGH))
            out[at:until] = forest.predict(columns[at:until])
        at = until
    out[np.isnan(known.idle)] = np.nan
    return out

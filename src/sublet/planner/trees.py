"""Boosted trees that forecast several quantiles at once, with numpy alone.

Straight lines cannot say that a signal matters only on a full pool, or only in the morning; trees
can. Each tree asks three questions, the same ones on every branch, and all quantiles share its
questions: that makes one a handful of matrix products. LightGBM does the same for one quantile
at a time, and needs a library of the system that is not everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.planner.curve import Floats
from sublet.planner.signals import Ints

_TREES: Final = 100
_RATE: Final = 0.1
_QUESTIONS: Final = 3
_EDGES: Final = 15  # of each column, at even shares of its values
_ROWS_DRAWN: Final = 0.6  # for each tree
_FEWEST_IN_LEAF: Final = 20
_LEAVES_AT_MOST: Final = 40
_SEED: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """What was fitted: where it starts, and what each tree adds."""

    edges: Floats  # shape (columns, edges)
    start: Floats  # shape (shares,)
    asked: Ints  # shape (trees, questions): a column and an edge, as one number
    added: Floats  # shape (trees, leaves, shares)

    def predict(self, columns: Floats) -> Floats:
        """Return the quantiles, rising, shape (rows, shares)."""
        out = np.repeat(self.start[None], len(columns), axis=0)
        for asked, added in zip(self.asked, self.added, strict=True):
            column, edge = np.divmod(asked, self.edges.shape[1])
            above = columns[:, column] > self.edges[column, edge]
            out += added[_leaf(above)]
        return np.sort(out, axis=1)


def fit_forest(columns: Floats, values: Floats, shares: Sequence[float]) -> Forest:
    """Return trees whose predictions each of `shares` of `values` lies below.

    Args:
        columns: what is known, shape (rows, columns).
        values: what is to be predicted, shape (rows,).
        shares: the quantiles, each in (0, 1).

    Source: Friedman, "Stochastic gradient boosting", 2002; one question for a whole level as in
    Prokhorenkova and others, "CatBoost: unbiased boosting with categorical features", 2018.
    """
    dice = np.random.default_rng(_SEED)
    wanted = np.asarray(shares)
    edges = np.quantile(columns, np.arange(1, _EDGES + 1) / (_EDGES + 1), axis=0).T
    above = (columns[:, :, None] > edges).reshape(len(columns), -1)
    yes = above.astype(np.float32)
    fewest = max(_FEWEST_IN_LEAF, len(values) // _LEAVES_AT_MOST)
    start = np.quantile(values, wanted)
    now = np.repeat(start[None], len(values), axis=0)
    asked = np.zeros((_TREES, _QUESTIONS), dtype=np.int64)
    added = np.zeros((_TREES, 2**_QUESTIONS, len(wanted)))
    for tree in range(_TREES):
        rows = np.flatnonzero(dice.random(len(values)) < _ROWS_DRAWN)
        allowed = np.repeat(dice.random(columns.shape[1]) < 0.5, _EDGES)
        missed = values[:, None] - now
        asked[tree] = _questions(yes[rows], missed[rows], wanted, allowed, fewest)
        leaf = _leaf(above[:, asked[tree]])
        for place in range(2**_QUESTIONS):
            here = missed[rows[leaf[rows] == place]]
            if len(here):
                high = np.sort(here, axis=0)
                at = np.minimum((wanted * len(here)).astype(np.int64), len(here) - 1)
                trust = len(here) / (len(here) + fewest)
                added[tree, place] = _RATE * trust * high[at, np.arange(len(wanted))]
        now += added[tree][leaf]
    return Forest(edges=edges, start=start, asked=asked, added=added)


def _questions(
    yes: NDArray[np.float32],
    missed: Floats,
    shares: Floats,
    allowed: NDArray[np.bool_],
    fewest: int,
) -> Ints:
    """Return the questions that part rows best by on which side of each quantile they lie."""
    slope = (shares - (missed < 0)) / np.sqrt(shares * (1 - shares))
    # The last column counts the rows.
    pull = np.concatenate([slope, np.ones((len(slope), 1))], axis=1).astype(np.float32)
    chosen: list[int] = []
    leaf = np.zeros(len(yes), dtype=np.int64)
    for level in range(_QUESTIONS):
        inside = (leaf[:, None] == np.arange(2**level)).astype(np.float32)
        parts = (inside[:, :, None] * pull[:, None, :]).reshape(len(yes), 2**level * pull.shape[1])
        right = (parts.T @ yes).reshape(2**level, len(shares) + 1, -1)
        both = parts.sum(axis=0).reshape(2**level, len(shares) + 1, 1)
        gain = np.zeros(yes.shape[1], dtype=np.float32)
        for side in (right, both - right):
            gain += ((side[:, :-1] ** 2).sum(axis=1) / (side[:, -1] + fewest)).sum(axis=0)
        gain[~allowed] = -1.0
        chosen.append(int(np.argmax(gain)))
        leaf = 2 * leaf + yes[:, chosen[-1]].astype(np.int64)
    return np.array(chosen, dtype=np.int64)


def _leaf(above: NDArray[np.bool_]) -> Ints:
    """Return the leaf of each row from its answers, shape (rows, questions)."""
    leaf: Ints = above.astype(np.int64) @ (2 ** np.arange(above.shape[1])[::-1])
    return leaf

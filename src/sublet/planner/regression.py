"""Linear quantile regression, fitted in milliseconds."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sublet.planner.curve import Floats
from sublet.planner.signals import Ints, Signals

_KNOTS: Final = (0.10, 0.25, 0.50, 0.75, 0.90)  # of the idle share seen in training
_FARTHEST: Final = 3.0  # standard deviations: a signal never seen so far out says no more
_ROUNDS: Final = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """How signals become the columns of a regression: hinges of the level, all standardised."""

    knots: Floats
    means: Floats
    deviations: Floats

    @staticmethod
    def of(known: Signals, rows: Ints | slice) -> "Basis":
        knots = np.quantile(known.levels[rows], _KNOTS)
        raw = _raw(known, rows, knots)
        return Basis(knots=knots, means=raw.mean(axis=0), deviations=raw.std(axis=0) + 1e-6)

    def columns(self, known: Signals, rows: Ints | slice) -> Floats:
        """Return shape (rows, 1 + signals); the first column is all ones."""
        scaled = (_raw(known, rows, self.knots) - self.means) / self.deviations
        ones = np.ones((len(scaled), 1))
        return np.concatenate([ones, np.clip(scaled, -_FARTHEST, _FARTHEST)], axis=1)


def _raw(known: Signals, rows: Ints | slice, knots: Floats) -> Floats:
    level = known.levels[rows][:, None]
    hinges = np.maximum(level - knots, 0.0)
    return np.concatenate([level, hinges, known.others[rows]], axis=1)


def fit_quantile(columns: Floats, values: Floats, share: float, *, ridge: float) -> Floats:
    """Return weights whose predictions a `share` of `values` lies below.

    Args:
        columns: shape (rows, columns), the first all ones.
        values: what is to be predicted, shape (rows,).
        share: the quantile, in (0, 1).
        ridge: how strongly weights other than the first are drawn to nothing.

    Source: the majorise-minimise algorithm of Hunter and Lange, "Quantile regression via an MM
    algorithm", 2000, with a ridge.
    """
    rows, width = columns.shape
    blunt = 1e-3 * float(values.std()) + 1e-9
    penalty = np.full(width, ridge * rows)
    penalty[0] = 1e-9
    weights = np.zeros(width)
    weights[0] = np.quantile(values, share)
    push = columns.T @ np.full(rows, 2 * share - 1)
    for _ in range(_ROUNDS):
        pull = 1 / (blunt + np.abs(values - columns @ weights))
        matrix = (columns * pull[:, None]).T @ columns
        matrix[np.diag_indices(width)] += penalty
        better = np.linalg.solve(matrix, columns.T @ (pull * values) + push)
        moved = float(np.max(np.abs(better - weights)))
        weights = better
        if moved < 1e-6:
            break
    return weights

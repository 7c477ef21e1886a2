"""What nobody can beat: portfolios that know the future, by linear programmes.

`on_grid` sells on the same windows, at the same prices and with the same cost of an eviction as
a policy does; `any_step` may start a window at any step and pays for no eviction. Both are exact
optima, found by HiGHS.
"""

from collections.abc import Mapping
from typing import Final

import highspy
import numpy as np

from sublet.core.errors import Unavailable
from sublet.planner.curve import HOUR_SECONDS, Curve, Floats
from sublet.planner.portfolio import EVICTION_SECONDS, Prices
from sublet.planner.signals import Ints, lowest
from sublet.planner.windows import LENGTHS, Span, Windows, days, summed

_COARSE_SECONDS: Final = HOUR_SECONDS


def on_grid(curve: Curve, scored: Span, grids: Mapping[int, Windows], prices: Prices) -> Floats:
    """Return the most that the grid's windows and interruptible leases could have earned, by day.

    Promises change on whole hours only, so what is lent interruptible within an hour is its
    idle GPU-hours less what is promised: the programme has one row an hour, not one a step.
    """
    per_hour = HOUR_SECONDS // curve.step_seconds
    idle = curve.idle[scored.first : scored.last].reshape(-1, per_hour)
    known = ~np.isnan(idle)
    hours = len(idle)
    day_of = days(curve, scored)
    if not hours or not known.any():
        return np.zeros(int(day_of[-1]) + 1 if hours else 0)
    # What is not known breaks no promise, here as in a portfolio.
    sellable = np.where(known, idle, np.inf).min(axis=1)
    known_hours = known.mean(axis=1)
    columns = _Columns()
    promised = {}
    for length in LENGTHS:
        starts = (grids[length].slots - scored.first) // per_hour
        worth = prices.firm[length] * length - prices.interruptible * np.array(
            [known_hours[start : start + length].sum() for start in starts]
        )
        promised[length] = columns.add(worth, upper=grids[length].kept)
        for column, start in zip(promised[length], starts, strict=True):
            columns.put(column, np.arange(start, start + length), 1.0)
    # An eviction where the lent part falls from one hour's last step to the next one's first.
    cost = prices.interruptible * EVICTION_SECONDS / HOUR_SECONDS
    evicted = columns.add(np.full(hours - 1, -cost), upper=np.full(hours - 1, np.inf))
    falls = np.nan_to_num(idle[:-1, -1] - idle[1:, 0], nan=-np.inf)
    for length in LENGTHS:
        starts = (grids[length].slots - scored.first) // per_hour
        for column, start in zip(promised[length], starts, strict=True):
            # It frees its GPUs for lending when it ends, and takes them when it starts.
            if start > 0:
                columns.put(column, np.array([hours + start - 1]), 1.0)
            if start + length < hours:
                columns.put(column, np.array([hours + start + length - 1]), -1.0)
    for place, column in enumerate(evicted):
        columns.put(column, np.array([hours + place]), -1.0)
    upper = np.concatenate([sellable, -falls])
    within = np.where(known[:, 1:] & known[:, :-1], np.maximum(-np.diff(idle, axis=1), 0.0), 0.0)
    gain, amount = columns.solve(upper)
    # What a column earns counts on the day on which it starts, as for a policy.
    hour_of = np.concatenate(
        [(grids[n].slots - scored.first) // per_hour for n in LENGTHS] + [np.arange(1, hours)]
    )
    earned = prices.interruptible * np.nansum(idle, axis=1) / per_hour
    earned -= cost * within.sum(axis=1)
    earned += summed(gain * amount, hour_of, hours)
    return summed(earned, day_of[::per_hour], int(day_of[-1]) + 1)


def any_step(curve: Curve, scored: Span, prices: Prices) -> float:
    """Return the most that windows starting at any step could have earned: an upper bound.

    Steps finer than an hour are made coarser by the best of each hour, which keeps it an upper
    bound and the programme small.
    """
    idle = curve.idle[scored.first : scored.last]
    if not len(idle) or np.isnan(idle).all():
        return 0.0
    # What is not known is not lent, and breaks no promise of GPUs that there are.
    lent = np.nan_to_num(idle)
    room = np.where(np.isnan(idle), np.nanmax(curve.total), idle)
    step = curve.step_seconds
    if step < _COARSE_SECONDS:
        width = _COARSE_SECONDS // step
        lent, room = (-lowest(-one, width)[width - 1 :: width] for one in (lent, room))
        step = _COARSE_SECONDS
    steps = len(room)
    hours = step / HOUR_SECONDS
    columns = _Columns()
    rows = 0
    actives = []
    for length in LENGTHS:
        window = length * HOUR_SECONDS // step
        # `standing` at a step is what stood before, plus what starts, less what ended.
        worth = (prices.firm[length] - prices.interruptible * (lent == room)) * hours
        standing = columns.add(worth, upper=room)
        starting = columns.add(np.zeros(steps), upper=room)
        row = rows + np.arange(steps)
        columns.put_each(standing, row, 1.0)
        columns.put_each(standing[:-1], row[1:], -1.0)
        columns.put_each(starting, row, -1.0)
        columns.put_each(starting[: steps - window], row[window:], 1.0)
        rows += steps
        actives.append(standing)
    for standing in actives:
        columns.put_each(standing, rows + np.arange(steps), 1.0)
    upper = np.concatenate([np.zeros(rows), room])
    lower = np.concatenate([np.zeros(rows), np.full(steps, -np.inf)])
    return prices.interruptible * float(lent.sum()) * hours + float(
        np.dot(*columns.solve(upper, lower))
    )


class _Columns:
    """A linear programme that is to be maximised, built column by column."""

    def __init__(self) -> None:
        self._worth: list[Floats] = []
        self._upper: list[Floats] = []
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self._count = 0

    def add(self, worth: Floats, *, upper: Floats) -> Ints:
        """Add columns from nothing up to `upper`; returns their numbers."""
        self._worth.append(np.asarray(worth, dtype=np.float64))
        self._upper.append(np.asarray(upper, dtype=np.float64))
        self._count += len(worth)
        return np.arange(self._count - len(worth), self._count)

    def put(self, column: int, rows: Ints, value: float) -> None:
        self.put_each(np.full(len(rows), column), rows, value)

    def put_each(self, columns: Ints, rows: Ints, value: float) -> None:
        self._entries.append((columns, rows, np.full(len(rows), value)))

    def solve(self, row_upper: Floats, row_lower: Floats | None = None) -> tuple[Floats, Floats]:
        """Return each column's worth, and how much of it is best with every row in its bounds.

        Raises:
            Unavailable: the solver gave up.
        """
        column, row, value = (np.concatenate(parts) for parts in zip(*self._entries, strict=True))
        order = np.argsort(column, kind="stable")
        starts = np.searchsorted(column[order], np.arange(self._count + 1))
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self._count, len(row_upper)
        model.sense_ = highspy.ObjSense.kMaximize
        model.col_cost_ = np.concatenate(self._worth)
        model.col_lower_ = np.zeros(self._count)
        model.col_upper_ = np.concatenate(self._upper)
        model.row_lower_ = np.full(len(row_upper), -np.inf) if row_lower is None else row_lower
        model.row_upper_ = row_upper
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = starts
        model.a_matrix_.index_ = row[order]
        model.a_matrix_.value_ = value[order]
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.passModel(model)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise Unavailable(f"the bound was not found: {solver.getModelStatus()}")
        return model.col_cost_, np.array(solver.getSolution().col_value)

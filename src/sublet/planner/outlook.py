"""What a window will leave idle: a forecast, made again and again as data came in.

For a window of some hours that starts at a slot, the *fall* is how far idle GPUs will sink below
the last sample, as a share of the pool; a negative fall is a rise. Two linear quantile
regressions say its middle (half of all falls are smaller) and its high end (nine in ten are);
their distance is the *spread*. How many spreads to keep clear of is not theirs to say: that is
the *depth*, and it is chosen by what each depth would have broken so far (see `calibration`).

The regressions are fitted anew every week on what had ended by then, and mixed with the plain
quantiles of the last four weeks, by how many windows were seen. Others are asked for a portfolio
only: see `opinions`.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sublet.planner.curve import HOUR_SECONDS, Curve, Floats
from sublet.planner.regression import Basis, fit_quantile
from sublet.planner.seasons import Seasons
from sublet.planner.signals import Ints, Signals, lowest, lowest_ahead, signals

MIDDLE: Final = 0.5
HIGH: Final = 0.9
HOURS_A_DAY: Final = 24

_FIRST_FIT_HOURS: Final = 3 * HOURS_A_DAY
_FIT_EVERY_HOURS: Final = 7 * HOURS_A_DAY
_FEWEST_ROWS: Final = 24
_MOST_ROWS: Final = 4_000
_RIDGE: Final = 0.01
# With fewer hours seen than so many windows take, signals are held back for want of windows.
_FEW: Final = 20_000
_TRUSTED_WINDOWS: Final = 7  # after which the regressions weigh as much as the plain quantiles
_RECENT_HOURS: Final = 28 * HOURS_A_DAY
_USUAL_HOURS: Final = 14 * HOURS_A_DAY
_LEAST_SPREAD: Final = 0.002  # of the pool
SHALLOW: Final = 0.5  # spreads; beyond, the usual spread counts where it is wider


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Forecasts for windows of `hours` that start at `slots`; arrays have shape (slots,).

    Falls, middles, spreads and `most` are shares of the pool; NaN is not known.
    """

    hours: int
    slots: Ints
    idle: Floats  # GPUs, one step before
    total: Floats  # GPUs, one step before
    middle: Floats
    spread: Floats
    usual: Floats  # the median of the spreads of the last two weeks, where that is wider
    most: Floats  # the most that any window of the last four weeks kept; all: too few were seen
    kept: Floats  # GPUs idle throughout the window: what came; NaN where not over

    def fall(self, depths: Floats) -> Floats:
        """Return the falls that windows are kept clear of at each depth, shape (slots, depths)."""
        near = np.minimum(depths, SHALLOW) * self.spread[:, None]
        far = np.maximum(depths - SHALLOW, 0.0) * self.usual[:, None]
        return self.middle[:, None] + near + far

    def sellable(self, depths: Floats) -> Floats:
        """Return the GPUs to sell at each of `depths`, whole, shape (slots, depths)."""
        room = self.idle[:, None] - self.fall(depths) * self.total[:, None]
        return np.floor(np.nan_to_num(np.clip(room, 0.0, self.limit()[:, None])) + 1e-9)

    def limit(self) -> Floats:
        """Return the most GPUs that anybody should promise: no more than has been kept lately.

        A pool that is idle as never before has an outage, and its jobs will be back.
        """
        return np.fmin(self.idle, self.most * self.total)

    def depth(self, fall: Floats) -> Floats:
        """Return how many spreads deep each fall is: the inverse of `fall`."""
        near = (fall - self.middle) / self.spread
        far = SHALLOW + (fall - self.middle - SHALLOW * self.spread) / self.usual
        return np.where(near <= SHALLOW, near, far)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What forecasts a window from signals: two regressions, and the plain quantiles beside them."""

    seasons: Seasons
    basis: Basis | None  # None: too little was seen for a regression
    weights: tuple[Floats, Floats] | None
    plain: Floats  # shape (2,); NaN: not known
    doubt: float  # weight of the plain quantiles, in (0, 1]
    usual: float  # share of the pool
    most: float  # share of the pool

    def predict(self, known: Signals) -> tuple[Floats, Floats, Floats]:
        """Return middle, spread and usual spread at each of `known.slots`."""
        both = np.full((len(known.slots), 2), np.nan)
        if self.basis is not None and self.weights is not None:
            columns = self.basis.columns(
                known.beside(self.seasons.columns(known.starts)), slice(None)
            )
            both = np.stack([columns @ weights for weights in self.weights], axis=1)
        plain = np.broadcast_to(self.plain, both.shape)
        middle, spread = _mixed(both, plain, np.full((len(both), 1), self.doubt), known.total)
        return middle, spread, np.fmax(spread, self.usual)


def hourly(curve: Curve) -> Ints:
    """Return the slots that start a whole hour, from the second slot on, and the one after all."""
    per_hour = HOUR_SECONDS // curve.step_seconds
    first = (-(curve.start // curve.step_seconds)) % per_hour
    slots = np.arange(first, len(curve) + 1, per_hour, dtype=np.int64)
    return slots[slots > 0]


def outlook(curve: Curve, hours: int, known: Signals, *, last: bool = False) -> Outlook:
    """Forecast windows of `hours` at all of `known.slots`, each from what was known before it.

    Args:
        curve: the history.
        hours: how long a window is.
        known: the signals at whole hours, in order; see `hourly`.
        last: forecast what is idle in the last step of the window, not throughout it.
    """
    return fitted_outlook(curve, hours, known, last=last)[0]


def fitted_outlook(
    curve: Curve, hours: int, known: Signals, *, last: bool = False
) -> tuple[Outlook, Fit]:
    """Return the outlook, and the fit that forecasts from the end of the history on."""
    past = Past.of(curve, hours, known, last=last)
    doubts = past.doubts_by_count()
    forecasts = past.outlook(past.fitted, doubts)
    median = _running_median(forecasts.spread, _USUAL_HOURS)
    fit = Fit(
        seasons=past.seasons.recent(),
        basis=None if past.newest is None else past.newest[0],
        weights=None if past.newest is None else past.newest[1],
        plain=past.plain[-1] if len(past.plain) else np.full(2, np.nan),
        doubt=float(doubts[-1]) if len(doubts) else 1.0,
        usual=float(median[-1]) if len(median) else np.nan,
        most=float(forecasts.most[-1]) if len(forecasts.most) else 1.0,
    )
    return forecasts, fit


def outlooks(curve: Curve, lengths: tuple[int, ...]) -> dict[int, Outlook]:
    """Return the outlook for windows of each of `lengths` hours, at every whole hour."""
    known = signals(curve, hourly(curve))
    return {hours: outlook(curve, hours, known) for hours in lengths}


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Windows of `hours` as they came, and forecasts of each as they would have been made."""

    hours: int
    known: Signals  # earlier days beside them
    seasons: Seasons
    kept: Floats  # shape (slots,)
    fall: Floats  # shape (slots,)
    plain: Floats  # shape (slots, 2): middle and high end
    fitted: Floats  # the same, by the regressions
    newest: tuple[Basis, tuple[Floats, Floats]] | None  # the regressions fitted last

    @staticmethod
    def of(curve: Curve, hours: int, known: Signals, *, last: bool) -> "Past":
        slots = known.slots
        window = hours * HOUR_SECONDS // curve.step_seconds
        if last:
            at = np.minimum(slots + window - 1, len(curve) - 1)
            kept = np.where(slots + window <= len(curve), curve.idle[at], np.nan)
        else:
            kept = lowest_ahead(curve.idle, window)[slots]
        fall = (known.idle - kept) / np.maximum(known.total, 1.0)
        start = int(known.starts[0]) if len(slots) else curve.start
        seasons = Seasons(hours=hours, start=start, falls=fall)
        seasoned = known.beside(seasons.columns(known.starts))
        fitted, newest = _fitted_quantiles(seasoned, fall, hours)
        plain = _plain_quantiles(fall, hours)
        return Past(
            hours=hours, known=seasoned, seasons=seasons, kept=kept, fall=fall, plain=plain,
            fitted=fitted, newest=newest,
        )  # fmt: skip

    def outlook(self, fitted: Floats, doubts: Floats) -> Outlook:
        """Mix `fitted` with the plain quantiles, these with weights `doubts`, shape (slots,)."""
        known = self.known
        middle, spread = _mixed(fitted, self.plain, doubts[:, None], known.total)
        return Outlook(
            hours=self.hours,
            slots=known.slots,
            idle=known.idle,
            total=known.total,
            middle=middle,
            spread=spread,
            usual=np.maximum(spread, _running_median(spread, _USUAL_HOURS)),
            most=_most_kept(self.kept / np.maximum(known.total, 1.0), self.hours),
            kept=self.kept,
        )

    def doubts_by_count(self) -> Floats:
        """Return weights of the plain quantiles that fall as windows are seen."""
        windows = np.arange(len(self.fall)) / max(self.hours, 4)
        return _TRUSTED_WINDOWS / (_TRUSTED_WINDOWS + windows)


def _mixed(fitted: Floats, plain: Floats, doubt: Floats, total: Floats) -> tuple[Floats, Floats]:
    """Return middle and spread: regressions and plain quantiles, by what each is worth."""
    both = doubt * plain + (1 - doubt) * fitted
    both = np.where(np.isnan(fitted), plain, np.where(np.isnan(plain), fitted, both))
    spread = np.fmax(both[:, 1] - both[:, 0], 0.2 * (plain[:, 1] - plain[:, 0]))
    least = np.maximum(_LEAST_SPREAD, 0.5 / np.maximum(total, 1.0))
    return both[:, 0], np.where(np.isnan(spread), np.nan, np.maximum(spread, least))


def _most_kept(kept: Floats, hours: int) -> Floats:
    """Return the most that windows of the last four weeks kept, of those that had ended."""
    known = np.where(np.isnan(kept), np.inf, -kept)
    most = np.ones(len(kept))
    most[hours:] = -lowest(known, _RECENT_HOURS)[: max(len(kept) - hours, 0)]
    most[: _FIRST_FIT_HOURS + hours] = 1.0
    return np.where(np.isneginf(most), 1.0, most)


def _plain_quantiles(fall: Floats, hours: int) -> Floats:
    """Return middle and high end of the falls of four weeks, looked at once a day."""
    out = np.full((len(fall), 2), np.nan)
    for day in range(HOURS_A_DAY, len(fall), HOURS_A_DAY):
        # A window that starts `hours` earlier has ended.
        past = fall[max(day - _RECENT_HOURS, 0) : max(day - hours + 1, 0)]
        past = past[~np.isnan(past)]
        if len(past) >= HOURS_A_DAY // 2:
            out[day : day + HOURS_A_DAY] = np.quantile(past, (MIDDLE, HIGH))
    return out


def _fitted_quantiles(
    known: Signals, fall: Floats, hours: int
) -> tuple[Floats, tuple[Basis, tuple[Floats, Floats]] | None]:
    """Return middle and high end by regressions fitted once a week, and the newest regressions."""
    newest = None
    out = np.full((len(fall), 2), np.nan)
    usable = ~np.isnan(fall) & ~np.isnan(known.idle)
    at = _FIRST_FIT_HOURS
    while at < len(fall):
        young = max(at // 3 // HOURS_A_DAY * HOURS_A_DAY, HOURS_A_DAY)
        until = at + min(_FIT_EVERY_HOURS, young)
        ended = np.flatnonzero(usable[: max(at - hours + 1, 0)])
        if len(ended) >= _FEWEST_ROWS:
            stride = -(-len(ended) // _MOST_ROWS)
            rows = ended[::-stride][::-1]
            basis = Basis.of(known, rows)
            columns, ahead = basis.columns(known, rows), basis.columns(known, slice(at, until))
            # The fewer separate windows, the less a signal may say.
            ridge = _RIDGE * (1 + _FEW * hours / len(ended))
            middle = fit_quantile(columns, fall[rows], MIDDLE, ridge=ridge)
            high = fit_quantile(columns, fall[rows], HIGH, ridge=ridge)
            out[at:until] = np.stack([ahead @ middle, ahead @ high], axis=1)
            newest = (basis, (middle, high))
        at = until
    out[np.isnan(known.idle)] = np.nan
    return out, newest


def _running_median(values: Floats, width: int) -> Floats:
    """Return the median of the last `width` values, renewed every six, NaN left out."""
    out: Floats = np.full(len(values), np.nan)
    for at in range(0, len(values), 6):
        past = values[max(at + 1 - width, 0) : at + 1]
        past = past[~np.isnan(past)]
        if len(past):
            out[at : at + 6] = np.median(past)
    wider: Floats = np.fmax(out, values)
    return wider

"""An event study: how far a price moved, about some days, from what the market's move explains.

The market model, by least squares over the days before:  r = a + b x market + e.  Abnormal return:
the return less that. Without a market, the mean of those days takes its place. Over an event's
days abnormal returns add up to the CAR; its variance includes that a and b are estimates.

Source: MacKinlay (1997), Event Studies in Economics and Finance, sections 4 and 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from math import log, sqrt
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import NDArray

from sublet.core.errors import Invalid

_LEAST_DAYS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which trading days count, from the event on: 0 is its day, or the next one with a price."""

    first: int = -1
    last: int = 1
    estimate_days: int = 120
    gap_days: int = 10  # between the days learnt from and the event's

    def __post_init__(self) -> None:
        """Raises Invalid: the last day comes before the first, or too few days are learnt from."""
        if self.last < self.first:
            raise Invalid(
                f"an event's window ends after it starts, not {self.first} to {self.last}"
            )
        if self.estimate_days < _LEAST_DAYS or self.gap_days < 0:
            raise Invalid(f"learn from {_LEAST_DAYS} days at least, and leave a gap of 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a series did about an event."""

    event: date
    day: date  # the trading day taken for it
    beta: float | None  # None without a market
    abnormal: Sequence[float]  # day by day, of the window
    car: float
    error: float  # standard
    low: float  # of the interval
    high: float
    p_value: float  # of no move at all, two-sided


def study(
    prices: Sequence[tuple[date, float]],
    events: Sequence[date],
    *,
    market: Sequence[tuple[date, float]] | None = None,
    window: Window | None = None,
    confidence: float = 0.95,
) -> list[Found]:
    """Study each event by itself.

    Args:
        prices: of the series, days rising.
        events: their days, in any order.
        market: prices of what explains it; only days that both have count.
        window: which days count.
        confidence: of the intervals, in (0, 1).

    Raises:
        Invalid: too few days before an event, or it lies outside of the series.
    """
    window = window or Window()
    if not 0 < confidence < 1:
        raise Invalid(f"confidence lies inside (0, 1), not at {confidence}")
    days, own, other = _returns(prices, market)
    return [_study(day, days, own, other, window, confidence) for day in sorted(events)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """All events as one: the mean CAR and its interval, by the spread between events."""

    events: int
    car: float
    low: float
    high: float
    p_value: float


def together(found: Sequence[Found], *, confidence: float = 0.95) -> Together | None:
    """Return the mean over events; None of fewer than one. Of one, it is that one's own."""
    if not found:
        return None
    mean = fmean(one.car for one in found)
    error = sqrt(sum(one.error**2 for one in found)) / len(found)
    low, high, p = _interval(mean, error, confidence)
    return Together(events=len(found), car=mean, low=low, high=high, p_value=p)


def _returns(
    prices: Sequence[tuple[date, float]], market: Sequence[tuple[date, float]] | None
) -> tuple[list[date], NDArray[np.float64], NDArray[np.float64] | None]:
    """Return days and logarithmic returns, on the days that both have."""
    for name, series in (("the series", prices), ("the market", market or [])):
        last: date | None = None
        for day, price in series:
            if last is not None and day <= last:
                raise Invalid(f"{name}: {day} comes after {last}; days must rise")
            if not price > 0:
                raise Invalid(f"{name}: the price of {day} must be more than nothing")
            last = day
    if market is None:
        days, own = [day for day, _ in prices], [log(price) for _, price in prices]
        return days[1:], np.diff(own), None
    there = dict(market)
    both = [(day, log(price), log(there[day])) for day, price in prices if day in there]
    if len(both) < 2:
        raise Invalid("the series and the market have no days in common")
    return (
        [day for day, _, _ in both][1:],
        np.diff([own for _, own, _ in both]),
        np.diff([other for _, _, other in both]),
    )


def _study(
    event: date,
    days: Sequence[date],
    own: NDArray[np.float64],
    market: NDArray[np.float64] | None,
    window: Window,
    confidence: float,
) -> Found:
    zero = next((place for place, day in enumerate(days) if day >= event), None)
    if zero is None:
        raise Invalid(
            f"event {event}: the series ends before it, on {days[-1] if days else 'no day'}"
        )
    first, last = zero + window.first, zero + window.last
    if last >= len(days):
        raise Invalid(
            f"event {event}: the series ends {last - len(days) + 1} days too early for it"
        )
    until = first - window.gap_days
    since = max(until - window.estimate_days, 0)
    if until - since < _LEAST_DAYS:
        raise Invalid(
            f"event {event}: {max(until - since, 0)} days before it are known, and"
            f" {_LEAST_DAYS} are the least to learn from"
        )
    learnt, seen = slice(since, until), slice(first, last + 1)
    count, length = until - since, last - first + 1
    if market is None:
        alpha, beta, spent = float(own[learnt].mean()), None, 1
        expected = np.full(length, alpha)
        lever = length**2 / count
    else:
        x, y = market[learnt], own[learnt]
        centred = x - x.mean()
        if not float(centred @ centred) > 0:
            raise Invalid(f"event {event}: the market did not move before it")
        beta = float(centred @ (y - y.mean()) / (centred @ centred))
        alpha, spent = float(y.mean() - beta * x.mean()), 2
        expected = alpha + beta * market[seen]
        lever = length**2 / count + float((market[seen] - x.mean()).sum()) ** 2 / float(
            centred @ centred
        )
    fitted = alpha if market is None else alpha + (beta or 0.0) * market[learnt]
    residual = own[learnt] - fitted
    variance = float(residual @ residual) / (count - spent)
    abnormal = own[seen] - expected
    car = float(abnormal.sum())
    error = sqrt(variance * (length + lever))
    low, high, p = _interval(car, error, confidence)
    return Found(
        event=event, day=days[zero], beta=beta, abnormal=[float(a) for a in abnormal],
        car=car, error=error, low=low, high=high, p_value=p,
    )  # fmt: skip


def _interval(mean: float, error: float, confidence: float) -> tuple[float, float, float]:
    if error == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return mean - reach, mean + reach, 2 * (1 - NormalDist().cdf(abs(mean) / error))

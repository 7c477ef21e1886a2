"""A price index for renting a GPU, from trades and quotes; the method is in docs/operate/index.md.

Pure: quotes in, levels out. The same quotes make the same index in whatever order they come.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import fmean
from typing import Final

_WINDOW_DAYS: Final = 7
_OUTLIER_SPREADS: Final = 3.0
_LEAST_SPREAD: Final = 0.05  # of the median: quotes that close are never outliers
_MOST_OF_ONE_SOURCE: Final = 0.5  # of all weight
_REVISED_DAYS: Final = 2
_FALL: Final = 0.05  # below the highest level of the last quarter
_PEAK_DAYS: Final = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A price that was paid or asked, per GPU-hour."""

    day: date
    model: str
    source: str
    usd: float
    gpus: float  # its weight: GPU-hours of a trade, GPUs of an offer
    known_on: date  # when it came to be known


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The index of one model on one day."""

    day: date
    usd: float
    sources: int
    quotes: int  # that counted
    trimmed: int  # that were too far off
    final: bool  # later quotes change it no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The index has rolled over: it falls, and has left its highest level behind."""

    day: date
    peak_day: date
    peak_usd: float
    usd: float


def levels(
    quotes: Iterable[Quote], *, least_sources: int = 3, today: date
) -> Mapping[str, Sequence[Level]]:
    """Return the index by model, a level for each day on which enough sources are known.

    Args:
        quotes: from all sources, in any order.
        least_sources: on fewer there is no level that day; nothing is carried forward.
        today: nothing later is looked at.
    """
    by_model: dict[str, list[Quote]] = defaultdict(list)
    for quote in quotes:
        if quote.day <= today and quote.known_on <= today:
            by_model[quote.model].append(quote)
    out = {}
    for model, known in sorted(by_model.items()):
        known.sort(key=lambda quote: (quote.day, quote.source, quote.usd, quote.gpus))
        found = []
        # A quote counts for a week, whether or not another one follows.
        first = known[0].day
        last = min(known[-1].day + timedelta(days=_WINDOW_DAYS - 1), today)
        low = high = 0
        for number in range((last - first).days + 1):
            day = first + timedelta(days=number)
            while high < len(known) and known[high].day <= day:
                high += 1
            while low < high and known[low].day <= day - timedelta(days=_WINDOW_DAYS):
                low += 1
            # Final two days later: what becomes known after that is for later days only.
            until = day + timedelta(days=_REVISED_DAYS)
            window = [quote for quote in known[low:high] if quote.known_on <= until]
            level = _level(day, window, least_sources, final=today >= until)
            if level is not None:
                found.append(level)
        out[model] = found
    return out


def turn(history: Sequence[Level]) -> Turn | None:
    """Say whether the index has rolled over by its last day.

    It has when its last level is a twentieth and more below the highest of the last quarter,
    and the mean of the last week is below that of the week before.
    """
    if not history:
        return None
    last = history[-1]
    recent = [one for one in history if one.day > last.day - timedelta(days=_PEAK_DAYS)]
    peak = max(recent, key=lambda one: (one.usd, one.day))
    week = [one.usd for one in recent if one.day > last.day - timedelta(days=7)]
    before = [
        one.usd
        for one in recent
        if last.day - timedelta(days=14) < one.day <= last.day - timedelta(days=7)
    ]
    if not before or last.usd > (1 - _FALL) * peak.usd or fmean(week) >= fmean(before):
        return None
    return Turn(day=last.day, peak_day=peak.day, peak_usd=peak.usd, usd=last.usd)


def _level(day: date, window: Sequence[Quote], least_sources: int, *, final: bool) -> Level | None:
    kept = _trimmed(window)
    by_source: dict[str, list[Quote]] = defaultdict(list)
    for quote in kept:
        by_source[quote.source].append(quote)
    if not kept or len(by_source) < least_sources:
        return None
    prices, weights = [], []
    for source in sorted(by_source):
        some = by_source[source]
        weight = sum(quote.gpus for quote in some)
        prices.append(sum(quote.usd * quote.gpus for quote in some) / weight)
        weights.append(weight)
    weights = _capped(weights)
    usd = sum(p * w for p, w in zip(prices, weights, strict=True)) / sum(weights)
    return Level(
        day=day,
        usd=usd,
        sources=len(by_source),
        quotes=len(kept),
        trimmed=len(window) - len(kept),
        final=final,
    )


def _trimmed(window: Sequence[Quote]) -> list[Quote]:
    """Leave out quotes that are further from the weighted median than three usual distances."""
    if not window:
        return []
    middle = _median([(quote.usd, quote.gpus) for quote in window])
    usual = _median([(abs(quote.usd - middle), quote.gpus) for quote in window])
    reach = _OUTLIER_SPREADS * max(usual, _LEAST_SPREAD * middle)
    return [quote for quote in window if abs(quote.usd - middle) <= reach]


def _median(values: Sequence[tuple[float, float]]) -> float:
    """Return the value below which half of the weight lies."""
    ordered = sorted(values)
    half = sum(weight for _, weight in ordered) / 2
    for value, weight in ordered:
        half -= weight
        if half <= 0:
            return value
    return ordered[-1][0]


def _capped(weights: Sequence[float]) -> list[float]:
    """Let no source weigh more than half of all, where there are several."""
    rest = sum(weights)
    return [
        min(weight, (rest - weight) * _MOST_OF_ONE_SOURCE / (1 - _MOST_OF_ONE_SOURCE))
        if len(weights) > 1
        else weight
        for weight in weights
    ]

"""What to promise when money decides: what would have earned most so far.

A promise is worth making when what it earns, less refunds and credits for what breaks, is more
than the same GPUs earn otherwise: promised for shorter windows one after another, or lent
interruptible. For every rule that difference is known for each hour of the past, and what gained
is followed (see `follow`). The shortest length is decided first, since longer ones are compared
with what it makes of the same GPUs. A break not yet seen is charged for, as in `calibration`.
Several kinds of rules are compared: the ladders of the outlooks, plain quantiles of recent falls,
and recent minima. Prices decide alone: what a customer feels of it is the broken share.

GPUs are counted from the safest one up: the n-th is idle when n or more are. Longer promises
are broken last, so each GPU can be looked at by itself, and what a GPU earns after its promise
was broken counts too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.planner.curve import HOUR_SECONDS, Curve, Floats
from sublet.planner.follow import hedged, leader
from sublet.planner.outlook import HOURS_A_DAY, Outlook
from sublet.planner.portfolio import BROKEN_CREDIT, Prices
from sublet.planner.signals import average, held, lowest
from sublet.planner.windows import LENGTHS

_DEPTHS: Final[Floats] = np.concatenate(
    [np.arange(-5, 15) / 5, np.arange(3, 6.5, 0.5), np.array([8.0, 12.0])]
)
_UNSEEN: Final = 0.15  # of a window that breaks, charged for what has never been seen
_OFF_GRID: Final = 0.1  # a window that starts between those of the grid counts this much
_RECENT_HOURS: Final = 28 * HOURS_A_DAY
_SHARES: Final = (0.70, 0.80, 0.85, 0.90, 0.92, 0.95, 0.97, 0.99)
_BACK_HOURS: Final = (6, 24)
_BUFFERS: Final = (0.0, 0.02, 0.05, 0.10)


def worthwhile(
    curve: Curve,
    forecasts: Sequence[Mapping[int, Outlook]],
    prices: Prices,
) -> dict[int, Floats]:
    """Return how many GPUs to promise at each hour for each length, longer promises included.

    Args:
        curve: the history.
        forecasts: opinions on windows of each length, all at the same hours.
        prices: of firm windows and of interruptible lending, per GPU-hour.

    Returns:
        by length, shape (hours of the outlook,), whole GPUs.
    """
    one = forecasts[0][LENGTHS[0]]
    per_hour = HOUR_SECONDS // curve.step_seconds
    ends = np.minimum(one.slots + per_hour - 1, len(curve) - 1)
    # Idle GPUs on average in the hour that starts at each slot, for what lending them earns.
    lent = np.where(one.slots + per_hour <= len(curve), average(curve.idle, per_hour)[ends], np.nan)
    past = _Past(lent=lent, interruptible=prices.interruptible, layers=[])
    chosen: dict[int, Floats] = {}
    for hours in LENGTHS:
        forecast = forecasts[0][hours]
        weight = np.where(_on_grid(curve, forecast), 1.0, _OFF_GRID)[:, None]
        price = prices.firm[hours]
        # Off the grid windows overlap: they add weight, but not as much that was seen.
        unseen = (1 + BROKEN_CREDIT) * price * hours * _UNSEEN * (1 + _OFF_GRID * (hours - 1))
        layer = _Layer(
            hours=hours,
            price=price,
            kept=forecast.kept,
            sunk=_sunk(one.kept, hours),
            gpus=np.zeros(len(one.slots)),
        )
        picks = []
        deep = np.exp2(-0.5 * np.maximum(_DEPTHS, 0.0))
        for sellable, charges in (
            *((opinion[hours].sellable(_DEPTHS), deep) for opinion in forecasts),
            (_by_quantile(forecast), np.ones(len(_SHARES))),
            (_by_lowest(curve, forecast), np.ones(len(_BACK_HOURS) * len(_BUFFERS))),
        ):
            gain = weight * past.gain(sellable, layer)
            picks.append(leader(gain, sellable, hours, unseen * charges))
        kinds = np.stack(picks, axis=1)
        chosen[hours] = hedged(weight * past.gain(kinds, layer), kinds, hours)
        past = past.above(layer, chosen[hours])
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """Windows of one length, one for each hour; arrays have shape (hours of the outlook,)."""

    hours: int
    price: float
    kept: Floats  # GPUs that stayed idle throughout; NaN: not known, or not over
    sunk: Sequence[Floats]  # [n]: GPUs that stayed idle for its first n hours; [0] says nothing
    gpus: Floats  # what was promised


@dataclass(frozen=True, slots=True, kw_only=True)
class _Past:
    """What GPUs earned without longer promises. Amounts of GPUs have shape (hours, rules)."""

    lent: Floats  # GPUs idle on average in each hour
    interruptible: float  # price
    layers: Sequence[_Layer]  # the shortest first

    def above(self, layer: _Layer, gpus: Floats) -> "_Past":
        """Return the same with a layer more, whose promises are `gpus`."""
        promised = _Layer(
            hours=layer.hours, price=layer.price, kept=layer.kept, sunk=layer.sunk, gpus=gpus
        )
        return _Past(
            lent=self.lent, interruptible=self.interruptible, layers=[*self.layers, promised]
        )

    def gain(self, gpus: Floats, layer: _Layer) -> Floats:
        """Return what promising `gpus` in `layer` earned beyond shorter windows; 0: not known."""
        here = len(self.layers)
        gain = self._promised(gpus, layer, here, 0) - self._shorter(gpus, layer.hours, here, 0)
        return np.nan_to_num(gain)

    def _promised(self, gpus: Floats, layer: _Layer, below: int, ahead: int) -> Floats:
        """Return what promising `gpus` earned in windows `ahead` hours later.

        GPUs whose promise was broken go to shorter windows from their next boundary on.
        """
        good = np.minimum(gpus, _ahead(layer.kept, ahead)[:, None])
        earned = layer.hours * layer.price * (good - BROKEN_CREDIT * (gpus - good))
        if below:
            step = self.layers[below - 1].hours
            for hour in range(step, layer.hours, step):
                held_on = np.minimum(gpus, _ahead(layer.sunk[hour], ahead)[:, None])
                earned = earned + self._earned(gpus, below, ahead + hour)
                earned = earned - self._earned(held_on, below, ahead + hour)
        return earned

    def _shorter(self, gpus: Floats, hours: int, below: int, ahead: int) -> Floats:
        """Return what `gpus` earned in `hours` of the `below` shortest layers, and lent."""
        step = self.layers[below - 1].hours if below else 1
        total = np.zeros_like(gpus)
        for hour in range(0, hours, step):
            total += self._earned(gpus, below, ahead + hour)
        return total

    def _earned(self, gpus: Floats, below: int, ahead: int) -> Floats:
        """Return what `gpus` earned in one window of the longest of those layers."""
        if not below:
            return self.interruptible * np.minimum(gpus, _ahead(self.lent, ahead)[:, None])
        layer = self.layers[below - 1]
        promised = np.minimum(gpus, _ahead(layer.gpus, ahead)[:, None])
        return (
            self._promised(promised, layer, below - 1, ahead)
            + self._shorter(gpus, layer.hours, below - 1, ahead)
            - self._shorter(promised, layer.hours, below - 1, ahead)
        )


def _sunk(kept: Floats, hours: int) -> list[Floats]:
    """Return how many GPUs stayed idle for the first n hours, from those of each hour."""
    sunk = [np.full(len(kept), np.inf)]
    for hour in range(hours):
        sunk.append(np.fmin(sunk[-1], _ahead(kept, hour)))
    return sunk


def _on_grid(curve: Curve, forecast: Outlook) -> NDArray[np.bool_]:
    """Return whether a window of the grid starts at each hour of the outlook."""
    starts = curve.start + forecast.slots * curve.step_seconds
    on: NDArray[np.bool_] = starts % (forecast.hours * HOUR_SECONDS) == 0
    return on


def _by_quantile(forecast: Outlook) -> Floats:
    """Return what plain quantiles of the falls of four weeks leave, looked at once a day."""
    fall = forecast.idle - forecast.kept
    high = np.full((len(fall), len(_SHARES)), np.nan)
    for day in range(HOURS_A_DAY, len(fall), HOURS_A_DAY):
        past = fall[max(day - _RECENT_HOURS, 0) : max(day - forecast.hours + 1, 0)]
        past = past[~np.isnan(past)]
        if len(past) >= HOURS_A_DAY:
            high[day : day + HOURS_A_DAY] = np.quantile(past, _SHARES)
    return _whole(forecast.idle[:, None] - high, forecast)


def _by_lowest(curve: Curve, forecast: Outlook) -> Floats:
    """Return what was lowest in the last hours, less buffers."""
    per_hour = HOUR_SECONDS // curve.step_seconds
    idle = held(curve.idle)
    low = [lowest(idle, back * per_hour)[forecast.slots - 1] for back in _BACK_HOURS]
    columns = [values - buffer * forecast.total for values in low for buffer in _BUFFERS]
    return _whole(np.stack(columns, axis=1), forecast)


def _whole(gpus: Floats, forecast: Outlook) -> Floats:
    """Return whole GPUs, never more than there are to promise."""
    limit = forecast.limit()[:, None]
    return np.floor(np.nan_to_num(np.clip(gpus, 0.0, limit)) + 1e-9)


def _ahead(values: Floats, hours: int) -> Floats:
    """Return the values `hours` later; NaN past the end."""
    if hours == 0:
        return values
    out = np.full(len(values), np.nan)
    out[:-hours] = values[hours:]
    return out

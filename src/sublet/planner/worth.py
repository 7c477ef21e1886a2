"""What to promise when money decides: what would have earned most so far.

A promise is worth making when what it earns, less refunds and credits for what breaks, is more
than the same GPUs earn otherwise: promised for shorter windows one after another, or lent
interruptible. For every depth of the ladder that difference is known for each hour of the past;
at each decision the depth is taken that gained most, and nothing is promised where none gained.
Only windows of the grid count, since no others are sold: at midnight a day looks different.
The past counts half as much every four weeks, and a break not yet seen is charged for, as in
`calibration`. What is compared: the ladders of two outlooks, plain quantiles of recent falls, and
recent minima. Where several gained about as much, their average is promised. Prices decide alone: what a customer feels of it is the broken share.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.planner.calibration import DEPTHS
from sublet.planner.curve import HOUR_SECONDS, Curve, Floats
from sublet.planner.outlook import HOURS_A_DAY, Outlook
from sublet.planner.portfolio import BROKEN_CREDIT, Prices
from sublet.planner.signals import average, held, lowest
from sublet.planner.windows import LENGTHS

_HALF_LIFE_HOURS: Final = 28.0 * HOURS_A_DAY
_UNSEEN: Final = 0.3
_CLOSE: Final = 0.02  # a rule that gained this much less weighs a third
_RECENT_HOURS: Final = 28 * HOURS_A_DAY
_SHARES: Final = (0.70, 0.80, 0.85, 0.90, 0.92, 0.95, 0.97, 0.99)
_BACK_HOURS: Final = (6, 24)
_BUFFERS: Final = (0.0, 0.02, 0.05, 0.10)


def worthwhile(
    curve: Curve,
    forecasts: Mapping[int, Outlook],
    seconds: Mapping[int, Outlook],
    prices: Prices,
) -> dict[int, Floats]:
    """Return how many GPUs to promise at each hour for each length, longer promises included.

    Args:
        curve: the history.
        forecasts: for windows of each length, at the same hours.
        seconds: second opinions on the same windows.
        prices: of firm windows and of interruptible lending, per GPU-hour.

    Returns:
        by length, shape (hours of the outlook,), whole GPUs.
    """
    one = forecasts[LENGTHS[0]]
    per_hour = HOUR_SECONDS // curve.step_seconds
    ends = np.minimum(one.slots + per_hour - 1, len(curve) - 1)
    # Idle GPUs on average in the hour that starts at each slot, for what lending them earns.
    lent = np.where(one.slots + per_hour <= len(curve), average(curve.idle, per_hour)[ends], np.nan)
    chosen: dict[int, Floats] = {}
    below: list[_Promised] = []
    for hours in LENGTHS:
        forecast = forecasts[hours]
        # Days are too few for the regressions to lead: there the second opinion stands alone.
        ladders = [seconds[hours]] if hours >= HOURS_A_DAY else [forecast, seconds[hours]]
        rules = [one.sellable(DEPTHS) for one in ladders]
        rules += [_by_quantile(forecast), _by_lowest(curve, forecast)]
        sellable = np.concatenate(rules, axis=1)
        earned = _earned(sellable, forecast.kept[:, None], hours, prices.firm[hours])
        otherwise = _otherwise(sellable, hours, below, lent, prices)
        gain = earned - otherwise
        gain[np.isnan(gain) | ~_on_grid(curve, forecast)[:, None]] = 0.0
        loss = (1 + BROKEN_CREDIT) * prices.firm[hours] * hours * _UNSEEN  # of one GPU
        unseen = np.full(sellable.shape[1], loss)
        for place in range(len(ladders)):
            unseen[place * len(DEPTHS) :][: len(DEPTHS)] *= np.exp2(-0.5 * np.maximum(DEPTHS, 0.0))
        chosen[hours] = _best(gain, sellable, hours, unseen)
        below.insert(0, _Promised(hours, chosen[hours], forecast.kept, prices.firm[hours]))
    return chosen


class _Promised:
    """What was promised for one length, and what became of it."""

    def __init__(self, hours: int, gpus: Floats, kept: Floats, price: float) -> None:
        self.hours = hours
        self.gpus = gpus
        self.kept = kept
        self.price = price

    def ahead(self, hours: int) -> "_Promised":
        return _Promised(self.hours, _ahead(self.gpus, hours), _ahead(self.kept, hours), self.price)


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
    return _whole(forecast.idle[:, None] - high, forecast.idle)


def _by_lowest(curve: Curve, forecast: Outlook) -> Floats:
    """Return what was lowest in the last hours, less buffers."""
    per_hour = HOUR_SECONDS // curve.step_seconds
    idle = held(curve.idle)
    low = [lowest(idle, back * per_hour)[forecast.slots - 1] for back in _BACK_HOURS]
    columns = [values - buffer * forecast.total for values in low for buffer in _BUFFERS]
    return _whole(np.stack(columns, axis=1), forecast.idle)


def _whole(gpus: Floats, idle: Floats) -> Floats:
    return np.floor(np.nan_to_num(np.clip(gpus, 0.0, idle[:, None])) + 1e-9)


def _earned(gpus: Floats, kept: Floats, hours: int, price: float) -> Floats:
    """Return what promising `gpus` earned where `kept` stayed idle; NaN where not known."""
    good = np.minimum(gpus, kept)
    return hours * price * (good - BROKEN_CREDIT * (gpus - good))


def _otherwise(
    gpus: Floats, hours: int, below: list[_Promised], lent: Floats, prices: Prices
) -> Floats:
    """Return what the same GPUs earn in shorter windows one after another, and lent.

    Of the GPUs of a pool those that are promised are counted from the safest one up.
    """
    if not below:
        total = np.zeros_like(gpus)
        for ahead in range(hours):
            total += prices.interruptible * np.minimum(gpus, _ahead(lent, ahead)[:, None])
        return total
    layer, rest = below[0], below[1:]
    total = np.zeros_like(gpus)
    for ahead in range(0, hours, layer.hours):
        promised = np.minimum(gpus, _ahead(layer.gpus, ahead)[:, None])
        kept = _ahead(layer.kept, ahead)[:, None]
        total += _earned(promised, kept, layer.hours, layer.price)
        moved = [shorter.ahead(ahead) for shorter in rest]
        later = _ahead(lent, ahead)
        total += _otherwise(gpus, layer.hours, moved, later, prices)
        total -= _otherwise(promised, layer.hours, moved, later, prices)
    return total


def _ahead(values: Floats, hours: int) -> Floats:
    """Return the values `hours` later; NaN past the end."""
    if hours == 0:
        return values
    out = np.full(len(values), np.nan)
    out[:-hours] = values[hours:]
    return out


def _best(gain: Floats, sellable: Floats, hours: int, unseen: Floats) -> Floats:
    """Return what to promise at each hour, by the gains of windows that had ended.

    Args:
        gain: what each rule gained with the window that starts at each hour, (hours, rules).
        sellable: the GPUs that each rule would promise, (hours, rules).
        hours: how long a window is.
        unseen: what each rule is charged, for each GPU, for what has never been seen, (rules,).
    """
    fade = 0.5 ** (1 / _HALF_LIFE_HOURS)
    sum_, out = np.zeros(len(unseen)), np.zeros(len(gain))
    for row in range(len(gain)):
        if row >= hours:
            sum_ = sum_ * fade + gain[row - hours]
        if row >= HOURS_A_DAY + hours:
            net = sum_ - unseen * np.maximum(sellable[row], 1.0)
            best = net.max()
            if best > 0:
                weight = np.exp((net - best) / (_CLOSE * best))
                out[row] = np.floor(weight @ sellable[row] / weight.sum() + 0.5)
    return out

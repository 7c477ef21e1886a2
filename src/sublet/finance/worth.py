"""What flows of money are worth: present value, internal rate of return, payback.

Flows are in USD, as floats: they are estimates of a future, not records of a past.
"""

from collections.abc import Sequence
from datetime import date
from math import inf, isfinite
from typing import Final

from sublet.core.errors import Invalid

_LEAST_RATE: Final = -0.999_999
_DAYS: Final = 365.0  # a year of dated flows, as spreadsheets' XIRR has it


def npv(rate: float, flows: Sequence[float]) -> float:
    """Return the present value of flows a period apart, the first of them now.

    Source: the usual definition, sum of flow / (1 + rate) ** period.

    Raises:
        Invalid: a rate of -100 per cent or less.
    """
    if rate <= -1:
        raise Invalid(f"a rate lies above -1, not at {rate:g}")
    value = 0.0
    for flow in reversed(flows):
        value = value / (1 + rate) + flow
    return value


def xnpv(rate: float, flows: Sequence[tuple[date, float]]) -> float:
    """Return what dated flows are worth on the day of the first, at `rate` a year of 365 days.

    Raises:
        Invalid: a rate of -100 per cent or less.
    """
    if rate <= -1:
        raise Invalid(f"a rate lies above -1, not at {rate:g}")
    first = min((day for day, _ in flows), default=None)
    return _value([((day - first).days / _DAYS, flow) for day, flow in flows if first], rate)


def irr(flows: Sequence[float]) -> float | None:
    """Return the rate at which flows a period apart are worth nothing; None where there is none.

    Where several are (the flows change their sign more than once) it is the one nearest to zero.
    """
    return _root([(float(period), flow) for period, flow in enumerate(flows)])


def xirr(flows: Sequence[tuple[date, float]]) -> float | None:
    """Return the yearly rate at which dated flows are worth nothing; None where there is none."""
    if not flows:
        return None
    first = min(day for day, _ in flows)
    return _root([((day - first).days / _DAYS, flow) for day, flow in flows])


def payback(flows: Sequence[float]) -> float | None:
    """Return after how many periods what came in has repaid what went out before; None: never.

    Within the period in which it does, money is taken to come evenly. What is repaid counts as
    repaid only if it stays so to the end.
    """
    total, found = 0.0, None
    for period, flow in enumerate(flows):
        before, total = total, total + flow
        if total < 0:
            found = None
        elif found is None:
            found = period - 1 + (-before / flow if before < 0 < flow else 0.0) if period else 0.0
    return found


def _value(flows: Sequence[tuple[float, float]], rate: float) -> float:
    base = 1 + rate
    try:
        return float(sum(flow * base**-time for time, flow in flows))
    except OverflowError:
        return inf


def _root(flows: Sequence[tuple[float, float]]) -> float | None:
    """Find the sign change nearest to a rate of zero, and halve it down."""
    if not any(flow > 0 for _, flow in flows) or not any(flow < 0 for _, flow in flows):
        return None
    if _value(flows, 0.0) == 0:
        return 0.0
    # Steps that grow: fine near zero, where rates are, and on to a million per cent.
    steps = [0.0]
    while steps[-1] < 1e4:
        steps.append(steps[-1] * 1.1 + 0.005)
    upward = steps
    downward = [max(-step / (1 + step), _LEAST_RATE) for step in steps]
    best: float | None = None
    for line in (upward, downward):
        low, at_low = line[0], _value(flows, line[0])
        for high in line[1:]:
            at_high = _value(flows, high)
            if not isfinite(at_high):
                break
            if (at_low < 0) != (at_high < 0):
                found = _halved(flows, low, high, negative=at_low < 0)
                if best is None or abs(found) < abs(best):
                    best = found
                break
            low, at_low = high, at_high
    return best


def _halved(
    flows: Sequence[tuple[float, float]], low: float, high: float, *, negative: bool
) -> float:
    for _ in range(200):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        if (_value(flows, middle) < 0) == negative:
            low = middle
        else:
            high = middle
    return (low + high) / 2

"""How fast idle capacity is taken, and at what price: mismatch, or oversupply?

Capacity that becomes free is a block on offer. Leases take the oldest block first; internal jobs
take back the newest. From the blocks' ages, the share that was sold and the price that was paid
follows a signal: whether what is idle is only in the wrong hands, or too much.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TIGHT_SHARE: Final = 0.8  # of what was on offer
SLACK_SHARE: Final = 0.5
TIGHT_HOURS: Final = 4.0  # until half of what was taken was taken
SLACK_HOURS: Final = 24.0
FIRM_CHANGE: Final = -0.02  # of prices, from the first half of the time to the second
_LEAST_HOURS: Final = 24.0  # of history, before there is a signal


class Signal(StrEnum):
    MISMATCH = "mismatch"  # taken at once, and prices are firm: idle here, wanted elsewhere
    OVERSUPPLY = "oversupply"  # slow, and prices fall
    MIXED = "mixed"  # neither
    UNKNOWN = "unknown"  # too little was on offer, or for too short a time


ADVICE: Final = {
    Signal.MISMATCH: "sell more: what is idle is wanted; if you will need it back, contract to buy",
    Signal.OVERSUPPLY: "hold: do not lower prices below cost for volume, and buy later, not now",
    Signal.MIXED: "go on: neither taken at once nor falling",
    Signal.UNKNOWN: "wait: too little is known",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A pool in one slot of time."""

    at: int  # seconds since the epoch
    offered: float  # GPUs that internal jobs left, whether leased or not
    leased: float  # of these
    paid_nanos: int  # for the slot, by customers
    paid_gpu_seconds: int  # for which they paid


@dataclass(frozen=True, slots=True, kw_only=True)
class Absorption:
    """What became of what was on offer."""

    hours: float  # of history
    offered_gpu_hours: float
    sold_share: float
    taken_gpus: float  # summed over blocks
    withdrawn_gpus: float  # that internal jobs took back unsold
    waiting_gpus: float  # on offer at the end
    hours_to_half: float | None  # until half of what was taken was taken; None: nothing was
    nanos_per_gpu_hour: int | None  # paid on average; None: nothing was
    price_change: float | None  # from the first half of the time to the second
    over_floor: float | None  # the price paid as a multiple of the floor
    signal: Signal


def absorb(samples: Sequence[Sample], *, slot_seconds: int, floor_nanos: int | None) -> Absorption:
    """Say how a pool's idle capacity was taken.

    Args:
        samples: in order of time; slots that nobody saw are left out.
        slot_seconds: how long a slot is.
        floor_nanos: per GPU-hour; None where the operator has said nothing of it.
    """
    blocks: deque[list[float]] = deque()  # since when, GPUs; the oldest first
    taken: list[tuple[float, float]] = []  # hours on offer, GPUs
    withdrawn = unsold = leased = 0.0
    for sample in samples:
        now_leased = min(sample.leased, sample.offered)
        rest = sample.offered - now_leased
        sold = max(now_leased - leased, 0.0)
        if rest < unsold:
            going = unsold - rest
            by_leases = min(going, sold)
            while by_leases > 1e-9 and blocks:
                part = min(by_leases, blocks[0][1])
                taken.append(((sample.at - blocks[0][0]) / 3_600, part))
                blocks[0][1] -= part
                by_leases -= part
                going -= part
                if blocks[0][1] <= 1e-9:
                    blocks.popleft()
            while going > 1e-9 and blocks:
                part = min(going, blocks[-1][1])
                withdrawn += part
                blocks[-1][1] -= part
                going -= part
                if blocks[-1][1] <= 1e-9:
                    blocks.pop()
        elif rest > unsold:
            blocks.append([float(sample.at), rest - unsold])
        if rest >= unsold and sold > 0:  # freed and leased within one slot: taken at once
            taken.append((0.0, sold))
        unsold, leased = rest, now_leased
    hours = len(samples) * slot_seconds / 3_600
    offered = sum(one.offered for one in samples) * slot_seconds / 3_600
    used = sum(min(one.leased, one.offered) for one in samples) * slot_seconds / 3_600
    price, change = _price(samples), _change(samples)
    share = used / offered if offered else 0.0
    half = _half(taken)
    return Absorption(
        hours=hours,
        offered_gpu_hours=offered,
        sold_share=share,
        taken_gpus=sum(gpus for _, gpus in taken),
        withdrawn_gpus=withdrawn,
        waiting_gpus=unsold,
        hours_to_half=half,
        nanos_per_gpu_hour=price,
        price_change=change,
        over_floor=price / floor_nanos if price is not None and floor_nanos else None,
        signal=_signal(hours, offered, share, half, change),
    )


def _signal(
    hours: float, offered: float, share: float, half: float | None, change: float | None
) -> Signal:
    if hours < _LEAST_HOURS or offered <= 0:
        return Signal.UNKNOWN
    firm = change is not None and change >= FIRM_CHANGE
    if share >= TIGHT_SHARE and half is not None and half <= TIGHT_HOURS and firm:
        return Signal.MISMATCH
    slow = share < SLACK_SHARE or half is None or half > SLACK_HOURS
    return Signal.OVERSUPPLY if slow and not firm else Signal.MIXED


def _half(taken: Sequence[tuple[float, float]]) -> float | None:
    left = sum(gpus for _, gpus in taken) / 2
    for hours, gpus in sorted(taken):
        left -= gpus
        if left <= 0:
            return hours
    return None


def _price(samples: Sequence[Sample]) -> int | None:
    seconds = sum(one.paid_gpu_seconds for one in samples)
    return sum(one.paid_nanos for one in samples) * 3_600 // seconds if seconds else None


def _change(samples: Sequence[Sample]) -> float | None:
    """Return how prices changed from the first half of the time to the second."""
    middle = len(samples) // 2
    before, after = _price(samples[:middle]), _price(samples[middle:])
    return after / before - 1 if before and after else None

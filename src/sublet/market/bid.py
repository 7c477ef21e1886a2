"""Bid prices: what one more GPU of a pool is worth in each slot of time.

They are the duals of capacity in a linear programme that sells what is expected to be asked for,
at what is expected to be offered, for the most money. A request is worth taking when it pays at
least the sum of bid prices over its window: then it pays for what it displaces. Two kinds of
capacity are priced: all that is lendable, and of it what may be promised firm.

Source: bid-price control, Talluri and van Ryzin, "An analysis of bid-price controls for network
revenue management", Management Science 44 (1998). Solved by HiGHS.
"""

from dataclasses import dataclass
from typing import Final

import highspy
import numpy as np
from numpy.typing import NDArray

from sublet.core.errors import Unavailable

Floats = NDArray[np.float64]
_NEIGHBOURS: Final = 1  # slots to either side that a dual is averaged over
_HAIR: Final = 1e-6
FEWEST_SEEN: Final = 30  # requests, before a pool's demand counts as seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Requests that are expected, by kind; arrays have shape (kinds,)."""

    seen: int  # requests that this rests on
    firm: NDArray[np.bool_]
    offer: Floats  # per GPU-hour
    hours: Floats
    gpus_per_hour: Floats  # asked for, in each hour
    leaving: float = 0.0  # reclaims of an interruptible lease, per hour that it runs


@dataclass(frozen=True, slots=True, kw_only=True)
class BidPrices:
    """Per GPU-hour, for slots of one length from now on; arrays have shape (slots,)."""

    slot_hours: float
    any: Floats  # of whatever is lendable
    firm: Floats  # of what may be promised, on top
    leaving: float = 0.0  # reclaims of an interruptible lease, per hour that it runs

    def covers(self, *, offer: float, start_hours: float, hours: float, firm: bool) -> bool:
        """Say whether a request pays for what it displaces, as long as it is expected to last.

        Beyond the last slot its price goes on.

        Args:
            offer: per GPU-hour.
            start_hours: from now until it starts.
            hours: asked for.
            firm: does it ask for a promise?
        """
        prices = self.any + self.firm if firm else self.any
        edges = np.append(np.arange(len(prices)) * self.slot_hours, np.inf)
        prices = np.append(prices, prices[-1])
        edges = np.insert(edges, len(prices) - 1, (len(prices) - 1) * self.slot_hours)
        inside = np.clip(edges, start_hours, start_hours + hours) - start_hours
        rate = 0.0 if firm else self.leaving
        lasting = np.diff(_lasting(inside, rate))
        return bool(((offer - prices) * lasting).sum() >= -1e-6 * offer * hours)


def _lasting(hours: Floats, rate: float) -> Floats:
    """Return for how many of so many hours a lease runs on average that is reclaimed at a rate."""
    if rate <= 0:
        return hours
    lasts: Floats = -np.expm1(-rate * hours) / rate
    return lasts


def expect(
    *,
    offers: Floats,
    hours: Floats,
    gpus: Floats,
    firm: NDArray[np.bool_],
    over_hours: float,
    leaving: float = 0.0,
    bands: int = 6,
) -> Expected:
    """Group requests that were seen by tier, length and offer, and return how many to expect.

    Args:
        offers: per GPU-hour, shape (requests,).
        hours: asked for, the same shape.
        gpus: asked for.
        firm: does it ask for a promise?
        over_hours: the time in which they were seen.
        leaving: reclaims of an interruptible lease, per hour that it ran.
        bands: of offers, from low to high, each with as many GPU-hours.
    """
    kinds: list[tuple[bool, float, float, float]] = []
    for is_firm in (False, True):
        for low, high in ((0.0, 2.0), (2.0, 8.0), (8.0, np.inf)):
            rows = np.flatnonzero((firm == is_firm) & (hours >= low) & (hours < high))
            if not len(rows):
                continue
            rows = rows[np.argsort(offers[rows], kind="stable")]
            weight = np.cumsum(gpus[rows] * hours[rows])
            band = np.minimum((weight / weight[-1] * bands).astype(np.int64), bands - 1)
            for number in range(bands):
                some = rows[band == number]
                if len(some):
                    work = gpus[some] * hours[some]
                    kinds.append(
                        (
                            is_firm,
                            float((offers[some] * work).sum() / work.sum()),
                            float(work.sum() / gpus[some].sum()),
                            float(gpus[some].sum()) / over_hours,
                        )
                    )
    columns = list(zip(*kinds, strict=True)) if kinds else [(), (), (), ()]
    return Expected(
        seen=len(offers),
        firm=np.array(columns[0], dtype=np.bool_),
        offer=np.array(columns[1], dtype=np.float64),
        hours=np.array(columns[2], dtype=np.float64),
        gpus_per_hour=np.array(columns[3], dtype=np.float64),
        leaving=leaving,
    )


def bid_prices(
    expected: Expected, *, lendable: Floats, promisable: Floats, slot_hours: float
) -> BidPrices | None:
    """Return bid prices, or None where too little demand was seen: the price book decides then.

    Args:
        expected: demand by kind.
        lendable: GPUs free of leases in each slot, shape (slots,).
        promisable: of these, GPUs that may still be promised.
        slot_hours: how long a slot is.

    Raises:
        Unavailable: the solver gave up.
    """
    if expected.seen < FEWEST_SEEN or not len(expected.offer):
        return None
    slots, kinds = len(lendable), len(expected.offer)
    count = kinds * slots
    kind = np.repeat(np.arange(kinds), slots)
    start = np.tile(np.arange(slots), kinds)
    scale = float(expected.offer.max())  # the solver wants numbers about one
    most = expected.gpus_per_hour[kind] * slot_hours
    # How much of each slot a request of each column takes, shape (columns, slots). It lasts as
    # long as it asks for and internal jobs let it; beyond the last slot nothing is known.
    into = (np.arange(slots + 1)[None, :] - start[:, None]) * slot_hours
    into = np.clip(into, 0.0, expected.hours[kind][:, None])
    rate = np.where(expected.firm, 0.0, expected.leaving)[kind][:, None]
    share = np.diff(np.where(rate > 0, _lasting(into, max(expected.leaving, 1e-9)), into), axis=1)
    share /= slot_hours
    worth = expected.offer[kind] / scale * share.sum(axis=1) * slot_hours
    both = np.concatenate([share, share * expected.firm[kind][:, None]], axis=1)
    # One more GPU for one slot is worth no more than the best offer. Without this a long request's
    # worth may lie in any slots of its window, and the solver puts all of it into a few.
    both = np.concatenate([both, -np.tile(np.eye(slots), 2)])
    worth = np.concatenate([worth, np.full(slots, -slot_hours)])
    most = np.concatenate([most, np.full(slots, np.inf)])
    columns, rows = np.nonzero(both)
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = count + slots, 2 * slots
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = worth
    model.col_lower_, model.col_upper_ = np.zeros(count + slots), most
    model.row_lower_ = np.full(2 * slots, -np.inf)
    # Where both are as scarce, it is the GPU that is: who asks for no promise takes it away, too.
    limits = np.concatenate([lendable, promisable * (1 + _HAIR)])
    model.row_upper_ = np.maximum(limits, 0.0)
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = np.searchsorted(columns, np.arange(count + slots + 1))
    model.a_matrix_.index_ = rows
    model.a_matrix_.value_ = both[columns, rows]
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.passModel(model)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise Unavailable(f"no bid prices were found: {solver.getModelStatus()}")
    duals = np.maximum(np.array(solver.getSolution().row_dual), 0.0) * scale / slot_hours
    smooth = [_smoothed(part) for part in (duals[:slots], duals[slots:])]
    return BidPrices(slot_hours=slot_hours, any=smooth[0], firm=smooth[1], leaving=expected.leaving)


def _smoothed(duals: Floats) -> Floats:
    """Return means over neighbours: where slots are alike, the solver puts all onto some."""
    ones = np.ones(2 * _NEIGHBOURS + 1)
    sums = np.convolve(duals, ones, mode="same")
    means: Floats = sums / np.convolve(np.ones(len(duals)), ones, mode="same")
    return means

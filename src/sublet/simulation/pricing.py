"""At what price a request is taken, if at all: by bid prices, or by simpler rules.

bid         what it offers, if that covers the bid prices of its window, and the floor
greedy      what it offers, if that covers the floor: first come, first served
fixed       the price book's price, if it offers as much
cost_plus   the full cost and a margin, if it offers as much
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from sublet.market.bid import BidPrices, bid_prices, expect
from sublet.planner.curve import HOUR_SECONDS, Floats
from sublet.planner.plan import make_plan
from sublet.simulation.demand import DAY_STEPS, World
from sublet.simulation.planning import Plans
from sublet.simulation.requests import Requests
from sublet.simulation.scenario import INTERRUPTIBLE, STEP, Scenario
from sublet.simulation.table import ENDED, RUNNING, Ints, Leases

SLOT_HOURS: Final = 1.0
_SLOTS: Final = 24
_SEEN_DAYS: Final = 7
_FORGET: Final = 0.5 ** (1 / (3 * DAY_STEPS))  # by half in three days
_FEWEST_HOURS: Final = 100.0  # of leases, before reclaims say much
_MARGIN: Final = 1.25
_HOUR_STEPS: Final = HOUR_SECONDS // STEP


class Tariff:
    """Prices of every pool, as time goes on."""

    def __init__(
        self, scenario: Scenario, world: World, requests: Requests, plans: Plans | None, *, how: str
    ) -> None:
        self._scenario, self._world, self._requests = scenario, world, requests
        self._plans, self._how = plans, how
        self._every = max(round(scenario.conduct.bid_hours * _HOUR_STEPS), 1)
        pools = scenario.pools
        self.floor = [pool.cost.floor(pool.full_cost).nanos for pool in pools]
        self._full = [int(pool.cost.full_nanos * _MARGIN) for pool in pools]
        self._bids: list[BidPrices | None] = [None] * len(pools)
        self._at = [0] * len(pools)
        self._ran, self._reclaimed = np.zeros(len(pools)), np.zeros(len(pools))
        self.fallbacks = 0  # requests that the price book decided about, for want of demand seen
        # Requests by pool, in order of arrival.
        order = np.argsort(requests.pool, kind="stable")
        self._of_pool = order
        self._first = np.searchsorted(requests.pool[order], np.arange(len(pools) + 1))

    def renew(self, step: int, *, now: int, leases: Leases, promised: Ints) -> None:
        """Find bid prices anew for those pools whose turn it is, spread over the steps.

        Args:
            step: of the simulation.
            now: in seconds since the epoch.
            leases: those that live.
            promised: GPUs promised firm, shape (pools, hours of the simulation).
        """
        if self._how != "bid" or self._plans is None:
            return
        self.saw(leases)
        due = [
            pool
            for pool in range(len(self._bids))
            if step % self._every == pool % self._every and self._scenario.pools[pool].lendable
        ]
        if not due:
            return
        live = np.flatnonzero(leases.alive & (leases.state != ENDED))
        for pool in due:
            rows = live[leases.pool[live] == pool]
            self._bids[pool] = self._bid_prices(pool, step, now, leases, rows, promised[pool])
            self._at[pool] = now

    def price(
        self, pool: int, tier: int, *, offer: int, start_in: int, seconds: int, now: int
    ) -> int | None:
        """Return nanos per GPU-hour at which a request is taken, or None.

        Args:
            pool: where.
            tier: which.
            offer: nanos per GPU-hour.
            start_in: seconds until it starts.
            seconds: how long it is for.
            now: in seconds since the epoch.
        """
        floor = self.floor[pool]
        if offer < floor:
            return None
        match self._how:
            case "greedy":
                return offer
            case "fixed":
                asked = max(self._scenario.pools[pool].list_nanos[tier], floor)
            case "cost_plus":
                asked = max(self._full[pool], floor)
            case _:
                bids = self._bids[pool]
                if bids is None:
                    self.fallbacks += 1
                    asked = max(self._scenario.pools[pool].list_nanos[tier], floor)
                else:
                    hours = seconds / HOUR_SECONDS
                    ahead = (now - self._at[pool] + start_in) / HOUR_SECONDS
                    pays = bids.covers(
                        offer=offer, start_hours=ahead, hours=hours, firm=tier != INTERRUPTIBLE
                    )
                    return offer if pays else None
        return asked if offer >= asked else None

    def saw(self, leases: Leases) -> None:
        """Count how long interruptible leases run, a step at a time, and how many are reclaimed."""
        running = np.flatnonzero(leases.alive & (leases.state == RUNNING))
        running = running[leases.tier[running] == INTERRUPTIBLE]
        pools = len(self._bids)
        self._ran *= _FORGET
        self._reclaimed *= _FORGET
        self._ran += np.bincount(leases.pool[running], minlength=pools) / _HOUR_STEPS

    def reclaimed(self, pools: Ints) -> None:
        """Count interruptible leases that were told to go, by their pools."""
        np.add.at(self._reclaimed, pools, 1.0)

    def _leaving(self, pool: int) -> float:
        """Return reclaims for each hour that an interruptible lease runs, over some days."""
        return float(self._reclaimed[pool] / max(self._ran[pool], _FEWEST_HOURS))

    def _bid_prices(
        self, pool: int, step: int, now: int, leases: Leases, rows: Ints, promised: Ints
    ) -> BidPrices | None:
        assert self._plans is not None
        requests = self._requests
        seen = self._of_pool[self._first[pool] : self._first[pool + 1]]
        at = requests.at[seen]
        low, high = np.searchsorted(at, [now - _SEEN_DAYS * 86_400, now])
        seen = seen[low:high]
        since = max(min(_SEEN_DAYS * 24.0, step / _HOUR_STEPS), 1.0)
        expected = expect(
            offers=requests.offer[seen].astype(np.float64),
            hours=requests.seconds[seen] / HOUR_SECONDS,
            gpus=requests.gpus[seen].astype(np.float64),
            firm=requests.tier[seen] != INTERRUPTIBLE,
            over_hours=since,
            leaving=self._leaving(pool),
        )
        here = self._world.first + step
        recent = self._world.curve(pool, here, since=max(here - 8 * DAY_STEPS, 0))
        plan = make_plan(recent, self._plans.model(pool, step))
        per_slot = round(SLOT_HOURS * _HOUR_STEPS)
        idle = plan.interruptible[: _SLOTS * per_slot].reshape(_SLOTS, per_slot).mean(axis=1)
        edges = now + np.arange(_SLOTS) * int(SLOT_HOURS * HOUR_SECONDS)
        middle = edges + int(SLOT_HOURS * HOUR_SECONDS) // 2
        stays = (leases.ends_at[rows][:, None] > middle).astype(np.float64)
        hours_on = (middle - now) / HOUR_SECONDS
        lasts = np.exp(-expected.leaving * hours_on)[None, :]
        stays *= np.where(leases.tier[rows][:, None] == INTERRUPTIBLE, lasts, 1.0)
        taken = (leases.gpus[rows][:, None] * stays).sum(axis=0)
        hour = step // _HOUR_STEPS
        ahead = np.arange(_SLOTS) * int(SLOT_HOURS)
        stands = promised[np.minimum(hour + ahead, len(promised) - 1)]
        firm = np.minimum.reduce([idle, _firm(plan.firm, ahead, per_slot)])
        return bid_prices(
            expected,
            lendable=np.maximum(idle - taken, 0.0),
            promisable=np.maximum(firm - stands, 0.0),
            slot_hours=SLOT_HOURS,
        )


def _firm(firm: Mapping[int, Floats], ahead: Ints, per_slot: int) -> Floats:
    """Return what may be promised in each slot: for the shortest window that reaches it."""
    out = np.zeros(len(ahead))
    for place, hours in enumerate(ahead.tolist()):
        if hours < 24:
            out[place] = firm[next(length for length in (1, 4, 24) if length > hours)][0]
        else:
            out[place] = firm[24][(hours - 23) * per_slot // int(SLOT_HOURS)]
    return out

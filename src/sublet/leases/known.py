"""How a pool stands while requests for it are decided: read once, under its lock, for all of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sublet.core.db import Tx
from sublet.engine.port import InternalJob
from sublet.fleet.pool import Demand, Pool, demand_by_pool
from sublet.leases import reservations, store
from sublet.leases.reservation import Reservation, lead, of_reservation
from sublet.leases.store import Standing
from sublet.leases.terms import RoomNow
from sublet.planner import store as plans
from sublet.planner.firm import Firm, firm_room, most_promised, read_firm
from sublet.planner.surplus import Pressure, sellable_gpus

_NO_DEMAND: Final = Demand(running=0, pending=0)


@dataclass(slots=True, kw_only=True)
class Known:
    """One pool. `take` keeps it true while leases of it are admitted."""

    pool: Pool
    demand: Demand
    stands: Standing
    plan: Firm | None  # read where something firm is asked for
    windows: Sequence[Reservation] = ()  # the same

    @property
    def pressure(self) -> Pressure:
        return pressure(self.pool, self.demand, self.stands)

    def room(self, *, firm: timedelta, now: datetime) -> RoomNow:
        """Return what can be sold at this instant, and be promised for `firm`."""
        pressed = self.pressure
        # What a window's tenant may want back at any time can be promised to nobody.
        aside = self.stands.aside + self.stands.returned
        own = sellable_gpus(replace(pressed, aside=aside))
        if not firm:
            return RoomNow(sellable=sellable_gpus(pressed), firm=None, own=own)
        promised = self.stands.promised
        if self.windows:
            windows = [of_reservation(found) for found in self.windows]
            promised += most_promised(windows, now, now + firm)
        room = firm_room(
            self.plan, window=firm, gpus=self.pool.gpus, promised=promised, now=now
        )  # fmt: skip
        return RoomNow(sellable=own, firm=room, own=own)

    def take(self, gpus: int, *, firm: timedelta) -> None:
        """Count a lease that was admitted."""
        self.stands = replace(
            self.stands,
            held=self.stands.held + gpus,
            promised=self.stands.promised + (gpus if firm else 0),
        )


def pressure(pool: Pool, demand: Demand, stands: Standing) -> Pressure:
    """Return how `pool` stands: what the cluster says, and what leases and windows hold."""
    return Pressure(
        gpus=pool.gpus,
        internal_running=demand.running,
        internal_pending=demand.pending,
        leased=stands.held,
        lendable=pool.policy.lendable,
        lending_limit=pool.policy.lending_limit,
        aside=stands.aside,
        reserve=pool.policy.reserve,
    )


def know(
    tx: Tx,
    pools: Collection[Pool],
    jobs: Sequence[InternalJob],
    *,
    firm: Collection[str],
    now: datetime,
) -> Mapping[str, Known]:
    """Read how pools stand.

    Args:
        tx: should have them locked, if something is decided by it.
        pools: whose.
        jobs: of the cluster's queue.
        firm: the names of those of which something is to be promised.
        now: the present instant.
    """
    stands = store.standings(tx, {pool.name: now + lead(pool) for pool in pools}, now=now)
    demands = demand_by_pool(jobs) if jobs else {}
    found = plans.get_plans(tx, firm) if firm else {}
    return {
        pool.name: Known(
            pool=pool,
            demand=demands.get(pool.name, _NO_DEMAND),
            stands=stands[pool.name],
            plan=None
            if (one := found.get(pool.name)) is None
            else read_firm(one.made_at, one.plan),
            windows=reservations.list_open(tx, pool.name)
            if pool.name in firm and stands[pool.name].windows
            else (),
        )
        for pool in pools
    }

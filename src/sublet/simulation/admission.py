"""Who gets GPUs: against what is idle now, what is promised, what it pays, and whether it can."""

from collections import defaultdict, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from sublet.core.money import Rate
from sublet.planner.surplus import Pressure, sellable_gpus
from sublet.simulation.contracts import Deal, Deals
from sublet.simulation.money import HOUR
from sublet.simulation.planning import ASKS
from sublet.simulation.scenario import CONTRACT, INTERRUPTIBLE, ON_DEMAND, RESERVED, STEP, Pool
from sublet.simulation.table import Ints

if TYPE_CHECKING:
    from sublet.simulation.run import Simulation

_HOUR_STEPS: Final = HOUR // STEP
_PATIENCE_SECONDS: Final = 86_400  # for which an evicted lease waits to come back
_SHORTEST_SECONDS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A lease that waits to start, or to come back, on terms that stand."""

    request: int
    pool: int
    tier: int
    gpus: int
    tenant: int
    payer: int
    payee: int
    rate: int
    seconds: int
    until: int  # it ends then at the latest
    not_before: int
    evictions: int
    checkpoint: int = 0  # seconds between two times that it saves its work


class Admission:
    """Answers requests. Its room is good for one step."""

    def __init__(self, simulation: "Simulation") -> None:
        self._of = simulation
        scenario, world = simulation.scenario, simulation.world
        pools = len(scenario.pools)
        hours = (world.steps - world.first) // _HOUR_STEPS + 1
        # GPUs promised firm in each hour of the simulation, whether they run or will.
        self.promised = np.zeros((pools, hours), dtype=np.int64)
        self.paused: deque[Again] = deque()
        self._booked: dict[int, list[Again]] = defaultdict(list)  # by the step in which they start
        self._soon = np.zeros(pools, dtype=np.int64)
        self._ahead = 1 + max(-(-pool.notice // STEP) for pool in scenario.pools)
        self.room: list[int] = [0] * pools
        self._new: dict[str, list[int]] = {}
        self._spent: dict[int, int] = {}
        self.deals = Deals(simulation)
        for deal in self.deals.promised():
            self.promise(*deal)

    def _book(self, lease: Again, step: int) -> None:
        self._booked[step].append(lease)
        self.promise(lease.pool, lease.gpus, step, lease.seconds)

    def promise(self, pool: int, gpus: int, step: int, seconds: int) -> None:
        first = step // _HOUR_STEPS
        last = -(-(step * STEP + seconds) // HOUR)
        self.promised[pool, first:last] += gpus

    def starting_soon(self, step: int) -> dict[int, int]:
        """Return the GPUs by pool of what starts before a notice would be over, contracts included."""
        self._soon = np.zeros(len(self.room), dtype=np.int64)
        for ahead in range(self._ahead + 1):
            for lease in self._booked.get(step + ahead, ()):
                self._soon[lease.pool] += lease.gpus
        soon = self._soon.copy()
        for pool, gpus in self.deals.needs(self._of.now(step)).items():
            soon[pool] += gpus
        return {pool: int(soon[pool]) for pool in np.flatnonzero(soon).tolist()}

    def open(self, step: int, *, now: int, healthy: Ints) -> None:
        """See what may be sold, start what was booked, and let come back what was evicted."""
        of = self._of
        occupied = of.leases.occupied(len(healthy))
        pools = of.scenario.pools
        self.room = [
            sellable_gpus(pressure)
            for pressure in map(
                _pressure, pools, healthy.tolist(), of.internal.tolist(), of.pending.tolist(),
                occupied.tolist(),
            )
        ]  # fmt: skip
        self.begin()
        # Contracts are carved out before anything else is sold.
        self.deals.open(now, free=healthy - of.internal - of.pending - occupied)
        self.commit()
        for lease in self._booked.pop(step, ()):
            self._soon[lease.pool] -= lease.gpus
            if lease.gpus <= self.room[lease.pool]:
                self.start(lease, now=now, at=now)
            else:
                of.tally.broken += 1
                of.tally.refused["booked_and_not_free"] += 1
        of.tally.offered[step] = sum(max(room, 0) for room in self.room)
        for pool, gpus in self.deals.needs(now).items():
            self._soon[pool] += gpus
        # What starts within a notice is not sold to anybody else meanwhile.
        self.room = [
            max(room - soon, 0) for room, soon in zip(self.room, self._soon.tolist(), strict=True)
        ]
        self._resume(now)
        self.commit()

    def _resume(self, now: int) -> None:
        """Let leases come back in order; one that does not fit keeps later ones of its pool out."""
        full: set[int] = set()
        waiting = len(self.paused)
        for _ in range(waiting):
            lease = self.paused.popleft()
            seconds = min(lease.seconds, lease.until - now)
            gave_up = now > lease.not_before + _PATIENCE_SECONDS
            if seconds < _SHORTEST_SECONDS or gave_up:
                continue
            fits = lease.pool not in full and lease.gpus <= self.room[lease.pool]
            if fits and now >= lease.not_before:
                again = replace(lease, seconds=seconds)
                if self.start(again, now=now, at=now):
                    self._of.tally.resumed += 1
                continue
            full.add(lease.pool)
            self.paused.append(lease)

    def answer(self, step: int, *, now: int) -> None:
        """Answer the requests of a step in the order in which they came."""
        of, requests = self._of, self._of.requests
        low, high = int(requests.first[step]), int(requests.first[step + 1])
        if low == high:
            return
        self.begin()
        refused = of.tally.refused
        at, pool = requests.at[low:high].tolist(), requests.pool[low:high].tolist()
        tier, gpus = requests.tier[low:high].tolist(), requests.gpus[low:high].tolist()
        seconds = requests.seconds[low:high].tolist()
        starts, offer = requests.starts_at[low:high].tolist(), requests.offer[low:high].tolist()
        tenant = requests.tenant[low:high].tolist()
        checkpoint = requests.checkpoint[low:high].tolist()
        for i in range(high - low):
            where, size = pool[i], gpus[i]
            if tier[i] != RESERVED and size > self.room[where]:
                refused["nothing_free"] += 1
                continue
            if (
                tier[i] != INTERRUPTIBLE
                and of.rules.plans
                and not self._firm(
                    where, size, step, starts[i] - now, self._promised_seconds(tier[i], seconds[i])
                )
            ):
                refused["not_promisable"] += 1
                continue
            rate = of.tariff.price(
                where,
                tier[i],
                offer=offer[i],
                start_in=starts[i] - now,
                seconds=seconds[i],
                now=now,
            )
            if rate is None:
                refused["price"] += 1
                continue
            lease = Again(
                request=low + i, pool=where, tier=tier[i], gpus=size, tenant=tenant[i],
                payer=of.till.wallet(tenant[i]), payee=of.till.income(tenant[i]), rate=rate,
                seconds=seconds[i], until=starts[i] + seconds[i], not_before=0, evictions=0,
                checkpoint=checkpoint[i],
            )  # fmt: skip
            if tier[i] == RESERVED:
                self._book(lease, step + -(-(starts[i] - now) // STEP))
                of.tally.admitted[RESERVED] += 1
            elif self.start(lease, now=now, at=at[i]):
                of.tally.admitted[tier[i]] += 1
                if tier[i] == ON_DEMAND:
                    self.promise(where, size, step, self._promised_seconds(tier[i], seconds[i]))
            else:
                refused["unpaid"] += 1
        self.commit()

    def _promised_seconds(self, tier: int, seconds: int) -> int:
        if tier != ON_DEMAND:
            return seconds
        return min(seconds, round(self._of.scenario.conduct.min_run_hours * HOUR))

    def _firm(self, pool: int, gpus: int, step: int, start_in: int, seconds: int) -> bool:
        """Say whether so many GPUs may be promised for a window, beside what stands."""
        of = self._of
        assert of.plans is not None
        now = step * STEP  # since the simulation began
        end = now + start_in + seconds
        first, last = (now + start_in) // HOUR, min(-(-end // HOUR), self.promised.shape[1])
        stands = self.promised[pool, first:last].tolist()
        limits = of.plans.firm[:, pool, step].tolist()
        place = 0
        for hour, taken in enumerate(stands, start=first + 1):
            # How far ahead this hour of the window ends.
            ahead = min(hour * HOUR, end) - now
            while ahead > ASKS[place][0] * HOUR:
                place += 1
            if taken + gpus > limits[place]:
                return False
        return True

    def start_of_contract(
        self, *, request: int, deal: Deal, gpus: int, now: int, ends_at: int
    ) -> None:
        """Start a lease on GPUs of a contract, to its step's end."""
        lease = Again(
            request=request, pool=deal.pool, tier=CONTRACT, gpus=gpus, tenant=deal.tenant,
            payer=deal.payer, payee=deal.payee, rate=deal.nanos, seconds=ends_at - now,
            until=ends_at, not_before=now, evictions=0,
        )  # fmt: skip
        self.start(lease, now=now, at=now)

    def begin(self) -> None:
        self._new = {name: [] for name in _NEW}
        self._spent = {}

    def start(self, lease: Again, *, now: int, at: int) -> bool:
        """Set GPUs and the first block's money aside, or neither."""
        of = self._of
        ends_at = at + lease.seconds
        block = min(ends_at, now + STEP) - at
        nanos = Rate(nanos=lease.rate, per=HOUR).charge_most(lease.gpus * block).nanos
        if lease.tier == CONTRACT and of.rules.credits:
            nanos = 0  # its contract is paid
        book, payer = of.till.book, lease.payer
        if book.prepaid[payer]:
            spent = self._spent.get(payer, 0)
            if nanos + spent > book.available_of(payer):
                return False
            self._spent[payer] = spent + nanos
        self.room[lease.pool] -= lease.gpus
        promised = at
        if lease.tier in {RESERVED, CONTRACT}:
            promised = ends_at
        elif lease.tier == ON_DEMAND and not lease.evictions:
            promised = at + self._promised_seconds(ON_DEMAND, lease.seconds)
        row = (
            lease.request, lease.pool, lease.tier, lease.gpus, lease.tenant, payer, lease.payee,
            lease.rate, at, ends_at, promised, nanos, lease.evictions, lease.checkpoint,
        )  # fmt: skip
        for name, value in zip(_NEW, row, strict=True):
            self._new[name].append(value)
        return True

    def commit(self) -> None:
        """Take the leases that were started into the table, and hold their money."""
        new = self._new
        if new and new["request"]:
            of = self._of
            payer = np.array(new["payer"], dtype=np.int64)
            payee = np.array(new["payee"], dtype=np.int64)
            of.till.book.hold(payer, payee, np.array(new["held"], dtype=np.int64))
            of.leases.add(new)
        self.begin()


def _pressure(pool: Pool, gpus: int, internal: int, pending: int, leased: int) -> Pressure:
    return Pressure(
        gpus=gpus,
        internal_running=internal,
        internal_pending=pending,
        leased=leased,
        lendable=pool.lendable,
        lending_limit=pool.lending_limit,
    )


_NEW: Final = (
    "request", "pool", "tier", "gpus", "tenant", "payer", "payee", "rate", "running_at", "ends_at",
    "promised_until", "held", "evictions", "checkpoint",
)  # fmt: skip

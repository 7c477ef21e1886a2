"""Bulk contracts, one for each of their pools, by the product's own terms.

What is owed, late and given back is `leases.contract.bill`, of contracts to which `leases.delivery`
adds what was there, and this what was taken back. Their tenants use all that is theirs: leases of
a step start as soon as its GPUs are there, and end with it. Rules of others promise nothing: by
them a contract is paid for what of it ran, and what was taken back comes back.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

import numpy as np

from sublet.core.ids import derived_id
from sublet.leases.contract import Break, Contract, Delivery, bill
from sublet.leases.delivery import Running, delivered
from sublet.leases.reservation import SLACK
from sublet.simulation.scenario import CONTRACT, STEP
from sublet.simulation.table import RUNNING, Ints

if TYPE_CHECKING:
    from sublet.simulation.run import Simulation

_CHUNKS: Final = 16  # leases of one step in one pool, so that a part can be taken back


@dataclass(slots=True, kw_only=True)
class Deal:
    """A contract over GPUs of one pool, and how far it got."""

    pool: int
    payer: int
    payee: int
    tenant: int
    nanos: int  # per GPU-hour
    contract: Contract
    recalled_at: datetime | None  # by its operator, then
    billed_until: datetime
    lost: dict[int, int]  # GPUs by step that were taken back
    waits_since: datetime | None = None  # for GPUs that are not free
    not_before: int = 0  # what was taken back comes back then at the earliest
    spans: list[tuple[int, int]] = field(default_factory=list)  # of its steps, since the epoch

    def __post_init__(self) -> None:
        self.move(self.contract)

    def move(self, contract: Contract) -> None:
        """Take it as it is now, with other steps, or another end."""
        self.contract = contract
        self.spans = [
            (_epoch(step.starts_at), _epoch(contract.end_of(place)))
            for place, step in enumerate(contract.steps)
        ]

    def place(self, now: int) -> int | None:
        """Return which step runs then."""
        for place, (start, end) in enumerate(self.spans):
            if start <= now < end:
                return place
        return None

    def has(self, now: int, *, soon: int) -> int:
        """Return how many GPUs are its tenant's now, or will be soon, if that is more."""
        most = 0
        for place, (start, end) in enumerate(self.spans):
            if start <= soon and now < end:
                gpus = self.contract.steps[place].gpus
                most = max(most, gpus - self.lost.get(place, 0) if start <= now else gpus)
        return most

    def due(self, place: int | None) -> int:
        """Return how many GPUs of a step are its tenant's, as far as they were there."""
        if place is None:
            return 0
        return (self.contract.delivered(place) or 0) - self.lost.get(place, 0)


class Deals:
    """All contracts of a simulation."""

    def __init__(self, simulation: "Simulation") -> None:
        self._of = simulation
        scenario = simulation.scenario
        # Otherwise what ran is paid, as for any lease.
        self._by_terms = simulation.rules.credits
        self.all: list[Deal] = []
        self._ahead = 1 + max(-(-pool.notice // STEP) for pool in scenario.pools)
        first = _instant(simulation.now(0))
        for number, spec in enumerate(scenario.contracts):
            payer, payee = simulation.till.contract(number)
            for pool in spec.pools:
                signed = spec.as_signed(first, scenario.pools[pool])
                if signed is None:
                    continue
                signed = replace(signed, id=derived_id(UUID(int=0), number, pool))
                self.all.append(
                    Deal(
                        pool=pool, payer=payer, payee=payee, nanos=spec.nanos,
                        tenant=scenario.tenants.count + number, contract=signed,
                        recalled_at=spec.recalled_at(first), billed_until=first, lost={},
                    )
                )  # fmt: skip

    def promised(self) -> list[tuple[int, int, int, int]]:
        """Return (pool, GPUs, step, seconds) of what is promised at the start."""
        return [
            (
                deal.pool,
                step.gpus,
                self._step(step.starts_at),
                _seconds(deal.contract.end_of(place) - step.starts_at),
            )
            for deal in self.all
            for place, step in enumerate(deal.contract.steps)
        ]

    def needs(self, at: int) -> dict[int, int]:
        """Return the GPUs by pool that are theirs, or will be within a notice, and are not in use."""
        needed: dict[int, int] = {}
        used = self._used()
        for index, deal in enumerate(self.all):
            missing = deal.has(at, soon=at + self._ahead * STEP) - used[index]
            if missing > 0 and at >= deal.not_before:
                needed[deal.pool] = needed.get(deal.pool, 0) + missing
        return needed

    def recall(self, now: int) -> None:
        """End those whose operator takes them back, by their notice."""
        of = self._of
        at = _instant(now)
        for index, deal in enumerate(self.all):
            if deal.recalled_at is None or at < deal.recalled_at or at >= deal.contract.ends_at:
                continue
            deal.recalled_at = None
            before = deal.contract
            ends_at = before.end_by("operator", at)
            deal.move(_ended(before, ends_at))
            for place, step in enumerate(before.steps):
                start, end = max(step.starts_at, ends_at), before.end_of(place)
                if start < end:
                    of.admission.promise(
                        deal.pool, -step.gpus, -(-_seconds(start - _instant(of.now(0))) // STEP),
                        _seconds(end - start),
                    )  # fmt: skip
            rows = self._rows(index)
            of.leases.ends_at[rows] = np.minimum(of.leases.ends_at[rows], _epoch(ends_at))

    def gone(self, row: int, now: int, *, lost: bool) -> None:
        """Note that a lease of one had to go: its promise is broken, or its node is gone."""
        of = self._of
        index = -1 - int(of.leases.request[row])
        deal, at = self.all[index], _instant(now)
        place = deal.place(now)
        if lost or not self._by_terms:
            deal.not_before = now + of.rules.requeue_seconds
        elif place is not None:
            self._break(deal, place, int(of.leases.gpus[row]), at)

    def open(self, now: int, *, free: Ints) -> None:
        """Charge what fell due, see what is there, and use it.

        Args:
            now: in seconds since the epoch.
            free: GPUs of each pool that nobody holds or waits for.
        """
        of, at = self._of, _instant(now)
        self.charge(now)
        self._deliver(now, free)
        used = self._used()
        left = free.tolist()
        for index, deal in enumerate(self.all):
            place = deal.place(now)
            want = deal.due(place) - used[index] if now >= deal.not_before else 0
            if place is None or want <= 0:
                deal.waits_since = None
                continue
            step, ends = deal.contract.steps[place], deal.spans[place][1]
            unit = -(-step.gpus // _CHUNKS)
            while want > 0 and left[deal.pool] > 0:
                size = min(unit, want, left[deal.pool])
                of.admission.start_of_contract(
                    request=-1 - index, deal=deal, gpus=size, now=now, ends_at=ends
                )
                want -= size
                left[deal.pool] -= size
            self._wait(deal, place, want, at)

    def charge(self, now: int, *, end: bool = False) -> None:
        """Post what fell due since the last time; at the very `end`, of the day that is not over, too."""
        at = _instant(now)
        for deal in self.all if self._by_terms else ():
            contract = deal.contract
            if end and contract.ends_at > at:
                contract = _ended(contract, at)
                deal.move(contract)
            if not end and at < deal.billed_until + timedelta(days=1):
                continue
            lines = bill(contract, deal.billed_until, at) if contract.steps else []
            deal.billed_until = at
            self._of.till.post_contract(deal.payer, deal.payee, lines)

    def _deliver(self, now: int, free: Ints) -> None:
        """Record what is there, by the product's rule: who signed first is served first."""
        of, at = self._of, _instant(now)
        running, places = [], {}
        for deal in self.all:
            place = deal.place(now)
            if place is None:
                continue
            places[deal.contract.id] = (deal, place)
            running.append(
                Running(
                    id=deal.contract.id, pool=deal.contract.pool,
                    gpus=deal.contract.steps[place].gpus, lost_gpus=deal.lost.get(place, 0),
                    delivered=deal.contract.delivered(place), unpaid=False,
                )
            )  # fmt: skip
        if not running:
            return
        used = np.zeros(len(free), dtype=np.int64)
        for index, gpus in self._used().items():
            used[self.all[index].pool] += gpus
        names = [pool.name for pool in of.scenario.pools]
        there = dict(zip(names, (free + used).tolist(), strict=True))
        for id_, gpus in delivered(running, there).items():
            deal, place = places[id_]
            step = deal.contract.steps[place]
            first = deal.contract.delivered(place) is None
            if first and gpus < step.gpus:
                of.tally.late_contract += 1
            one = Delivery(place=place, at=step.starts_at if first else at, gpus=gpus)
            deal.contract = replace(deal.contract, deliveries=(*deal.contract.deliveries, one))

    def _wait(self, deal: Deal, place: int, missing: int, at: datetime) -> None:
        """Break the promise of what is not free when everybody's notice is over."""
        if missing <= 0:
            deal.waits_since = None
            return
        if deal.waits_since is None:
            deal.waits_since = at
        late = deal.due(place) + deal.lost.get(place, 0) < deal.contract.steps[place].gpus
        notice = timedelta(seconds=self._of.scenario.pools[deal.pool].notice)
        if self._by_terms and not late and at >= deal.waits_since + notice + SLACK:
            self._break(deal, place, missing, deal.waits_since)
            deal.waits_since = None

    def _break(self, deal: Deal, place: int, gpus: int, at: datetime) -> None:
        deal.lost[place] = deal.lost.get(place, 0) + gpus
        number = len(deal.contract.breaks)
        one = Break(id=derived_id(deal.contract.id, "break", number), place=place, at=at, gpus=gpus)
        deal.contract = replace(deal.contract, breaks=(*deal.contract.breaks, one))

    def _rows(self, index: int) -> Ints:
        leases = self._of.leases
        rows = leases.rows(RUNNING)
        mine: Ints = rows[(leases.tier[rows] == CONTRACT) & (leases.request[rows] == -1 - index)]
        return mine

    def _used(self) -> dict[int, int]:
        """Return the GPUs that each has in use."""
        if not self.all:
            return {}
        leases = self._of.leases
        rows = leases.rows(RUNNING)
        rows = rows[leases.tier[rows] == CONTRACT]
        used = np.bincount(
            -1 - leases.request[rows], weights=leases.gpus[rows], minlength=len(self.all)
        )
        return dict(enumerate(used.astype(np.int64).tolist()))

    def _step(self, at: datetime) -> int:
        return _seconds(at - _instant(self._of.now(0))) // STEP


def _ended(contract: Contract, at: datetime) -> Contract:
    """Return it as it is when the operator, or the simulation, ends it then."""
    steps = tuple(step for step in contract.steps if step.starts_at < at)
    return replace(contract, ends_at=at, ended_by="operator", steps=steps)


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _epoch(at: datetime) -> int:
    return round(at.timestamp())


def _seconds(length: timedelta) -> int:
    return length // timedelta(seconds=1)

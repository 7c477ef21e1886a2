"""Selling leases to all who ask at the moment: decided in order, under one lock, with one commit.

What one transaction costs is mostly the same however many leases it sells. So whoever asks while
another's sale is on its way to the disk waits for it, and is served with all others who came
meanwhile. One who is refused keeps nobody else from being served.

Locks are taken in one order by everybody: pools by name, quotes by id, accounts by id.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.db import Tx
from sublet.core.errors import Conflict, Invalid, NotFound, Refused, SubletError
from sublet.core.failpoint import failpoint
from sublet.core.ids import new_id
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.fleet.pool import Pool
from sublet.leases import blocks, resales, service, store, terms, webhooks
from sublet.leases.known import Known, know
from sublet.leases.lease import Lease, LeaseId, Move, State
from sublet.leases.resale import Free
from sublet.leases.service import Request
from sublet.ledger import batch
from sublet.market import bids, quotes, scales
from sublet.market import store as market
from sublet.market.price import Tier, lease_sku
from sublet.market.quote import Quote
from sublet.tenants.tenant import Tenant, TenantKind

log = logging.getLogger(__name__)

_SIDES: Final = ("wallet", "revenue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who asks for what."""

    tenant: Tenant
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sale:
    """What was decided, and is still to be written."""

    asked: Asked
    lease: Lease
    hold: batch.Hold
    taken: Sequence[Free]  # of windows that are sold back
    quote: Quote | None


def admit(
    tx: Tx,
    tenant: Tenant,
    request: Request,
    *,
    jobs: Sequence[InternalJob],
    now: datetime,
) -> Lease:
    """Sell a lease: set its GPUs and its first minute's money aside, or neither.

    Asking twice with one id and the same contents gives the same lease. Nothing is sold for less
    than its GPUs are worth to those who may come later, as far as that is known.

    Raises:
        NotFound: there is no such pool.
        Invalid: it can never be sold as written.
        Refused: there is no surplus for it now, or the tenant may not have it.
        Unpaid: the wallet cannot pay for the first minute.
    """
    (outcome,) = admit_many(tx, [Asked(tenant=tenant, request=request)], jobs=jobs, now=now)
    if isinstance(outcome, SubletError):
        raise outcome
    return outcome


def admit_many(
    tx: Tx, asked: Sequence[Asked], *, jobs: Sequence[InternalJob], now: datetime
) -> list[Lease | SubletError]:
    """Do `admit` for each, in this order.

    Returns:
        for each, what `admit` would return or raise.

    Raises:
        Conflict: an id was taken by somebody else at this very moment. All must be undone, and
            may be asked again one by one.
    """
    outcomes: dict[int, Lease | SubletError] = {}
    waiting = dict(enumerate(asked))
    while waiting:  # most often once: the first who waits is always answered
        outcomes |= _Round(tx, waiting, jobs=jobs, now=now).answer()
        waiting = {place: one for place, one in waiting.items() if place not in outcomes}
    return [outcomes[place] for place in range(len(asked))]


class _Later(Exception):
    """It depends on what was decided in this round, and is read anew for the next."""


class _Round:
    """Requests that are decided by one look at everything."""

    def __init__(
        self,
        tx: Tx,
        waiting: Mapping[int, Asked],
        *,
        jobs: Sequence[InternalJob],
        now: datetime,
    ) -> None:
        self._tx, self._now, self._jobs = tx, now, jobs
        self._outcomes: dict[int, Lease | SubletError] = {}
        self._waiting: dict[int, Asked] = {}
        for place, one in waiting.items():
            with self._outcome_of(place):
                check(one.tenant, one.request)
                self._waiting[place] = one
        self._ids = {
            place: one.request.id or LeaseId(new_id()) for place, one in self._waiting.items()
        }
        self._used: set[UUID] = set()  # ids of leases and quotes, in this round
        self._resold: set[str] = set()  # pools
        # By the book's prices and the notice.
        self._by_notice: dict[tuple[int, int, timedelta], market.Terms] = {}

    @contextmanager
    def _outcome_of(self, place: int) -> Iterator[None]:
        """Note an error as the outcome of one, and let the others go on."""
        try:
            yield
        except SubletError as error:
            self._outcomes[place] = error
        except _Later:
            pass

    def answer(self) -> dict[int, Lease | SubletError]:
        """Decide them in order, write what was sold, and return the outcomes of those decided."""
        if self._waiting:
            self._read()
            sales = {}
            for place, one in self._waiting.items():
                if place in self._outcomes:
                    continue
                with self._outcome_of(place):
                    if (sale := self._decide(place, one)) is not None:
                        sales[place] = sale
            self._write(list(sales.values()))
            self._outcomes |= {place: sale.lease for place, sale in sales.items()}
        return self._outcomes

    # ── load ─────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        tx, now, asked = self._tx, self._now, list(self._waiting.values())
        # The lock makes admissions of one pool take turns, so none sells what another just sold.
        self._pools = fleet.lock_pools(tx, {one.request.pool for one in asked})
        own = [one.request.id for one in asked if one.request.id is not None]
        self._before = {lease.id: lease for lease in store.find_all(tx, own)} if own else {}
        self._quotes = self._locked_quotes()
        self._known = know(tx, self._pools.values(), self._jobs, firm=self._asked_firm(), now=now)
        wanted = {(_sku(one), one.tenant.id) for one in asked if one.request.quote is None}
        self._terms = market.find_all_terms(tx, wanted, at=now) if wanted else {}
        priced = {one.request.pool for one in asked if one.request.quote is None}
        self._scales = scales.find_scales(tx, priced, at=now) if priced else {}
        customers = {one.request.pool for one in asked if one.tenant.kind is not TenantKind.HOUSE}
        self._bids = bids.find_all(tx, customers, now=now) if customers else {}
        codes = {f"tenant:{one.tenant.id}:{kind}" for one in asked for kind in _SIDES}
        self._accounts = batch.find_accounts(tx, sorted(codes))
        self._holds = batch.Holds(
            tx,
            accounts=self._accounts.values(),
            ids=[blocks.hold_id(id_, 0) for id_ in self._ids.values()],
        )

    def _asked_firm(self) -> set[str]:
        """Return the pools of which something firm is asked for."""
        return {
            one.request.pool
            for one in self._waiting.values()
            if one.request.tier is Tier.ON_DEMAND and one.request.pool in self._pools
        }

    def _locked_quotes(self) -> dict[UUID, Quote]:
        found = {}
        named = sorted(
            (one.request.quote, place)
            for place, one in self._waiting.items()
            if one.request.quote is not None
        )
        for quote_id, place in named:
            with self._outcome_of(place):
                tenant = self._waiting[place].tenant
                found[quote_id] = quotes.lock(self._tx, quote_id, tenant_id=tenant.id)
        return found

    # ── decide ───────────────────────────────────────────────────────────────────────────

    def _decide(self, place: int, one: Asked) -> _Sale | None:
        """Return what is sold to this one; None where it has it from before.

        Raises:
            SubletError: as `admit`.
            _Later: not in this round.
        """
        request, now, id_ = one.request, self._now, self._ids[place]
        pool = self._pools.get(request.pool)
        if pool is None:
            raise NotFound(f"there is no pool {request.pool!r}")
        if not self._used.isdisjoint({id_, request.quote}) or pool.name in self._resold:
            raise _Later
        if (before := self._before.get(id_)) is not None:
            self._outcomes[place] = service.repeated(self._tx, before, one.tenant, request)
            return None
        notice = terms.notice_of(pool, request.notice)
        house = one.tenant.kind is TenantKind.HOUSE  # the operator's own, whose replicas share
        if not house and request.resumes is None:
            terms.check_nodes(pool, request.gpus)
        quoted, price = self._price(one, pool, id_, notice=notice)
        firm = terms.firm_for(pool, request.tier, request.max_duration)
        known = self._known[pool.name]
        room = known.room(firm=firm, now=now)
        terms.check_room(pool, gpus=request.gpus, firm=firm, room=room, now=now)
        rate = price.contracted.rate
        # What was quoted is held to, also where the floor or the bids have risen since.
        if not house and quoted is None:
            # What comes back was sold before: it is not weighed again.
            length = None if request.resumes is not None else request.max_duration
            service.check_bids(
                pool, rate, self._bids.get(pool.name), start=now, length=length, firm=firm
            )
        taken = resales.taken_for(
            self._tx, pool.name, gpus=request.gpus - room.own, rate=rate, now=now
        )
        lease = Lease(
            id=id_,
            tenant_id=one.tenant.id,
            pool=pool.name,
            gpus=request.gpus,
            tier=request.tier,
            notice=notice,
            price_id=price.contracted.id,
            list_price_id=price.listed.id,
            max_duration=request.max_duration,
            requested_at=now,
            state=State.REQUESTED,
            since=now,
            version=1,
            firm=firm,
            credit_percent=pool.policy.credit_percent,
            resumable=request.resumable,
            resumes=request.resumes,
            exclusive=not house and terms.is_exclusive(pool, request.gpus),
        ).move(Move(to=State.ADMITTED, at=now))
        hold = blocks.hold_of(lease, 0, rate, accounts=self._accounts, now=now)
        if isinstance(held := self._holds.hold(hold, now=now), SubletError):
            raise held
        self._took(known, lease, quoted, taken)
        return _Sale(asked=one, lease=lease, hold=hold, taken=taken, quote=quoted)

    def _price(
        self, one: Asked, pool: Pool, id_: LeaseId, *, notice: timedelta
    ) -> tuple[Quote | None, market.Terms]:
        request = one.request
        if request.quote is None:
            found = self._terms.get((_sku(one), one.tenant.id))
            book = service.sold_at(found, pool, request.tier)
            known = book.contracted.id, book.listed.id, notice
            if known not in self._by_notice:
                self._by_notice[known] = scales.by_notice(
                    self._tx, book, self._scales.get(pool.name), notice, now=self._now
                )
            return None, self._by_notice[known]
        quoted = self._quotes[request.quote]
        quoted.check(id_, now=self._now)
        return quoted, market.Terms(contracted=quoted.price, listed=quoted.list_price)

    def _took(
        self, known: Known, lease: Lease, quoted: Quote | None, taken: Sequence[Free]
    ) -> None:
        assert lease.firm is not None
        known.take(lease.gpus, firm=lease.firm)
        self._used.add(lease.id)
        if quoted is not None:
            self._used.add(quoted.id)
        if taken:
            self._resold.add(lease.pool)

    # ── apply ────────────────────────────────────────────────────────────────────────────

    def _write(self, sales: Sequence[_Sale]) -> None:
        if not sales:
            return
        tx, now = self._tx, self._now
        new = store.insert(tx, [(one.lease, one.asked.request.spec) for one in sales], now=now)
        self._check_all(sales, len(new) == len(sales))
        for one in sales:
            resales.use(tx, one.lease, one.taken)
            if one.asked.request.webhook is not None:
                webhooks.add(tx, one.lease.id, one.asked.request.webhook)
            if one.quote is not None:
                quotes.accept(tx, one.quote, sold=one.lease.id, now=now)
        failpoint("lease.admit.before_hold")
        self._check_all(sales, not self._holds.write(now=now))
        failpoint("lease.block.held")
        blocks.add(tx, [(one.lease.id, 0, one.hold.transfer.id) for one in sales])
        failpoint("lease.admit.after_hold")
        for one in sales:
            log.info(
                "lease.admitted",
                extra={
                    "lease": one.lease.id, "tenant": one.asked.tenant.id, "gpus": one.lease.gpus,
                },
            )  # fmt: skip

    def _check_all(self, sales: Sequence[_Sale], written: bool) -> None:
        """Raises Conflict, or Invalid where one asked alone: not all of them were new."""
        if written:
            return
        if len(sales) == 1:
            raise Invalid(f"id {sales[0].lease.id} was already used for something else")
        raise Conflict("an id of several that are admitted together was taken just now; ask again")


def check(tenant: Tenant, request: Request) -> None:
    """Raise what can be said of a request before anything is read.

    Raises:
        Invalid: it can never be sold as written.
        Refused: the tenant may not have it.
    """
    service.check_size(request.gpus, request.max_duration)
    if request.tier.drawn:
        raise Invalid(
            f"what is {request.tier} is reserved first (POST /v1/reservations, or by contract), then"
            " leased from: name the `reservation`"
        )
    if request.spec.network and not tenant.network_allowed:
        raise Refused("this tenant's workloads may not use the network; ask the operator")


def _sku(one: Asked) -> str:
    return lease_sku(one.request.pool, one.request.tier)

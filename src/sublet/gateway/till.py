"""What a gateway's purses ask of the ledger, each call one transaction. Sync.

    refill      hold more for tenants whose purse is too small for what they ask
    hand_over   record what was used, pay for it out of the purses, and hold the rest anew
    give_back   return what nobody needs

A call that failed with Unavailable may have taken effect. It is then made again with the very
same ids, and finds out: it does what was not done, and returns what was.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, SubletError, Unpaid
from sublet.core.failpoint import failpoint
from sublet.core.ids import new_id, sibling_id
from sublet.core.money import Money
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import RICH, CountFirst, Grant, Need, decide
from sublet.gateway.purse import Held
from sublet.ledger import batch, store
from sublet.ledger.batch import Settlement
from sublet.ledger.transfer import Account, Transfer
from sublet.metering import intake
from sublet.metering.report import Report
from sublet.tenants.limits import spend_budgets
from sublet.tenants.tenant import revenue_of, wallet_of

HOLD: Final = timedelta(minutes=15)
BAD_DEBT: Final = "house:bad_debt"
_REASON: Final = "tokens"
_DIRECT = 2  # of the siblings of a report's id
_WRITTEN_OFF = 3  # of the siblings of that one

Answer = Grant | Failure | CountFirst


@dataclass(slots=True, kw_only=True)
class Refill:
    """One tenant's purse, and what its requests ask for, in their order."""

    tenant_id: UUID
    before: Held | None
    free: int  # nanos of it that nobody has
    needs: Sequence[Need]
    extra: int  # nanos wanted beside, for requests to come
    next_id: UUID  # of the hold that takes the place of the one before
    # Once decided:
    answers: Sequence[Answer] = ()
    after: Held | None = None

    @property
    def used(self) -> int:
        """Nanos of it that are not free."""
        return 0 if self.before is None else self.before.nanos - self.free


@dataclass(slots=True, kw_only=True)
class Turn:
    """One tenant's purse when some of what it spent is handed over."""

    tenant_id: UUID
    before: Held | None
    keep: int  # nanos to hold on, beside what is paid for
    next_id: UUID
    # Leave the hold as it is, and pay from the wallet beside it; if that has enough.
    stays: bool = False
    # Once done:
    after: Held | None = None  # the same object as before: it stayed


class _TooPoor(Exception):
    """Wallets that have not enough to pay beside their holds."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        super().__init__(turns)
        self.turns = turns


class Till:
    def __init__(self, db: Database, *, holder: str, clock: Clock) -> None:
        self._db = db
        self._holder = holder
        self._clock = clock
        # (wallet, revenue) by tenant. Ids of accounts never change.
        self._accounts: dict[UUID, tuple[int, int]] = {}

    # ── holding more ─────────────────────────────────────────────────────────────────────

    def refill(self, refills: Sequence[Refill]) -> None:
        """Decide what each asks for, in order, and hold it.

        Raises:
            Unavailable: call it again with the same; nothing may be told to anybody before.
        """
        now = self._clock.now()
        with self._db.transaction() as tx:
            accounts = self._find_accounts(tx, [one.tenant_id for one in refills])
            held = batch.lock_holds(tx, [one.before.id for one in refills if one.before])
            able = [one for one in refills if one.tenant_id in accounts]
            for one in refills:
                if one.tenant_id not in accounts:
                    failure = Failure(Kind.UNPAID, "this tenant has no wallet yet: add credit")
                    one.answers = [failure] * len(one.needs)
            returned = [one for one in able if one.before and one.before.id in held]
            # All of their accounts at once, in order: two gateways must not wait both ways.
            wallets = [id_ for one in able for id_ in accounts[one.tenant_id]]
            batch.resolve(
                tx, [_void(one.before, now) for one in returned], held, accounts=wallets, now=now
            )
            failpoint("gateway.refill.returned")
            holds = batch.Holds(tx, accounts=wallets, ids=(one.next_id for one in able))
            for one in able:
                if not holds.known(one.next_id):  # else: it was done, and is as it was decided
                    self._decide(one, holds, accounts[one.tenant_id], now)
            lost = holds.write(now=now)
            assert not lost, lost
            failpoint("gateway.refill.held")

    def _decide(
        self,
        one: Refill,
        holds: batch.Holds,
        accounts: tuple[int, int],
        now: datetime,
    ) -> None:
        account = holds.account(accounts[0])
        # What runs on this purse comes first: to the wallet it looks like somebody else's hold.
        used = min(one.used, max(0, account.available.nanos))
        pot = _less(account, used)
        granted, answers = 0, []
        for need in one.needs:
            answer = decide(need, pot)
            if isinstance(answer, Grant):
                granted += answer.amount.nanos
                pot = _less(pot, answer.amount.nanos)
            answers.append(answer)
        extra = min(one.extra, max(0, pot.available.nanos) // RICH) if granted else 0
        if extra < max((need.most.nanos for need in one.needs), default=0):
            extra = 0  # too little for another such request: it would only lie idle
        one.answers = answers
        one.after = self._hold(holds, one.next_id, accounts, used + granted + extra, now)

    def _hold(
        self, holds: batch.Holds, id_: UUID, accounts: tuple[int, int], nanos: int, now: datetime
    ) -> Held | None:
        if nanos <= 0:
            return None
        transfer = Transfer(
            id=id_,
            debit_account=accounts[0],
            credit_account=accounts[1],
            amount=Money(nanos),
            reason=_REASON,
            happened_at=now,
        )
        outcome = holds.hold(
            batch.Hold(transfer=transfer, holder=self._holder, expires_at=now + HOLD), now=now
        )
        assert outcome is True, outcome
        return Held(id=id_, nanos=nanos)

    # ── handing over ─────────────────────────────────────────────────────────────────────

    def hand_over(self, reports: Sequence[Report], turns: Sequence[Turn]) -> None:
        """Record `reports`, each once, and pay for them.

        Args:
            reports: of the tenants of `turns`.
            turns: one a tenant; its hold pays, and what is then to be kept is held anew.

        Raises:
            Unavailable: call it again with the same.
        """
        while True:
            try:
                with self._db.transaction() as tx:
                    return self._hand_over(tx, reports, turns)
            except _TooPoor as error:
                # Then their holds must pay, which are to be locked before any wallet is.
                for turn in error.turns:
                    turn.stays = False
                for turn in turns:
                    turn.after = None

    def _hand_over(self, tx: Tx, reports: Sequence[Report], turns: Sequence[Turn]) -> None:
        now = self._clock.now()
        accounts = self._find_accounts(tx, [turn.tenant_id for turn in turns])
        new: set[UUID] = set()
        if reports:
            intake.stage(tx, reports)
            new = intake.add_usages(tx, reports, now=now)
            spend_budgets(tx, {report.id: report.nanos for report in reports if report.id in new})
            failpoint("gateway.hand_over.recorded")
        totals: dict[UUID, int] = {}
        latest: dict[UUID, Report] = {}
        for report in reports:
            if report.id in new:
                totals[report.tenant_id] = totals.get(report.tenant_id, 0) + report.nanos
                latest[report.tenant_id] = report
        leaving = [turn for turn in turns if not turn.stays]
        held = batch.lock_holds(tx, _holds_of(leaving)) if leaving else {}
        lost = batch.resolved(tx, _holds_of(turn for turn in turns if turn.stays))
        # Whose hold stays, whose pays, and who has none any more (it expired).
        beside, backed, apart = [], [], []
        settlements: list[Settlement] = []
        transfers: dict[UUID, UUID] = {}
        for turn in turns:
            id_, before = turn.tenant_id, turn.before
            total = totals.get(id_, 0)
            if turn.stays and before and before.id not in lost:
                beside.append(turn)
            elif before and before.id in held and total <= before.nanos:
                backed.append(turn)
                settlements.append(
                    Settlement(hold_id=before.id, amount=Money(total), happened_at=now)
                )
                if total:
                    transfers[id_] = sibling_id(before.id, store.RESOLUTION)
            elif total:
                apart.append(turn)
        payments = {
            turn.tenant_id: _direct(
                latest[turn.tenant_id], accounts[turn.tenant_id], totals[turn.tenant_id]
            )
            for turn in (*beside, *apart)
            if totals.get(turn.tenant_id)
        }
        # All at once, in order: two gateways must not wait both ways.
        wallets = [id_ for turn in turns for id_ in accounts.get(turn.tenant_id, ())]
        if apart:
            batch.lock_accounts(tx, wallets)
        # Before the money: wallets' rows are locked for as short as can be.
        for turn in apart:
            transfers[turn.tenant_id] = self._charge_apart(tx, payments[turn.tenant_id], now)
        for turn in beside:
            if turn.tenant_id in payments:
                transfers[turn.tenant_id] = payments[turn.tenant_id].id
        intake.add_charges(tx, new, staged=len(reports), transfers=transfers, now=now)
        failpoint("gateway.hand_over.charged")
        if settlements:
            batch.resolve(tx, settlements, held, accounts=wallets, now=now)
        failpoint("gateway.hand_over.paid")
        paying = {
            payments[turn.tenant_id].id: turn for turn in beside if turn.tenant_id in payments
        }
        refused = batch.pay_many(
            tx, [payments[turn.tenant_id] for turn in paying.values()], accounts=wallets, now=now
        )
        if refused:
            _only_unpaid(refused)
            raise _TooPoor([paying[id_] for id_ in refused])
        for turn in beside:
            turn.after = turn.before
        going_on = [turn for turn in backed if turn.keep]
        if going_on:
            ids = [turn.next_id for turn in going_on]
            holds = batch.Holds(tx, accounts=wallets, ids=ids)
            for turn in going_on:
                # It returned to the wallet a moment ago, under a lock that we still have.
                pair = accounts[turn.tenant_id]
                turn.after = self._hold(holds, turn.next_id, pair, turn.keep, now)
            taken = holds.write(now=now)
            assert not taken, taken
        failpoint("gateway.hand_over.kept")
        there = {turn.tenant_id for turn in (*beside, *backed)}
        self._recall(tx, [turn for turn in turns if turn.before and turn.tenant_id not in there])

    def _recall(self, tx: Tx, turns: Sequence[Turn]) -> None:
        """Of purses whose hold is gone: it was this call, made before, or the hold expired."""
        made = {turn.next_id for turn in turns if turn.after}
        if made:
            made = batch.existing(tx, list(made))
        for turn in turns:
            if turn.next_id not in made:
                turn.after = None

    def _charge_apart(self, tx: Tx, direct: Transfer, now: datetime) -> UUID:
        """Move the money for reports whose hold is gone: from the wallet, or it is our loss."""
        try:
            with tx.transaction():
                store.post(tx, direct, now=now)
        except Unpaid:
            debt = store.open_account(tx, BAD_DEBT, prepaid=False)
            lost = replace(direct, id=sibling_id(direct.id, _WRITTEN_OFF), debit_account=debt.id)
            store.post(tx, lost, now=now)
            return lost.id
        return direct.id

    # ── giving back ──────────────────────────────────────────────────────────────────────

    def give_back(self, hold_ids: Sequence[UUID]) -> None:
        """Return all of these holds. Repeating it changes nothing."""
        with self._db.transaction() as tx:
            outcomes = batch.void_many(tx, hold_ids, now=self._clock.now())
        for outcome in outcomes:
            # A conflict: it expired meanwhile, so its money is back already.
            if isinstance(outcome, SubletError) and not isinstance(outcome, Conflict):
                raise outcome

    def recover(self, reports: Sequence[Report]) -> None:
        """Hand over what an earlier run of this name left, out of what it still holds."""
        tenants = list(dict.fromkeys(report.tenant_id for report in reports))
        with self._db.transaction() as tx:
            accounts = self._find_accounts(tx, tenants)
            wallets = {pair[0]: tenant for tenant, pair in accounts.items()}
            held: dict[UUID, Held] = {}
            for hold in store.holds_of(tx, _family(self._holder)):
                tenant = wallets.get(hold.debit_account)
                if tenant is not None and (tenant not in held or held[tenant].nanos < hold.nanos):
                    held[tenant] = Held(id=hold.id, nanos=hold.nanos)
        totals: dict[UUID, int] = {}
        for report in reports:
            totals[report.tenant_id] = totals.get(report.tenant_id, 0) + report.nanos
        turns = []
        for tenant in tenants:
            before = held.get(tenant)
            keep = 0 if before is None else max(0, before.nanos - totals[tenant])
            turns.append(Turn(tenant_id=tenant, before=before, keep=keep, next_id=new_id()))
        self.hand_over(reports, turns)

    def _find_accounts(self, tx: Tx, tenants: Iterable[UUID]) -> dict[UUID, tuple[int, int]]:
        wanted = list(tenants)
        new = [tenant for tenant in wanted if tenant not in self._accounts]
        if new:
            codes = [code for tenant in new for code in (wallet_of(tenant), revenue_of(tenant))]
            found = batch.find_accounts(tx, codes)
            for tenant in new:
                wallet, revenue = found.get(wallet_of(tenant)), found.get(revenue_of(tenant))
                if wallet is not None and revenue is not None:
                    self._accounts[tenant] = wallet, revenue
        return {tenant: self._accounts[tenant] for tenant in wanted if tenant in self._accounts}


def _only_unpaid(refused: Mapping[UUID, SubletError]) -> None:
    """Raise what is not for want of money: a bug of ours, which repeating would not mend."""
    for error in refused.values():
        if not isinstance(error, Unpaid):
            raise error


def _holds_of(turns: Iterable[Turn]) -> list[UUID]:
    return [turn.before.id for turn in turns if turn.before]


def _direct(report: Report, accounts: tuple[int, int], nanos: int) -> Transfer:
    """Pay `nanos` for all that was used up to this report."""
    wallet, revenue = accounts
    return Transfer(
        id=sibling_id(report.id, _DIRECT),
        debit_account=wallet,
        credit_account=revenue,
        amount=Money(nanos),
        reason=_REASON,
        happened_at=report.happened_at,
    )


def _void(held: Held | None, now: datetime) -> Settlement:
    assert held is not None
    return Settlement(hold_id=held.id, amount=Money(0), happened_at=now)


def _less(account: Account, nanos: int) -> Account:
    return replace(account, debits_pending=account.debits_pending + nanos)


def _family(holder: str) -> str:
    """Return what all runs of this gateway's name are called, as holders of money."""
    return holder.rpartition(":")[0] + ":"

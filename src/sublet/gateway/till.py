"""Money for many requests in one transaction: holds before, charges after. Sync.

An item that cannot be done has an error of its own, and the others go on. When the database
goes away it went away for all. What fails otherwise is a bug with one of them, so each is then
tried by itself, and only that one is told.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, SubletError, Unavailable
from sublet.core.money import Money
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import Grant, Need, decide
from sublet.gateway.lane import Unsure
from sublet.gateway.tariff import Counts, Tariff
from sublet.ledger import batch as ledger
from sublet.ledger.transfer import Transfer
from sublet.metering import batch as metering
from sublet.metering.usage import Usage
from sublet.tenants.tenant import Tenant

_HOLD: Final = timedelta(minutes=15)  # the longest request and its settlement, with room


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that wants money held."""

    id: UUID
    tenant: Tenant
    need: Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a request used, ready to be charged, however often that is tried."""

    usage: Usage
    counts: Counts
    tariff: Tariff


class Till:
    def __init__(self, db: Database, *, holder: str, clock: Clock) -> None:
        self._db = db
        self._holder = holder
        self._clock = clock
        # (wallet, revenue) by tenant. Ids of accounts never change; one thread fills it.
        self._accounts: dict[UUID, tuple[int, int]] = {}

    def open_many(self, asked: Sequence[Asked]) -> list[Grant | Exception]:
        """Hold what each may cost, in this order, each from what the ones before it left.

        Returns:
            for each the grant, or what to raise: a Failure when the wallet cannot pay, Unsure
            when money may be held, Unavailable when none is.
        """
        written: list[bool] = []  # which of them were about to be written
        try:
            return self._open_many(asked, written)
        except Unavailable as error:
            return [
                Unsure(str(error)) if begun else Unavailable(str(error))
                for begun in written or [False] * len(asked)
            ]
        except Exception as error:  # noqa: BLE001 - it is handed on
            if len(asked) == 1:
                return [error]
            return [self.open_many([one])[0] for one in asked]

    def _open_many(self, asked: Sequence[Asked], written: list[bool]) -> list[Grant | Exception]:
        now = self._clock.now()
        with self._db.transaction() as tx:
            accounts = self._find_accounts(tx, {one.tenant.id: one.tenant for one in asked})
            # Nobody moves these wallets between the look and the hold.
            holds = ledger.Holds(
                tx,
                accounts=(id_ for pair in accounts.values() for id_ in pair),
                ids=(one.id for one in asked),
            )
            answers: list[Grant | Exception] = []
            for one in asked:
                pair = accounts.get(one.tenant.id)
                if pair is None:
                    failure = Failure(Kind.UNPAID, "this tenant has no wallet yet: add credit")
                    answers.append(failure)
                    continue
                decided = decide(one.need, holds.account(pair[0]))
                if isinstance(decided, Grant):
                    held = holds.hold(self._hold(one, decided, pair), now=now)
                    answers.append(held if isinstance(held, SubletError) else decided)
                else:
                    answers.append(decided)
            written += [isinstance(answer, Grant) for answer in answers]
            lost = holds.write(now=now)
        return [
            Invalid(f"{one.id} is held for somebody else") if one.id in lost else answer
            for one, answer in zip(asked, answers, strict=True)
        ]

    def _hold(self, one: Asked, grant: Grant, accounts: tuple[int, int]) -> ledger.Hold:
        now = self._clock.now()
        wallet, revenue = accounts
        transfer = Transfer(
            id=one.id,
            debit_account=wallet,
            credit_account=revenue,
            amount=grant.amount,
            reason="tokens",
            happened_at=now,
        )
        return ledger.Hold(transfer=transfer, holder=self._holder, expires_at=now + _HOLD)

    def _find_accounts(self, tx: Tx, tenants: dict[UUID, Tenant]) -> dict[UUID, tuple[int, int]]:
        new = [tenant for id_, tenant in tenants.items() if id_ not in self._accounts]
        if new:
            found = ledger.find_accounts(tx, _codes(new))
            for tenant in new:
                wallet, revenue = found.get(tenant.wallet), found.get(tenant.revenue)
                if wallet is not None and revenue is not None:
                    self._accounts[tenant.id] = wallet, revenue
        return {id_: self._accounts[id_] for id_ in tenants if id_ in self._accounts}

    def settle_many(self, bills: Sequence[Bill]) -> list[Money | Exception]:
        """Charge what each used and return the rest. Repeating it changes nothing.

        Returns:
            for each what was charged, or what to raise.
        """
        try:
            with self._db.transaction() as tx:
                return [*metering.settle_many(tx, [*map(_bill, bills)], now=self._clock.now())]
        except Unavailable as error:
            return [Unavailable(str(error)) for _ in bills]
        except Exception as error:  # noqa: BLE001 - it is handed on
            if len(bills) == 1:
                return [error]
            return [self.settle_many([bill])[0] for bill in bills]


def _bill(bill: Bill) -> metering.Bill:
    return metering.Bill(
        usage=bill.usage, lines=bill.tariff.lines(bill.counts), hold_id=bill.usage.id
    )


def _codes(tenants: Iterable[Tenant]) -> list[str]:
    return [code for tenant in tenants for code in (tenant.wallet, tenant.revenue)]

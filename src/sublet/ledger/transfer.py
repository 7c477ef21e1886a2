"""What the ledger knows: accounts, and transfers between them.

A transfer is posted at once, or it is pending first and then resolved, once:

    pending ──► post     for at most what was held; the rest returns
       ├──────► void     nothing was used
       └──────► expire   nobody came to resolve it in time

Every resolution is a transfer of its own that names the pending one. Nothing is changed or
removed. The words are TigerBeetle's.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sublet.core.money import Money


class Kind(StrEnum):
    POSTED = "posted"  # moved at once
    PENDING = "pending"  # held: not yet moved, but not to be spent twice
    POST = "post"  # a hold resolved: this much moved, the rest returned
    VOID = "void"  # a hold resolved: all of it returned
    EXPIRE = "expire"  # the same, because its time ran out


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One amount out of one account and into another: it cannot fail to balance.

    The debited account pays: a wallet is debited when its tenant uses something.
    """

    id: UUID
    debit_account: int
    credit_account: int
    amount: Money  # more than zero
    reason: str
    happened_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """A transfer that moved money, with its place in the record."""

    transfer: Transfer
    sequence: int
    hold_id: UUID | None  # the hold that it is the used part of
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenHold:
    """A pending transfer that nobody has resolved."""

    id: UUID
    holder: str  # who will: 'gateway:<name>:<instance>', 'lease:<id>'
    debit_account: int
    nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Four counters. What was posted only grows."""

    id: int
    code: str
    currency: str
    prepaid: bool  # its debits may never exceed its credits
    debits_pending: int
    debits_posted: int
    credits_pending: int
    credits_posted: int

    @property
    def balance(self) -> Money:
        """What it holds: posted credits less posted debits."""
        return Money(self.credits_posted - self.debits_posted, self.currency)

    @property
    def held(self) -> Money:
        """What holds have set aside out of the balance."""
        return Money(self.debits_pending, self.currency)

    @property
    def available(self) -> Money:
        """What may still be spent."""
        return Money(self.credits_posted - self.debits_posted - self.debits_pending, self.currency)

"""The ledger's arithmetic on columns: many accounts and many transfers at once, in whole nanos.

`Book` keeps the four counters of an account (see `transfer`) for many accounts side by side, and
`charge_each` is `Rate.charge` for many quantities. What the database's ledger does row by row,
this does for a simulated fleet; a test plays the same transfers to both. Nothing is recorded
here: a book is what the counters say, not how they came about.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.core.errors import Invalid, Unpaid

Nanos = NDArray[np.int64]
Rows = NDArray[np.int64]

# Half of what an int64 holds: sums and differences of two amounts still fit.
MOST_NANOS: Final = 2**62


def charge_each(nanos: Nanos, per: int, quantity: Nanos) -> Nanos:
    """Price each of `quantity` units at its own rate, rounded half to even to one nano."""
    whole, rest = _divided(nanos, per, quantity)
    up = (2 * rest > per) | ((2 * rest == per) & (whole % 2 == 1))
    rounded: Nanos = whole + up
    return rounded


def charge_most_each(nanos: Nanos, per: int, quantity: Nanos) -> Nanos:
    """Price each of `quantity` units, rounded up: what to hold so that no charge can exceed it."""
    whole, rest = _divided(nanos, per, quantity)
    rounded: Nanos = whole + (rest > 0)
    return rounded


def _divided(nanos: Nanos, per: int, quantity: Nanos) -> tuple[Nanos, Nanos]:
    """Divide nanos times quantity by `per` exactly.

    Raises:
        Invalid: an amount is less than nothing, or too large for a column.
    """
    if len(nanos) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if int(nanos.min()) < 0 or int(quantity.min()) < 0:
        raise Invalid("a price and a quantity are not less than nothing")
    if float(nanos.max()) * float(quantity.max()) >= MOST_NANOS:
        raise Invalid("one block of one lease costs more than a column of nanos can hold")
    whole, rest = np.divmod(nanos * quantity, per)
    return whole.astype(np.int64), rest.astype(np.int64)


def take_in_turn(group: Rows, amount: Nanos, limit: Nanos) -> NDArray[np.bool_]:
    """Say which of `amount` fit into the limit of their group, taken in order.

    What does not fit is passed over, and a later one that is smaller may fit still, as when each
    came by itself.

    Args:
        group: shape (rows,): which limit each draws on.
        amount: shape (rows,), none negative.
        limit: shape (groups,).
    """
    wanted = np.bincount(group, weights=amount.astype(np.float64), minlength=len(limit))
    # Sums in floats are good enough to see who is far from the limit; the rest is exact.
    tight = wanted * (1 + 1e-9) + 1 > limit
    fits = ~tight[group]
    left: dict[int, int] = {}
    for row in np.flatnonzero(~fits).tolist():
        place = int(group[row])
        room = left.setdefault(place, int(limit[place]))
        if int(amount[row]) <= room:
            left[place] = room - int(amount[row])
            fits[row] = True
    return fits


class Book:
    """Accounts as columns of counters. Account `i` is row `i` of each; what was posted only grows."""

    def __init__(self, prepaid: NDArray[np.bool_]) -> None:
        accounts = len(prepaid)
        self.prepaid = prepaid  # its debits may never exceed its credits
        self.debits_pending = np.zeros(accounts, dtype=np.int64)
        self.debits_posted = np.zeros(accounts, dtype=np.int64)
        self.credits_pending = np.zeros(accounts, dtype=np.int64)
        self.credits_posted = np.zeros(accounts, dtype=np.int64)

    @property
    def available(self) -> Nanos:
        """What may still be spent of each account."""
        return self.credits_posted - self.debits_posted - self.debits_pending

    def available_of(self, account: int) -> int:
        """What may still be spent of one account."""
        return int(
            self.credits_posted[account]
            - self.debits_posted[account]
            - self.debits_pending[account]
        )

    def payable(self, payer: Rows, nanos: Nanos) -> NDArray[np.bool_]:
        """Say which amounts their payers can hold, taken in order; see `take_in_turn`."""
        limit = np.where(self.prepaid, self.available, MOST_NANOS)
        return take_in_turn(payer, nanos, limit)

    def hold(self, payer: Rows, payee: Rows, nanos: Nanos) -> None:
        """Set amounts aside, to be resolved by `settle`.

        Raises:
            Unpaid: a prepaid account has too little left for all of them; nothing changed.
        """
        self._afford(payer, nanos)
        np.add.at(self.debits_pending, payer, nanos)
        np.add.at(self.credits_pending, payee, nanos)

    def settle(self, payer: Rows, payee: Rows, held: Nanos, used: Nanos) -> None:
        """Resolve holds: move what was `used` of each and return the rest.

        Raises:
            Invalid: more is used than was held, or less than nothing; nothing changed.
        """
        if bool(((used < 0) | (used > held)).any()):
            raise Invalid(
                "a hold is settled for what was held at most, and not for less than nothing"
            )
        np.subtract.at(self.debits_pending, payer, held)
        np.subtract.at(self.credits_pending, payee, held)
        np.add.at(self.debits_posted, payer, used)
        np.add.at(self.credits_posted, payee, used)

    def post(self, payer: Rows, payee: Rows, nanos: Nanos) -> None:
        """Move amounts at once.

        Raises:
            Unpaid: a prepaid account has too little left for all of them; nothing changed.
        """
        self._afford(payer, nanos)
        np.add.at(self.debits_posted, payer, nanos)
        np.add.at(self.credits_posted, payee, nanos)

    def imbalance(self) -> tuple[int, int]:
        """Return debits less credits, pending and posted: nothing, unless money came or went."""
        return (
            int(self.debits_pending.sum()) - int(self.credits_pending.sum()),
            int(self.debits_posted.sum()) - int(self.credits_posted.sum()),
        )

    def overdrawn(self) -> Rows:
        """Return the prepaid accounts that stand below nothing, or hold less than nothing."""
        below = self.prepaid & (self.available < 0)
        return np.flatnonzero(below | (self.debits_pending < 0)).astype(np.int64)

    def _afford(self, payer: Rows, nanos: Nanos) -> None:
        if len(nanos) == 0:
            return
        if int(nanos.min()) < 0:
            raise Invalid("an amount is not less than nothing")
        asked = np.zeros(len(self.prepaid), dtype=np.int64)
        np.add.at(asked, payer, nanos)
        short = self.prepaid & (asked > self.available)
        if bool(short.any()):
            place = int(np.flatnonzero(short)[0])
            raise Unpaid(
                f"account {place} is asked for {int(asked[place])} nanos and has"
                f" {int(self.available[place])}"
            )

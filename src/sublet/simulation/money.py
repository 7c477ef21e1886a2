"""Whose money it is: accounts of the bank, of tenants and of contracts in one `Book`.

A lease is paid a block at a time: a step's money is held before it is served, and settled for
the seconds used when the step is over. The price of a block is `Rate.charge`, on columns. Contracts
are paid by their bill, used or not.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from sublet.leases.contract import Line
from sublet.ledger.columns import Book, Nanos, charge_each, charge_most_each
from sublet.simulation.scenario import CONTRACT, STEP, TIERS, Scenario
from sublet.simulation.table import Ints, Leases

BANK: Final = 0
HOUR: Final = 3_600


class Till:
    """The book, and what was taken by tier."""

    def __init__(self, scenario: Scenario, *, by_terms: bool) -> None:
        """`by_terms`: contracts are billed as contracts, not by the seconds that their leases ran."""
        self._by_terms = by_terms
        self._tenants = scenario.tenants.count
        self._wallet_nanos = scenario.tenants.wallet_nanos
        self._refilled = round(scenario.tenants.refilled * self._tenants)
        contracts = len(scenario.contracts)
        prepaid = np.zeros(1 + 2 * self._tenants + 2 * contracts, dtype=np.bool_)
        prepaid[1 : 1 + self._tenants] = True
        self.book = Book(prepaid)
        self.revenue = np.zeros(len(TIERS), dtype=np.int64)  # nanos charged, by tier
        self.credits = np.zeros(len(TIERS), dtype=np.int64)  # nanos given back, by tier
        self.deposits = 0
        self._pay_in(self._tenants)

    def wallet(self, tenant: int) -> int:
        return 1 + tenant

    def income(self, tenant: int) -> int:
        return 1 + self._tenants + tenant

    def contract(self, number: int) -> tuple[int, int]:
        """Return who pays for a contract, later, and to whom."""
        return 1 + 2 * self._tenants + 2 * number, 2 + 2 * self._tenants + 2 * number

    def refill(self) -> None:
        """Let those tenants pay in again that do, up to what they started with."""
        self._pay_in(self._refilled)

    def settle(self, leases: Leases, rows: Ints, *, now: int) -> Nanos:
        """Charge leases for the block that ends now, or ended before; returns GPU-seconds used."""
        began = np.maximum(leases.running_at[rows], now - STEP)
        until = np.minimum(np.minimum(leases.stopped_at[rows], leases.ends_at[rows]), now)
        seconds: Nanos = leases.gpus[rows] * np.maximum(until - began, 0)
        used = charge_each(self._rates(leases, rows), HOUR, seconds)
        self.book.settle(leases.payer[rows], leases.payee[rows], leases.held[rows], used)
        leases.held[rows] = 0
        leases.charged[rows] += used
        leases.served[rows] += seconds
        np.add.at(self.revenue, leases.tier[rows], used)
        return seconds

    def hold(self, leases: Leases, rows: Ints, *, now: int) -> Ints:
        """Hold the money for the block that starts now; returns the rows that cannot pay."""
        seconds = np.clip(leases.ends_at[rows] - now, 0, STEP)
        nanos = charge_most_each(self._rates(leases, rows), HOUR, leases.gpus[rows] * seconds)
        fits = self.book.payable(leases.payer[rows], nanos)
        self.book.hold(leases.payer[rows[fits]], leases.payee[rows[fits]], nanos[fits])
        leases.held[rows[fits]] = nanos[fits]
        return rows[~fits]

    def credit(
        self, leases: Leases, rows: Ints, *, now: int, share: float, cap_seconds: int
    ) -> None:
        """Give back the price of what was promised and is not kept, once a broken promise."""
        rows = rows[leases.tier[rows] != CONTRACT]  # those are given back by their bill
        seconds = np.clip(leases.promised_until[rows] - now, 0, cap_seconds)
        seconds = (seconds * share).astype(np.int64) * leases.gpus[rows]
        nanos = charge_each(leases.rate[rows], HOUR, seconds)
        self.book.post(leases.payee[rows], leases.payer[rows], nanos)
        np.add.at(self.credits, leases.tier[rows], nanos)

    def post_contract(self, payer: int, payee: int, lines: Sequence[Line]) -> None:
        """Post what fell due of a contract, and what of it is given back."""
        for line in lines:
            back = line.amount.nanos < 0
            nanos = abs(line.amount.nanos)
            sides = (payee, payer) if back else (payer, payee)
            debit, credit = (np.array([side], dtype=np.int64) for side in sides)
            self.book.post(debit, credit, np.array([nanos], dtype=np.int64))
            (self.credits if back else self.revenue)[CONTRACT] += nanos

    def _rates(self, leases: Leases, rows: Ints) -> Ints:
        rates = leases.rate[rows]
        return np.where(leases.tier[rows] == CONTRACT, 0, rates) if self._by_terms else rates

    def _pay_in(self, tenants: int) -> None:
        wallets = np.arange(1, 1 + tenants, dtype=np.int64)
        missing = np.maximum(self._wallet_nanos - self.book.available[wallets], 0)
        self.book.post(np.zeros(tenants, dtype=np.int64), wallets, missing)
        self.deposits += int(missing.sum())

"""Money in whole nanos: 1_000_000_000 nanos are one unit of the currency.

A token can cost twenty nanodollars, so neither cents nor micros can hold a price.
Postgres stores nanos as numeric(38,0): a bigint would stop at 9.2 billion dollars,
less than one bulk contract.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Self

from sublet.core.errors import Invalid

NANOS: Final = 1_000_000_000
# Far above any real amount and far below numeric(38,0): sums of millions still fit.
MAX_NANOS: Final = 10**27
# Plain ASCII digits: what Python and Decimal also read as numbers ("1_0", "1e9", other
# scripts' digits) is more often a mistake than meant.
_AMOUNT: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,30})?")


@dataclass(frozen=True, slots=True)
class Money:
    """An exact amount of one currency. Adding two currencies is a bug, not an error."""

    nanos: int
    currency: str = "USD"

    def __add__(self, other: Self) -> Self:
        assert self.currency == other.currency, (self, other)
        return type(self)(self.nanos + other.nanos, self.currency)

    def __neg__(self) -> Self:
        return type(self)(-self.nanos, self.currency)

    def __str__(self) -> str:
        """Write the amount in whole units with every digit that is not a trailing zero."""
        sign, nanos = ("-", -self.nanos) if self.nanos < 0 else ("", self.nanos)
        whole, rest = divmod(nanos, NANOS)
        digits = f"{rest:09d}".rstrip("0").ljust(2, "0")
        return f"{sign}{whole}.{digits} {self.currency}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A price: `nanos` for every `per` units of usage.

    Rate(nanos=2_500_000_000, per=3_600)      2.50 USD a GPU-hour, metered in GPU-seconds
    Rate(nanos=150, per=1_000)    0.15 USD a million tokens
    """

    nanos: int
    per: int
    currency: str = "USD"

    def charge(self, quantity: int) -> Money:
        """Price `quantity` units, rounded half to even to one nano."""
        return Money(self.charge_nanos(quantity), self.currency)

    def charge_most(self, quantity: int) -> Money:
        """Price `quantity` units, rounded up: what to hold so that no charge can exceed it."""
        return Money(self.charge_most_nanos(quantity), self.currency)

    def charge_nanos(self, quantity: int) -> int:
        """As `charge`, for who prices thousands a second."""
        assert quantity >= 0, quantity
        whole, rest = divmod(self.nanos * quantity, self.per)
        if rest and (2 * rest > self.per or (2 * rest == self.per and whole % 2)):
            whole += 1
        return whole

    def charge_most_nanos(self, quantity: int) -> int:
        """As `charge_most`, for who prices thousands a second."""
        assert quantity >= 0, quantity
        return -(-self.nanos * quantity // self.per)


def parse_amount(text: str, *, currency: str = "USD") -> Money:
    """Read a positive amount of whole units, such as "10" or "0.000000001".

    Raises:
        Invalid: not a plain positive number, more than nine decimals, or absurdly large.
    """
    if not _AMOUNT.fullmatch(text):
        raise Invalid(f"amount must be a positive number such as 10 or 2.50, not {text[:40]!r}")
    amount = Fraction(text)
    if amount <= 0:
        raise Invalid("amount must be more than zero")
    nanos = amount * NANOS
    if nanos.denominator != 1:
        raise Invalid(f"amount has more than nine decimals: {text[:40]!r}")
    return Money(int(nanos), currency)

"""An invoice: what was used in a period, line by line, and what of it is still due.

    issued ──► paid
       └─────► void     its period may be billed anew

An issued invoice never changes: a correction is a credit note, with a number of its own. Amounts are
whole nanos; cents appear once, on the total, and what rounding adds is posted to its own account:

    net   = sum of the lines            (each charge as it was made, to the nano)
    tax   = net x rate                  (half to even, to the nano)
    total = net + tax, to the cent      (half to even)
    due   = total - what the wallet paid already; payable in whole cents, the rest is credited
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from fractions import Fraction
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sublet.core.errors import Conflict, Invalid
from sublet.core.money import NANOS, Money

_CENT: Final = NANOS // 100


class State(StrEnum):
    ISSUED = "issued"  # numbered and sent; something may be due
    PAID = "paid"  # nothing is due any more
    VOID = "void"  # as if it had never been; its number stays taken


MOVES: Final[Mapping[State, frozenset[State]]] = {
    State.ISSUED: frozenset({State.PAID, State.VOID}),
    State.PAID: frozenset(),
    State.VOID: frozenset(),
}


class Kind(StrEnum):
    INVOICE = "invoice"
    CREDIT_NOTE = "credit_note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Several charges alike, or one credit, minimum, share or correction."""

    what: str  # 'usage', 'credit', 'resale', 'minimum', 'correction'
    sku: str  # "" where it is of none
    pool: str
    tier: str
    model: str
    key: str  # the API key's name
    quantity: int  # of the SKU's unit: GPU-seconds or tokens; 0 where there is none
    rate_nanos: int  # for each `rate_per` units
    rate_per: int
    amount_nanos: int  # below nothing where it is the tenant's
    note: str = ""
    tags: str = ""  # of what was used, as JSON; "" where it had none


@dataclass(frozen=True, slots=True, kw_only=True)
class Tax:
    """A rate of one jurisdiction, in `[valid_from, valid_until)`."""

    jurisdiction: str
    name: str  # such as VAT
    percent: Fraction
    valid_from: date
    valid_until: date | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What lines add up to, in nanos of USD."""

    net: int
    tax: int
    rounding: int

    @property
    def total(self) -> int:
        """Return whole cents."""
        return self.net + self.tax + self.rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Whom an invoice is addressed to, and how."""

    tenant_id: UUID
    legal_name: str
    address: str
    tax_id: str
    jurisdiction: str  # "": no tax is charged
    currency: str  # of the document; amounts in it are told beside USD
    email: str
    terms_days: int
    time_zone: str
    threshold: Money | None  # billed as soon as so much is not billed yet
    country: str = ""  # of two letters; e-invoices need it, and what follows
    endpoint: str = ""  # its address in a network of e-invoices, such as 0088:7300010000001
    reference: str = ""  # what it wants named on invoices, such as an order

    def __post_init__(self) -> None:
        """Raises Invalid: something cannot be billed to."""
        if not self.legal_name.strip():
            raise Invalid("legal_name: an invoice needs the name of whom it is addressed to")
        if not (len(self.currency) == 3 and self.currency.isascii() and self.currency.isupper()):
            raise Invalid(f"currency: three letters such as EUR, not {self.currency[:10]!r}")
        if not 0 <= self.terms_days <= 365:
            raise Invalid("terms_days: 0 to 365 days")
        if not re.fullmatch("(?:[A-Z]{2})?", self.country):
            raise Invalid(f"country: two letters such as GB, not {self.country[:10]!r}")
        if not re.fullmatch(r"(?:[0-9]{4}:\S{1,50})?", self.endpoint):
            raise Invalid(
                "endpoint: the four digits of a scheme and an id, such as 0088:7300010000001, not"
                f" {self.endpoint[:60]!r}"
            )
        zone(self.time_zone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    id: UUID
    number: int  # without gaps, from 1 on
    kind: Kind
    corrects: UUID | None  # of a credit note
    tenant_id: UUID
    starts_at: datetime
    ends_at: datetime
    totals: Totals
    prepaid_nanos: int  # of the total: paid from the wallet as it was used
    currency: str
    unit_nanos: int  # what one USD was in that currency, in nanos
    issued_at: datetime
    due_on: date
    state: State

    @property
    def label(self) -> str:
        prefix = "CN" if self.kind is Kind.CREDIT_NOTE else "INV"
        return f"{prefix}-{self.number:06d}"

    @property
    def due_nanos(self) -> int:
        return 0 if self.state is not State.ISSUED else self.totals.total - self.prepaid_nanos

    @property
    def payable_nanos(self) -> int:
        """Return what is due in whole cents, which banks move: what is over is the tenant's."""
        return -(-self.due_nanos // _CENT) * _CENT

    def move(self, to: State) -> State:
        """Raises Conflict: it cannot come to that any more."""
        if to not in MOVES[self.state]:
            raise Conflict(f"{self.label} is {self.state}: it cannot become {to}")
        return to


def add_up(lines: Sequence[Line], tax: Tax | None) -> Totals:
    """Add lines up; tax and cents once, on the total."""
    net = sum(line.amount_nanos for line in lines)
    taxed = 0 if tax is None else round(net * tax.percent / 100)
    exact = net + taxed
    return Totals(net=net, tax=taxed, rounding=round(Fraction(exact, _CENT)) * _CENT - exact)


def tax_on(taxes: Sequence[Tax], jurisdiction: str, day: date) -> Tax | None:
    """Return the rate that holds on a day; None where no tax is charged.

    Raises:
        Invalid: the table has a gap there, or two rates.
    """
    if not jurisdiction:
        return None
    found = [
        tax
        for tax in taxes
        if tax.jurisdiction == jurisdiction
        and tax.valid_from <= day
        and (tax.valid_until is None or day < tax.valid_until)
    ]
    if not found:
        raise Invalid(
            f"the tax table has no rate of {jurisdiction!r} for {day}: add one that holds then"
        )
    if len(found) > 1:
        raise Invalid(f"the tax table has {len(found)} rates of {jurisdiction!r} for {day}")
    return found[0]


def zone(name: str) -> ZoneInfo:
    """Raises Invalid: there is no such time zone."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Invalid(
            f"time_zone: there is no {name[:60]!r}; use one such as UTC or Europe/Paris"
        ) from None


def midnight(day: date, zone_name: str) -> datetime:
    """Return the instant at which a day begins, where the tenant is."""
    return datetime.combine(day, time(), zone(zone_name))


def month_of(day: date) -> tuple[date, date]:
    """Return the month `[first, first of the next)` that a day lies in."""
    first = day.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1)


def describe(line: Line) -> str:
    """Say in words what a line is for."""
    if line.what == "usage":
        about = (
            f"{line.model}: {line.sku.rpartition(':')[2].replace('_', ' ')} tokens"
            if line.model
            else f"{line.pool} GPUs, {line.tier.replace('_', ' ')}"
        )
        named = f"{about} (key {line.key})" if line.key else about
        tags = json.loads(line.tags) if line.tags else {}
        return named + "".join(f", {name}: {value}" for name, value in tags.items())
    words = {
        "credit": "Credit for a broken promise",
        "resale": "Share of what resold GPUs brought",
        "minimum": "Contract's minimum",
        "correction": "Correction",
    }
    about = words.get(line.what, line.what)
    where = f", {line.pool} {line.tier.replace('_', ' ')}".rstrip() if line.pool else ""
    return about + where + (f": {line.note}" if line.note else "")

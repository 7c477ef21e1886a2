"""A supplier's invoice beside our records: every difference named, and all of them adding up.

A line is of one request, by the supplier's name for it, or of all requests of a day, model and tier.
What lines say is compared with purchases; what differs has a kind and an amount, and the amounts of all
differences are exactly what the invoice is above our records. Pure: no network, no database.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from fractions import Fraction
from typing import Final

from sublet.core.errors import Invalid
from sublet.core.money import NANOS
from sublet.suppliers.usage import KINDS

_REQUIRED: Final = ("amount_usd",)
_COLUMNS: Final = (
    "request_id", "day", "model", "tier", "requests", *(f"{kind}_tokens" for kind in KINDS),
    "amount_usd",
)  # fmt: skip
_MOST_LINES: Final = 1_000_000


class What(StrEnum):
    UNKNOWN = "unknown"  # on the invoice, and not in our records
    MISSING = "missing"  # in our records, and not on the invoice
    TWICE = "twice"  # on the invoice more than once
    TOKENS = "tokens"  # other tokens were used, it says
    TIER = "tier"  # it was served as another tier, it says
    PRICE = "price"  # the same tokens cost something else
    REQUESTS = "requests"  # other numbers of requests, it says


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of an invoice; what it does not say is None."""

    number: int  # in the file
    request_id: str | None
    day: date | None
    model: str | None
    tier: str | None
    requests: int | None
    tokens: Mapping[str, int]  # by kind, of those it has
    nanos: Fraction  # not rounded: invoices may say less than a nano


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What our records say of one purchase."""

    id: str
    supplier_request: str | None
    happened_at: datetime
    model: str
    tier: str
    tokens: Mapping[str, int]
    nanos: int
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    what: What
    where: str  # which request, or which day, model and tier
    says: str  # what exactly, for people
    nanos: Fraction  # how much more the invoice is by it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    invoiced: Fraction
    recorded: int
    differences: Sequence[Difference]

    @property
    def unexplained(self) -> Fraction:
        """What no difference names: nothing."""
        named = sum((one.nanos for one in self.differences), Fraction(0))
        return self.invoiced - self.recorded - named


def read(text: str) -> list[Line]:
    """Read an invoice in CSV.

    Raises:
        Invalid: a line or column cannot be read; it says which.
    """
    rows = csv.DictReader(io.StringIO(text))
    names = tuple(rows.fieldnames or ())
    unknown = [name for name in names if name not in _COLUMNS]
    if unknown or not set(_REQUIRED) <= set(names):
        raise Invalid(
            f"the first line must name columns out of {', '.join(_COLUMNS)}, with amount_usd;"
            f" it has {', '.join(map(repr, names))[:200] or 'none'}"
        )
    if "request_id" not in names and not {"day", "model"} <= set(names):
        raise Invalid("its lines must say request_id, or day and model")
    lines = []
    for number, row in enumerate(rows, start=2):
        if number > _MOST_LINES:
            raise Invalid(f"it has more than {_MOST_LINES} lines")
        lines.append(_line(number, row))
    return lines


def _line(number: int, row: Mapping[str, str | None]) -> Line:
    def count(name: str) -> int | None:
        said = row.get(name)
        if said is None or said == "":
            return None
        if not (said.isascii() and said.isdigit() and len(said) < 19):
            raise Invalid(f"line {number}: {name} must be a whole number, not {said[:40]!r}")
        return int(said)

    amount = row.get("amount_usd") or ""
    try:
        nanos = Fraction(amount) * NANOS
        day = None if not row.get("day") else date.fromisoformat(row["day"] or "")
    except (ValueError, ZeroDivisionError):
        raise Invalid(
            f"line {number}: amount_usd is in USD, day as 2026-11-30; not {amount[:40]!r},"
            f" {str(row.get('day'))[:40]!r}"
        ) from None
    return Line(
        number=number,
        request_id=row.get("request_id") or None,
        day=day,
        model=row.get("model") or None,
        tier=row.get("tier") or None,
        requests=count("requests"),
        tokens={kind: found for kind in KINDS if (found := count(f"{kind}_tokens")) is not None},
        nanos=nanos,
    )


def reconcile(lines: Iterable[Line], bills: Sequence[Bill]) -> Reconciliation:
    """Compare an invoice with what was recorded for the same time."""
    every = list(lines)
    by_request = [line for line in every if line.request_id is not None]
    by_day = [line for line in every if line.request_id is None]
    differences: list[Difference] = []
    left = _by_request(by_request, bills, differences)
    if by_day:
        left = _by_day(by_day, left, differences)
    differences += [
        Difference(
            what=What.MISSING,
            where=_name(bill),
            says=f"purchase {bill.id} ({bill.basis}) is not on the invoice",
            nanos=Fraction(-bill.nanos),
        )
        for bill in left
    ]
    return Reconciliation(
        invoiced=sum((line.nanos for line in every), Fraction(0)),
        recorded=sum(bill.nanos for bill in bills),
        differences=differences,
    )


def _by_request(
    lines: Sequence[Line], bills: Sequence[Bill], differences: list[Difference]
) -> list[Bill]:
    """Compare lines of single requests; return the purchases that no line names."""
    ours: dict[str, list[Bill]] = defaultdict(list)
    for bill in bills:
        if bill.supplier_request is not None:
            ours[bill.supplier_request].append(bill)
    seen: set[str] = set()
    named: set[str] = set()
    for line in lines:
        assert line.request_id is not None
        where = f"line {line.number}, request {line.request_id[:100]}"
        found = ours.get(line.request_id, [])
        open_ = [bill for bill in found if bill.id not in named]
        if not found:
            says = "our records have no such request"
            differences.append(
                Difference(what=What.UNKNOWN, where=where, says=says, nanos=line.nanos)
            )
        elif not open_ or (line.request_id in seen and not open_):
            says = "an earlier line is of the same request"
            differences.append(
                Difference(what=What.TWICE, where=where, says=says, nanos=line.nanos)
            )
        else:
            bill = open_[0]
            named.add(bill.id)
            seen.add(line.request_id)
            _compare(line, [bill], where, differences)
    return [bill for bill in bills if bill.id not in named]


def _by_day(
    lines: Sequence[Line], bills: Sequence[Bill], differences: list[Difference]
) -> list[Bill]:
    """Compare lines that add up days; return the purchases of days that no line is of."""
    tiers = any(line.tier is not None for line in lines)
    ours: dict[tuple[date, str, str | None], list[Bill]] = defaultdict(list)
    for bill in bills:
        day = bill.happened_at.astimezone(UTC).date()
        ours[day, bill.model, bill.tier if tiers else None].append(bill)
    seen = set()
    for line in lines:
        if line.day is None or line.model is None:
            raise Invalid(f"line {line.number}: it says no request_id, so it needs day and model")
        key = line.day, line.model, line.tier
        tier = f", tier {line.tier}" if line.tier is not None else ""
        where = f"line {line.number}, {line.day} {line.model[:100]}{tier}"
        found = ours.get(key, [])
        if key in seen:
            says = "an earlier line is of the same day, model and tier"
            differences.append(
                Difference(what=What.TWICE, where=where, says=says, nanos=line.nanos)
            )
        elif not found:
            says = "nothing was bought then, by our records"
            differences.append(
                Difference(what=What.UNKNOWN, where=where, says=says, nanos=line.nanos)
            )
        else:
            _compare(line, found, where, differences)
        seen.add(key)
    return [bill for key, found in ours.items() if key not in seen for bill in found]


def _compare(line: Line, bills: Sequence[Bill], where: str, differences: list[Difference]) -> None:
    """Name how a line differs from the purchases that it is of; the amount goes to one of them."""
    recorded = sum(bill.nanos for bill in bills)
    over = line.nanos - recorded
    found: list[tuple[What, str]] = []
    if line.requests is not None and line.requests != len(bills):
        found.append((What.REQUESTS, f"{line.requests} requests, we have {len(bills)}"))
    tier = bills[0].tier
    if line.tier is not None and line.request_id is not None and line.tier != tier:
        found.append((What.TIER, f"served as {line.tier}, we were told {tier}"))
    parts = []
    for kind, said in line.tokens.items():
        ours = sum(bill.tokens[kind] for bill in bills)
        if said != ours:
            parts.append(f"{said} {kind.replace('_', ' ')} tokens, we have {ours}")
    if parts:
        found.append((What.TOKENS, "; ".join(parts)))
    # Theirs may be rounded once where each of ours is, by half a nano a kind.
    rounding = Fraction(len(KINDS) * len(bills), 2)
    if not found and over and (abs(over) > rounding or line.request_id is not None):
        ours_usd, theirs = Fraction(recorded, NANOS), line.nanos / NANOS
        found.append((What.PRICE, f"{float(theirs):.9f} USD, by our prices {float(ours_usd):.9f}"))
    elif not found and over:
        found.append((What.PRICE, "rounded once, where each of ours is"))
    for index, (what, says) in enumerate(found):
        amount = over if index == len(found) - 1 else Fraction(0)
        differences.append(Difference(what=what, where=where, says=says, nanos=amount))


def _name(bill: Bill) -> str:
    known = bill.supplier_request or "without a name"
    return f"{bill.happened_at.astimezone(UTC):%Y-%m-%d} {bill.model}, request {known}"

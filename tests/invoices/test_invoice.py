"""What an invoice adds up to, which tax holds, and where a day begins."""

from datetime import UTC, date, datetime
from fractions import Fraction
from itertools import product
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.errors import Conflict, Invalid
from sublet.invoices.invoice import (
    MOVES,
    Invoice,
    Kind,
    Line,
    Profile,
    State,
    Tax,
    Totals,
    add_up,
    describe,
    midnight,
    month_of,
    tax_on,
)

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
CENT = 10_000_000


def line(nanos: int, **changes: object) -> Line:
    values: dict[str, object] = {
        "what": "usage", "sku": "lease:h100:on_demand", "pool": "h100", "tier": "on_demand",
        "model": "", "key": "", "quantity": 1, "rate_nanos": 1, "rate_per": 1, "amount_nanos": nanos,
    }  # fmt: skip
    return Line(**values | changes)  # type: ignore[arg-type]


def vat(percent: str, start: date = date(2026, 1, 1), end: date | None = None) -> Tax:
    return Tax(
        jurisdiction="DE", name="VAT", percent=Fraction(percent), valid_from=start, valid_until=end
    )


@given(
    st.lists(st.integers(-(10**15), 10**18), max_size=30),
    st.sampled_from(["0", "7", "19", "8.875"]),
)
def test_cents_appear_once_on_the_total(amounts: list[int], percent: str) -> None:
    totals = add_up([line(nanos) for nanos in amounts], vat(percent))
    assert totals.net == sum(amounts)
    assert 2 * abs(totals.tax * 100 - totals.net * Fraction(percent)) <= 100
    assert totals.total % CENT == 0
    assert 2 * abs(totals.rounding) <= CENT


def test_half_a_cent_goes_to_the_even_one() -> None:
    assert add_up([line(25_000_000)], None) == Totals(net=25_000_000, tax=0, rounding=-5_000_000)
    assert add_up([line(35_000_000)], None).total == 40_000_000
    assert add_up([line(-25_000_000)], None).total == -20_000_000
    assert add_up([], None).total == 0


def test_the_tax_table_must_have_one_rate_for_the_day() -> None:
    table = [vat("19", date(2026, 1, 1), date(2026, 7, 1)), vat("16", date(2026, 8, 1))]
    found = tax_on(table, "DE", date(2026, 6, 30))
    assert found is not None
    assert found.percent == 19
    assert tax_on(table, "", date(2026, 7, 15)) is None
    with pytest.raises(Invalid, match="no rate of 'DE' for 2026-07-15"):
        tax_on(table, "DE", date(2026, 7, 15))
    with pytest.raises(Invalid, match="no rate of 'FR'"):
        tax_on(table, "FR", date(2026, 6, 30))
    with pytest.raises(Invalid, match="2 rates"):
        tax_on([*table, vat("5", date(2026, 6, 1))], "DE", date(2026, 6, 30))


def test_a_day_begins_where_the_tenant_is() -> None:
    assert midnight(date(2026, 7, 1), "Europe/Paris") == datetime(2026, 6, 30, 22, tzinfo=UTC)
    assert midnight(date(2026, 7, 1), "UTC") == datetime(2026, 7, 1, tzinfo=UTC)
    assert month_of(date(2026, 12, 9)) == (date(2026, 12, 1), date(2027, 1, 1))
    with pytest.raises(Invalid, match="there is no 'Mars/Base'"):
        midnight(date(2026, 7, 1), "Mars/Base")


@pytest.mark.parametrize(("start", "to"), list(product(State, State)))
def test_only_the_listed_moves_are_possible(start: State, to: State) -> None:
    invoice = Invoice(
        id=UUID(int=1), number=7, kind=Kind.INVOICE, corrects=None, tenant_id=UUID(int=2),
        starts_at=NOON, ends_at=NOON, totals=Totals(net=100, tax=0, rounding=0), prepaid_nanos=40,
        currency="USD", unit_nanos=10**9, issued_at=NOON, due_on=NOON.date(), state=start,
    )  # fmt: skip
    assert invoice.label == "INV-000007"
    assert invoice.due_nanos == (60 if start is State.ISSUED else 0)
    if to in MOVES[start]:
        assert invoice.move(to) is to
    else:
        with pytest.raises(Conflict, match="INV-000007 is"):
            invoice.move(to)


def test_a_profile_that_cannot_be_billed_to_says_why() -> None:
    good: dict[str, object] = {
        "tenant_id": UUID(int=1), "legal_name": "Acme", "address": "", "tax_id": "",
        "jurisdiction": "", "currency": "EUR", "email": "", "terms_days": 14, "time_zone": "UTC",
        "threshold": None,
    }  # fmt: skip
    Profile(**good)  # type: ignore[arg-type]
    for change, why in (
        ({"legal_name": " "}, "legal_name"), ({"currency": "euro"}, "currency"),
        ({"terms_days": -1}, "terms_days"), ({"time_zone": "../etc"}, "time_zone"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=why):
            Profile(**good | change)  # type: ignore[arg-type]


def test_lines_say_what_they_are_for() -> None:
    assert describe(line(1)) == "h100 GPUs, on demand"
    tokens = line(1, model="gemma", sku="model:gemma:cache_read", pool="", tier="", key="laptop")
    assert describe(tokens) == "gemma: cache read tokens (key laptop)"
    credit = line(-1, what="credit", note="8 GPUs")
    assert describe(credit) == "Credit for a broken promise, h100 on demand: 8 GPUs"

"""Suppliers, their prices, limits and terms in Postgres."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import NotFound
from sublet.suppliers.quota import Limit, Measure, Span, loss_scope
from sublet.suppliers.supplier import DEFAULT, Dialect, Rates, Source, Supplier, Terms
from sublet.suppliers.usage import KINDS

QUERIES: Final = load_queries("sublet.suppliers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """A supplier, or a model of it, that is not asked until then."""

    supplier: str
    model: str  # "": all of them
    until: datetime
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """What may be bought just now, and on which terms: all that a gateway needs to choose."""

    sources: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)  # by deployment
    limits: tuple[Limit, ...] = ()
    terms: Mapping[str, Terms] = field(default_factory=dict)  # by deployment
    rests: tuple[Rest, ...] = ()


def put(tx: Tx, supplier: Supplier) -> None:
    """Create it, or make it so."""
    tx.execute(
        QUERIES["put_supplier"],
        {
            "name": supplier.name, "dialect": supplier.dialect.value, "url": supplier.url,
            "project": supplier.project, "enabled": supplier.enabled,
            "first_token_ms": supplier.first_token_ms,
        },
    )  # fmt: skip


def list_suppliers(tx: Tx) -> list[Supplier]:
    return [_supplier(row) for row in tx.execute(QUERIES["list_suppliers"])]


def get(tx: Tx, name: str) -> Supplier:
    """Raises NotFound: there is none of that name."""
    for supplier in list_suppliers(tx):
        if supplier.name == name:
            return supplier
    raise NotFound(f"there is no supplier {name[:100]!r}; `sublet supplier list` shows them")


def set_key(tx: Tx, name: str, sealed: bytes, *, now: datetime) -> None:
    """Keep a key, sealed. What rests because of the one before is asked again.

    Raises:
        NotFound: there is no such supplier.
    """
    if one(tx, QUERIES["set_key"], {"name": name, "sealed": sealed, "now": now}) is None:
        get(tx, name)
    tx.execute(QUERIES["drop_rests"], {"supplier": name})


def list_keys(tx: Tx) -> dict[str, bytes]:
    """Return the sealed keys by supplier."""
    return {row["name"]: bytes(row["sealed_key"]) for row in tx.execute(QUERIES["list_keys"])}


def set_enabled(tx: Tx, name: str, *, enabled: bool) -> None:
    """Raises NotFound: there is no such supplier."""
    if one(tx, QUERIES["set_enabled"], {"name": name, "enabled": enabled}) is None:
        get(tx, name)


def put_models(tx: Tx, supplier: str, models: Mapping[str, str]) -> None:
    """Let {the supplier's model: our deployment} be what it sells to us."""
    tx.execute(QUERIES["drop_models"], {"supplier": supplier, "models": list(models)})
    for model, deployment in models.items():
        row = {"supplier": supplier, "model": model, "deployment": deployment}
        tx.execute(QUERIES["put_model"], row)


def add_rates(tx: Tx, supplier: str, model: str, rates: Rates, *, now: datetime) -> int:
    """Add a version of a price; return its id."""
    row = {
        "supplier": supplier, "model": model, "tier": rates.tier, **rates.nanos,
        "per": rates.per, "happened_at": rates.happened_at, "now": now,
    }  # fmt: skip
    added = one(tx, QUERIES["insert_price"], row)
    assert added is not None
    return int(added["id"])


def list_rates(tx: Tx, *, at: datetime) -> dict[tuple[str, str], dict[str, Rates]]:
    """Return what holds at an instant: {(supplier, model): {tier: rates}}."""
    found: dict[tuple[str, str], dict[str, Rates]] = {}
    for row in tx.execute(QUERIES["list_prices"], {"at": at}):
        found.setdefault((row["supplier"], row["model"]), {})[row["tier"]] = rates_of(row)
    return found


def history(tx: Tx, supplier: str | None = None) -> list[tuple[str, str, Rates]]:
    """Return every version of every price, oldest first: (supplier, model, rates)."""
    rows = tx.execute(QUERIES["list_all_prices"], {"supplier": supplier})
    return [(row["supplier"], row["model"], rates_of(row)) for row in rows]


def put_limits(tx: Tx, scope: str, limits: Iterable[Mapping[str, Any]]) -> None:
    """Let these be all limits of a scope; what was used of one that stays still counts."""
    ids = []
    for limit in limits:
        row = one(tx, QUERIES["put_limit"], {"scope": scope, **limit})
        assert row is not None
        ids.append(row["id"])
    tx.execute(QUERIES["drop_limits"], {"scope": scope, "ids": ids})


def list_limits(tx: Tx) -> list[Limit]:
    return [limit_of(row) for row in tx.execute(QUERIES["list_limits"])]


def put_terms(tx: Tx, deployment: str, terms: Terms) -> None:
    """Say under which terms answers of a deployment are bought, and how much a day may be lost."""
    percent = terms.margin * 100
    row = {
        "deployment": deployment, "enabled": terms.enabled,
        "margin_percent": Decimal(percent.numerator) / Decimal(percent.denominator),
    }  # fmt: skip
    tx.execute(QUERIES["put_terms"], row)
    limit = {
        "model": None, "tier": None, "measure": Measure.LOSS.value, "span": Span.DAY.value,
        "zone": "UTC", "asked": False, "amount": terms.loss_nanos,
    }  # fmt: skip
    put_limits(tx, loss_scope(deployment), [limit] if terms.loss_nanos else [])


def list_terms(tx: Tx, limits: Sequence[Limit]) -> dict[str, Terms]:
    losses = {limit.scope: limit.amount for limit in limits if limit.measure is Measure.LOSS}
    return {
        row["deployment"]: Terms(
            enabled=row["enabled"],
            margin=Fraction(row["margin_percent"]) / 100,
            loss_nanos=losses.get(loss_scope(row["deployment"]), 0),
        )
        for row in tx.execute(QUERIES["list_terms"])
    }


def put_rest(tx: Tx, rest: Rest) -> None:
    row = {"supplier": rest.supplier, "model": rest.model, "until": rest.until, "why": rest.why}
    tx.execute(QUERIES["put_rest"], row)


def list_rests(tx: Tx, *, now: datetime) -> tuple[Rest, ...]:
    return tuple(Rest(**row) for row in tx.execute(QUERIES["list_rests"], {"now": now}))


def list_sources(tx: Tx, *, at: datetime) -> list[Source]:
    """Return every model of every supplier, with the prices that hold."""
    suppliers = {supplier.name: supplier for supplier in list_suppliers(tx)}
    rates = list_rates(tx, at=at)
    return [
        Source(
            supplier=suppliers[row["supplier"]],
            model=row["model"],
            deployment=row["deployment"],
            rates=rates.get((row["supplier"], row["model"]), {}),
        )
        for row in tx.execute(QUERIES["list_models"])
        if row["supplier"] in suppliers  # else it was put there between the two looks
    ]


def read_market(tx: Tx, *, now: datetime) -> Market:
    """Return what may be bought now: one look, mostly of nothing."""
    found: dict[str, list[Source]] = {}
    for source in list_sources(tx, at=now) if list_suppliers(tx) else []:
        supplier = source.supplier
        if supplier.enabled and supplier.has_key and DEFAULT in source.rates:
            found.setdefault(source.deployment, []).append(source)
    if not found:
        return Market()
    limits = list_limits(tx)
    return Market(
        sources={name: tuple(sources) for name, sources in found.items()},
        limits=tuple(limits),
        terms=list_terms(tx, limits),
        rests=list_rests(tx, now=now),
    )


def rates_of(row: Mapping[str, Any]) -> Rates:
    return Rates(
        id=row["id"],
        tier=row["tier"],
        nanos={kind: int(row[f"{kind}_nanos"]) for kind in KINDS},
        per=row["per"],
        happened_at=row["happened_at"],
    )


def limit_of(row: Mapping[str, Any]) -> Limit:
    return Limit(
        id=row["id"], scope=row["scope"], model=row["model"], tier=row["tier"],
        measure=Measure(row["measure"]), span=Span(row["span"]), zone=row["zone"],
        asked=row["asked"], amount=int(row["amount"]),
    )  # fmt: skip


def _supplier(row: Mapping[str, Any]) -> Supplier:
    return Supplier(
        name=row["name"], dialect=Dialect(row["dialect"]), url=row["url"], project=row["project"],
        enabled=row["enabled"], first_token_ms=row["first_token_ms"], has_key=row["has_key"],
    )  # fmt: skip

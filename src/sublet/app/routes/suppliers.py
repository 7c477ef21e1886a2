"""Suppliers: whom answers are bought from when own replicas are short, and what that cost."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from sublet.app.documents import Body, Name, Text, usd
from sublet.app.http import Operator, Ours
from sublet.app.idempotency import OneCall
from sublet.app.routes.tenants import instant
from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.money import NANOS, Money
from sublet.suppliers import hedge, invoice, quotas, reports, service, store
from sublet.suppliers.quota import Measure, Span, project_scope
from sublet.suppliers.supplier import Dialect, Rates, Source, Supplier, Terms
from sublet.suppliers.usage import KINDS

router = APIRouter(prefix="/v1", tags=["suppliers"])
_Dollars = Annotated[Text, Field(pattern=r"^[0-9]{1,15}(\.[0-9]{1,9})?$", examples=["0.60"])]
_Tier = Literal["default", "priority", "flex", "batch"]


class NewRates(Body):
    """What a million tokens cost, in USD."""

    input: _Dollars
    output: _Dollars
    cache_read: _Dollars | None = Field(None, description="As input, if left out")
    cache_write: _Dollars | None = Field(None, description="As input, if left out")
    cache_write_long: _Dollars | None = Field(None, description="As cache_write, if left out")
    reasoning: _Dollars | None = Field(None, description="As output, if left out")
    valid_from: datetime | None = Field(None, description="From now on, if left out")


class NewSource(Body):
    model: Annotated[Text, Field(min_length=1, max_length=200)] = Field(
        description="As the supplier calls it"
    )
    sells: Name = Field(description="Our model, whose answers it may give")
    prices: dict[_Tier, NewRates]


class NewLimit(Body):
    """What may be used of it: of one model or tier, or of all together."""

    measure: Literal["requests", "tokens", "input_tokens", "output_tokens", "spend_usd"]
    span: Literal["minute", "ten_minutes", "day"]
    amount: _Dollars
    model: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    tier: _Tier | None = None
    zone: Annotated[Text, Field(max_length=100)] = Field(
        "UTC", description="Where a day ends, such as America/Los_Angeles"
    )
    asked: bool = Field(False, description="It counts what was asked for, however little was used")


class NewSupplier(Body):
    name: Annotated[Text, Field(pattern="^[a-z0-9][a-z0-9-]{0,62}$")]
    dialect: Dialect
    url: Annotated[Text, Field(min_length=1, max_length=500)]
    project: Annotated[Text, Field(pattern="^[a-z0-9][a-z0-9-]{0,62}$")] | None = Field(
        None, description="Suppliers of one project share its limits; its own, if left out"
    )
    enabled: bool = True
    first_token_ms: Annotated[int, Field(ge=100, le=600_000, strict=True)] = 10_000
    models: Annotated[list[NewSource], Field(max_length=200, default_factory=list)]
    limits: Annotated[list[NewLimit], Field(max_length=200, default_factory=list)]


class NewKeyOf(Body):
    key: Annotated[Text, Field(min_length=1, max_length=4_000, pattern=r"^[\x21-\x7e]+$")]


class NewReconciliation(Body):
    start: Annotated[date, Field(alias="from")]
    end: Annotated[date, Field(alias="to")]
    csv: Annotated[Text, Field(max_length=16_000_000)] = Field(
        description="Its first line names columns: request_id, or day and model; and amount_usd"
    )


class NewState(Body):
    enabled: bool


class NewTerms(Body):
    deployment: Name
    enabled: bool = True
    margin_percent: Annotated[Text, Field(pattern=r"^[0-9]{1,2}(\.[0-9]{1,6})?$")] = "0"
    loss_usd_per_day: _Dollars = "0"


@router.post("/suppliers", status_code=200)
def put_supplier(ours: Ours, _: Operator, once: OneCall, body: NewSupplier) -> dict[str, Any]:
    """Create a supplier, or make it so. A price that differs from what holds is a new version."""
    supplier = Supplier(
        name=body.name, dialect=body.dialect, url=body.url, project=body.project or body.name,
        enabled=body.enabled, first_token_ms=body.first_token_ms,
    )  # fmt: skip

    def put(tx: Tx) -> dict[str, Any]:
        now = ours.clock.now()
        prices: dict[tuple[str, str], Rates] = {
            (source.model, tier): _rates(tier, rates, now=now)
            for source in body.models
            for tier, rates in source.prices.items()
        }
        service.put(
            tx,
            supplier,
            models={source.model: source.sells for source in body.models},
            prices=prices,
            limits=[_limit(limit) for limit in body.limits],
            now=now,
        )
        return _document(tx, store.get(tx, body.name), now)

    return once.run(body, put)


@router.get("/suppliers")
def list_suppliers(ours: Ours, _: Operator) -> dict[str, Any]:
    """List suppliers: what they sell at which price, what is left of their quota, who rests."""
    with ours.db.transaction() as tx:
        now = ours.clock.now()
        return {"items": [_document(tx, one, now) for one in store.list_suppliers(tx)]}


@router.get("/suppliers/{name}")
def get_supplier(ours: Ours, _: Operator, name: str) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        return _document(tx, store.get(tx, name), ours.clock.now())


@router.post("/suppliers/{name}/key")
def set_key(ours: Ours, _: Operator, once: OneCall, name: str, body: NewKeyOf) -> dict[str, Any]:
    """Keep the key that the supplier knows us by. It is sealed, and never shown again."""

    def keep(tx: Tx) -> dict[str, Any]:
        service.set_key(tx, ours.vault, name, body.key, now=ours.clock.now())
        return {"name": name, "has_key": True}

    return once.run(body, keep)


@router.post("/suppliers/{name}/state")
def set_state(ours: Ours, _: Operator, once: OneCall, name: str, body: NewState) -> dict[str, Any]:
    """Stop buying from a supplier, or begin again."""

    def change(tx: Tx) -> dict[str, Any]:
        store.set_enabled(tx, name, enabled=body.enabled)
        return _document(tx, store.get(tx, name), ours.clock.now())

    return once.run(body, change)


@router.post("/buying")
def set_terms(_: Operator, once: OneCall, body: NewTerms) -> dict[str, Any]:
    """Say under which terms answers of a model are bought."""
    terms = Terms(
        enabled=body.enabled,
        margin=Fraction(body.margin_percent) / 100,
        loss_nanos=int(Fraction(body.loss_usd_per_day) * NANOS),
    )

    def put(tx: Tx) -> dict[str, Any]:
        service.check_deployment(tx, body.deployment)
        store.put_terms(tx, body.deployment, terms)
        return _terms(body.deployment, terms)

    return once.run(body, put)


@router.get("/buying")
def list_terms(ours: Ours, _: Operator) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        terms = store.list_terms(tx, store.list_limits(tx))
        names = {source.deployment for source in store.list_sources(tx, at=ours.clock.now())}
    return {"items": [_terms(name, terms.get(name, Terms())) for name in sorted({*names, *terms})]}


@router.get("/purchases")
def list_purchases(
    ours: Ours,
    _: Operator,
    supplier: str | None = None,
    request_id: str | None = None,
    before: int | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> dict[str, Any]:
    """List what was bought, newest first."""
    with ours.db.transaction() as tx:
        rows = service.list_purchases(
            tx, supplier=supplier, request_id=request_id, before=before, limit=limit
        )
    return {"items": [_purchase(row) for row in rows]}


@router.post("/suppliers/{name}/reconciliation")
def reconcile(_: Operator, once: OneCall, name: str, body: NewReconciliation) -> dict[str, Any]:
    """Compare a supplier's invoice of whole days (UTC) with what was bought: name every difference."""
    if body.end <= body.start:
        raise Invalid("to: it must be after from")
    start, end = (datetime.combine(day, time(), UTC) for day in (body.start, body.end))

    def compare(tx: Tx) -> dict[str, Any]:
        return _reconciled(reports.reconcile(tx, name, start, end, body.csv))

    return once.run(body, compare)


@router.get("/hedge")
def show_hedge(
    ours: Ours, _: Operator, days: Annotated[int, Query(ge=1, le=366)] = 7
) -> dict[str, Any]:
    """Show own cost beside suppliers' prices, by model and day: when to buy, and when to build."""
    with ours.db.transaction() as tx:
        found = reports.hedges(tx, days=days, now=ours.clock.now())
    return {"items": [_hedge(one) for one in found]}


def _reconciled(found: invoice.Reconciliation) -> dict[str, Any]:
    return {
        "invoiced_usd": _exact(found.invoiced),
        "recorded_usd": _exact(Fraction(found.recorded)),
        "unexplained_usd": _exact(found.unexplained),
        "differences": [
            {
                "what": one.what.value, "where": one.where, "says": one.says,
                "amount_usd": _exact(one.nanos),
            }
            for one in found.differences
        ],
    }  # fmt: skip


def _exact(nanos: Fraction) -> str:
    """Return an amount that may be less than a nano, with every digit that it has, up to 15."""
    sign, amount = ("-", -nanos) if nanos < 0 else ("", nanos)
    units = round(amount * 10**6)
    whole, rest = divmod(units, 10**15)
    return f"{sign}{whole}.{f'{rest:015d}'.rstrip('0').ljust(2, '0')}"


def _hedge(one: reports.Hedge) -> dict[str, Any]:
    last = one.days[-1]
    price = last.offers[0].per_million if last.offers else None
    even = None if price is None else hedge.break_even(last.own, price)
    return {
        "deployment": one.deployment,
        "verdict": one.verdict.value,
        "own_usd_per_million_full": _per(hedge.full_per_million(last.own)),
        "break_even_tokens_a_day": None if even is None else round(even),
        "days": [
            {
                "day": day.day,
                "own_tokens": day.own.tokens,
                "own_usd_per_million": _per(day.own.per_million),
                "suppliers": [
                    {
                        "supplier": offer.supplier,
                        "model": offer.model,
                        "usd_per_million": _per(offer.per_million),
                    }
                    for offer in day.offers
                ],
                "bought_tokens": day.bought_tokens,
                "bought_usd": usd(Money(day.bought_nanos)),
            }
            for day in one.days
        ],
    }


def _per(nanos: float | None) -> str | None:
    return None if nanos is None else f"{nanos / NANOS:.6f}"


def _document(tx: Tx, supplier: Supplier, now: datetime) -> dict[str, Any]:
    sources = [one for one in store.list_sources(tx, at=now) if one.supplier.name == supplier.name]
    rests = {one.model: one for one in store.list_rests(tx, now=now)
             if one.supplier == supplier.name}  # fmt: skip
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    bought = service.sum_bought(tx, since=day).get(supplier.name)
    purchases, spent = bought or (0, Money(0))
    return {
        "name": supplier.name,
        "dialect": supplier.dialect.value,
        "url": supplier.url,
        "project": supplier.project,
        "enabled": supplier.enabled,
        "has_key": supplier.has_key,
        "first_token_ms": supplier.first_token_ms,
        "models": [_source(one) for one in sources],
        "limits": _limits(tx, supplier),
        "rests": [
            {"model": one.model or None, "until": one.until, "why": one.why}
            for one in rests.values()
        ],
        "purchases_today": purchases,
        "spent_today_usd": usd(spent),
    }


def _limits(tx: Tx, supplier: Supplier) -> list[dict[str, Any]]:
    found = []
    for standing, at in quotas.standings(tx):
        limit = standing.limit
        if limit.scope == project_scope(supplier.project):
            spend = limit.measure is Measure.SPEND
            found.append(
                {
                    "measure": "spend_usd" if spend else limit.measure.value,
                    "span": limit.span.value,
                    "model": limit.model,
                    "tier": limit.tier,
                    "zone": limit.zone,
                    "asked": limit.asked,
                    "amount": _amount(limit.amount, spend=spend),
                    "left": _amount(standing.left(at), spend=spend),
                }
            )
    return found


def _amount(amount: int, *, spend: bool) -> str:
    return usd(Money(amount)) if spend else str(amount)


def _source(source: Source) -> dict[str, Any]:
    return {
        "model": source.model,
        "sells": source.deployment,
        "prices": {tier: rates_document(rates) for tier, rates in source.rates.items()},
    }


def rates_document(rates: Rates) -> dict[str, Any]:
    """Return what a million tokens cost."""
    million = {kind: Money(rates.nanos[kind] * 1_000_000 // rates.per) for kind in KINDS}
    return {kind: usd(amount) for kind, amount in million.items()} | {
        "valid_from": rates.happened_at
    }


def _terms(deployment: str, terms: Terms) -> dict[str, Any]:
    return {
        "deployment": deployment,
        "enabled": terms.enabled,
        "margin_percent": f"{float(terms.margin * 100):g}",
        "loss_usd_per_day": usd(Money(terms.loss_nanos)),
    }


def _purchase(row: Mapping[str, Any]) -> dict[str, Any]:
    same = (
        "id", "supplier", "model", "deployment", "tenant_id", "request_id", "supplier_request",
        "asked_tier", "tier", "outcome", "basis", "doubt", "first_token_ms", "transfer_id",
        "record", "happened_at",
    )  # fmt: skip
    return {
        **{name: row[name] for name in same},
        "tokens": {kind: row[f"{kind}_tokens"] for kind in KINDS},
        "cost_usd": usd(Money(int(row["amount_nanos"]))),
    }


def _rates(tier: str, given: NewRates, *, now: datetime) -> Rates:
    def nanos(usd_: str) -> int:
        return int(Fraction(usd_) * NANOS)

    write = given.cache_write or given.input
    start = instant(given.valid_from, "valid_from") or now
    if start < now - timedelta(days=3650):
        raise Invalid("valid_from: that is too long ago")
    return Rates(
        id=0,
        tier=tier,
        per=1_000_000,
        happened_at=start,
        nanos={
            "input": nanos(given.input),
            "cache_read": nanos(given.cache_read or given.input),
            "cache_write": nanos(write),
            "cache_write_long": nanos(given.cache_write_long or write),
            "output": nanos(given.output),
            "reasoning": nanos(given.reasoning or given.output),
        },
    )


def _limit(given: NewLimit) -> dict[str, Any]:
    spend = given.measure == "spend_usd"
    amount = Fraction(given.amount) * (NANOS if spend else 1)
    if amount.denominator != 1:
        raise Invalid(f"limits: {given.measure} must be a whole number, not {given.amount}")
    return {
        "measure": (Measure.SPEND if spend else Measure(given.measure)).value,
        "span": Span(given.span).value, "amount": int(amount), "model": given.model,
        "tier": given.tier, "zone": given.zone, "asked": given.asked,
    }  # fmt: skip

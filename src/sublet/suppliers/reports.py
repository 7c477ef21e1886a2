"""What the operator asks of purchases: invoices reconciled, and the hedge."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sublet.core.db import Tx
from sublet.models import earnings
from sublet.suppliers import hedge, invoice, service, store
from sublet.suppliers.store import QUERIES
from sublet.suppliers.supplier import DEFAULT
from sublet.suppliers.usage import KINDS


def reconcile(
    tx: Tx, supplier: str, start: datetime, end: datetime, text: str
) -> invoice.Reconciliation:
    """Compare a supplier's invoice in CSV with what was bought in [start, end).

    Raises:
        NotFound: there is no such supplier.
        Invalid: the invoice cannot be read.
    """
    store.get(tx, supplier)
    bills = [_bill(row) for row in service.list_bought(tx, supplier, start, end)]
    return invoice.reconcile(invoice.read(text), bills)


def _bill(row: Mapping[str, Any]) -> invoice.Bill:
    return invoice.Bill(
        id=str(row["id"]),
        supplier_request=row["supplier_request"],
        happened_at=row["happened_at"],
        model=row["model"],
        tier=row["tier"],
        tokens={kind: row[f"{kind}_tokens"] for kind in KINDS},
        nanos=int(row["amount_nanos"]),
        basis=row["basis"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    deployment: str
    days: list[hedge.Day]
    verdict: hedge.Verdict


def hedges(tx: Tx, *, days: int, now: datetime) -> list[Hedge]:
    """Return own cost and suppliers' prices by day, of each model that may be bought."""
    sources: dict[str, set[tuple[str, str]]] = {}
    for source in store.list_sources(tx, at=now):
        sources.setdefault(source.deployment, set()).add(source.key)
    found: dict[str, list[hedge.Day]] = {name: [] for name in sorted(sources)}
    today = now.astimezone(UTC).date()
    for ago in reversed(range(days)):
        day = today - timedelta(days=ago)
        start = datetime.combine(day, time(), UTC)
        end = min(start + timedelta(days=1), now)
        own = {one.deployment.name: _own(one) for one in earnings.report(tx, since=start, now=end)}
        rates = store.list_rates(tx, at=end)
        bought = {
            row["deployment"]: row
            for row in tx.execute(QUERIES["sum_deployments"], {"start": start, "end": end})
        }
        for name, so_far in found.items():
            if name in own:
                so_far.append(_day(day, own[name], sources[name], rates, bought.get(name)))
    return [
        Hedge(deployment=name, days=so_far, verdict=hedge.judge(so_far))
        for name, so_far in found.items()
        if so_far
    ]


def _day(
    day: date,
    own: hedge.Own,
    sources: set[tuple[str, str]],
    rates: Mapping[tuple[str, str], Mapping[str, Any]],
    bought: Mapping[str, Any] | None,
) -> hedge.Day:
    prices = {key: rates[key][DEFAULT] for key in sorted(sources) if DEFAULT in rates.get(key, {})}
    return hedge.Day(
        day=day,
        own=own,
        offers=hedge.offered(prices, own),
        bought_tokens=0 if bought is None else int(bought["tokens"]),
        bought_nanos=0 if bought is None else int(bought["nanos"]),
    )


def _own(report: earnings.Report) -> hedge.Own:
    seen = report.seen
    return hedge.Own(
        input_tokens=seen.input_tokens,
        output_tokens=seen.output_tokens,
        cost_nanos=report.economics.cost_nanos,
        hour_nanos=report.rates.basis_nanos,
        gpus=seen.gpus,
        output_per_second=seen.tokens_per_second,
    )

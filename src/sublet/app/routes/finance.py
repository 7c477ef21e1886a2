"""Returns on capital: the register of assets, and statements from it and the records."""

from dataclasses import asdict
from datetime import date, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from sublet.app.documents import Body, Text, usd
from sublet.app.http import Operator, Ours
from sublet.app.idempotency import OneCall
from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.finance import flows, store
from sublet.finance.depreciation import book_value
from sublet.finance.register import read_changes, read_curves, read_lots
from sublet.finance.report import statement_document
from sublet.finance.statement import By, statement

router = APIRouter(prefix="/v1", tags=["finance"])
_LONGEST_DAYS = 3_700
Csv = Annotated[Text, Field(max_length=4_000_000)]


class NewAssets(Body):
    lots: Csv | None = Field(None, description="CSV with a header, a line a lot")
    changes: Csv | None = Field(None, description="CSV with a header, a line a change of a life")
    curves: Csv | None = Field(
        None, description="CSV with a header, a line a point, of what economic lots are marked to"
    )


@router.post("/assets", status_code=201)
def add_assets(ours: Ours, _: Operator, once: OneCall, body: NewAssets) -> dict[str, Any]:
    """Add lots to the register of assets, or changes of their lives, from CSV.

    What is there already with the same contents stays as it is; with others, nothing is added.
    """
    curves = {} if body.curves is None else read_curves(body.curves, "curves")
    lots = [] if body.lots is None else read_lots(body.lots, "lots", curves)
    changes = [] if body.changes is None else read_changes(body.changes, "changes", curves)
    if not lots and not changes:
        raise Invalid("send lots or changes, as CSV with a header")

    def add(tx: Tx) -> dict[str, Any]:
        new = store.add(tx, lots, changes, now=ours.clock.now())
        return {"lots_added": new[0], "changes_added": new[1]}

    return once.run(body, add)


@router.get("/assets")
def list_assets(ours: Ours, _: Operator) -> dict[str, Any]:
    """List the register: each lot, what the books say it is worth today, and changes of its life."""
    today = ours.clock.now().date()
    with ours.db.transaction() as tx:
        lots, changes = store.list_lots(tx), store.list_changes(tx)
    return {
        "items": [
            asdict(lot)
            | {
                "cost": usd(lot.cost),
                "salvage": usd(lot.salvage),
                "book_value_usd": usd(book_value(lot, changes, today)),
                "megawatts": round(lot.megawatts, 6),
                "changes": [
                    {"effective_on": c.effective_on, "life_months": c.life_months,
                     "salvage": usd(c.salvage)}
                    for c in changes if c.lot == lot.name
                ],
            }
            for lot in lots
        ]
    }  # fmt: skip


@router.get("/returns")
def show_returns(
    ours: Ours,
    _: Operator,
    start: Annotated[date | None, Query(alias="from")] = None,
    end: Annotated[date | None, Query(alias="to")] = None,
    by: By = By.LOT,
    discount: Annotated[
        float, Query(ge=-0.99, le=10, description="a year, of present values")
    ] = 0.1,
    since_bought: Annotated[
        bool, Query(description="show also what each returned from its purchase to the end")
    ] = False,
) -> dict[str, Any]:
    """Show what lots earned and cost from one day to another, of UTC: 30 days to today, unsaid."""
    now = ours.clock.now()
    end = end or now.date() + timedelta(days=1)
    start = start or end - timedelta(days=30)
    if not 0 < (end - start).days <= _LONGEST_DAYS:
        raise Invalid(f"from, to: a period is 1 to {_LONGEST_DAYS} days, not {start} to {end}")
    with ours.db.transaction() as tx:
        lots, changes = store.list_lots(tx), store.list_changes(tx)
        record = store.read_record(tx, start, end, now=now)
        bought = min((lot.bought_on for lot in lots if lot.bought_on < end), default=end)
        if (end - bought).days > _LONGEST_DAYS and since_bought:
            raise Invalid(
                f"since_bought: the first lot was bought over {_LONGEST_DAYS} days before"
            )
        months = flows.months_of(bought, end) if since_bought else []
        records = [store.read_record(tx, first, after, now=now) for first, after in months]
    lines = statement(lots, changes, record, by=by)
    given: dict[str, Any] = {"by": by, "discount": discount}
    pace = flows.pace(lots, changes, record, **given)
    past = flows.so_far(lots, changes, records, **given) if records else None
    return statement_document(lines, record, pace=pace, so_far=past, **given)

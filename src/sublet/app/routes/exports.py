"""Exports for other programs' bills: FOCUS datasets, streamed."""

from collections.abc import AsyncIterator, Iterator
from datetime import date
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from sublet.app.http import AnyCaller, Forbidden, Ours
from sublet.app.services import Services
from sublet.core.errors import Invalid
from sublet.finance.focus.columns import Dataset, Form, Version, datasets_of
from sublet.finance.focus.export import export

router = APIRouter(prefix="/v1", tags=["invoices"])
_MEDIA: Final = {
    Form.PARQUET: "application/vnd.apache.parquet",
    Form.CSV: "text/csv; charset=utf-8",
}


@router.get("/exports/focus", response_class=Response)
def export_focus(
    ours: Ours,
    found: AnyCaller,
    period: Annotated[
        str, Query(pattern=r"^[0-9]{4}-[0-9]{2}$", examples=["2026-10"], description="A month.")
    ],
    version: Version = Version.V1_4,
    dataset: Dataset = Dataset.COST_AND_USAGE,
    form: Annotated[Form, Query(alias="format")] = Form.PARQUET,
    tenant_id: UUID | None = None,
) -> Response:
    """Write a FOCUS dataset of a month: yours, or everybody's for the operator.

    It is one unmoving view of the records. An answer that breaks off is not all of it.
    """
    if found.tenant is not None:
        if tenant_id not in {None, found.tenant.id}:
            raise Forbidden("a tenant exports its own bills: leave tenant_id out")
        tenant_id = found.tenant.id
    if dataset not in datasets_of(version):
        raise Invalid(
            f"FOCUS {version} has no dataset {dataset}: ask for 1.4, or for cost-and-usage"
        )
    try:
        month = date.fromisoformat(f"{period}-01")
    except ValueError:
        raise Invalid(f"period: {period} is no month such as 2026-10") from None
    pieces = _pieces(ours, dataset, version, form, month, tenant_id)
    first = next(pieces)  # what can be refused is refused before the answer begins

    async def body() -> AsyncIterator[bytes]:
        piece: bytes | None = first
        while piece is not None:
            yield piece
            piece = await run_in_threadpool(next, pieces, None)

    return StreamingResponse(body(), media_type=_MEDIA[form])


def _pieces(
    ours: Services,
    dataset: Dataset,
    version: Version,
    form: Form,
    month: date,
    tenant_id: UUID | None,
) -> Iterator[bytes]:
    with ours.db.transaction() as tx:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # One that stopped reading must not hold an old view of the whole database for ever.
        tx.execute("SET LOCAL idle_in_transaction_session_timeout = '5min'")
        yield from export(
            tx, dataset, version, form, month=month, seller=ours.config.seller, tenant_id=tenant_id,
            now=ours.clock.now(),
        )  # fmt: skip

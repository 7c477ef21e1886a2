"""The ledger for other programs: everything, as text, streamed."""

from collections.abc import AsyncIterator, Generator
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from sublet.app.http import Operator, Ours
from sublet.app.services import Services
from sublet.ledger import journal
from sublet.ledger import store as ledger
from sublet.tenants import store as tenants

router = APIRouter(prefix="/v1")

_PIECE_CHARACTERS: Final = 1 << 16


@router.get("/ledger/export", tags=["operations"], response_class=Response)
def export_ledger(
    ours: Ours,
    _: Operator,
    form: Annotated[journal.Format, Query(alias="format")] = journal.Format.HLEDGER,
) -> Response:
    """Write every movement of money as text for hledger or beancount, with balances to check.

    It is one unmoving view of the ledger. An answer that breaks off is not all of it.
    """
    pieces = _pieces(ours, form)
    first = next(pieces)  # what can be refused is refused before the answer begins

    async def body() -> AsyncIterator[str]:
        try:
            piece: str | None = first
            while piece is not None:
                yield piece
                piece = await run_in_threadpool(next, pieces, None)
        finally:
            pieces.close()  # a reader that left must not keep its transaction open

    return StreamingResponse(body(), media_type="text/plain; charset=utf-8")


def _pieces(ours: Services, form: journal.Format) -> Generator[str]:
    with ours.db.transaction() as tx:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # One that stopped reading must not hold an old view of the whole database for ever.
        tx.execute("SET LOCAL idle_in_transaction_session_timeout = '5min'")
        accounts = ledger.list_accounts(tx)
        now = ours.clock.now()
        names = {}
        for tenant in tenants.list_tenants(tx):
            names[tenant.wallet] = names[tenant.revenue] = tenant.name
        movements = ledger.read_movements(
            tx, {account.id: account.currency for account in accounts}
        )
        lines: list[str] = []
        size = 0
        for line in journal.write(form, accounts, movements, names=names, now=now):
            lines.append(line)
            size += len(line)
            if size >= _PIECE_CHARACTERS:
                yield "".join(lines)
                lines, size = [], 0
        yield "".join(lines)

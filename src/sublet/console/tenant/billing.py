"""The wallet, how to fill it, and invoices."""

from starlette.responses import Response

from sublet.console.visit import Visit
from sublet.core.errors import NotFound

_MOVEMENTS = 30


async def show(visit: Visit) -> Response:
    """Show what there is, how to pay, what moved, and every invoice."""
    ground = visit.site.ground
    return visit.page(
        "tenant/billing.html",
        title="Billing",
        wallet=await visit.api.get("/v1/wallet"),
        invoices=(await visit.api.get("/v1/invoices", limit=1000))["items"],
        movements=(await visit.api.get("/v1/statement", limit=_MOVEMENTS))["items"],
        seller=ground.config.seller,
    )


def _number(visit: Visit) -> str:
    """Raises NotFound: it is no number of an invoice."""
    number = visit.part("number")
    if not (number.isascii() and number.isdigit() and len(number) < 16):
        raise NotFound(f"there is no invoice {number[:40]}")
    return number


async def show_invoice(visit: Visit) -> Response:
    number = _number(visit)
    found = await visit.api.get(f"/v1/invoices/{number}")
    return visit.page("tenant/invoice.html", title=found["number"], invoice=found, number=number)


async def show_pdf(visit: Visit) -> Response:
    number = _number(visit)
    made = await visit.api.read(f"/v1/invoices/{number}/pdf")
    headers = {"content-disposition": f'inline; filename="invoice-{number}.pdf"'}
    return Response(made, media_type="application/pdf", headers=headers)

"""A tenant's first page."""

from starlette.responses import Response

from sublet.console.visit import Visit


async def show(visit: Visit) -> Response:
    wallet = await visit.api.get("/v1/wallet")
    return visit.page("tenant/home.html", title="Overview", wallet=wallet)

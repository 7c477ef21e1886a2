"""The operator's first page: what the fleet does now, and what it earns."""

from starlette.responses import Response

from sublet.console.visit import Visit


async def show(visit: Visit) -> Response:
    fleet = await visit.api.get("/v1/fleet")
    return visit.page("operator/overview.html", title="Overview", pools=fleet["pools"])

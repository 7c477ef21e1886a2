"""A tenant's first page: what there is to spend, what runs, and where to begin."""

from starlette.responses import Response

from sublet.console.visit import Visit


async def show(visit: Visit) -> Response:
    days = (await visit.api.get("/v1/usage"))["items"]
    return visit.page(
        "tenant/home.html",
        title="Overview",
        wallet=await visit.api.get("/v1/wallet"),
        forecast=await visit.api.get("/v1/usage/forecast"),
        running=(await visit.api.get("/v1/leases", live=True, limit=20))["items"],
        days=days,
        usds=[float(day["amount_usd"]) for day in days],
        keys=len((await visit.api.get("/v1/keys"))["items"]),
    )

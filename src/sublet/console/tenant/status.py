"""How things are: what is served, what is waited for, and what went wrong lately for this tenant."""

from datetime import timedelta
from typing import Any, Final

from starlette.responses import Response

from sublet.console.tenant.leases import QUERIES
from sublet.console.visit import Visit

_LATELY: Final = timedelta(days=30)


async def show(visit: Visit) -> Response:
    now, tenant = visit.site.ground.clock.now(), visit.one_tenant
    row = {"tenant_id": tenant.id, "since": now - _LATELY}

    def load(tx: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        models = tx.execute(QUERIES["model_standing"], row).fetchall()
        return models, tx.execute(QUERIES["incidents"], row).fetchall()

    models, incidents = await visit.db(load)
    return visit.page(
        "tenant/status.html",
        title="Status",
        models=models,
        incidents=incidents,
        offers=(await visit.api.get("/v1/offers"))["items"],
        days=_LATELY.days,
    )

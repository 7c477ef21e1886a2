"""Leases: the table of all of them, and the story of one."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from sublet.console import table
from sublet.console.table import Column, Filter, Listing
from sublet.console.view import link
from sublet.console.visit import Visit
from sublet.core.db import load_queries
from sublet.fleet import store as fleet
from sublet.leases.lease import EndReason, State
from sublet.market.price import Tier

QUERIES: Final = load_queries("sublet.console")


def _lease(row: Mapping[str, Any]) -> str:
    return link(f"/leases/{row['id']}")


LEASES: Final = Listing(
    name="leases",
    title="Leases",
    query=QUERIES["leases"],
    columns=(
        Column(key="id", title="Lease", kind="id", sorts=False, href=_lease),
        Column(key="tenant", title="Tenant",
               href=lambda row: link(f"/tenants/{row['tenant_id']}")),
        Column(key="pool", title="Pool"),
        Column(key="gpus", title="GPUs", kind="number"),
        Column(key="tier", title="Tier", kind="words"),
        Column(key="state", title="State", kind="state"),
        Column(key="end_reason", title="Ended by", kind="words"),
        Column(key="requested_at", title="Asked for", kind="time"),
        Column(key="ran_seconds", title="Ran", kind="seconds"),
        Column(key="usd_per_gpu_hour", title="USD/GPU-hour", kind="usd4"),
    ),
    order="-requested_at",
    tie="id",
    search=("id", "tenant"),
    search_hint="Lease or tenant",
    when_empty="No lease fits these filters.",
)  # fmt: skip


async def show(visit: Visit) -> Response:
    pools = await visit.db(lambda tx: [pool.name for pool in fleet.list_pools(tx)])
    filters = (
        Filter(key="state", title="State", options=[(one, one) for one in State]),
        Filter(key="tier", title="Tier", options=[(one, one.replace("_", " ")) for one in Tier]),
        Filter(key="pool", title="Pool", options=[(name, name) for name in pools]),
        Filter(key="end_reason", title="Ended by",
               options=[(one, one.replace("_", " ")) for one in EndReason]),
    )  # fmt: skip
    now = visit.site.ground.clock.now()
    shown = await table.show(visit, LEASES, filters=filters, parameters={"now": now})
    if isinstance(shown, Response):
        return shown
    return visit.page("operator/leases.html", title="Leases", listing=shown)

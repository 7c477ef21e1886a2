"""A tenant's leases and windows: the table of them, and the page of one, with its logs."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from starlette.responses import Response, StreamingResponse

from sublet.console import table
from sublet.console.api import ApiError
from sublet.console.table import Column, Filter, Listing
from sublet.console.view import link
from sublet.console.visit import Visit
from sublet.core.db import load_queries
from sublet.leases.lease import State
from sublet.market.price import Tier

QUERIES: Final = load_queries("sublet.console.tenant")
_TAIL_BYTES: Final = 1 << 16  # of a log, in the page itself


def _lease(row: Mapping[str, Any]) -> str:
    return link(f"/your-leases/{row['id']}")


LEASES: Final = Listing(
    name="leases",
    title="Leases",
    query=QUERIES["leases"],
    columns=(
        Column(key="id", title="Lease", kind="id", sorts=False, href=_lease),
        Column(key="state", title="State", kind="state"),
        Column(key="pool", title="Pool"),
        Column(key="gpus", title="GPUs", kind="number"),
        Column(key="tier", title="Tier", kind="words"),
        Column(key="end_reason", title="Ended by", kind="words"),
        Column(key="requested_at", title="Asked for", kind="time"),
        Column(key="ends_at", title="Ends", kind="time"),
        Column(key="ran_seconds", title="Ran", kind="seconds"),
        Column(key="usd_per_gpu_hour", title="USD/GPU-hour", kind="usd4"),
    ),
    order="-requested_at",
    tie="id",
    search=("id",),
    search_hint="Lease",
    when_empty="No lease fits, or you have none yet: choose GPUs under Lease GPUs.",
)


async def show(visit: Visit) -> Response:
    filters = (
        Filter(key="state", title="State", options=[(one, one) for one in State]),
        Filter(key="tier", title="Tier", options=[(one, one.replace("_", " ")) for one in Tier]),
    )
    shown = await table.show(
        visit, LEASES, filters=filters,
        parameters={"now": visit.site.ground.clock.now(), "tenant_id": visit.one_tenant.id},
    )  # fmt: skip
    if isinstance(shown, Response):
        return shown
    windows = (await visit.api.get("/v1/reservations"))["items"]
    return visit.page(
        "tenant/leases.html", title="Your leases", listing=shown,
        windows=[one for one in windows if one["state"] != "ended"],
    )  # fmt: skip


async def show_one(visit: Visit) -> Response:
    """Show one lease: what it is, how it went, what it printed, what it cost."""
    lease_id = visit.part("lease_id")
    lease = await visit.api.get(f"/v1/leases/{lease_id}")
    notice = await visit.api.get(f"/v1/leases/{lease_id}/notice")
    credited = [
        one
        for one in (await visit.api.get("/v1/credits", limit=1000))["items"]
        if one["lease_id"] == lease["id"]
    ]
    return visit.page(
        "tenant/lease.html", title="Lease", lease=lease, notice=notice, credits=credited,
        printed=await _printed(visit, lease_id),
    )  # fmt: skip


async def _printed(visit: Visit, lease_id: str) -> str:
    """Return the end of what it printed."""
    try:
        said = bytes(await visit.api.read(f"/v1/leases/{lease_id}/logs"))
    except ApiError:  # its machine is away: the rest of the page is worth as much
        return ""
    return said[-_TAIL_BYTES:].decode("utf-8", "replace")


async def show_logs(visit: Visit) -> Response:
    """Stream what it prints, from a byte on, until it ends."""
    lease_id = visit.part("lease_id")
    follow = visit.asked("follow") == "1"
    await visit.api.get(f"/v1/leases/{lease_id}")  # or say that there is none
    pieces = visit.api.stream(
        f"/v1/leases/{lease_id}/logs", offset=visit.asked("offset") or 0, follow=follow
    )

    async def printed() -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield piece

    name = f'attachment; filename="{lease_id}.log"'
    headers = {} if follow else {"content-disposition": name}
    return StreamingResponse(printed(), media_type="text/plain; charset=utf-8", headers=headers)


async def end(visit: Visit) -> Response:
    lease_id = visit.part("lease_id")
    before = await visit.api.get(f"/v1/leases/{lease_id}")
    after = await visit.api.delete(f"/v1/leases/{lease_id}")
    visit.note(before={"state": before["state"]}, after={"end_reason": after["end_reason"]})
    return visit.go_to(f"/your-leases/{lease_id}", "It is told to stop, and billed no further.")

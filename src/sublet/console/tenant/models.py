"""A tenant's own models: what of them is here, how they are served; its files and batches."""

from typing import Final

from starlette.responses import Response

from sublet.console import table
from sublet.console.table import Column, Filter, Listing
from sublet.console.tenant.leases import QUERIES
from sublet.console.visit import Visit
from sublet.core.errors import Invalid

FILES: Final = Listing(
    name="files",
    title="Files",
    query=QUERIES["files"],
    columns=(
        Column(key="name", title="Name"),
        Column(key="id", title="File", kind="id", sorts=False),
        Column(key="purpose", title="For", kind="words"),
        Column(key="bytes", title="Bytes", kind="number"),
        Column(key="created_at", title="Since", kind="time"),
        Column(key="expires_at", title="Kept until", kind="time"),
    ),
    order="-created_at",
    tie="id",
    search=("name",),
    search_hint="Name",
    when_empty="Files that programs send to /v1/files, and what batches answered, are listed here.",
)
BATCHES: Final = Listing(
    name="batches",
    title="Batches",
    query=QUERIES["batches"],
    columns=(
        Column(key="id", title="Batch", kind="id", sorts=False),
        Column(key="state", title="State", kind="state"),
        Column(key="models", title="Models"),
        Column(key="dialect", title="In words of"),
        Column(key="lines", title="Requests", kind="number"),
        Column(key="answered", title="Answered", kind="number"),
        Column(key="created_at", title="Sent", kind="time"),
        Column(key="ended_at", title="Ended", kind="time"),
        Column(key="expires_at", title="Ends by", kind="time"),
    ),
    order="-created_at",
    tie="id",
    search=("id", "models"),
    search_hint="Batch or model",
    when_empty="Send many requests in one file to /v1/batches: they are answered from what is idle, for less.",
)
_STATES: Final = ("validating", "in_progress", "finalizing", "ended", "failed")


async def show(visit: Visit) -> Response:
    """List own models, with what is here of their weights and who serves them."""
    models = (await visit.api.get("/v1/models"))["items"]
    return visit.page("tenant/models.html", title="Your models", models=models)


async def deploy(visit: Visit) -> Response:
    """Serve a model with so many replicas, or with none."""
    name = visit.must("name")
    before = await visit.api.get(f"/v1/models/{name}")
    counts: dict[str, int] = {}
    for field in ("min_replicas", "max_replicas"):
        try:
            counts[field] = int(visit.must(field))
        except ValueError:
            raise Invalid(f"{field.replace('_', ' ')}: must be a whole number") from None
    after = await visit.api.put(f"/v1/models/{name}/deployment", counts)
    visit.note(subject=name, before=before["deployment"], after=after["deployment"])
    return visit.go_to("/your-models", f"{name} is served with up to {counts['max_replicas']}.")


async def undeploy(visit: Visit) -> Response:
    name = visit.must("name")
    before = await visit.api.get(f"/v1/models/{name}")
    await visit.api.delete(f"/v1/models/{name}/deployment")
    visit.note(subject=name, before=before["deployment"])
    return visit.go_to("/your-models", f"{name} is served no longer; its weights stay.")


async def show_files(visit: Visit) -> Response:
    shown = await table.show(visit, FILES, parameters={"tenant_id": visit.one_tenant.id})
    if isinstance(shown, Response):
        return shown
    return visit.page("tenant/listing.html", title="Files", listing=shown)


async def show_batches(visit: Visit) -> Response:
    states = Filter(
        key="state", title="State", options=[(one, one.replace("_", " ")) for one in _STATES]
    )
    shown = await table.show(
        visit, BATCHES, filters=[states], parameters={"tenant_id": visit.one_tenant.id}
    )
    if isinstance(shown, Response):
        return shown
    return visit.page("tenant/listing.html", title="Batches", listing=shown)

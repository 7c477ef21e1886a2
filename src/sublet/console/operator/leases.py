"""Leases: the table of all of them, and the story of one."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from pydantic_core import to_jsonable_python
from starlette.responses import Response

from sublet.console import table
from sublet.console.table import Column, Filter, Listing
from sublet.console.view import link, seconds, usd
from sublet.console.visit import Visit
from sublet.core.db import Tx, load_queries
from sublet.core.errors import Invalid, NotFound
from sublet.fleet import store as fleet
from sublet.leases.lease import EndReason, State
from sublet.market.price import Tier
from sublet.tenants import store as tenants
from sublet.tenants.tenant import TenantId

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


async def show_one(visit: Visit) -> Response:
    """Show one lease: what it is, every move it made, and what was recorded of each."""
    lease = await visit.api.get(f"/v1/leases/{visit.part('lease_id')}")

    def load(tx: Tx) -> dict[str, Any]:
        tenant = tenants.get_tenant(tx, TenantId(UUID(lease["tenant_id"])))
        credited = tx.execute(QUERIES["credits_of"], {"id": lease["id"]}).fetchall()
        jobs = []
        if lease["end_reason"] == "reclaimed" and lease["noticed_at"] is not None:
            gone = lease["stopped_at"]
            now = visit.site.ground.clock.now()
            # The cluster gives the GPUs to its job a moment after they are empty.
            until = now if gone is None else datetime.fromisoformat(gone) + timedelta(seconds=60)
            row = {"pool": lease["pool"], "at": lease["noticed_at"], "until": until}
            jobs = tx.execute(QUERIES["jobs_around"], row).fetchall()
        return {"tenant": tenant, "credited": credited, "jobs": jobs}

    found = await visit.db(load)
    return visit.page(
        "operator/lease.html", title=f"Lease {lease['id'][:8]}", lease=lease,
        story=_story(lease, found["credited"], found["jobs"]), **found,
    )  # fmt: skip


_MOVES: Final = {
    "requested": "Asked for", "admitted": "Admitted: GPUs and the first minute's money set aside",
    "provisioning": "Handed to the cluster", "running": "Running", "draining": "Told to go",
    "ended": "Ended: the cluster shows its GPUs empty",
}  # fmt: skip


def _story(
    lease: Mapping[str, Any], credited: Sequence[Mapping[str, Any]],
    jobs: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return what happened to a lease, in order, each with what is on record of it."""
    story = []
    for event in lease["events"]:
        evidence = {
            name: event[name] for name in ("version", "happened_at", "recorded_at", "reason")
        }
        why = f", since it was {event['reason'].replace('_', ' ')}" if event["reason"] else ""
        tone = "bad" if event["reason"] in {"node_lost", "start_failed"} else ""
        story.append(_moment(event["happened_at"], _MOVES[event["state"]] + why, evidence, tone))
    if lease["noticed_at"]:
        words = f"Notice given: {lease['notice_seconds']} s were promised"
        evidence = {"noticed_at": lease["noticed_at"], "stops_at": lease["stops_at"]}
        story.append(_moment(lease["noticed_at"], words, evidence, "warn"))
    for job in jobs:
        words = f"Internal job {job['name']} asked for {job['gpus']} GPUs"
        story.append(_moment(job["submitted_at"].isoformat(), words, job, "warn"))
        if job["started_at"] is not None:
            waited = seconds((job["started_at"] - job["submitted_at"]).total_seconds())
            words = f"Internal job {job['name']} started, after {waited}"
            story.append(_moment(job["started_at"].isoformat(), words, job, ""))
    for credit in credited:
        words = f"Credited {usd(credit['usd'])}: {credit['gpus']} GPUs were promised for longer"
        story.append(_moment(credit["recorded_at"].isoformat(), words, credit["evidence"], "warn"))
    return sorted(story, key=lambda moment: datetime.fromisoformat(moment["at"]))


def _moment(at: str, words: str, evidence: object, tone: str) -> dict[str, Any]:
    return {"at": at, "words": words, "evidence": to_jsonable_python(evidence), "tone": tone}


async def end(visit: Visit) -> Response:
    """Give a lease back for its tenant."""
    path = f"/v1/leases/{visit.part('lease_id')}"
    before = await visit.api.get(path)
    after = await visit.api.delete(path)
    visit.note(before=_told(before), after=_told(after))
    return visit.go_to(f"/leases/{before['id']}", "It is told to go.")


def _told(lease: Mapping[str, Any]) -> dict[str, Any]:
    return {name: lease[name] for name in ("state", "end_reason")}


RECLAIMS: Final = Listing(
    name="reclaims",
    title="Reclaims",
    query=QUERIES["reclaims"],
    columns=(
        Column(key="noticed_at", title="Told to go", kind="time",
               href=lambda row: link(f"/reclaims/{row['pool']}", at=row["noticed_at"].isoformat())),
        Column(key="pool", title="Pool"),
        Column(key="needed_by", title="Needed by", sorts=False),
        Column(key="leases", title="Leases", kind="number"),
        Column(key="tenants", title="Tenants", kind="number"),
        Column(key="gpus", title="GPUs", kind="number"),
        Column(key="took_seconds", title="Took", kind="seconds"),
        Column(key="promised_seconds", title="Promised", kind="seconds"),
        Column(key="credited_nanos", title="Credited", kind="nanos"),
    ),
    order="-noticed_at",
    tie="id",
    when_empty="No lease had to give way yet.",
)  # fmt: skip


async def show_reclaims(visit: Visit) -> Response:
    pools = await visit.db(lambda tx: [pool.name for pool in fleet.list_pools(tx)])
    filters = (Filter(key="pool", title="Pool", options=[(name, name) for name in pools]),)
    shown = await table.show(visit, RECLAIMS, filters=filters)
    if isinstance(shown, Response):
        return shown
    return visit.page("operator/reclaims.html", title="Reclaims", listing=shown)


async def show_reclaim(visit: Visit) -> Response:
    """Show who needed what at one moment, and who gave way."""
    try:
        at = datetime.fromisoformat(visit.asked("at"))
    except ValueError:
        raise Invalid("at: must be an instant") from None
    pool = visit.part("pool")

    def load(tx: Tx) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        gone = tx.execute(QUERIES["reclaimed_at"], {"pool": pool, "at": at}).fetchall()
        if not gone:
            raise NotFound(f"no lease of {pool} was told to go then")
        until = max((one["stopped_at"] or at for one in gone), default=at) + timedelta(seconds=60)
        jobs = tx.execute(QUERIES["jobs_around"], {"pool": pool, "at": at, "until": until})
        return gone, jobs.fetchall()

    gone, jobs = await visit.db(load)
    return visit.page(
        "operator/reclaim.html", title="A reclaim", pool=pool, at=at, gone=gone, jobs=jobs
    )


async def show_contracts(visit: Visit) -> Response:
    """List contracts, and what is set aside for each."""
    found = await visit.api.get("/v1/contracts")
    names = await visit.db(lambda tx: {str(one.id): one.name for one in tenants.list_tenants(tx)})
    return visit.page(
        "operator/contracts.html", title="Contracts", contracts=found["items"], names=names
    )

"""The operator's view: fleet, deployments, the auditor; and what all may know."""

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from sublet import __version__
from sublet.app.audit import audit, document
from sublet.app.documents import (
    DeploymentChange,
    PoolChange,
    changed_policy,
    policy_document,
)
from sublet.app.http import Operator, Ours, envelope
from sublet.app.services import Services
from sublet.core.db import Tx
from sublet.core.errors import SubletError
from sublet.engine.port import Phase
from sublet.fleet import store as fleet
from sublet.leases import policy
from sublet.leases import service as leases
from sublet.leases import store as lease_store
from sublet.leases.lease import LeaseId
from sublet.models import service as models
from sublet.models import store as model_store
from sublet.models.deployment import Deployment, ReplicaState
from sublet.planner.surplus import sellable_gpus
from sublet.suppliers import quotas
from sublet.suppliers import store as suppliers

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1")
metrics_router = APIRouter()
_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

# How often an audit says how far it is, and how long it is silent at most.
_TELL_EVERY_SECONDS: Final = 0.25
_REPEAT_EVERY_SECONDS: Final = 10.0


@router.get("/status", tags=["operations"])
def show_status(ours: Ours) -> dict[str, Any]:
    """Say whether this instance is ready, and what it waits for. Needs no key."""
    waiting = []
    with ours.db.transaction() as tx:
        for deployment in model_store.list_deployments(tx):
            document = _deployment(ours, tx, deployment)
            if deployment.wanted and deployment.target and document["state"] != "ready":
                waiting.append(f"model {deployment.name}: {document['detail']}")
    return {
        "version": __version__,
        "unsafe_no_sandbox": ours.config.unsafe_no_sandbox,
        "waiting_for": waiting,
        "internal_waits": {
            pool: {
                "jobs": waits.jobs,
                "p50_seconds": round(waits.p50, 3),
                "p99_seconds": round(waits.p99, 3),
                "max_seconds": round(waits.most, 3),
            }
            for pool, waits in sorted(ours.waits.by_pool().items())
        },
        "suppliers": _suppliers(ours),
        "gateway_url": ours.config.gateway_url,
        "gateway_http_url": ours.config.gateway_http_url,
        "ca_file": str(ours.config.data / "ca" / "ca.pem"),
    }


def _suppliers(ours: Ours) -> dict[str, str]:
    """Say of each supplier whether it is asked when own replicas are short."""
    with ours.db.transaction() as tx:
        rests = {rest.supplier: rest for rest in suppliers.list_rests(tx, now=ours.clock.now())}
        found = {}
        for one in suppliers.list_suppliers(tx):
            state = "ready" if one.has_key else "it has no key"
            if one.name in rests:
                state = f"rests: {rests[one.name].why}"
            found[one.name] = state if one.enabled else "stopped"
    return found


def _quota_lines(ours: Ours) -> list[str]:
    lines = [
        "# HELP sublet_supplier_quota_left What is left of a limit, in its own unit (nanos of spend).",
        "# TYPE sublet_supplier_quota_left gauge",
    ]
    with ours.db.transaction() as tx:
        standings = quotas.standings(tx)
    for standing, at in standings:
        limit = standing.limit
        scope, label = limit.scope.translate(_ESCAPED), limit.label.translate(_ESCAPED)
        labels = f'scope="{scope}",limit="{label}"'
        lines.append(f"sublet_supplier_quota_left{{{labels}}} {standing.left(at)}")
    return lines


@metrics_router.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
def show_metrics(ours: Ours) -> str:
    """Show the first law as a figure, in the text format of Prometheus. Needs no key."""
    lines = [
        (
            "# HELP sublet_internal_wait_seconds From an internal job's waiting for leased GPUs"
            " until they are free."
        ),
        "# TYPE sublet_internal_wait_seconds gauge",
    ]
    jobs = [
        "# HELP sublet_internal_waits_total Internal jobs whose wait is over, since the start.",
        "# TYPE sublet_internal_waits_total counter",
    ]
    for pool, waits in sorted(ours.waits.by_pool().items()):
        label = pool.translate(_ESCAPED)
        for quantile, seconds in (("0.5", waits.p50), ("0.99", waits.p99), ("1", waits.most)):
            lines.append(
                f'sublet_internal_wait_seconds{{pool="{label}",quantile="{quantile}"}} {seconds:.3f}'
            )
        jobs.append(f'sublet_internal_waits_total{{pool="{label}"}} {waits.jobs}')
    return "\n".join([*lines, *jobs, *_quota_lines(ours)]) + "\n"


@router.get("/fleet", tags=["fleet"])
def show_fleet(ours: Ours, _: Operator) -> dict[str, Any]:
    """Show each pool: what internal jobs and leases hold, what is idle, what may be sold."""
    jobs = ours.engine.internal_jobs()
    with ours.db.transaction() as tx:
        pools = []
        for pool in fleet.list_pools(tx):
            pressure = leases.pressure_of(tx, pool, jobs, now=ours.clock.now())
            idle = pool.gpus - pressure.internal_running - pressure.leased
            pools.append(
                {
                    "name": pool.name,
                    "gpus": pool.gpus,
                    "internal_running": pressure.internal_running,
                    "internal_pending": pressure.internal_pending,
                    "leased": pressure.leased,
                    "aside": pressure.aside,
                    "idle": idle,
                    "sellable": sellable_gpus(pressure),
                    **policy_document(pool.policy),
                }
            )
    return {"pools": pools}


@router.get("/nodes", tags=["fleet"])
def list_nodes(ours: Ours, _: Operator) -> dict[str, Any]:
    """List every node with its healthy GPUs, and how many of them leases hold, as far as known.

    `leased_gpus` counts the leases that the engine says which nodes they are on: all of a lease's
    GPUs on one node, or spread evenly over several.
    """
    with ours.db.transaction() as tx:
        sizes = {lease.id: lease.gpus for lease in lease_store.list_live(tx)}
    held: dict[str, float] = {}
    for id_, seen in ours.engine.workloads().items():
        if seen.phase in {Phase.STARTING, Phase.RUNNING} and seen.nodes:
            for name in seen.nodes:
                held[name] = held.get(name, 0.0) + sizes.get(LeaseId(id_), 0) / len(seen.nodes)
    return {
        "items": [
            {
                "name": node.name,
                "pool": node.gpu_model,
                "block": node.block,
                "gpus": node.gpus,
                "leased_gpus": round(held.get(node.name, 0.0), 2),
            }
            for node in ours.engine.nodes()
        ]
    }


@router.patch("/pools/{name}", tags=["fleet"])
def change_pool(ours: Ours, _: Operator, name: str, body: PoolChange) -> dict[str, Any]:
    """Change what may be sold from now on. What was promised stands.

    Where promises stand that the new policy would not allow, nothing is changed and the answer is
    409 `unconfirmed`, with all of them in `error.hits`; send it again with `confirm` to have it.
    """
    with ours.db.transaction() as tx:
        pool = fleet.lock_pool(tx, name)
        changed = policy.change(
            tx,
            name,
            changed_policy(pool.policy, body),
            confirmed=body.confirm,
            now=ours.clock.now(),
        )
    ours.wake()
    return {"name": changed.name, "gpus": changed.gpus, **policy_document(changed.policy)}


@router.get("/deployments", tags=["models"])
def list_deployments(ours: Ours, _: Operator) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        return {
            "items": [
                _deployment(ours, tx, deployment) for deployment in model_store.list_deployments(tx)
            ]
        }


@router.patch("/deployments/{name:path}", tags=["models"])
def change_deployment(ours: Ours, _: Operator, name: str, body: DeploymentChange) -> dict[str, Any]:
    """Start or stop serving a model."""
    with ours.db.transaction() as tx:
        deployment = model_store.set_wanted(tx, name, wanted=body.wanted)
        document = _deployment(ours, tx, deployment)
    ours.wake()
    return document


@router.get(
    "/audit",
    tags=["operations"],
    response_model=None,
    responses={200: {"content": {"application/json": {}, "application/x-ndjson": {}}}},
)
def run_audit(
    ours: Ours,
    _: Operator,
    progress: Annotated[
        bool, Query(description="Answer with JSON lines: `progress`, and at the end `audit`.")
    ] = False,
) -> dict[str, Any] | Response:
    """Re-derive everything from the records, and list every difference.

    That may take minutes. With `progress`, a line says now and then what is looked at and how
    much is done, from 0 to 1; the last line holds the answer, or an `error`.
    """
    if not progress:
        return document(audit(ours.db, clock=ours.clock))
    return StreamingResponse(_audit_lines(ours), media_type="application/x-ndjson")


def _audit_lines(ours: Services) -> Iterator[str]:
    """Audit in a thread of its own, and write down now and then how far it is."""
    news: queue.Queue[dict[str, Any]] = queue.Queue()
    left = threading.Event()

    def tell(what: str, share: float) -> None:
        if left.is_set():
            raise _ReaderLeft
        news.put({"progress": {"what": what, "done": round(share, 4)}})

    def work() -> None:
        try:
            news.put({"audit": document(audit(ours.db, clock=ours.clock, tell=tell))})
        except _ReaderLeft:
            pass
        except SubletError as error:
            news.put(envelope(error.code, str(error), retryable=error.retryable))
        except Exception:
            log.exception("api.failed", extra={"path": "/v1/audit"})
            news.put(envelope("internal", "Sublet failed; its log says why."))

    threading.Thread(target=work, name="audit", daemon=True).start()
    line: dict[str, Any] = {"progress": {"what": "beginning", "done": 0.0}}
    try:
        while True:
            with suppress(queue.Empty):  # then the line before goes out again: we are alive
                line = news.get(timeout=_REPEAT_EVERY_SECONDS)
            while "progress" in line and not news.empty():
                line = news.get()
            yield json.dumps(line) + "\n"
            if "progress" not in line:
                return
            time.sleep(_TELL_EVERY_SECONDS)
    finally:
        left.set()


class _ReaderLeft(Exception):
    """Nobody waits for this audit any more."""


def deployment_document(tx: Tx, deployment: Deployment) -> dict[str, Any]:
    """Return how a deployment is scaled, and who serves it now."""
    live = [
        replica
        for replica in model_store.list_live_replicas(tx)
        if replica.deployment == deployment.name
    ]
    scaling = deployment.scaling
    return {
        "wanted": deployment.wanted,
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "tier": scaling.tier,
        "outstanding_tokens": scaling.outstanding_tokens,
        "first_token_ms": scaling.first_token_ms,
        "idle_seconds": scaling.idle_seconds,
        "target": deployment.target if deployment.wanted else 0,
        "ready": sum(replica.state is ReplicaState.READY for replica in live),
        "starting": sum(replica.state is ReplicaState.STARTING for replica in live),
        "draining": sum(replica.state is ReplicaState.DRAINING for replica in live),
        "warm_seconds": model_store.list_warmups(tx).get(deployment.name),
    }


def _deployment(ours: Services, tx: Tx, deployment: Deployment) -> dict[str, Any]:
    live = [
        replica
        for replica in model_store.list_live_replicas(tx)
        if replica.deployment == deployment.name
    ]
    states = [replica.state for replica in live]
    detail: str | None
    if ReplicaState.READY in states:
        state, detail = "ready", None
    elif ReplicaState.STARTING in states:
        state, detail = "starting", "its replica is starting and loads its weights"
    elif states:
        state, detail = "draining", live[-1].detail
    else:
        state = "absent"
        detail = "stopped by the operator" if not deployment.wanted else None
        if detail is None and not deployment.target:
            state, detail = "asleep", "it starts when somebody asks"
        if detail is None:
            told = None if ours.replicas is None else ours.replicas.why_not(deployment.name)
            last = model_store.get_last_replica(tx, deployment.name)
            detail = (
                models.missing(tx, deployment)
                or told
                or (f"its last replica ended: {last.detail}" if last else "not started yet")
            )
    return {
        "name": deployment.name,
        "recipe": deployment.recipe,
        "context_tokens": deployment.context_tokens,
        "wanted": deployment.wanted,
        "state": state,
        "detail": detail,
        "scaling": deployment_document(tx, deployment),
    }

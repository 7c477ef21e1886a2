"""Internal jobs, where the engine's queue is ours to feed: the local engine's."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response

from sublet.app.documents import NewInternalJob
from sublet.app.http import Operator, Ours
from sublet.app.idempotency import OneCall
from sublet.app.routes.leases import only_pool, stream_log
from sublet.app.services import Services
from sublet.core.db import Tx
from sublet.core.errors import NotFound, Refused
from sublet.core.names import checked_name
from sublet.engine.port import InternalJob, InternalQueue, Workload

router = APIRouter(prefix="/v1/internal-jobs", tags=["internal jobs"])


@router.post("", status_code=201)
def submit(ours: Ours, _: Operator, once: OneCall, body: NewInternalJob) -> dict[str, Any]:
    """Queue a job of the organisation's own. Leases give way to it."""
    if (said := once.replay(body)) is not None:
        return said
    name = checked_name(body.name, what="name")
    job = Workload(
        id=body.id or once.new_id("internal-job"),
        gpu_model=body.pool or only_pool(ours),
        gpus=body.gpus,
        command=body.command,
        environment=body.environment,
        sandboxed=False,
    )

    def queue(_: Tx) -> dict[str, Any]:
        # The one call of an engine inside a transaction: duplicates take turns under its lock.
        # If the answer is not stored after all, the next one finds the job by its derived id.
        _queue(ours).submit_internal(job, name=name, submitted_at=ours.clock.now())
        return _document(_find(ours, job.id))

    document = once.run(body, queue)
    ours.wake()
    return document


@router.get("")
def list_jobs(ours: Ours, _: Operator) -> dict[str, Any]:
    """List internal jobs that wait, run, or ended not long ago."""
    return {"items": [_document(job) for job in ours.engine.internal_jobs()]}


@router.get("/{job_id}")
def show(ours: Ours, _: Operator, job_id: UUID) -> dict[str, Any]:
    return _document(_find(ours, job_id))


@router.delete("/{job_id}", status_code=202)
def cancel(ours: Ours, _: Operator, job_id: UUID) -> dict[str, Any]:
    """Take a waiting job out of the queue, or stop a running one."""
    _find(ours, job_id)
    _queue(ours).cancel_internal(job_id)
    ours.wake()
    return _document(_find(ours, job_id))


@router.get("/{job_id}/logs", response_class=Response)
def read_logs(
    ours: Ours,
    _: Operator,
    job_id: UUID,
    offset: Annotated[int, Query(ge=0, le=1 << 50)] = 0,
    follow: bool = False,
) -> Response:
    """Read what the job printed; `follow` until it ends."""
    _find(ours, job_id)

    def over() -> bool:
        return _find(ours, job_id).exited_at is not None

    return stream_log(ours, job_id, offset=offset, over=over if follow else None)


def _queue(ours: Services) -> InternalQueue:
    if ours.internal_queue is None:
        raise Refused("this engine has a queue of its own: submit internal jobs there")
    return ours.internal_queue


def _find(ours: Services, job_id: UUID) -> InternalJob:
    for job in ours.engine.internal_jobs():
        if job.id == job_id:
            return job
    raise NotFound(f"there is no internal job {job_id}")


def _document(job: InternalJob) -> dict[str, Any]:
    state = "pending" if job.pending else "running" if job.running else "ended"
    return {
        "id": job.id,
        "name": job.name,
        "pool": job.gpu_model,
        "gpus": job.gpus,
        "state": state,
        "submitted_at": job.submitted_at,
        "started_at": job.started_at,
        "exited_at": job.exited_at,
        "exit_code": job.exit_code,
        "cancelled": job.cancelled,
    }

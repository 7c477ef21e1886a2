"""What trainers ask and tell, for the secret of their run: see `models/trainer/protocol.py`."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from sublet.app.http import Ours
from sublet.core.db import Tx
from sublet.core.errors import Invalid, Unauthorized
from sublet.models.trainer import protocol
from sublet.models.tuning import work
from sublet.models.tuning.job import Tuning

router = APIRouter(prefix="/v1/tunings/{tuning_id}", include_in_schema=False)
T = TypeVar("T")


def _secret(request: Request) -> str:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthorized("a trainer shows the secret of its run")
    return secret


async def _raw(request: Request) -> bytes:
    return await request.body()


Secret = Annotated[str, Depends(_secret)]
Raw = Annotated[bytes, Depends(_raw)]


@router.get("/work")
def get_work(ours: Ours, tuning_id: UUID, secret: Secret) -> Response:
    now = ours.clock.now()
    with ours.db.transaction() as tx:
        tuning = work.run_of(tx, tuning_id, secret)
        found = work.work(
            tx, tuning, shelf=ours.shelf, checkpoint_seconds=ours.config.checkpoint_seconds, now=now
        )
    return Response(msgspec.json.encode(found), media_type="application/json")


@router.put("/count")
def put_count(ours: Ours, tuning_id: UUID, secret: Secret, raw: Raw) -> dict[str, Any]:
    said = _read(raw, protocol.Count)
    return _told(
        ours, tuning_id, secret, "tuning.count",
        lambda tx, tuning: {"go_on": work.count(tx, tuning, said, now=ours.clock.now())},
    )  # fmt: skip


@router.put("/progress")
def put_progress(ours: Ours, tuning_id: UUID, secret: Secret, raw: Raw) -> dict[str, Any]:
    said = _read(raw, protocol.Steps)

    def note(tx: Tx, tuning: Tuning) -> dict[str, Any]:
        work.note(tx, tuning, said.steps, now=ours.clock.now())
        return {}

    return _told(ours, tuning_id, secret, "tuning.progress", note)


@router.put("/checkpoints/{checkpoint_id}/key")
def put_key(
    ours: Ours, tuning_id: UUID, checkpoint_id: UUID, secret: Secret, raw: Raw
) -> dict[str, Any]:
    said = _read(raw, protocol.Size)

    def begin(tx: Tx, tuning: Tuning) -> dict[str, Any]:
        key = work.begin_checkpoint(
            tx, tuning, checkpoint_id, size=said.bytes, shelf=ours.shelf, now=ours.clock.now()
        )
        return {"key": key}

    return _told(ours, tuning_id, secret, "tuning.begin_checkpoint", begin)


@router.put("/checkpoints/{checkpoint_id}")
def put_checkpoint(
    ours: Ours, tuning_id: UUID, checkpoint_id: UUID, secret: Secret, raw: Raw
) -> dict[str, Any]:
    said = _read(raw, protocol.Kept)

    def keep(tx: Tx, tuning: Tuning) -> dict[str, Any]:
        work.keep(tx, tuning, checkpoint_id, said, now=ours.clock.now())
        return {}

    return _told(ours, tuning_id, secret, "tuning.keep", keep)


@router.put("/trouble")
def put_trouble(ours: Ours, tuning_id: UUID, secret: Secret, raw: Raw) -> dict[str, Any]:
    said = _read(raw, protocol.Told)

    def fail(tx: Tx, tuning: Tuning) -> dict[str, Any]:
        work.fail(tx, tuning, said, now=ours.clock.now())
        return {}

    return _told(ours, tuning_id, secret, "tuning.fail", fail)


def _told(
    ours: Ours,
    tuning_id: UUID,
    secret: str,
    name: str,
    do: Callable[[Tx, Tuning], dict[str, Any]],
) -> dict[str, Any]:
    with ours.db.transaction(name) as tx:
        return do(tx, work.run_of(tx, tuning_id, secret))


def _read(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise Invalid(f"no trainer says this: {error}") from error

"""What trainers ask and tell: each call one transaction, under the lock of its job.

A run is one lease that trains. Only the last one that was asked for is heard: what an earlier
one says, which may not know yet that it is over, changes nothing.
"""

import base64
import hmac
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from sublet.core.db import Tx
from sublet.core.errors import Conflict, Invalid, NotFound, Unpaid
from sublet.core.failpoint import failpoint
from sublet.core.vault import Vault
from sublet.models import artefacts, catalogue, stored
from sublet.models.artefact import Artefact, Kind, Origin
from sublet.models.artefact import File as ArtefactFile
from sublet.models.artefact import State as ArtefactState
from sublet.models.catalogue import Shelf
from sublet.models.trainer import protocol
from sublet.models.trainer.protocol import Count, Kept, Resume, Step, Told, Work
from sublet.models.tuning import ending, store
from sublet.models.tuning.job import (
    MOST_CHECKPOINTS,
    OPEN,
    Checkpoint,
    State,
    Trouble,
    Tuning,
)

_LONGEST_MESSAGE: Final = 500


def run_of(tx: Tx, tuning_id: UUID, secret: str) -> Tuning:
    """Return a job, locked, for who trains it now.

    Raises:
        NotFound: there is none.
        Conflict: it is over, or somebody else trains it.
    """
    tuning = store.get(tx, tuning_id, lock=True)
    ours = tuning.secret is not None and hmac.compare_digest(
        tuning.secret.encode(), secret.encode()
    )
    if not ours or tuning.state not in OPEN:
        raise Conflict("this run is over: another one trains, or nobody shall any more")
    return tuning


def work(tx: Tx, tuning: Tuning, *, shelf: Shelf, checkpoint_seconds: float, now: datetime) -> Work:
    """Return what is to be done.

    Raises:
        NotFound, Refused: the base model or a file was deleted meanwhile.
    """
    model = catalogue.get(tx, tuning.base, tenant_id=tuning.tenant_id)
    if model.deleted_at is not None or model.recipe is None:
        raise NotFound(f"the model {tuning.base} was deleted")
    key = None
    if model.artefact_id is not None:
        key = _key(artefacts.get(tx, model.artefact_id), shelf.vault)
    checkpoints = store.list_checkpoints(tx, tuning.id)
    resume = None
    if checkpoints:
        last = checkpoints[0]
        files = _files(artefacts.get(tx, last.artefact_id), shelf.vault)
        resume = Resume(step=last.step, tokens=last.tokens, files=files)
    return Work(
        recipe=model.recipe,
        weights_key=key,
        method=tuning.method,
        training=_stored(tx, tuning, tuning.training_file, shelf=shelf, now=now),
        validation=None
        if tuning.validation_file is None
        else _stored(tx, tuning, tuning.validation_file, shelf=shelf, now=now),
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
    )


def count(tx: Tx, tuning: Tuning, said: Count, *, now: datetime) -> bool:
    """Note how much a job is, and hold the money for it; return whether it goes on.

    Raises:
        Conflict: an earlier run counted otherwise.
    """
    if tuning.state is State.RUNNING:
        if (said.examples, said.steps, said.tokens) != (
            tuning.examples, tuning.steps, tuning.tokens,
        ):  # fmt: skip
            raise Conflict("an earlier run counted other examples, steps or tokens")
        return True
    try:
        with tx.transaction():
            hold_id = ending.hold(tx, tuning, said.tokens, now=now)
    except Unpaid as error:
        message = f"{said.tokens} tokens are to be trained, and the wallet cannot pay: {error}"
        trouble = Trouble(code="payment_required", message=message)
        ending.end(tx, tuning, State.FAILED, error=trouble, now=now)
        return False
    failpoint("tuning.count.held")
    store.move(
        tx, tuning, State.RUNNING, now=now, examples=said.examples, steps=said.steps,
        tokens=said.tokens, hold_id=hold_id,
    )  # fmt: skip
    told = f"Fine-tuning job started: {said.examples} examples, {said.tokens} tokens to train"
    store.tell(tx, tuning.id, told, now=now)
    return True


def note(tx: Tx, tuning: Tuning, steps: tuple[Step, ...], *, now: datetime) -> None:
    """Tell a job's tenant how steps went; of one that was trained before nothing is told again."""
    for one in steps:
        words = f"Step {one.step}/{tuning.steps}: training loss={one.train_loss:.4f}"
        if one.valid_loss is not None:
            words += f", validation loss={one.valid_loss:.4f}"
        data = _metrics(one) | {"total_steps": tuning.steps}
        store.tell(tx, tuning.id, words, step=one.step, data=data, now=now)


def begin_checkpoint(
    tx: Tx, tuning: Tuning, artefact_id: UUID, *, size: int, shelf: Shelf, now: datetime
) -> str:
    """Return the key that a checkpoint is to be sealed with.

    Raises:
        Refused: the tenant would keep too much.
    """
    try:
        artefact = artefacts.get(tx, artefact_id)
    except NotFound:
        catalogue.check_room(tx, tuning.tenant_id, size, shelf=shelf)
        artefacts.add(
            tx, artefact_id, tenant_id=tuning.tenant_id, kind=Kind.ADAPTER, origin=Origin.UPLOAD,
            source={"tuning": str(tuning.id)}, secret=None, files=[], vault=shelf.vault, now=now,
        )  # fmt: skip
        artefact = artefacts.get(tx, artefact_id)
    if artefact.source.get("tuning") != str(tuning.id):
        raise NotFound("there is no such checkpoint")
    return _key(artefact, shelf.vault)


def keep(tx: Tx, tuning: Tuning, artefact_id: UUID, said: Kept, *, now: datetime) -> None:
    """Take a checkpoint in: what is up to it is paid for, and need not be trained again.

    Raises:
        Conflict: a later one is there already.
        Invalid: it says what cannot be.
    """
    assert tuning.lease_id is not None
    before = store.list_checkpoints(tx, tuning.id)
    if before and before[0].artefact_id == artefact_id:
        return
    if before and said.step <= before[0].step:
        raise Conflict(f"there is a checkpoint of step {before[0].step} already")
    least = before[0].tokens if before else 0
    total, steps = tuning.tokens or 0, tuning.steps or 0
    is_last = said.step == steps
    if not least < said.tokens <= total or said.step > steps or is_last != (said.tokens == total):
        raise Invalid(
            f"step {said.step} of {steps} cannot have trained {said.tokens} of {total} tokens"
        )
    artefact = artefacts.get(tx, artefact_id, lock=True)
    if artefact.source.get("tuning") != str(tuning.id):
        raise NotFound("there is no such checkpoint")
    artefacts.add_files(
        tx,
        artefact_id,
        [
            ArtefactFile(
                number=number, path=one.path, size=one.size, sha256=bytes.fromhex(one.sha256)
            )
            for number, one in enumerate(said.files)
        ],
    )
    for state in (ArtefactState.CHECKING, ArtefactState.READY):
        artefacts.move(tx, artefacts.get(tx, artefact_id), state, now=now)
    checkpoint = Checkpoint(
        step=said.step, tokens=said.tokens, epoch=said.epoch, artefact_id=artefact_id,
        lease_id=tuning.lease_id, metrics=_metrics(said.metrics), happened_at=now,
    )  # fmt: skip
    store.add_checkpoint(tx, tuning.id, checkpoint)
    store.set_run(tx, tuning.id, tuning.lease_id, secret=tuning.secret)
    failpoint("tuning.keep.added")
    epochs = [one.artefact_id for one in (checkpoint, *before) if one.epoch is not None]
    ending.drop(tx, tuning, but={artefact_id, *epochs[:MOST_CHECKPOINTS]}, now=now)
    if is_last:
        ending.end(tx, tuning, State.SUCCEEDED, now=now)


def fail(tx: Tx, tuning: Tuning, told: Told, *, now: datetime) -> None:
    """End a job that cannot be done: nothing is charged."""
    trouble = Trouble(code=told.code[:64], message=told.message[:_LONGEST_MESSAGE])
    ending.end(tx, tuning, State.FAILED, error=trouble, now=now)


def _metrics(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(step)
    return {name: value for name, value in found.items() if value is not None}


def _stored(tx: Tx, tuning: Tuning, file_id: UUID, *, shelf: Shelf, now: datetime) -> protocol.File:
    file = stored.get(tx, tuning.tenant_id, file_id, now=now)
    (found,) = _files(artefacts.get(tx, file.id), shelf.vault)
    return found


def _files(artefact: Artefact, vault: Vault) -> tuple[protocol.File, ...]:
    key = _key(artefact, vault)
    return tuple(
        protocol.File(
            artefact=artefact.id, number=file.number, path=file.path, size=file.size,
            sha256=(file.sha256 or b"").hex(), key=key,
        )
        for file in artefact.files
    )  # fmt: skip


def _key(artefact: Artefact, vault: Vault) -> str:
    return base64.b64encode(artefacts.open_key(artefact, vault)).decode()

"""One run of a job: from its last checkpoint on, until all is learnt or the capacity is needed."""

import base64
import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from sublet.core.ids import new_id
from sublet.models import stored
from sublet.models.chest import PART_BYTES, Chest, Place, SealedFile
from sublet.models.trainer import dataset, protocol
from sublet.models.trainer.control import Control
from sublet.models.trainer.dataset import Tokens
from sublet.models.trainer.learner import Learner
from sublet.models.trainer.protocol import Kept, Part, Size, Step, Steps, Work
from sublet.models.tuning import examples

log = logging.getLogger(__name__)

_TELL_SECONDS: Final = 1.0


class _Key(msgspec.Struct):
    key: str


class _GoOn(msgspec.Struct):
    go_on: bool


@dataclass(slots=True, kw_only=True)
class Run:
    control: Control
    work: Work
    chest: Chest
    learner: Learner
    leaving: Callable[[], bool]
    _waiting: list[Step] = field(default_factory=list, init=False)
    _told_at: float = field(default=0.0, init=False)

    def go(self) -> None:
        """Train to the end, or until told to leave: then what was learnt is kept.

        Raises:
            Over: nobody waits for it any more.
            Away: the control plane does not answer.
            ValueError: it cannot be done; says why, for its tenant.
        """
        method = self.work.method
        training = self._read(self.work.training)
        validation = [] if self.work.validation is None else self._read(self.work.validation)
        each = -(-len(training) // method.batch_size)
        steps = each * method.epochs
        tokens = method.epochs * sum(len(one.ids) for one in training)
        count = protocol.Count(examples=len(training), steps=steps, tokens=tokens)
        said = msgspec.json.decode(self.control.put("/count", count), type=_GoOn)
        if not said.go_on:
            return
        step, trained = self._resume()
        kept_at, last_kept = time.monotonic(), step
        for number, epoch, chosen in _steps(
            len(training), method.batch_size, method.epochs, method.seed
        ):
            if number <= step:
                continue
            rows = [training[place] for place in chosen]
            rate = method.learning_rate * (1 - (number - 1) / steps)
            seen = self.learner.learn(rows, rate=rate)
            trained += sum(len(row.ids) for row in rows)
            ends = epoch if number % each == 0 else None
            told = Step(
                step=number, train_loss=seen.loss, train_accuracy=seen.accuracy, learning_rate=rate
            )
            if ends is not None and validation:
                judged = self.learner.judge(validation, size=method.batch_size)
                told = msgspec.structs.replace(
                    told, valid_loss=judged.loss, valid_accuracy=judged.accuracy
                )
            self._tell(told)
            leaves = self.leaving()
            due = time.monotonic() - kept_at >= self.work.checkpoint_seconds
            if ends is not None or leaves or due:
                self._flush()
                self._keep(told, trained, epoch=ends)
                kept_at, last_kept = time.monotonic(), number
            if leaves:
                break
        self._flush()
        log.info("trainer.left", extra={"step": last_kept, "steps": steps})

    def _read(self, file: protocol.File) -> list[Tokens]:
        lines = (text for _, text in stored.lines(self._open(file), most=examples.LONGEST))
        return dataset.read(
            lines, render=self.learner.render, tokenise=self.learner.tokenise,
            context_tokens=self.work.recipe.context_tokens,
        )  # fmt: skip

    def _open(self, file: protocol.File) -> SealedFile:
        key = base64.b64decode(file.key)
        return self.chest.open(file.artefact, file.number, file.size, key=key)

    def _resume(self) -> tuple[int, int]:
        """Return (the step, its tokens) from which it goes on."""
        resume = self.work.resume
        if resume is None:
            return 0, 0
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".checkpoint-") as folder:
            for file in resume.files:
                with Path(folder, file.path).open("wb") as opened:
                    opened.writelines(self._open(file).parts())
            self.learner.load(Path(folder))
        return resume.step, resume.tokens

    def _tell(self, step: Step) -> None:
        self._waiting.append(step)
        if time.monotonic() - self._told_at >= _TELL_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self.control.put("/progress", Steps(steps=tuple(self._waiting)))
            self._waiting.clear()
        self._told_at = time.monotonic()

    def _keep(self, step: Step, tokens: int, *, epoch: int | None) -> None:
        checkpoint = new_id()
        folder = Path(tempfile.mkdtemp(dir=Path.cwd(), prefix=".checkpoint-"))
        try:
            paths = self.learner.save(folder)
            size = Size(bytes=sum(path.stat().st_size for path in paths))
            said = self.control.put(f"/checkpoints/{checkpoint}/key", size)
            key = base64.b64decode(msgspec.json.decode(said, type=_Key).key)
            parts = tuple(
                _seal(self.chest, Place(artefact=checkpoint, file=number, part=0), path, key)
                for number, path in enumerate(paths)
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        kept = Kept(step=step.step, tokens=tokens, epoch=epoch, metrics=step, files=parts)
        self.control.put(f"/checkpoints/{checkpoint}", kept)
        log.info("trainer.checkpoint", extra={"step": step.step, "epoch": epoch})


def _seal(chest: Chest, place: Place, path: Path, key: bytes) -> Part:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as opened:
        part = 0
        while piece := opened.read(PART_BYTES):
            digest.update(piece)
            size += len(piece)
            chest.put(Place(artefact=place.artefact, file=place.file, part=part), piece, key=key)
            part += 1
    return Part(path=path.name, size=size, sha256=digest.hexdigest())


def _steps(
    count: int, size: int, epochs: int, seed: int
) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Yield (step, epoch, which examples) of a whole job; both count from 1."""
    number = 0
    for epoch in range(1, epochs + 1):
        for chosen in dataset.batches(count, size=size, epoch=epoch, seed=seed):
            number += 1
            yield number, epoch, chosen

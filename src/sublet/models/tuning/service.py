"""Taking each fine-tuning job one step on: its files read, a lease for it, another when that is gone.

Decided from what is stored alone, so whoever leads next goes on. What a trainer says comes apart
from this, over the API: see `work.py`.
"""

import logging
import secrets
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from sublet.core.clock import Clock
from sublet.core.db import Database, Tx
from sublet.core.errors import NotFound, Refused, SubletError, Unavailable, Unpaid
from sublet.core.failpoint import failpoint
from sublet.core.ids import derived_id
from sublet.engine.port import InternalJob
from sublet.leases import admission
from sublet.leases import store as lease_store
from sublet.leases.lease import EndReason, LeaseId
from sublet.leases.lease import State as LeaseState
from sublet.leases.service import LONGEST as LONGEST_LEASE
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.market import store as market
from sublet.market.price import Tier
from sublet.models import catalogue, stored
from sublet.models.catalogue import Shelf
from sublet.models.replica.recipe import Recipe
from sublet.models.service import Hosting, pool_with_room
from sublet.models.tuning import ending, examples, store
from sublet.models.tuning.job import BYTES_A_TOKEN, LONGEST, State, Trouble, Tuning
from sublet.tenants.tenant import wallet_of

log = logging.getLogger(__name__)

_MOST_FRUITLESS: Final = 4  # runs one after the other
_RETRY: Final = timedelta(seconds=5)
# What a lease ends with that was not taken away.
_FAILURES: Final = frozenset({EndReason.START_FAILED, EndReason.NODE_LOST, EndReason.COMPLETED})
NEEDED: Final = ("torch", "transformers", "peft", "gguf")


@dataclass(slots=True, kw_only=True)
class Tunings:
    db: Database
    clock: Clock
    shelf: Shelf
    hosting: Hosting
    jobs: Callable[[], Sequence[InternalJob]]
    url: str  # where trainers reach the control plane
    python: str  # that has what trainers need
    _lack: str | None = field(default=None, init=False)
    _looked: bool = field(default=False, init=False)
    _told: dict[object, str] = field(default_factory=dict, init=False)

    def step(self) -> int:
        """Take every open job one step on; return how many there are.

        Raises:
            Unavailable: the database did not answer.
        """
        with self.db.transaction() as tx:
            tunings = store.list_open(tx)
        for tuning in tunings:
            try:
                self._take(tuning)
            except Unavailable:
                raise
            except SubletError as error:
                log.warning("tuning.waiting", extra={"tuning": tuning.id, "detail": str(error)})
        return len(tunings)

    def _take(self, tuning: Tuning) -> None:
        now = self.clock.now()
        if tuning.lease_id is not None:
            self._follow(tuning, now=now)
        elif tuning.cancel_asked_at is not None or now >= tuning.created_at + LONGEST:
            with self.db.transaction("tuning.cancel") as tx:
                ending.end(tx, store.get(tx, tuning.id, lock=True), State.CANCELLED, now=now)
        elif tuning.state is State.VALIDATING:
            self._validate(tuning, now=now)
        elif tuning.not_before is None or now >= tuning.not_before:
            self._start(tuning, now=now)

    # ── its files ────────────────────────────────────────────────────────────────────────

    def _validate(self, tuning: Tuning, *, now: datetime) -> None:
        trouble, said = self._look(tuning), 0
        if trouble is None:
            read = self._read(tuning, now=now)
            trouble, said = (read, 0) if isinstance(read, Trouble) else (None, read)
        with self.db.transaction("tuning.validate") as tx:
            current = store.get(tx, tuning.id, lock=True)
            tokens = max(1, said // BYTES_A_TOKEN) * tuning.method.epochs
            if trouble is None:
                trouble = _too_dear(tx, current, tokens)
            if trouble is not None:
                ending.end(tx, current, State.FAILED, error=trouble, now=now)
                return
            store.move(tx, current, State.QUEUED, now=now)
            rate = market.get_price(tx, current.price_id).rate
            store.tell(
                tx, current.id, "Files validated, moving job to queued state: about"
                f" {tokens} tokens for {rate.charge_most(tokens)}", now=now,
            )  # fmt: skip

    def _look(self, tuning: Tuning) -> Trouble | None:
        """Return why it cannot be done, whatever is in its files."""
        if (lack := self._missing()) is not None:
            return Trouble(code="not_available", message=lack)
        with self.db.transaction() as tx:
            return _base_trouble(tx, tuning)

    def _read(self, tuning: Tuning, *, now: datetime) -> int | Trouble:
        """Return how many bytes are to be learnt in one epoch, or what is wrong with a file."""
        said = 0
        files = {"training_file": tuning.training_file, "validation_file": tuning.validation_file}
        for param, file_id in files.items():
            if file_id is None:
                continue
            try:
                with self.db.transaction() as tx:
                    file = stored.get(tx, tuning.tenant_id, file_id, now=now)
                    opened = stored.open_file(tx, file, shelf=self.shelf)
            except NotFound as error:
                return Trouble(code="invalid_file", message=str(error), param=param)
            found = examples.check(stored.lines(opened, most=examples.LONGEST), param=param)
            if isinstance(found, Trouble):
                return found
            said += found.bytes if param == "training_file" else 0
        return said

    def _missing(self) -> str | None:
        """Say what is not installed here to train with, or None. Asked once a process."""
        if not self._looked:
            self._looked = True
            code = (
                "import importlib.util as u, sys;"
                f"print(' '.join(n for n in {NEEDED!r} if u.find_spec(n) is None))"
            )
            try:
                run = subprocess.run(
                    [self.python, "-c", code],
                    capture_output=True, text=True, timeout=60, check=True,
                )  # fmt: skip
                lack = run.stdout.strip()
            except (OSError, subprocess.SubprocessError):
                lack = self.python
            if lack:
                self._lack = (
                    f"Fine-tuning is not available here: {lack} is not installed."
                    " The operator installs 'sublet[train]', or sets SUBLET_TRAINER_PYTHON."
                )
        return self._lack

    # ── who trains ───────────────────────────────────────────────────────────────────────

    def _start(self, tuning: Tuning, *, now: datetime) -> None:
        with self.db.transaction() as tx:
            if (trouble := _base_trouble(tx, tuning)) is not None:
                current = store.get(tx, tuning.id, lock=True)
                ending.end(tx, current, State.FAILED, error=trouble, now=now)
                return
            recipe = catalogue.get(tx, tuning.base, tenant_id=tuning.tenant_id).recipe
            assert recipe is not None
            pool = pool_with_room(tx, recipe, self.jobs(), now=now)
        if pool is None:
            self._tell(tuning, "waiting for free slots")
            return
        # The same for the same run, so that to ask twice is to ask once.
        lease_id = LeaseId(derived_id(tuning.id, "run", tuning.runs))
        secret = secrets.token_urlsafe(24)
        request = Request(
            id=lease_id, pool=pool, gpus=recipe.gpus, tier=Tier.INTERRUPTIBLE,
            max_duration=LONGEST_LEASE, spec=self._spec(tuning, recipe, secret),
        )  # fmt: skip
        try:
            with self.db.transaction("tuning.start") as tx:
                current = store.get(tx, tuning.id, lock=True)
                if current.lease_id is not None or current.cancel_asked_at is not None:
                    return
                admission.admit(tx, self.hosting.house, request, jobs=self.jobs(), now=now)
                store.set_run(tx, tuning.id, lease_id, secret=secret, fruitless=current.fruitless)
        except Refused as error:
            self._tell(tuning, str(error))
            return
        self._told.pop(tuning.id, None)
        log.info("tuning.run", extra={"tuning": tuning.id, "lease": lease_id, "pool": pool})

    def _spec(self, tuning: Tuning, recipe: Recipe, secret: str) -> Spec:
        command = [
            self.python, "-m", "sublet.models.trainer", "--url", f"{self.url}/{tuning.id}",
            "--artefacts", str(self.hosting.artefacts), "--weights", str(self.hosting.weights),
            "--threads", str(recipe.threads),
        ]  # fmt: skip
        environment: Mapping[str, str] = {
            "SUBLET_TRAINER_SECRET": secret,
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }
        return Spec(command=command, environment=environment, sandboxed=False)

    def _follow(self, tuning: Tuning, *, now: datetime) -> None:
        """Let a run go that is not wanted any more, and note when one is over."""
        assert tuning.lease_id is not None
        lease_id = LeaseId(tuning.lease_id)
        with self.db.transaction("tuning.follow") as tx:
            lease = lease_store.get(tx, lease_id)
            current = store.get(tx, tuning.id, lock=True)
            if current.lease_id != lease_id:
                return
            if lease.state is not LeaseState.ENDED:
                over = now >= tuning.created_at + LONGEST
                wanted = current.cancel_asked_at is None and not over
                if not wanted and lease.release_asked is None:
                    lease_store.ask_release(tx, lease_id, EndReason.RELEASED)
                return
            failpoint("tuning.follow.ended")
            fruitless = current.fruitless + 1 if lease.end_reason in _FAILURES else 0
            if fruitless > _MOST_FRUITLESS:
                trouble = Trouble(
                    code="server_error",
                    message="The trainer failed several times: ask the operator",
                )
                ending.end(tx, current, State.FAILED, error=trouble, now=now)
                return
            later = now + _RETRY * 2**fruitless if fruitless else None
            store.set_run(tx, tuning.id, None, fruitless=fruitless, not_before=later)
            if current.cancel_asked_at is None:
                checkpoints = store.list_checkpoints(tx, tuning.id)
                step = checkpoints[0].step if checkpoints else 0
                why = "was needed elsewhere" if not fruitless else "ended early"
                store.tell(
                    tx, tuning.id, f"The capacity under this job {why}: it goes on from step {step}",
                    level="warn", now=now,
                )  # fmt: skip
        log.info("tuning.run_over", extra={"tuning": tuning.id, "reason": lease.end_reason})

    def _tell(self, tuning: Tuning, why: str) -> None:
        if self._told.get(tuning.id) != why:
            self._told[tuning.id] = why
            log.info("tuning.waiting", extra={"tuning": tuning.id, "detail": why})


def _base_trouble(tx: Tx, tuning: Tuning) -> Trouble | None:
    """Return why nothing can be learnt on top of a job's base model, or None."""
    why = None
    try:
        model = catalogue.get(tx, tuning.base, tenant_id=tuning.tenant_id)
        why = catalogue.why_not_tuned(tx, model)
    except NotFound as error:
        why = str(error)
    return None if why is None else Trouble(code="model_not_available", message=why, param="model")


def _too_dear(tx: Tx, tuning: Tuning, tokens: int) -> Trouble | None:
    """Look whether the wallet could pay for an estimate, before a lease is spent."""
    cost = market.get_price(tx, tuning.price_id).rate.charge_most(tokens)
    available = ledger.get_account(tx, wallet_of(tuning.tenant_id)).available
    if cost.nanos <= available.nanos:
        return None
    error = Unpaid(f"{cost} is needed and {available} is available")
    message = f"About {tokens} tokens are to be trained: {error}"
    return Trouble(code="payment_required", message=message)

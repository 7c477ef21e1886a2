"""Handing a lease to Slurm, once."""

import json
import logging
import os
import shutil
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.errors import Refused, Unavailable
from sublet.engine import records
from sublet.engine.images import Images
from sublet.engine.launching import Launcher
from sublet.engine.port import Notice, Workload
from sublet.engine.records import Due, Kind, Record
from sublet.engine.sandbox import Sandbox
from sublet.engine.shim import write_durably
from sublet.engine.slurm import folder as shared
from sublet.engine.slurm import submitting, windows
from sublet.engine.slurm.commands import Slurm
from sublet.engine.slurm.keeping import Keeper
from sublet.engine.slurm.looking import Looker
from sublet.engine.slurm.view import Layout

log = logging.getLogger(__name__)


class Changed(Unavailable):
    """What we saw of the cluster is no longer so; nothing was submitted."""


@dataclass(slots=True)
class Held:
    """What this process remembers of one lease, all of which can be read again."""

    key: str | None = None  # of its job
    submitted: float = 0.0  # by this process, on the monotonic clock
    gpu_model: str = ""
    gpus: int = 0
    started: bool = False
    stop: Notice | None = None
    cancelled_at: datetime | None = None
    window: UUID | None = None  # that it is leased from
    window_known: bool = False


class Submitter:
    def __init__(
        self,
        slurm: Slurm,
        *,
        looker: Looker,
        keeper: Keeper,
        clock: Clock,
        agent: Path,
        sandbox: Sandbox | None,
        unsafe_no_sandbox: bool,
        grace_seconds: float,
        log_bytes: int,
        images: Images | None,
    ) -> None:
        self._slurm = slurm
        self._settings = slurm.settings
        self._root = slurm.settings.shared
        self._looker = looker
        self._keeper = keeper
        self._clock = clock
        self._agent = agent
        self._unsafe_no_sandbox = unsafe_no_sandbox
        self._grace_seconds = grace_seconds
        self._launcher = Launcher(
            root=self._root,
            sandbox=sandbox,
            cgroups=None,  # the job is in Slurm's own
            gpus=(),  # which ones, only the node will know
            cores=None,
            log_bytes=log_bytes,
            images=images,
            tunnel=shared.tunnel_of(agent),
            parent={},
        )

    def create(self, workload: Workload, deadline: datetime) -> None:
        """Make a lease's folder.

        Raises:
            Refused: it may not run here.
            OSError: the shared folder is full or gone.
        """
        confined = workload.sandboxed and self._launcher.sandbox is not None
        if workload.sandboxed and not confined and not self._unsafe_no_sandbox:
            raise Refused(
                "there is no sandbox, so no tenant's command is run here; install bubblewrap on"
                " the login node, or set unsafe_no_sandbox to run it unprotected"
            )
        self._launcher.check_image(workload)
        record = Record(
            workload=replace(workload, files={}),
            kind=Kind.LEASE,
            confined=confined,
            name="",
            submitted_at=self._clock.now(),
            sequence=0,
        )
        here = self._root / str(workload.id)
        draft = here.with_name(f".new-{here.name}")
        if draft.exists():
            shutil.rmtree(draft)  # we died before it was whole
        records.create(here, record, workload.files, due(deadline))

    def submit(self, workload: Workload, layout: Layout, held: Held) -> None:
        """Hand a lease to Slurm, once.

        sbatch holds a lock for as long as it runs, and writes the job's number into the lease's
        folder by itself: whoever comes after us learns both without us. Should Slurm take a
        second one after all, its agent finds that the lease was launched, and does nothing.

        Raises:
            Refused: Slurm does not take it; its folder is gone.
            Changed: a reservation that we saw is gone; it is tried again.
            Unavailable: Slurm did not answer, and may have it nevertheless.
        """
        here = self._root / str(workload.id)
        record = records.read(here)
        orders = self._launcher.orders(here, record)
        orders["grace_seconds"] = self._grace_seconds
        # Nodes have Slurm's clock; what the agent reads and writes is on ours.
        orders["ahead_seconds"] = self._looker.ahead.total_seconds()
        write_durably(here / "launch.json", json.dumps(orders).encode())
        lock = shared.take_submit_lock(here)
        if lock is None:
            raise Unavailable("an earlier sbatch of this lease has not ended yet")
        held.submitted = time.monotonic()
        held.gpu_model, held.gpus = workload.gpu_model, workload.gpus
        held.window, held.window_known = workload.window, True
        options = self._options(workload, layout, here)
        output = os.open(here / "job", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            process = self._slurm.begin("sbatch", *options, keep=[lock], output=output)
            self._slurm.finish(process, "sbatch")
        except Refused as error:
            if "reservation" in str(error):
                raise Changed(f"Slurm's reservations changed meanwhile: {error}") from error
            shutil.rmtree(here)
            raise Refused(f"Slurm refused the lease's job: {error}") from error
        except Unavailable:
            # Slurm may have it nevertheless: the next look tells.
            held.submitted = 0.0
            raise
        finally:
            os.close(output)
            os.close(lock)
        # A look that began before the answer may not show the job.
        held.submitted = time.monotonic()
        held.key = shared.job_key(here)
        log.info("slurm.submitted", extra={"lease": workload.id, "job": held.key})

    def _options(self, workload: Workload, layout: Layout, here: Path) -> list[str]:
        now = self._clock.now()
        kept = self._keeper.standing(now)
        return submitting.options(
            workload,
            layout,
            settings=self._settings,
            here=here,
            agent=self._agent,
            reservations=windows.open_to(kept, window=workload.window, now=now),
            minutes=windows.minutes_of(
                kept, window=workload.window, mode=self._settings.windows, now=now
            ),
        )


def due(instant: datetime) -> Due:
    """An agent goes by the instant: seconds since this machine started are none of its node's."""
    return Due(instant=instant, steady_seconds=0.0)

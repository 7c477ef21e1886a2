"""Having agents look for their notice at once: a network file system may be slow to tell."""

import logging
import threading
import time
from typing import Final

from sublet.core.errors import Refused, Unavailable
from sublet.engine.slurm.commands import Slurm

log = logging.getLogger(__name__)

_GATHER_SECONDS: Final = 0.01
_AT_ONCE: Final = 100


class Poker:
    """Sends SIGUSR1 to agents, beside what the loop does.

    For all that are told to go in the same moment at once. Without it an agent looks by itself,
    ten times a second, so what fails here is noted and no more.
    """

    def __init__(self, slurm: Slurm) -> None:
        self._slurm = slurm
        self._lock = threading.Lock()
        self._jobs: set[str] = set()
        self._busy = False

    def poke(self, job: str) -> None:
        with self._lock:
            self._jobs.add(job)
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._run, name="slurm-poke", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_GATHER_SECONDS)
            with self._lock:
                jobs = sorted(self._jobs)[:_AT_ONCE]
                self._jobs.difference_update(jobs)
                if not jobs:
                    self._busy = False
                    return
            try:
                self._slurm.run("scancel", "--batch", "--signal=USR1", *jobs)
            except (Refused, Unavailable) as error:
                log.info("slurm.not_poked", extra={"jobs": len(jobs), "detail": str(error)})

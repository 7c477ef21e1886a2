"""Several gateway processes on the same ports: one Python process uses one processor.

    parent ──fork──► worker 0   `gateway-0`
              ├────► worker 1   `gateway-0.1`      each with its own name, spool and purses
              └────► …

The kernel spreads connections over the workers' sockets, which the parent opens and keeps: while
a worker that died is started again its connections wait. Nothing is shared between workers but
the database, as between gateways on several machines, and the numbers that they count (`board.py`).
"""

import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from sublet.core.errors import Misconfigured, SubletError
from sublet.core.process import die_with_parent

log: Final = logging.getLogger(__name__)

_BREATH_SECONDS: Final = 1.0  # before one that died at once is started again
_WRONG: Final = 2  # the exit code of what starting again does not mend


def name_of(gateway: str, worker: int) -> str:
    """Return the name of a gateway's worker; the first one has the gateway's own."""
    return gateway if worker == 0 else f"{gateway}.{worker}"


class Workers:
    """Starts them, starts again what dies, and stops them all. Before any thread is started."""

    def __init__(
        self,
        number: int,
        *,
        work: Callable[[int], None],
        let_go: Callable[[int | None], None],
        ended: Callable[[int], None],
    ) -> None:
        """Say what a worker does.

        Args:
            number: how many there are.
            work: what the worker of that number does, in a process of its own, until SIGTERM.
            let_go: closes what only the other workers need; None: what any of them needs.
            ended: notes that the worker of that number is no more.
        """
        self._number = number
        self._work = work
        self._let_go = let_go
        self._ended = ended
        self._running: dict[int, tuple[int, float]] = {}  # by pid: which, and since when
        self._stopping = False

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, and until the last worker has ended.

        Raises:
            Misconfigured: a worker could not be started for a reason that it has told.
        """
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, self._asked_to_stop)
        gc.collect()
        gc.freeze()  # so that what all of them have stays in memory once
        wrong = False
        for worker in range(self._number):
            self._start(worker)
        while self._running:
            pid, status = os.wait()
            if (found := self._running.pop(pid, None)) is None:
                continue
            worker, since = found
            self._ended(worker)
            code = os.waitstatus_to_exitcode(status)
            if self._stopping:
                continue
            if code == _WRONG:
                wrong = True
                self._asked_to_stop(signal.SIGTERM, None)
                continue
            log.error("gateway.worker_ended", extra={"worker": worker, "code": code})
            if time.monotonic() < since + _BREATH_SECONDS:
                time.sleep(_BREATH_SECONDS)
            if not self._stopping:
                self._start(worker)
        if wrong:
            raise Misconfigured("the gateway's workers could not be started")

    def _asked_to_stop(self, _: int, __: FrameType | None) -> None:
        self._stopping = True
        self._let_go(None)  # nobody may wait at a door behind which nobody is
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _start(self, worker: int) -> None:
        # Told to stop between the fork and its own handler it would not hear of it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            tie = die_with_parent(signal.SIGKILL)
            pid = os.fork()
            if pid == 0:
                self._be(worker, tie)
            self._running[pid] = worker, time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})

    def _be(self, worker: int, tie: Callable[[], None]) -> None:
        """Be that worker: never returns."""
        code = 1
        try:
            tie()
            for sign in (signal.SIGTERM, signal.SIGINT):
                signal.signal(sign, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
            self._let_go(worker)
            self._work(worker)
            code = 0
        except SubletError as error:
            print(f"sublet: {error}", file=sys.stderr, flush=True)  # noqa: T201 -- as a process does
            code = _WRONG if isinstance(error, Misconfigured) else 1
        except BaseException:
            log.exception("gateway.failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

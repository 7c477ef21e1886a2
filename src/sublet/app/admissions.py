"""Where calls that lease are answered: whoever comes while others are served is served with the next.

Nobody waits for company. A call that finds nobody selling sells at once, by itself; those that
come meanwhile wait for its commit, and are then decided together, in the order in which they came,
in one transaction with one commit. Each has an answer of its own, and a key of its own.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel

from sublet.app.idempotency import Document, Once, UnderWay, run_together
from sublet.core.clock import Clock
from sublet.core.db import Database, Tx
from sublet.core.errors import SubletError, Unavailable
from sublet.engine.port import InternalJob
from sublet.leases import admission
from sublet.leases.admission import Asked
from sublet.leases.lease import Lease

log = logging.getLogger(__name__)

MOST: Final = 100  # that are decided in one transaction

Show = Callable[[Tx, Sequence[Lease]], list[Document]]


@dataclass(slots=True, kw_only=True)
class _Call:
    once: Once
    body: BaseModel  # as it was sent
    asked: Asked
    served: bool = False
    outcome: Document | Exception | None = None  # None: it must be made by itself


class Admissions:
    """Sells leases for many threads at a time. Safe between threads, and between processes."""

    def __init__(
        self, db: Database, *, jobs: Callable[[], Sequence[InternalJob]], clock: Clock
    ) -> None:
        self._db = db
        self._jobs = jobs
        self._clock = clock
        self._waiting: deque[_Call] = deque()
        self._turn = threading.Lock()  # whose turn it is to sell, for all who wait

    def sell(self, once: Once, body: BaseModel, asked: Asked, *, show: Show) -> Document:
        """Lease what is asked for, once, and return how it looks.

        Raises:
            SubletError: as `admission.admit` and `Once.run`.
        """
        call = _Call(once=once, body=body, asked=asked)
        self._waiting.append(call)
        with self._turn:
            # Most often whoever had the turn before has served it, too.
            while not call.served and (calls := self._next()):
                self._serve(calls, show)
        if call.outcome is None:
            return once.run(body, lambda tx: self._one(tx, call, show))
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return call.outcome

    def _next(self) -> list[_Call]:
        """Return who is served next: in order, and no key twice."""
        calls: list[_Call] = []
        names: set[tuple[str, str]] = set()
        while self._waiting and len(calls) < MOST:
            once = self._waiting[0].once
            if once.key is not None:
                if (once.caller, once.key) in names:
                    break
                names.add((once.caller, once.key))
            calls.append(self._waiting.popleft())
        return calls

    def _serve(self, calls: Sequence[_Call], show: Show) -> None:
        outcomes: Sequence[Document | Exception | None]
        try:
            with self._db.transaction("admissions.sell") as tx:
                outcomes = run_together(
                    tx,
                    [(call.once, call.body) for call in calls],
                    lambda those: self._tried(tx, [calls[place] for place in those], show),
                )
        except Unavailable as error:
            outcomes = [error] * len(calls)
        except Exception as error:  # noqa: BLE001 -- raised by whom it belongs to
            # Of many, one is not as the others: nothing was sold, and each is made by itself.
            log.info("admissions.apart", extra={"calls": len(calls), "detail": str(error)})
            outcomes = [None] * len(calls) if len(calls) > 1 else [error]
        for call, outcome in zip(calls, outcomes, strict=True):
            call.outcome = None if isinstance(outcome, UnderWay) else outcome
            call.served = True

    def _tried(self, tx: Tx, calls: Sequence[_Call], show: Show) -> list[Document | SubletError]:
        """Return what each call makes, or why it does not."""
        asked = [call.asked for call in calls]
        outcomes = admission.admit_many(tx, asked, jobs=self._jobs(), now=self._clock.now())
        documents = iter(show(tx, [one for one in outcomes if isinstance(one, Lease)]))
        return [one if isinstance(one, SubletError) else next(documents) for one in outcomes]

    def _one(self, tx: Tx, call: _Call, show: Show) -> Document:
        (outcome,) = self._tried(tx, [call], show)
        if isinstance(outcome, SubletError):
            raise outcome
        return outcome

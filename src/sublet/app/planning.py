"""Planning beside the loop: a forecast may take seconds, which an internal job must not wait."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from sublet.core.errors import Unavailable
from sublet.fleet.demand import slot_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sublet.core.clock import Clock
    from sublet.planner.service import Planner

log = logging.getLogger(__name__)


class Planning:
    """Makes a plan of every pool at the start of each slot, one at a time, in a thread of its own.

    A plan that takes longer than a slot delays the next one; it is never made twice at once.
    """

    def __init__(
        self,
        make: Callable[[], Planner],
        *,
        clock: Clock,
        then: Callable[[datetime], None] = lambda _: None,
    ) -> None:
        """`then` is done after each plan, in the same thread."""
        self._make = make
        self._then = then
        self._clock = clock
        self._planner: Planner | None = None
        self._planned: datetime | None = None  # the slot of the newest plan that was begun
        self._thread: threading.Thread | None = None

    def tick(self) -> None:
        """Begin a plan if one is due. Returns at once."""
        slot = slot_of(self._clock.now())
        if slot == self._planned or (self._thread is not None and self._thread.is_alive()):
            return
        self._planned = slot
        self._thread = threading.Thread(target=self._plan, name="control-planner", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until no plan is being made."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _plan(self) -> None:
        def plan() -> None:
            if self._planner is None:
                self._planner = self._make()  # here, since its libraries are slow to load
            self._planner.plan(now=self._clock.now())

        for step in (plan, lambda: self._then(self._clock.now())):
            try:
                step()
            except Unavailable as error:
                log.warning("surplus.not_planned", extra={"detail": str(error)})
            except Exception:
                # A bug here must not end the control plane: the last plan stands and grows stale.
                log.exception("surplus.failed")

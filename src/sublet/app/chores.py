"""What is done beside the loop, each in a thread of its own: neither it nor a request waits."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from sublet.core.errors import SubletError

log = logging.getLogger(__name__)

_AFTER_TROUBLE_SECONDS: Final = 5.0


class Chore(threading.Thread):
    """Takes one step after the other until it is told to stop."""

    def __init__(
        self,
        name: str,
        step: Callable[[], object],
        *,
        every_seconds: float,
        when_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name=f"control-{name}", daemon=True)
        self._step = step
        self._every_seconds = every_seconds
        self._when_stopped = when_stopped
        self._stopped = threading.Event()

    def run(self) -> None:
        wait = self._every_seconds
        while not self._stopped.wait(wait):
            wait = self._every_seconds
            try:
                self._step()
            except SubletError as error:  # such as: somebody else leads
                wait = max(wait, _AFTER_TROUBLE_SECONDS)
                log.info("chore.waiting", extra={"chore": self.name, "detail": str(error)})
            except Exception:
                wait = max(wait, _AFTER_TROUBLE_SECONDS)
                log.exception("chore.failed", extra={"chore": self.name})

    def stop(self) -> None:
        self._when_stopped()
        self._stopped.set()

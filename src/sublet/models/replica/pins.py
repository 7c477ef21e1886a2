"""Which slot of the engine each request runs on."""

import asyncio
from collections import deque

from sublet.core.errors import Refused


class Pins:
    """Lends the engine's slots, first come first served.

    A request owns its slot until the engine shows it idle, so what a slot says about itself
    is always about one request. Of several free slots the one whose last prompt shares the
    longest beginning is lent: its cache then saves reading that part again.
    """

    def __init__(self, slots: int, *, max_waiting: int) -> None:
        self._free = list(range(slots))  # the one longest idle comes first
        self._last = [""] * slots  # the prompt that each slot read last
        self._waiting: deque[tuple[str, asyncio.Future[int]]] = deque()
        self._max_waiting = max_waiting

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def take(self, prompt: str) -> int:
        """Return the number of a slot, once one is free. Safe to cancel while it waits.

        Raises:
            Refused: too many wait already.
        """
        if self._free:
            return self._lend(prompt)
        if len(self._waiting) >= self._max_waiting:
            raise Refused("too many requests wait for a slot of this replica")
        lent: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((prompt, lent))
        try:
            return await lent
        except asyncio.CancelledError:
            if lent.cancelled():
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not lent)
            else:  # lent in the very turn of the loop in which the wait was cancelled
                self.give(lent.result())
            raise

    def give(self, slot: int) -> None:
        """Take back a slot that the engine shows idle."""
        self._free.append(slot)
        while self._waiting and self._free:
            prompt, lent = self._waiting.popleft()
            if not lent.cancelled():
                lent.set_result(self._lend(prompt))

    def _lend(self, prompt: str) -> int:
        slot = max(self._free, key=lambda slot: _shared(self._last[slot], prompt))
        self._free.remove(slot)
        self._last[slot] = prompt
        return slot


def _shared(one: str, other: str) -> int:
    """Return how many characters two prompts share from the start."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # by halves: prompts are long, and a loop over characters is not cheap
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low

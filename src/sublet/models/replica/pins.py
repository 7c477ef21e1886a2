"""Which slot of the engine each request runs on."""

import asyncio
from bisect import insort
from typing import Final, NamedTuple

from sublet.core.errors import Refused

# Of service tiers, best first; what is not named is the default.
RANKS: Final = {"priority": 0, "default": 1, "flex": 2, "batch": 3}


class _Waiter(NamedTuple):
    rank: int
    prompt: str
    lent: asyncio.Future[int]


class Pins:
    """Lends the engine's slots: a better tier first, and in each first come first served.

    A request owns its slot until the engine shows it idle, so what a slot says about itself
    is always about one request. Of several free slots the one whose last prompt shares the
    longest beginning is lent: its cache then saves reading that part again.
    """

    def __init__(self, slots: int, *, max_waiting: int) -> None:
        self._free = list(range(slots))  # the one longest idle comes first
        self._last = [""] * slots  # the prompt that each slot read last
        self._waiting: list[_Waiter] = []  # in the order in which they are served
        self._max_waiting = max_waiting

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def take(self, prompt: str, *, rank: int = 1) -> int:
        """Return the number of a slot, once one is free. Safe to cancel while it waits.

        Args:
            prompt: to find the slot that read most of it before.
            rank: of its tier; a lower one is served first.

        Raises:
            Refused: too many wait already; or it waited, and a better tier took its place.
        """
        if self._free:
            return self._lend(prompt)
        lent: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= self._max_waiting:
            if not self._waiting or self._waiting[-1].rank <= rank:
                raise Refused("too many requests wait for a slot of this replica")
            last = self._waiting.pop()
            if not last.lent.done():
                last.lent.set_exception(Refused("a request of a better tier took its place"))
        insort(self._waiting, _Waiter(rank, prompt, lent), key=lambda waiter: waiter.rank)
        try:
            return await lent
        except asyncio.CancelledError:
            if lent.cancelled():
                self._waiting = [waiter for waiter in self._waiting if waiter.lent is not lent]
            else:  # lent in the very turn of the loop in which the wait was cancelled
                self.give(lent.result())
            raise

    def give(self, slot: int) -> None:
        """Take back a slot that the engine shows idle."""
        self._free.append(slot)
        while self._waiting and self._free:
            waiter = self._waiting.pop(0)
            if not waiter.lent.done():
                waiter.lent.set_result(self._lend(waiter.prompt))

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

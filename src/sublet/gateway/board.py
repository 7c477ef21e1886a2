"""Numbers that several processes of one gateway keep side by side, so that any of them can add them up.

    slot 0: │ refusals │ gauges │ models: name, outcomes, tokens, histograms │ …
    slot 1: │ …

Memory that the parent maps before it forks. Each worker writes to its own slot and to no other, and
reads all. What a worker counted stays when it dies, and the one that takes its place counts on: so no
sum ever goes back, which Prometheus would take for a restart of everything. All numbers are doubles, as
Prometheus' own are; a word is written at once, so nobody reads half of one.
"""

import mmap
from collections.abc import Iterator, Sequence
from typing import Final

WORD: Final = 8
_NAME_WORDS: Final = 32  # of a series' name: its length, and as many bytes
LONGEST_NAME: Final = WORD * (_NAME_WORDS - 1)


class Board:
    """As many slots as there are processes.

    A slot has `single` numbers that all have, and up to `most` named series of `each` numbers.
    """

    def __init__(self, slots: int, *, single: int, each: int, most: int) -> None:
        self.slots = slots
        self._single = 1 + single  # the first one says how many series there are
        self._stride = _NAME_WORDS + each
        self._most = most
        self._words = self._single + most * self._stride
        # Pages that nobody touches take no memory.
        self._bytes = memoryview(mmap.mmap(-1, WORD * slots * self._words))
        self.numbers = self._bytes.cast("d")

    def single(self, slot: int) -> int:
        """Return where the slot's single numbers begin, in `numbers`."""
        return slot * self._words + 1

    def series(self, slot: int) -> Iterator[tuple[str, int]]:
        """Yield the name of each series of a slot, and where its numbers begin."""
        for number in range(int(self.numbers[slot * self._words])):
            at = self._at(slot, number)
            size = int(self.numbers[at])
            name = bytes(self._bytes[WORD * (at + 1) : WORD * (at + 1) + size])
            yield name.decode(), at + _NAME_WORDS

    def add(self, slot: int, name: str) -> int | None:
        """Return where the numbers of a new series begin; None: there is no place for it.

        Only who writes to this slot may add to it.
        """
        encoded = name.encode()
        count = int(self.numbers[slot * self._words])
        if count >= self._most or len(encoded) > LONGEST_NAME:
            return None
        at = self._at(slot, count)
        self._bytes[WORD * (at + 1) : WORD * (at + 1) + len(encoded)] = encoded
        self.numbers[at] = len(encoded)
        self.numbers[slot * self._words] = count + 1  # from now on it is seen
        return at + _NAME_WORDS

    def sums(self, places: Sequence[int], width: int) -> list[float]:
        """Add up the numbers that begin at each of these places."""
        numbers = self.numbers
        return [sum(numbers[place + index] for place in places) for index in range(width)]

    def _at(self, slot: int, number: int) -> int:
        return slot * self._words + self._single + number * self._stride

"""Reading what a stranger sent: a piece at a time, with bounds, and an error for each surprise."""

import struct
from dataclasses import dataclass
from typing import Final, Protocol

from sublet.core.errors import Invalid

_AHEAD_BYTES: Final = 1 << 20  # read in one go: most fields of a header are a few bytes


class Source(Protocol):
    """One file, wherever it lies."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`: fewer only where the file ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the headers of a model's weights say of it. Nothing of it was executed."""

    format: str  # "gguf", "safetensors"
    architecture: str  # as the format calls it: "gemma3", "LlamaForCausalLM"
    parameters: int
    weights_bytes: int
    context_tokens: int  # it was trained for so many
    layers: int
    cache_token_bytes: int  # of one token's keys and values in all layers, at 16 bits
    chat_template: bool  # does it bring one?


class Cursor:
    """Goes through a header from its start; nothing it reads lies past `limit`."""

    def __init__(self, source: Source, *, name: str, limit: int) -> None:
        self.name = name
        self.at = 0
        self.size = source.size
        self._source = source
        self._limit = limit
        self._held = b""
        self._held_at = 0

    def take(self, count: int, what: str) -> bytes:
        """Return the next `count` bytes.

        Raises:
            Invalid: the file ends before, or the header is longer than any may be.
        """
        self._pass(count, what)
        start = self.at - count - self._held_at
        if start < 0 or start + count > len(self._held):
            self._held_at = self.at - count
            self._held = self._source.read(self._held_at, max(count, _AHEAD_BYTES))
            start = 0
        piece = self._held[start : start + count]
        if len(piece) != count:
            raise Invalid(f"{self.name} is cut off: it ends within {what}")
        return piece

    def skip(self, count: int, what: str) -> None:
        """Go past what nobody needs. Raises Invalid: as `take`."""
        self._pass(count, what)

    def _pass(self, count: int, what: str) -> None:
        end = self.at + count
        if end > self.size:
            raise Invalid(
                f"{self.name} is cut off: it has {self.size} bytes and {what} ends at {end}"
            )
        if end > self._limit:
            raise Invalid(f"{self.name}: its header is longer than {self._limit >> 20} MiB")
        self.at = end

    def u32(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(struct.unpack("<Q", self.take(8, what))[0])

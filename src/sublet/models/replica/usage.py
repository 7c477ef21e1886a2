"""What each request used, kept by the caller's id so that it can be asked for afterwards."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from sublet.core.errors import Conflict, NotFound


class State(StrEnum):
    RUNNING = "running"  # waiting for a slot, or on one; the counts still grow
    DONE = "done"  # the engine finished the answer
    ABORTED = "aborted"  # it was stopped: hung up, reclaimed, refused by the engine, or crashed


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that the engine worked on. The three are disjoint, and add up."""

    input_tokens: int = 0  # read from the prompt
    cache_read_tokens: int = 0  # of the prompt, but found in the slot's cache
    output_tokens: int = 0  # generated, whether or not they reached the client

    def as_dict(self) -> dict[str, int]:
        return {
            "input_tokens": self.input_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "output_tokens": self.output_tokens,
        }

    def as_openai(self) -> dict[str, object]:
        """Return it in OpenAI's words, where cached tokens are part of the prompt's."""
        prompt = self.input_tokens + self.cache_read_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.output_tokens,
            "total_tokens": prompt + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cache_read_tokens},
        }


@dataclass(slots=True, kw_only=True)
class Record:
    """One request's count: live while it runs, final once `final` is set."""

    request_id: str
    usage: Usage = field(default_factory=Usage)
    state: State = State.RUNNING
    final: asyncio.Event = field(default_factory=asyncio.Event)
    told: bool = False  # did the caller get the final count, in its answer or by asking?

    def finish(self, state: State, usage: Usage) -> None:
        assert self.state is State.RUNNING, self
        assert state is not State.RUNNING
        self.state, self.usage = state, usage
        self.final.set()


class Book:
    """The records of the requests that run, and of the latest that ended."""

    def __init__(self, *, keep: int = 4096) -> None:
        self._keep = keep
        self._records: OrderedDict[str, Record] = OrderedDict()

    def open(self, request_id: str) -> Record:
        """Start the record of a new request.

        Raises:
            Conflict: the id was used before: one id, one count.
        """
        if request_id in self._records:
            raise Conflict(f"request id {request_id!r} was used before")
        record = self._records[request_id] = Record(request_id=request_id)
        self._forget()
        return record

    def get(self, request_id: str) -> Record:
        try:
            return self._records[request_id]
        except KeyError:
            raise NotFound(f"no request {request_id!r} is known here") from None

    def untold(self) -> bool:
        """Say whether the final count of some request never reached its caller."""
        return any(not record.told for record in self._records.values())

    def _forget(self) -> None:
        surplus = len(self._records) - self._keep
        if surplus <= 0:
            return
        old = [id_ for id_, record in self._records.items() if record.final.is_set()]
        for id_ in old[:surplus]:
            del self._records[id_]

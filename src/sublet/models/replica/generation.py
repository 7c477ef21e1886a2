"""One request on one slot of the engine, from its launch until the slot is idle again.

The count. While the engine runs, each of its chunks carries its own counters. When it ends by
itself, its last chunk has the final ones. When we stop it, it generates on for a moment: it
looks for hang-ups between two batches only, so some tokens are never sent to anybody. They
did cost GPU time, and they are counted from the slot itself. llama.cpp keeps a slot's tokens
in its cache after the request ended, so with the slot idle again

    tokens in the cache = prompt tokens + generated tokens - 1      once generating,
    tokens in the cache = prompt tokens read so far, cached or not  before,

because the token sampled last is never fed back. Whether it was generating is no question
either: llama.cpp samples the first token in the same step that reads the last of the prompt,
so the cache never rests at exactly the prompt's length with nothing generated.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import msgspec

from sublet.core.errors import SubletError, Unavailable
from sublet.models.replica.dialect import Job
from sublet.models.replica.llama import Chunk, Llama, Problem, decode_chunk
from sublet.models.replica.usage import Record, State, Usage

POLL_SECONDS: Final = 0.01
# A batch takes well under a second. Past this the engine hangs, and its slot is lost.
SETTLE_SECONDS: Final = 30.0


class Stop(StrEnum):
    """Why we ended a request that the engine had not."""

    HANG_UP = "hang_up"
    RECLAIMED = "reclaimed"


class Stuck(Unavailable):
    """The engine holds a slot that nobody uses; only a new engine helps."""


class Rejected(SubletError):
    """The engine would not take the request up; nothing was generated."""

    code = "rejected"

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.message)
        self.status, self.problem = status, problem


class Generation:
    """Runs one job, and leaves its exact usage in the record, however it ends."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.stopped: Stop | None = None
        self._waiting: asyncio.Task[int] | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._prompt_tokens = 0
        self._usage = Usage()
        self._finished = False

    def stop(self, why: Stop) -> None:
        """End the request, wherever it is; the first reason stands."""
        if self.stopped is not None:
            return
        self.stopped = why
        if self._waiting is not None:
            self._waiting.cancel()
        # Without the prompt's length, which comes first, there would be nothing to count by.
        if self._response is not None and self._prompt_tokens:
            self._response.close()  # the engine notices at its next write

    def stop_waiting(self, why: Stop) -> None:
        """End the request only if it has no slot yet."""
        if self._waiting is not None:
            self.stop(why)

    async def wait_for(self, slot: asyncio.Task[int]) -> int | None:
        """Return the slot that `slot` finds, or None if stopped before."""
        self._waiting = slot
        try:
            return await slot
        except asyncio.CancelledError:
            if self.stopped is None:
                raise
            return None
        finally:
            self._waiting = None

    async def chunks(
        self, llama: Llama, job: Job, slot: int, *, reuse: bool = True
    ) -> AsyncGenerator[Chunk]:
        """Yield what the engine says; end early when stopped. Close it (`aclosing`) always.

        `reuse` says that what the slot read before may stand for the beginning of this prompt.

        On return the slot is idle and the record is final.

        Raises:
            Rejected: the engine refused the request, such as a prompt that is too long.
            Unavailable: the engine failed; the record holds what it said last.
        Stuck: it failed so that it cannot be used again.
        """
        launched = False
        try:
            # It answers once the slot has taken the request up, so that to close before its
            # answer could miss the launch: wait for it even when already stopped.
            response = await llama.post(job.path, job.body | _switches(slot, reuse=reuse))
            async with response, aclosing(self._read(response)) as lines:
                if response.status != HTTPStatus.OK:
                    raise Rejected(response.status, _problem(await response.read()))
                launched = True
                async for chunk in lines:
                    yield chunk
        finally:
            try:
                if launched and not self._finished:
                    await self._settle(llama, slot)
            finally:
                state = State.DONE if self._finished else State.ABORTED
                self.record.finish(state, self._usage)

    async def _read(self, response: aiohttp.ClientResponse) -> AsyncGenerator[Chunk]:
        self._response = response
        try:
            while self.stopped is None or not self._prompt_tokens:
                line = await response.content.readline()
                if not line:
                    break
                chunk = decode_chunk(line)
                if chunk is None:
                    continue
                if chunk.error is not None:
                    raise Unavailable(f"the engine failed: {chunk.error.message}")
                self._note(chunk)
                yield chunk
        except aiohttp.ClientError as error:
            if self.stopped is None:
                raise Unavailable(f"the engine went away: {error}") from error
        finally:
            self._response = None
            if not self._finished:
                response.close()
        if self.stopped is None and not self._finished:
            raise Unavailable("the engine ended an answer without its count")

    def _note(self, chunk: Chunk) -> None:
        if chunk.prompt_progress is not None:
            self._prompt_tokens = chunk.prompt_progress.total
        if chunk.usage is not None:
            cached = chunk.usage.prompt_tokens_details.cached_tokens
            self._finished = True
            self._usage = Usage(
                input_tokens=chunk.usage.prompt_tokens - cached,
                cache_read_tokens=cached,
                output_tokens=chunk.usage.completion_tokens,
            )
        elif chunk.timings is not None:
            self._usage = Usage(
                input_tokens=chunk.timings.prompt_n,
                cache_read_tokens=chunk.timings.cache_n,
                output_tokens=chunk.timings.predicted_n,
            )
        self.record.usage = self._usage

    async def _settle(self, llama: Llama, slot: int) -> None:
        """Wait until the slot is idle, and take the final count from it.

        With the engine gone, what it said last is all that is known, and stands.
        """
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                # It is another process, which has no event to wait on.
                while (view := (await llama.slots())[slot]).is_processing:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise Stuck(f"slot {slot} of the engine does not come to rest") from error
        cached = self._usage.cache_read_tokens
        read = min(view.n_prompt_tokens, self._prompt_tokens)
        self._usage = Usage(
            input_tokens=max(0, read - cached),
            cache_read_tokens=cached,
            output_tokens=max(0, view.n_prompt_tokens - self._prompt_tokens + 1),
        )


def _switches(slot: int, *, reuse: bool) -> dict[str, Any]:
    return {
        "id_slot": slot,
        "cache_prompt": reuse,
        # Always streamed, for a caller who is not: a closed stream is what stops the engine.
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
        "return_progress": True,  # so that there are writes, and stops, while it reads a prompt
    }


def _problem(body: bytes) -> Problem:
    class Body(msgspec.Struct):
        error: Problem = Problem()

    try:
        return msgspec.json.decode(body, type=Body).error
    except msgspec.DecodeError:
        return Problem()

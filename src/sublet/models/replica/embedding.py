"""Embeddings: texts in, vectors out, each token of them counted before the engine reads it.

Texts become tokens first, so what is counted is what the engine is given. They are read a few at
a time, by a server of their own: when the client hangs up, or the replica is reclaimed, the
engine stops, and what was read by then is the count.
"""

import asyncio
import base64
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Literal

import aiohttp
import msgspec

from sublet.core.errors import Invalid, Unavailable
from sublet.models.replica.generation import Stop
from sublet.models.replica.llama import Llama
from sublet.models.replica.usage import Record, State, Usage

MOST_INPUTS: Final = 2048
_AT_ONCE: Final = 512  # tokens that are given to the engine together; one input at least


class TooLong(Invalid):
    """An input that the context does not hold."""

    code = "context_length_exceeded"


class Body(msgspec.Struct, kw_only=True):
    """Unknown fields are dropped, as in completions: they could reach the engine's switches."""

    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"

    def inputs(self) -> list[str | list[int]]:
        """Return one or many, each as its text or its tokens.

        Raises:
            Invalid: they are mixed, too many or empty.
        """
        given = [self.input] if isinstance(self.input, str) else self.input
        tokens = [one for one in given if isinstance(one, int)]
        inputs: list[str | list[int]] = [one for one in given if not isinstance(one, int)]
        if tokens and not inputs:
            return [tokens]
        if tokens or not 1 <= len(inputs) <= MOST_INPUTS or not all(inputs):
            raise Invalid(f"input must be 1 to {MOST_INPUTS} texts or lists of tokens, none empty")
        return inputs


class _Row(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float]


class _Rows(msgspec.Struct, frozen=True):
    data: list[_Row]


def read(raw: bytes) -> Body:
    """Read a body of /v1/embeddings.

    Raises:
        Invalid: it is none.
    """
    try:
        return msgspec.json.decode(raw, type=Body)
    except msgspec.DecodeError as error:
        raise Invalid(f"the body is no request for embeddings: {error}") from error


class Embedding:
    """One request, which leaves its exact usage in the record, however it ends."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.stopped: Stop | None = None
        self._work: asyncio.Task[list[list[float]]] | None = None
        self._began = False

    def stop(self, why: Stop) -> None:
        """End the request, wherever it is; the first reason stands."""
        if self.stopped is None:
            self.stopped = why
            if self._work is not None:
                self._work.cancel()

    def stop_waiting(self, why: Stop) -> None:
        """End the request only if the engine has not begun."""
        if not self._began:
            self.stop(why)

    async def run(self, embedder: "Embedder", inputs: Sequence[list[int]]) -> list[list[float]]:
        """Return a vector for each input; none when it was stopped.

        Raises:
            Unavailable: the engine failed; the record holds what it had read.
        """
        self._work = asyncio.create_task(self._embed(embedder, inputs))
        state = State.ABORTED
        try:
            if self.stopped is not None:
                self._work.cancel()
            vectors = await self._work
            state = State.DONE
            return vectors
        except asyncio.CancelledError:
            self._work.cancel()
            if self.stopped is None:
                raise
            return []
        finally:
            self.record.finish(state, self.record.usage)

    async def _embed(self, embedder: "Embedder", inputs: Sequence[list[int]]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for group in _groups(inputs):
            async with embedder.turn() as llama:
                self._began = True
                vectors += await embedder.embed(llama, group)
            read = self.record.usage.input_tokens + sum(map(len, group))
            self.record.usage = Usage(input_tokens=read)
        return vectors


class Embedder:
    """The engine's second server, which is started when it is first asked for."""

    def __init__(self, start: Callable[[], Awaitable[Llama]], context_tokens: int) -> None:
        self._start = start
        self._context_tokens = context_tokens
        self._starting: asyncio.Task[Llama] | None = None
        self._lock = asyncio.Lock()  # first come, first served; a group at a time

    def check(self, inputs: Sequence[list[int]]) -> None:
        """Raises TooLong: one of them is longer than the context."""
        for index, tokens in enumerate(inputs):
            if len(tokens) > self._context_tokens:
                raise TooLong(
                    f"input[{index}] has {len(tokens)} tokens and the model reads"
                    f" {self._context_tokens} at most"
                )

    def turn(self) -> "_Turn":
        return _Turn(self._lock, self._llama)

    async def _llama(self) -> Llama:
        if self._starting is None or (self._starting.done() and self._starting.exception()):
            self._starting = asyncio.ensure_future(self._start())
        return await asyncio.shield(self._starting)

    async def embed(self, llama: Llama, group: Sequence[list[int]]) -> list[list[float]]:
        """Return the vectors of a few inputs.

        Raises:
            Invalid: it does not know such tokens.
            Unavailable: the engine failed.
        """
        try:
            async with await llama.post("/v1/embeddings", {"input": list(group)}) as answer:
                raw = await answer.read()
                status = answer.status
        except aiohttp.ClientError as error:
            raise Unavailable(f"the engine went away: {error}") from error
        if status == 400:
            raise Invalid("the engine cannot read these inputs")
        if status != 200:
            raise Unavailable(f"the engine cannot embed: status {status}")
        try:
            rows = sorted(msgspec.json.decode(raw, type=_Rows).data, key=lambda row: row.index)
        except msgspec.DecodeError as error:
            raise Unavailable(f"the engine sent what are no embeddings: {error}") from error
        if [row.index for row in rows] != list(range(len(group))):
            raise Unavailable("the engine did not embed every input")
        return [row.embedding for row in rows]


class _Turn:
    """One's turn at the server of embeddings, started if need be."""

    def __init__(self, lock: asyncio.Lock, llama: Callable[[], Awaitable[Llama]]) -> None:
        self._lock = lock
        self._llama = llama

    async def __aenter__(self) -> Llama:
        await self._lock.acquire()
        try:
            return await self._llama()
        except BaseException:
            self._lock.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


def _groups(inputs: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    tokens = 0
    for one in inputs:
        if group and tokens + len(one) > _AT_ONCE:
            yield group
            group, tokens = [], 0
        group.append(one)
        tokens += len(one)
    yield group


def whole(
    vectors: Sequence[list[float]], usage: Usage, *, model: str, encoding: str
) -> dict[str, Any]:
    """Return the answer in OpenAI's words, with our count beside theirs."""
    tokens = usage.input_tokens
    return {
        "object": "list",
        "model": model,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector if encoding == "float" else _base64(vector),
            }
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "sublet": usage.as_dict(),
    }


def _base64(vector: list[float]) -> str:
    """Little-endian floats of 32 bits, as OpenAI's."""
    floats = array("f", vector)
    if array("H", [1]).tobytes() == b"\0\1":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()

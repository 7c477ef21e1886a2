"""What replicas answer, and how it is read: events, whole answers, and refusals.

Nothing of a replica's own words goes on to clients. A server that does not count as our replicas do
is understood, too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from sublet.gateway.ask import Ask, ToolDelta
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.tariff import Counts
from sublet.gateway.wire import Answer, Lost

_Count = Annotated[int, Meta(ge=0, le=2**53)]
_LONGEST_EVENT: Final = 1 << 20
_LONGEST_ANSWER: Final = 64 << 20
_FINISHED: Final = frozenset({"stop", "length", "content_filter", "tool_calls"})
_LONGEST_REST: Final = 60.0  # seconds that a busy replica may ask to be left alone


class Gone(Exception):
    """Nobody there takes requests, so nothing was started: another replica may be asked."""


class Broken(Exception):
    """It was asked, and will not end well. `counts` is what it said it had used, if it did."""

    def __init__(self, failure: Failure, *, counts: Counts | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.counts = counts


class Piece(NamedTuple):
    """Some text, with what the whole request had used when it was made."""

    text: str
    finish_reason: str | None
    counts: Counts | None
    calls: Sequence[ToolDelta] = ()
    logprobs: bytes | None = None  # JSON, of a chat


class _InputDetails(Struct):
    cached_tokens: _Count | None = None


class _OutputDetails(Struct):
    reasoning_tokens: _Count | None = None


class _TheirUsage(Struct):
    """What servers say that do not count as our replicas do: OpenAI's own form."""

    prompt_tokens: _Count
    completion_tokens: _Count = 0  # embeddings have none
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None

    def counts(self) -> Counts:
        details, made = self.prompt_tokens_details, self.completion_tokens_details
        read = 0 if details is None else min(details.cached_tokens or 0, self.prompt_tokens)
        thought = 0 if made is None else min(made.reasoning_tokens or 0, self.completion_tokens)
        return Counts(
            input_tokens=self.prompt_tokens - read,
            cache_read_tokens=read,
            output_tokens=self.completion_tokens - thought,
            reasoning_tokens=thought,
        )


class _Delta(Struct):
    content: str | None = None


class _Choice(Struct):
    delta: _Delta | None = None  # of a chat
    text: str | None = None  # of a completion
    finish_reason: str | None = None


class _Error(Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    sublet: Counts | None = None
    usage: _TheirUsage | None = None
    error: _Error | None = None


class _Refusal(Struct):
    error: _Error


class _Message(Struct):
    content: str | None = None


class _WholeChoice(Struct):
    message: _Message | None = None  # of a chat
    text: str | None = None  # of a completion
    finish_reason: str | None = None


class _Whole(Struct):
    choices: list[_WholeChoice]
    sublet: Counts | None = None
    usage: _TheirUsage | None = None


class _Vector(Struct):
    index: _Count
    embedding: list[float] | str  # base64, if that was asked for


class _Vectors(Struct):
    data: list[_Vector]
    sublet: Counts | None = None
    usage: _TheirUsage | None = None


# The same with all that a rich answer may have; apart, as most answers are not.


class _Function(Struct, frozen=True):
    name: str | None = None
    arguments: str = ""


class _Call(Struct):
    index: int = 0
    id: str | None = None
    function: _Function = _Function()

    def delta(self, index: int) -> ToolDelta:
        return ToolDelta(index, self.id, self.function.name, self.function.arguments)


class _RichDelta(Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _RichChoice(Struct):
    delta: _RichDelta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw()


class _RichChunk(Struct):
    choices: list[_RichChoice] = []
    sublet: Counts | None = None
    usage: _TheirUsage | None = None
    error: _Error | None = None


class _RichWholeChoice(Struct):
    message: _RichDelta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw()


class _RichWhole(Struct):
    choices: list[_RichWholeChoice]
    sublet: Counts | None = None
    usage: _TheirUsage | None = None


_RICH_CHUNK: Final = msgspec.json.Decoder(_RichChunk)
_RICH_WHOLE: Final = msgspec.json.Decoder(_RichWhole)
_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_VECTORS: Final = msgspec.json.Decoder(_Vectors)
_WHOLE: Final = msgspec.json.Decoder(_Whole)


async def read_events(
    answer: Answer, ask: Ask, take: Callable[[list[Piece]], Awaitable[None]]
) -> None:
    """Give what each read brought. Ends after [DONE]; every other end is `Broken`."""
    buffer, done = b"", False
    try:
        while read := await answer.read():
            *lines, buffer = (buffer + read).split(b"\n")
            pieces: list[Piece] = []
            broken: Broken | None = None
            for line in lines:
                if not line.startswith(b"data:") or done:
                    continue  # a comment, or the empty line between events
                data = line[5:].strip()
                if data == b"[DONE]":
                    done = True
                    continue
                try:
                    pieces.append(_piece(data, ask))
                except Broken as error:
                    broken = error
                    break
            if pieces:  # what came before an error goes on before it
                await take(pieces)
            if broken is not None:
                raise broken
            if len(buffer) > _LONGEST_EVENT:
                raise Broken(failed(ask))
            if done:
                return
    except Lost as error:
        raise Broken(failed(ask)) from error
    raise Broken(failed(ask))


async def read_whole(answer: Answer, ask: Ask) -> Piece:
    try:
        body = await answer.read_all(most=_LONGEST_ANSWER)
        if ask.rich:
            return _rich_whole(_RICH_WHOLE.decode(body), ask)
        whole = _WHOLE.decode(body)
    except (Lost, ValueError) as error:
        raise Broken(failed(ask)) from error
    if not whole.choices:
        raise Broken(failed(ask))
    choice = whole.choices[0]
    text = choice.text if choice.message is None else choice.message.content
    counts = _counts(whole.sublet, whole.usage)
    return Piece(text or "", _reason(choice.finish_reason), counts)


async def read_vectors(answer: Answer, ask: Ask) -> Piece:
    """Return the vectors of all inputs, in their order, as the JSON of a list of them."""
    try:
        read = _VECTORS.decode(await answer.read_all(most=_LONGEST_ANSWER))
    except (Lost, ValueError) as error:
        raise Broken(failed(ask)) from error
    vectors = sorted(read.data, key=lambda vector: vector.index)
    if [vector.index for vector in vectors] != list(range(ask.messages)):
        raise Broken(failed(ask))
    said = msgspec.json.encode([vector.embedding for vector in vectors]).decode()
    return Piece(said, "stop", _counts(read.sublet, read.usage))


def _piece(data: bytes, ask: Ask) -> Piece:
    chunk: _Chunk | _RichChunk
    try:
        chunk = _RICH_CHUNK.decode(data) if ask.rich else _CHUNK.decode(data)
    except ValueError as error:
        raise Broken(failed(ask)) from error
    counts = _counts(chunk.sublet, chunk.usage)
    if chunk.error is not None:
        raise Broken(_told(chunk.error, ask) or failed(ask), counts=counts)
    if not chunk.choices:
        return Piece("", None, counts)
    if isinstance(chunk, _RichChunk):
        return _rich_piece(chunk.choices[0], counts)
    choice = chunk.choices[0]
    text = choice.text if choice.delta is None else choice.delta.content
    return Piece(text or "", _reason(choice.finish_reason), counts)


def _rich_piece(choice: _RichChoice, counts: Counts | None) -> Piece:
    delta = choice.delta
    text = choice.text if delta is None else delta.content
    calls = () if delta is None else [call.delta(call.index) for call in delta.tool_calls or ()]
    return Piece(
        text or "", _reason(choice.finish_reason), counts, calls, _logprobs(choice.logprobs)
    )


def _rich_whole(whole: _RichWhole, ask: Ask) -> Piece:
    if not whole.choices:
        raise Broken(failed(ask))
    choice = whole.choices[0]
    message = choice.message
    text = choice.text if message is None else message.content
    made = [] if message is None else message.tool_calls or []
    calls = [call.delta(index) for index, call in enumerate(made)]
    counts = _counts(whole.sublet, whole.usage)
    return Piece(
        text or "", _reason(choice.finish_reason), counts, calls, _logprobs(choice.logprobs)
    )


def _logprobs(raw: msgspec.Raw) -> bytes | None:
    return None if bytes(raw) in (b"", b"null") else bytes(raw)


def _counts(ours: Counts | None, theirs: _TheirUsage | None) -> Counts | None:
    """Return the count of our own replicas, which is the finer one, or that of any other server."""
    if ours is not None or theirs is None:
        return ours
    return theirs.counts()


def _reason(reason: str | None) -> str | None:
    return "stop" if reason is not None and reason not in _FINISHED else reason


async def read_refusal(answer: Answer, ask: Ask) -> Gone | Broken:
    try:
        async with asyncio.timeout(5):
            body = await answer.read_all(most=_LONGEST_EVENT)
    except (Lost, TimeoutError):
        body = b""
    return refused(answer.status, body, ask, after_seconds=answer.retry_after())


def refused(
    status: int, answer: bytes, ask: Ask, *, after_seconds: float | None = None
) -> Gone | Broken:
    """Translate an answer that is not 200. Only what is about the request is repeated."""
    try:
        error = msgspec.json.decode(answer, type=_Refusal).error
    except ValueError:
        error = _Error()
    if (told := _told(error, ask)) is not None:
        return Broken(told)
    if status == 503 and error.type == "unavailable":
        return Gone("it is loading or draining")
    if status == 400:
        kind = Kind.TOO_LONG if error.code == "context_length_exceeded" else Kind.INVALID
        return Broken(Failure(kind, error.message[:500] or "the model cannot take this request"))
    if status in (429, 503) and error.type != "engine_failed":
        busy = f"model {ask.model!r} has as many requests as it can take"
        rest = None if after_seconds is None else min(after_seconds, _LONGEST_REST)
        return Broken(Failure(Kind.MODEL_BUSY, busy, after_seconds=rest))
    return Broken(failed(ask))


def _told(error: _Error, ask: Ask) -> Failure | None:
    return reclaimed(ask) if error.type == "model_reclaimed" else None


def reclaimed(ask: Ask) -> Failure:
    return Failure(
        Kind.RECLAIMED,
        f"internal jobs took the GPUs of model {ask.model!r}; it returns when GPUs are idle",
    )


def failed(ask: Ask) -> Failure:
    return Failure(Kind.MODEL_FAILED, f"model {ask.model!r} broke off; retry")

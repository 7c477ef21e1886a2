"""The client of a replica: counting a prompt, generating, and what it used in the end.

    POST /count               {"messages" | "prompt"}  →  {"input_tokens"}
    POST /v1/chat/completions, /v1/completions         →  server-sent events, or one body
    GET  /usage/{request id}?wait_ms=                  →  the counts, once they are final

A streamed answer counts its tokens as they come, so whatever happens we know how far it got; a
whole one has its count in it, and when it is broken off the replica is asked. Nothing of a
replica's own words, address or secret goes on to clients.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from sublet.gateway.ask import Api, Ask, ToolDelta
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.routing import Routing
from sublet.gateway.tariff import Counts
from sublet.gateway.wire import Answer, Lost, Wire
from sublet.models.deployment import Replica

_Count = Annotated[int, Meta(ge=0, le=2**53)]
_PATHS: Final = {Api.CHAT: "/v1/chat/completions", Api.COMPLETION: "/v1/completions"}
_LONGEST_EVENT: Final = 1 << 20
_LONGEST_ANSWER: Final = 64 << 20
# Of the connection. Whether tokens come in time is looked at by `flow`.
_SILENCE_SECONDS: Final = 600.0
_INCLUDE_USAGE: Final = {"include_usage": True}
_MOST_DOORS: Final = 10_000
_HEALTH_SECONDS: Final = 2.0
_COUNT_SECONDS: Final = 15.0
_USAGE_WAIT_MS: Final = 2000

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


class _Usage(Counts, frozen=True, kw_only=True):
    state: str | None = None


class _InputDetails(Struct):
    cached_tokens: _Count | None = None


class _OutputDetails(Struct):
    reasoning_tokens: _Count | None = None


class _TheirUsage(Struct):
    """What servers say that do not count as our replicas do: OpenAI's own form."""

    prompt_tokens: _Count
    completion_tokens: _Count
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


class _Prompt(Struct):
    input_tokens: Annotated[int, Meta(ge=0, le=2**53)]


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
_WHOLE: Final = msgspec.json.Decoder(_Whole)


class Replicas:
    """All of them, by one pool of connections."""

    def __init__(self) -> None:
        self._wire = Wire()
        self.routing = Routing()
        self._doors = dict[UUID, _Door]()

    def close(self) -> None:
        self._wire.close()

    def pick(
        self, ready: Sequence[Replica], ask: Ask, *, tried: Sequence[Replica] = ()
    ) -> Replica | None:
        """As `Routing.pick`."""
        if len(ready) == 1 and not tried:
            return ready[0]  # and nobody asks for the time
        now = asyncio.get_running_loop().time()
        return self.routing.pick(ready, ask, tried=tried, now=now)

    async def probe(self, ready: Sequence[Replica]) -> None:
        """Ask who failed whether it is well again."""
        self.routing.forget({replica.id for replica in ready})
        for replica in self.routing.sick(ready):
            try:
                status, _ = await self._exchange(replica, "GET", "/health", b"", _HEALTH_SECONDS)
            except Gone:
                status = 503
            if status < 500:
                self.routing.answered(replica)
            else:
                self.routing.failed(replica, now=asyncio.get_running_loop().time())

    async def count(self, replica: Replica, ask: Ask) -> int:
        """Return how many tokens the prompt has for this model, its template included.

        Raises:
            Gone: nobody listens there.
            Broken: it could not say.
        """
        field = "messages" if ask.api is Api.CHAT else "prompt"
        asked = {"model": ask.model, field: ask.payload[field]}
        for name in ("tools", "tool_choice"):  # which the template writes into the prompt
            if name in ask.payload:
                asked[name] = ask.payload[name]
        return await self._count(replica, ask, asked)

    async def tokenise(self, replica: Replica, ask: Ask, text: str) -> int:
        """Return how many tokens a text is to this model, as an answer: nothing is added to it.

        Raises:
            Gone: nobody listens there.
            Broken: it could not say.
        """
        asked = {"model": ask.model, "prompt": text, "add_special": False}
        return await self._count(replica, ask, asked)

    async def _count(self, replica: Replica, ask: Ask, asked: dict[str, object]) -> int:
        body = msgspec.json.encode(asked)
        status, answer = await self._exchange(replica, "POST", "/count", body, _COUNT_SECONDS)
        if status != 200:
            raise _refused(status, answer, ask)
        try:
            return msgspec.json.decode(answer, type=_Prompt).input_tokens
        except msgspec.DecodeError as error:
            raise Broken(_failed(ask)) from error

    async def generate(
        self,
        replica: Replica,
        ask: Ask,
        *,
        max_tokens: int | None,
        request_id: str,
        take: Callable[[list[Piece]], Awaitable[None]],
    ) -> None:
        """Generate, and give what came to `take`, as it comes. Cancelling it stops the engine.

        Raises:
            Gone: nobody listens there, so it was not asked.
            Broken: it refused, or broke off before it was done; it may have been at work.
        """
        asked = ask.payload | {"model": ask.model, "stream": ask.stream}
        if ask.stream:
            asked["stream_options"] = _INCLUDE_USAGE
        if max_tokens is not None:
            asked["max_tokens"] = max_tokens
        door = self._door(replica)
        request = door.request(
            "POST", _PATHS[ask.api], msgspec.json.encode(asked), request_id=request_id,
            tier=ask.service_tier,
        )  # fmt: skip
        routing = self.routing
        routing.begin(replica)
        try:
            try:
                answer = await self._wire.send(
                    door.address, request, silence_seconds=_SILENCE_SECONDS, repeatable=False
                )
            except Lost as error:
                routing.failed(replica, now=asyncio.get_running_loop().time())
                if error.unsent:
                    raise Gone(str(error)) from error
                raise Broken(_failed(ask)) from error
            said_all = False
            try:
                if answer.status != 200:
                    refusal = await _read_refusal(answer, ask)
                    self._note(replica, refusal)
                    raise refusal
                routing.answered(replica)
                if ask.stream:
                    await _read_events(answer, ask, take)
                else:
                    await take([await _read_whole(answer, ask)])
                said_all = True
            finally:
                # Read to its end, the connection is kept. Closing it is what stops the engine.
                answer.close(said_all=said_all)
        finally:
            routing.end(replica)

    def _note(self, replica: Replica, refusal: "Gone | Broken") -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(refusal, Gone) or refusal.failure.kind is Kind.MODEL_FAILED:
            self.routing.failed(replica, now=now)
        elif refusal.failure.kind is Kind.MODEL_BUSY:
            self.routing.failed(replica, now=now, seconds=refusal.failure.after_seconds)

    async def usage(self, replica: Replica, request_id: str) -> Counts | None:
        """Return what a request used in the end; None when the replica never had it.

        Raises:
            Gone: nobody is there to say.
        """
        path = f"/usage/{request_id}?wait_ms={_USAGE_WAIT_MS}"
        for _ in range(5):
            status, answer = await self._exchange(
                replica, "GET", path, b"", _USAGE_WAIT_MS / 1000 + 3
            )
            if status == 404:
                return None
            if status == 200:
                try:
                    read = msgspec.json.decode(answer, type=_Usage)
                except msgspec.DecodeError as error:
                    raise Gone("it answers with nonsense") from error
                if read.state != "running":
                    return read
            else:
                await asyncio.sleep(0.2)
        raise Gone("it does not say")

    async def _exchange(
        self, replica: Replica, method: str, path: str, body: bytes, seconds: float
    ) -> tuple[int, bytes]:
        """Return (status, body) of a small answer.

        Raises:
            Gone: nobody listens there.
        """
        door = self._door(replica)
        request = door.request(method, path, body)
        try:
            async with asyncio.timeout(seconds):
                answer = await self._wire.send(door.address, request, silence_seconds=seconds)
                try:
                    return answer.status, await answer.read_all(most=_LONGEST_EVENT)
                finally:
                    answer.close()
        except (Lost, TimeoutError) as error:
            raise Gone(type(error).__name__) from error

    def _door(self, replica: Replica) -> "_Door":
        door = self._doors.get(replica.id)
        if door is None or door.url != replica.url:
            if len(self._doors) > _MOST_DOORS:
                self._doors.clear()
            door = self._doors[replica.id] = _Door(replica)
        return door


class _Door:
    """Where a replica listens, and what every request to it begins with."""

    __slots__ = ("_head", "address", "url")

    def __init__(self, replica: Replica) -> None:
        parts = urlsplit(replica.url)
        assert parts.scheme == "http", replica.url
        assert parts.hostname, replica.url
        self.url = replica.url
        self.address = parts.hostname, parts.port or 80
        self._head = (
            f" HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {replica.secret}\r\n"
            "content-type: application/json\r\naccept-encoding: identity\r\ncontent-length: "
        )

    def request(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        request_id: str = "",
        tier: str | None = None,
    ) -> bytes:
        named = f"\r\nx-request-id: {request_id}" if request_id else ""
        if tier is not None and tier != "default":
            named += f"\r\nx-sublet-tier: {tier}"
        return f"{method} {path}{self._head}{len(body)}{named}\r\n\r\n".encode() + body


async def _read_events(
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
                raise Broken(_failed(ask))
            if done:
                return
    except Lost as error:
        raise Broken(_failed(ask)) from error
    raise Broken(_failed(ask))


async def _read_whole(answer: Answer, ask: Ask) -> Piece:
    try:
        body = await answer.read_all(most=_LONGEST_ANSWER)
        if ask.rich:
            return _rich_whole(_RICH_WHOLE.decode(body), ask)
        whole = _WHOLE.decode(body)
    except (Lost, ValueError) as error:
        raise Broken(_failed(ask)) from error
    if not whole.choices:
        raise Broken(_failed(ask))
    choice = whole.choices[0]
    text = choice.text if choice.message is None else choice.message.content
    counts = _counts(whole.sublet, whole.usage)
    return Piece(text or "", _reason(choice.finish_reason), counts)


def _piece(data: bytes, ask: Ask) -> Piece:
    chunk: _Chunk | _RichChunk
    try:
        chunk = _RICH_CHUNK.decode(data) if ask.rich else _CHUNK.decode(data)
    except ValueError as error:
        raise Broken(_failed(ask)) from error
    counts = _counts(chunk.sublet, chunk.usage)
    if chunk.error is not None:
        raise Broken(_told(chunk.error, ask) or _failed(ask), counts=counts)
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
        raise Broken(_failed(ask))
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


async def _read_refusal(answer: Answer, ask: Ask) -> Gone | Broken:
    try:
        async with asyncio.timeout(5):
            body = await answer.read_all(most=_LONGEST_EVENT)
    except (Lost, TimeoutError):
        body = b""
    return _refused(answer.status, body, ask, after_seconds=answer.retry_after())


def _refused(
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
    return Broken(_failed(ask))


def _told(error: _Error, ask: Ask) -> Failure | None:
    return reclaimed(ask) if error.type == "model_reclaimed" else None


def reclaimed(ask: Ask) -> Failure:
    return Failure(
        Kind.RECLAIMED,
        f"internal jobs took the GPUs of model {ask.model!r}; it returns when GPUs are idle",
    )


def _failed(ask: Ask) -> Failure:
    return Failure(Kind.MODEL_FAILED, f"model {ask.model!r} broke off; retry")

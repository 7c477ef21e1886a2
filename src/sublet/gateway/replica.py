"""The client of a replica: counting a prompt, generating, and what it used in the end.

    POST /count               {"messages" | "prompt"}  →  {"input_tokens"}
    POST /v1/chat/completions, /v1/completions         →  server-sent events
    GET  /usage/{request id}?wait_ms=                  →  the counts, once they are final

Answers are always streamed to us, also for clients that want one body: so tokens are counted
as they come, and whatever happens we know how far it got. Nothing of a replica's own words,
address or secret goes on to clients.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Final, Self
from uuid import UUID

import aiohttp
import msgspec
from msgspec import Meta, Struct

from sublet.gateway.failures import Failure, Kind
from sublet.gateway.request import Api, Ask
from sublet.gateway.tariff import Counts
from sublet.models.deployment import Replica

_PATHS: Final = {Api.CHAT: "/v1/chat/completions", Api.COMPLETION: "/v1/completions"}
_LONGEST_EVENT: Final = 1 << 20
_SILENCE_SECONDS: Final = 300.0  # a queue before the first token may be long
_COUNT_SECONDS: Final = 15.0
_USAGE_WAIT_MS: Final = 2000

_Count = Annotated[int, Meta(ge=0, le=2**53)]
_FINISHED: Final = frozenset({"stop", "length", "content_filter"})


class Gone(Exception):
    """Nobody there takes requests, so nothing was started: another replica may be asked."""


class Broken(Exception):
    """It was asked, and will not end well. `counts` is what it said it had used, if it did."""

    def __init__(self, failure: Failure, *, counts: Counts | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.counts = counts


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text, with what the whole request had used when it was made."""

    text: str
    finish_reason: str | None
    counts: Counts | None


class _Counts(Struct):
    input_tokens: _Count
    cache_read_tokens: _Count
    output_tokens: _Count
    cache_write_tokens: _Count = 0
    reasoning_tokens: _Count = 0

    def value(self) -> Counts:
        return Counts(
            input_tokens=self.input_tokens,
            cache_read_tokens=self.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens,
            output_tokens=self.output_tokens,
            reasoning_tokens=self.reasoning_tokens,
        )


class _Usage(_Counts):
    state: str | None = None


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
    sublet: _Counts | None = None
    error: _Error | None = None


class _Refusal(Struct):
    error: _Error


class _Prompt(Struct):
    input_tokens: _Count


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class Replicas:
    """One pool of connections to all of them."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._load = Counter[UUID]()  # requests of ours, by replica

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=_SILENCE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=1 << 16,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    def pick(self, ready: Sequence[Replica], *, tried: Sequence[Replica] = ()) -> Replica | None:
        """Return the one with the fewest requests of ours that was not tried; None if none is."""
        ids = {replica.id for replica in tried}
        left = [replica for replica in ready if replica.id not in ids]
        return min(left, key=lambda replica: self._load[replica.id], default=None)

    async def count(self, replica: Replica, ask: Ask) -> int:
        """Return how many tokens the prompt has for this model, its template included.

        Raises:
            Gone: nobody listens there.
            Broken: it could not say.
        """
        field = "messages" if ask.api is Api.CHAT else "prompt"
        body = msgspec.json.encode({"model": ask.model, field: ask.payload[field]})
        try:
            async with (
                asyncio.timeout(_COUNT_SECONDS),
                self._client.post(
                    replica.url + "/count", data=body, headers=_headers(replica)
                ) as response,
            ):
                answer = await response.read()
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            raise Gone(type(error).__name__) from error
        if response.status != 200:
            raise _refused(response.status, answer, ask)
        try:
            return msgspec.json.decode(answer, type=_Prompt).input_tokens
        except msgspec.DecodeError as error:
            raise Broken(_failed(ask)) from error

    @asynccontextmanager
    async def generate(
        self, replica: Replica, ask: Ask, *, max_tokens: int | None, request_id: str
    ) -> AsyncIterator[AsyncIterator[list[Piece]]]:
        """Start generating; yields what came, as it comes. Leaving early stops the engine.

        Raises:
            Gone: nobody listens there.
            Broken: it refused, now; or, of the iterator, it broke off before a finish reason.
        """
        asked = ask.payload | {
            "model": ask.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if max_tokens is not None:
            asked["max_tokens"] = max_tokens
        body = msgspec.json.encode(asked)
        headers = _headers(replica) | {"x-request-id": request_id}
        self._load[replica.id] += 1
        try:
            try:
                response = await self._client.post(
                    replica.url + _PATHS[ask.api], data=body, headers=headers
                )
            except (aiohttp.ClientError, OSError) as error:
                raise Gone(type(error).__name__) from error
            try:
                if response.status != 200:
                    raise await _read_refusal(response, ask)
                async with aclosing(_pieces(response, ask)) as pieces:
                    yield pieces
            finally:
                # Not release(): a connection that is closed is what stops the engine.
                response.close()
        finally:
            self._load[replica.id] -= 1
            if not self._load[replica.id]:
                del self._load[replica.id]

    async def usage(self, replica: Replica, request_id: str) -> Counts | None:
        """Return what a request used in the end; None when the replica never had it.

        Raises:
            Gone: nobody is there to say.
        """
        url = f"{replica.url}/usage/{request_id}?wait_ms={_USAGE_WAIT_MS}"
        for _ in range(5):
            try:
                async with (
                    asyncio.timeout(_USAGE_WAIT_MS / 1000 + 3),
                    self._client.get(url, headers=_headers(replica)) as response,
                ):
                    answer = await response.read()
            except (aiohttp.ClientError, OSError) as error:
                raise Gone(type(error).__name__) from error
            if response.status == 404:
                return None
            if response.status == 200:
                try:
                    read = msgspec.json.decode(answer, type=_Usage)
                except msgspec.DecodeError as error:
                    raise Gone("it answers with nonsense") from error
                if read.state != "running":
                    return read.value()
            else:
                await asyncio.sleep(0.2)
        raise Gone("it does not say")

    @property
    def _client(self) -> aiohttp.ClientSession:
        assert self._session is not None, "used outside `async with`"
        return self._session


def _headers(replica: Replica) -> dict[str, str]:
    return {
        "authorization": f"Bearer {replica.secret}",
        "content-type": "application/json",
        "accept-encoding": "identity",
    }


async def _pieces(response: aiohttp.ClientResponse, ask: Ask) -> AsyncGenerator[list[Piece]]:
    """Yield what each read brought. Ends after [DONE]; every other end is `Broken`."""
    buffer = b""
    try:
        async for read in response.content.iter_any():
            *lines, buffer = (buffer + read).split(b"\n")
            pieces: list[Piece] = []
            for line in lines:
                if not line.startswith(b"data:"):
                    continue  # a comment, or the empty line between events
                data = line[5:].strip()
                if data == b"[DONE]":
                    if pieces:
                        yield pieces
                    return
                try:
                    pieces.append(_piece(data, ask))
                except Broken:
                    if pieces:  # came before it, so goes on before it
                        yield pieces
                    raise
            if pieces:
                yield pieces
            if len(buffer) > _LONGEST_EVENT:
                raise Broken(_failed(ask))
    except (aiohttp.ClientError, OSError) as error:
        raise Broken(_failed(ask)) from error
    raise Broken(_failed(ask))


def _piece(data: bytes, ask: Ask) -> Piece:
    try:
        chunk = _CHUNK.decode(data)
    except ValueError as error:
        raise Broken(_failed(ask)) from error
    counts = None if chunk.sublet is None else chunk.sublet.value()
    if chunk.error is not None:
        raise Broken(_told(chunk.error, ask) or _failed(ask), counts=counts)
    if not chunk.choices:
        return Piece("", None, counts)
    choice = chunk.choices[0]
    text = choice.text if choice.delta is None else choice.delta.content
    reason = choice.finish_reason
    if reason is not None and reason not in _FINISHED:
        reason = "stop"
    return Piece(text or "", reason, counts)


async def _read_refusal(response: aiohttp.ClientResponse, ask: Ask) -> Gone | Broken:
    try:
        async with asyncio.timeout(5):
            answer = await response.content.read(1 << 16)
    except (aiohttp.ClientError, OSError):
        answer = b""
    return _refused(response.status, answer, ask)


def _refused(status: int, answer: bytes, ask: Ask) -> Gone | Broken:
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
        return Broken(Failure(Kind.MODEL_BUSY, busy))
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

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
from typing import Annotated, Final
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from sublet.gateway.answers import (
    Broken,
    Gone,
    Piece,
    failed,
    read_events,
    read_refusal,
    read_vectors,
    read_whole,
    refused,
)
from sublet.gateway.ask import Api, Ask
from sublet.gateway.failures import Kind
from sublet.gateway.routing import IDLE_TIERS, Routing
from sublet.gateway.tariff import Counts
from sublet.gateway.wire import Lost, Wire
from sublet.models.deployment import Replica

_PATHS: Final = {
    Api.CHAT: "/v1/chat/completions",
    Api.COMPLETION: "/v1/completions",
    Api.EMBEDDING: "/v1/embeddings",
}
_PROMPTS: Final = {Api.CHAT: "messages", Api.COMPLETION: "prompt", Api.EMBEDDING: "input"}
_LONGEST_EVENT: Final = 1 << 20
# Of the connection. Whether tokens come in time is looked at by `flow`.
_SILENCE_SECONDS: Final = 600.0
_INCLUDE_USAGE: Final = {"include_usage": True}
_MOST_DOORS: Final = 10_000
_HEALTH_SECONDS: Final = 2.0
_COUNT_SECONDS: Final = 15.0
_USAGE_WAIT_MS: Final = 2000


class _Usage(Counts, frozen=True, kw_only=True):
    state: str | None = None


class _Prompt(Struct):
    input_tokens: Annotated[int, Meta(ge=0, le=2**53)]


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
        if len(ready) == 1 and not tried and ask.service_tier not in IDLE_TIERS:
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
        field = _PROMPTS[ask.api]
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

    async def reconcile(
        self, replica: Replica, ask: Ask, prompt_tokens: int | None, text: str
    ) -> Counts | None:
        """Count an answer that its replica did not, by the model's own tokenizer.

        Args:
            replica: who answered.
            ask: what was asked.
            prompt_tokens: of it, if they are known.
            text: what was answered.

        Returns:
            None: it cannot say.
        """
        try:
            prompt = await self.count(replica, ask) if prompt_tokens is None else prompt_tokens
            output = await self.tokenise(replica, ask, text) if text else 0
        except (Gone, Broken):
            return None
        return Counts(input_tokens=prompt, cache_read_tokens=0, output_tokens=output)

    async def _count(self, replica: Replica, ask: Ask, asked: dict[str, object]) -> int:
        body = msgspec.json.encode(asked)
        status, answer = await self._exchange(replica, "POST", "/count", body, _COUNT_SECONDS)
        if status != 200:
            raise refused(status, answer, ask)
        try:
            return msgspec.json.decode(answer, type=_Prompt).input_tokens
        except msgspec.DecodeError as error:
            raise Broken(failed(ask)) from error

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
        asked = ask.payload | {"model": ask.model}
        if ask.generates:
            asked["stream"] = ask.stream
            if ask.stream:
                asked["stream_options"] = _INCLUDE_USAGE
            if max_tokens is not None:
                asked["max_tokens"] = max_tokens
        door = self._door(replica)
        request = door.request(
            "POST", _PATHS[ask.api], msgspec.json.encode(asked), request_id=request_id,
            tier=ask.service_tier, adapter=ask.adapter,
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
                raise Broken(failed(ask)) from error
            said_all = False
            try:
                if answer.status != 200:
                    refusal = await read_refusal(answer, ask)
                    self._note(replica, refusal)
                    raise refusal
                routing.answered(replica)
                if ask.stream:
                    await read_events(answer, ask, take)
                else:
                    read = read_whole if ask.generates else read_vectors
                    await take([await read(answer, ask)])
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

    async def final(self, replica: Replica, request_id: str) -> Counts | None:
        """Return what a request used that was hung up; None: nobody can say."""
        try:
            final = await self.usage(replica, request_id)
            if final is None:
                # Perhaps our request is still on its way in: look once more.
                await asyncio.sleep(0.3)
                final = await self.usage(replica, request_id)
        except Gone:
            return None
        return final

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
        adapter: UUID | None = None,
    ) -> bytes:
        named = f"\r\nx-request-id: {request_id}" if request_id else ""
        if tier is not None and tier != "default":
            named += f"\r\nx-sublet-tier: {tier}"
        if adapter is not None:
            named += f"\r\nx-sublet-adapter: {adapter}"
        return f"{method} {path}{self._head}{len(body)}{named}\r\n\r\n".encode() + body

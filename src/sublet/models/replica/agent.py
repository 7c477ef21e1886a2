"""The agent: the HTTP face of a replica, in front of the engine.

    LOADING ──► SERVING ──► DRAINING ──► (the process ends)
       └────────────────────────▲

It pins requests to slots, stops the engine when a client hangs up, and knows every count.
"""

import asyncio
import hmac
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final

import msgspec

from sublet.core.clock import Clock
from sublet.core.errors import (
    Conflict,
    Invalid,
    NotFound,
    Refused,
    SubletError,
    Unauthorized,
    Unavailable,
)
from sublet.models.replica import embedding
from sublet.models.replica.asgi import Gone, Message, Receive, Request, Response, Send
from sublet.models.replica.dialect import (
    Job,
    Reply,
    error_body,
    error_event,
    read_object,
    read_prompt,
    translate,
)
from sublet.models.replica.embedding import Embedder, Embedding
from sublet.models.replica.generation import Generation, Rejected, Stop, Stuck
from sublet.models.replica.llama import Counted, Llama, Tokens
from sublet.models.replica.pins import RANKS, Pins
from sublet.models.replica.recipe import Recipe
from sublet.models.replica.served import Closed, Served
from sublet.models.replica.usage import Book, State, Usage

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 16 * 2**20
MAX_WAIT_MS: Final = 30_000
# A comment while a long prompt is read, so that nobody on the way takes silence for death.
COMMENT_SECONDS: Final = 1.0
# How long a drained replica stays to be asked for the counts of requests that hung up.
LINGER_SECONDS: Final = 2.0
# How long the streams that were cut may take to hear so.
CUT_SECONDS: Final = 0.5

RECLAIMED: Final = "model_reclaimed"
_RECLAIMED_WORDS: Final = "the capacity under this model was reclaimed; send the request again"

# By class: the status, and OpenAI's type of error. Looked up along the class's bases.
STATUSES: Final[Mapping[type[SubletError], tuple[int, str]]] = {
    Unauthorized: (401, "authentication_error"),
    Invalid: (400, "invalid_request_error"),
    NotFound: (404, "invalid_request_error"),
    Conflict: (409, "invalid_request_error"),
    Refused: (503, "overloaded"),
    Unavailable: (503, "engine_failed"),
}


class Phase(StrEnum):
    LOADING = "loading"
    SERVING = "ok"
    DRAINING = "draining"


class Agent:
    """An ASGI application.

    `leave` is called when the process may end, `fail` when it must, for a new engine; `look` when
    there may be other adapters.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        key: str,
        clock: Clock,
        leave: Callable[[], None],
        fail: Callable[[], None],
        max_waiting: int,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._recipe = recipe
        self._key = key.encode()
        self._clock = clock
        self._leave = leave
        self._fail = fail
        self._look_for_adapters = look
        self._served: Served | None = None
        # Of each slot, the adapter that read what is in its cache: llama.cpp would take that for
        # the beginning of another one's prompt.
        self._read_by: list[str | None] = [None] * recipe.slots
        self._embedder: Embedder | None = None
        self._phase = Phase.LOADING
        self._book = Book()
        self._pins = Pins(recipe.slots, max_waiting=max_waiting)
        self._running: set[Generation | Embedding] = set()
        self._lingering_until: float | None = None

    # The life of the process

    def serve(self, served: Served, embedder: Embedder) -> None:
        """Take requests: the engine has loaded."""
        self._served = served
        if "embeddings" in self._recipe.features:
            self._embedder = embedder
        if self._phase is Phase.LOADING:
            self._phase = Phase.SERVING

    def replace(self, served: Served) -> Served:
        """Send what comes next to another server, and return the one before."""
        before, self._served = self._served, served
        assert before is not None
        if not before.uses:
            before.idle.set()
        return before

    async def let_go(self) -> None:
        """Close what leads to the engine."""
        if self._served is not None:
            await self._served.llama.close()

    def drain(self, *, seconds: float) -> None:
        """Take no more requests, and stop those that still run after `seconds`.

        It may be called again, with a nearer end.
        """
        self._phase = Phase.DRAINING
        log.info("replica.draining", extra={"seconds": seconds, "running": len(self._running)})
        for generation in self._running:
            generation.stop_waiting(Stop.RECLAIMED)
        asyncio.get_running_loop().call_later(max(0.0, seconds), self._reclaim)
        self._leave_if_idle()

    def _reclaim(self) -> None:
        self._lingering_until = 0.0
        for generation in self._running:
            generation.stop(Stop.RECLAIMED)
        # A client that does not read must not keep the process beyond its end.
        asyncio.get_running_loop().call_later(CUT_SECONDS, self._leave)
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self._phase is not Phase.DRAINING or self._running:
            return
        # Whoever hung up did not get its count in band: give it a moment to ask for it.
        loop = asyncio.get_running_loop()
        if self._book.untold():
            if self._lingering_until is None:
                self._lingering_until = loop.time() + LINGER_SECONDS
                loop.call_later(LINGER_SECONDS, self._leave_if_idle)
            if loop.time() < self._lingering_until:
                return
        self._leave()

    # HTTP

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        request, response = Request(scope, receive), Response(send)
        try:
            self._authenticate(request)
            await self._route(request)(request, response)
        except Gone:
            return
        except Rejected as error:
            await self._reject(response, error)
        except Closed as error:
            body = error_body(str(error), kind="unavailable", code=self._phase)
            await response.whole(503, body)
        except SubletError as error:
            status, kind = next(STATUSES[base] for base in type(error).mro() if base in STATUSES)
            await response.whole(status, error_body(str(error), kind=kind, code=error.code))

    def _authenticate(self, request: Request) -> None:
        shown = (request.header("authorization") or "").encode()
        if not hmac.compare_digest(shown, b"Bearer " + self._key):
            raise Unauthorized("this replica wants its bearer key")

    def _route(self, request: Request) -> Callable[[Request, Response], Awaitable[None]]:
        match request.method, request.path:
            case "GET", "/health":
                return self._health
            case "GET", "/slots" | "/metrics":
                return self._look
            case "PUT", "/adapters":
                return self._adapters
            case "GET", path if path.startswith("/usage/"):
                return self._usage
            case "POST", "/count":
                return self._count
            case "POST", "/v1/chat/completions" | "/v1/completions":
                return self._complete
            case "POST", "/v1/embeddings":
                return self._embed
            case _:
                raise NotFound(f"no such call: {request.method} {request.path}")

    async def _reject(self, response: Response, error: Rejected) -> None:
        code = None
        if error.problem.type == "exceed_context_size_error":
            code = "context_length_exceeded"
        status = min(500, error.status)
        kind = "invalid_request_error" if error.status < 500 else "engine_failed"
        await response.whole(status, error_body(str(error), kind=kind, code=code))

    async def _health(self, _: Request, response: Response) -> None:
        serving = self._phase is Phase.SERVING
        value: dict[str, Any] = {"status": self._phase.value, "model": self._recipe.name}
        if self._served is not None:
            value |= {
                "context_tokens": self._recipe.context_tokens,
                "slots": self._recipe.slots,
                "default_max_tokens": self._recipe.sampling.max_tokens,
                "running": len(self._running) - self._pins.waiting,
                "waiting": self._pins.waiting,
            }
        await response.whole(200 if serving else 503, value)

    async def _adapters(self, _: Request, response: Response) -> None:
        """Say which adapters there are, and look whether there should be others."""
        adapters = [] if self._served is None else sorted(self._served.adapters)
        self._look_for_adapters()
        await response.whole(200, {"adapters": adapters})

    async def _look(self, request: Request, response: Response) -> None:
        kind = "application/json" if request.path == "/slots" else "text/plain; version=0.0.4"
        await response.whole(200, await self._engine().get(request.path), kind=kind)

    async def _usage(self, request: Request, response: Response) -> None:
        record = self._book.get(request.path.removeprefix("/usage/"))
        try:
            wait_ms = min(int(request.query("wait_ms") or 0), MAX_WAIT_MS)
        except ValueError:
            raise Invalid("wait_ms must be a whole number") from None
        try:
            async with asyncio.timeout(max(0, wait_ms) / 1000):
                await record.final.wait()
        except TimeoutError:
            pass  # then the answer says that it still runs
        await response.whole(200, {"state": record.state.value, **record.usage.as_dict()})
        if record.final.is_set():
            record.told = True
            self._leave_if_idle()

    async def _count(self, request: Request, response: Response) -> None:
        raw = await request.body(limit_bytes=MAX_BODY_BYTES)
        body = read_object(raw)
        if "input" in body:
            inputs = await self._tokenise(embedding.read(raw))
            await response.whole(200, {"input_tokens": sum(map(len, inputs))})
            return
        chat = "messages" in body
        prompt = read_prompt(body, chat=chat)
        special = body.get("add_special") is not False  # of an answer, none are added
        tokens = await self._tokens(prompt, chat=chat, special=special)
        await response.whole(200, {"input_tokens": tokens})

    async def _tokens(self, prompt: dict[str, Any], *, chat: bool, special: bool) -> int:
        if chat:
            path, body = "/v1/chat/completions/input_tokens", prompt
        elif isinstance(prompt["prompt"], list):
            return len(prompt["prompt"])
        else:
            return len(await self._read_tokens(prompt["prompt"], special=special))
        async with await self._engine().post(path, body) as answer:
            raw = await answer.read()
            if answer.status != 200:
                raise Invalid("the engine cannot read this prompt")
        return msgspec.json.decode(raw, type=Counted).input_tokens

    async def _read_tokens(self, text: str, *, special: bool) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": special}
        async with await self._engine().post("/tokenize", body) as answer:
            raw = await answer.read()
            if answer.status != 200:
                raise Invalid("the engine cannot read this prompt")
        return msgspec.json.decode(raw, type=Tokens).tokens

    async def _tokenise(self, body: embedding.Body) -> list[list[int]]:
        return [
            one if isinstance(one, list) else await self._read_tokens(one, special=True)
            for one in body.inputs()
        ]

    def _engine(self) -> Llama:
        return self._server().llama

    def _server(self) -> Served:
        if self._served is None:
            raise Closed("the model is still loading")
        return self._served

    # Embeddings

    async def _embed(self, request: Request, response: Response) -> None:
        raw = await request.body(limit_bytes=MAX_BODY_BYTES)
        self._engine()
        embedder = self._embedder
        if embedder is None:
            raise NotFound(f"{self._recipe.name} has no embeddings")
        if self._phase is Phase.DRAINING:
            raise Closed("this replica is draining")
        body = embedding.read(raw)
        inputs = await self._tokenise(body)
        embedder.check(inputs)
        record = self._book.open(request.header("x-request-id") or uuid.uuid4().hex)
        response.headers["x-request-id"] = record.request_id
        run = Embedding(record)
        with self._watched(request, run):
            try:
                vectors = await run.run(embedder, inputs)
            except Unavailable as error:
                log.warning("replica.engine_failed", extra={"error": str(error)})
                await _fail(response, str(error), kind="engine_failed", usage=record.usage)
                return
            if run.stopped is Stop.RECLAIMED:
                await _fail(response, _RECLAIMED_WORDS, kind=RECLAIMED, usage=record.usage)
            elif run.stopped is None:
                answer = embedding.whole(
                    vectors, record.usage, model=self._recipe.name, encoding=body.encoding_format
                )
                await response.whole(200, answer)

    @contextmanager
    def _watched(self, request: Request, run: Generation | Embedding) -> Iterator[None]:
        """Stop `run` when its client hangs up, and note how it ended."""
        record = run.record
        self._running.add(run)
        watch = asyncio.create_task(_watch(request, run))
        try:
            yield
        finally:
            watch.cancel()
            self._running.discard(run)
            if not record.final.is_set():
                record.finish(State.ABORTED, record.usage)
            # A count that went out in band need not be asked for; one that hung up must be.
            record.told = record.told or run.stopped is not Stop.HANG_UP
            log.info(
                "replica.finished",
                extra={
                    "request": record.request_id,
                    "state": record.state,
                    "stopped": run.stopped,
                    **record.usage.as_dict(),
                },
            )
            self._leave_if_idle()

    # Completions

    async def _complete(self, request: Request, response: Response) -> None:
        raw = await request.body(limit_bytes=MAX_BODY_BYTES)
        adapter = request.header("x-sublet-adapter")
        self._server().lora(adapter)
        if self._phase is Phase.DRAINING:
            raise Closed("this replica is draining")
        job = translate(raw, self._recipe, chat=request.path == "/v1/chat/completions")
        record = self._book.open(request.header("x-request-id") or uuid.uuid4().hex)
        response.headers["x-request-id"] = record.request_id

        generation = Generation(record)
        with self._watched(request, generation):
            rank = RANKS.get(request.header("x-sublet-tier") or "default", RANKS["default"])
            await self._run(job, generation, response, rank=rank, adapter=adapter)

    async def _run(
        self,
        job: Job,
        generation: Generation,
        response: Response,
        *,
        rank: int,
        adapter: str | None,
    ) -> None:
        likeness = f"{adapter or ''} {job.prompt}"
        slot = await generation.wait_for(asyncio.create_task(self._pins.take(likeness, rank=rank)))
        if slot is None:
            # Told nothing if it hung up, and it has used nothing.
            if generation.stopped is Stop.RECLAIMED:
                raise Closed("this replica is draining")
            return
        reply = Reply(
            id=f"{'chatcmpl' if job.chat else 'cmpl'}-{generation.record.request_id}",
            job=job,
            model=self._recipe.name,
            created=int(self._clock.now().timestamp()),
            trim=self._recipe.trim,
        )
        try:
            await self._forward(job, slot, generation, reply, response, adapter=adapter)
        except Unavailable as error:
            log.warning("replica.engine_failed", extra={"slot": slot, "error": str(error)})
            if isinstance(error, Stuck):
                self._fail()
            await _fail(response, str(error), kind="engine_failed", usage=generation.record.usage)
            return
        finally:
            self._pins.give(slot)
        await _conclude(generation, reply, response)

    async def _forward(
        self,
        job: Job,
        slot: int,
        generation: Generation,
        reply: Reply,
        response: Response,
        *,
        adapter: str | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        spoke_at = loop.time()
        served = self._server()
        job = replace(job, body=job.body | served.lora(adapter))
        reuse = self._read_by[slot] == adapter
        self._read_by[slot] = adapter
        run = generation.chunks(served.llama, job, slot, reuse=reuse)
        async with self._used(served), aclosing(run) as chunks:
            async for chunk in chunks:
                choice = reply.choice(chunk)
                if not job.stream:
                    continue
                if choice is not None:
                    await response.stream(reply.event(choice, generation.record.usage))
                    spoke_at = loop.time()
                elif loop.time() - spoke_at >= COMMENT_SECONDS:
                    await response.stream(b": reading the prompt\n\n")
                    spoke_at = loop.time()

    @asynccontextmanager
    async def _used(self, served: Served) -> AsyncIterator[None]:
        served.uses += 1
        try:
            yield
        finally:
            served.uses -= 1
            if served is not self._served and not served.uses:
                served.idle.set()


async def _watch(request: Request, run: Generation | Embedding) -> None:
    await request.hung_up()
    run.stop(Stop.HANG_UP)


async def _conclude(generation: Generation, reply: Reply, response: Response) -> None:
    """Tell the final count in band, unless nobody is left to tell."""
    record = generation.record
    if generation.stopped is Stop.HANG_UP:
        return
    if record.state is not State.DONE:
        await _fail(response, _RECLAIMED_WORDS, kind=RECLAIMED, usage=record.usage)
    elif reply.job.stream:
        await response.stream(reply.last_events(record.usage), last=True)
    else:
        await response.whole(200, reply.whole(record.usage))


async def _fail(response: Response, message: str, *, kind: str, usage: Usage) -> None:
    if response.began:
        await response.stream(error_event(message, kind=kind, usage=usage), last=True)
    else:
        await response.whole(503, error_body(message, kind=kind, code=kind, usage=usage))

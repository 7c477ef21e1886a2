"""A replica without a model: it says and does what a script tells it, and counts exactly.

It keeps the contract of `sublet.models.replica` (see its README), so that the gateway can be
tested against every way in which a replica can misbehave.

    python -m tests.fakes.replica --port 0 --script '{"tokens": 5, "delay_ms": 20}'

prints one line, `{"port": ...}`, once it listens. A request chooses another script by
`#script:{"tokens": 5, "cut_after": 3}` anywhere in its prompt, messages or `user`: what is
given there replaces the same keys of the default. In a test's own event loop:

    async with FakeReplica(Script(tokens=5)).serve() as url: ...

and in a thread beside a synchronous one: `with FakeReplica().in_thread() as url: ...`.
"""

import argparse
import asyncio
import hmac
import json
import logging
import os
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn

from sublet.core.errors import Conflict, Invalid, NotFound
from sublet.models.replica import embedding
from sublet.models.replica.asgi import Gone, Message, Receive, Request, Response, Send
from sublet.models.replica.dialect import error_body, read_object
from sublet.models.replica.usage import Book, Record, State, Usage

MARK: Final = "#script:"
MODEL: Final = "fake"
CONTEXT_TOKENS: Final = 4096
SLOTS: Final = 4
DRAIN_SECONDS: Final = 7.0


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request gets. An `_after` counts the tokens that are sent before it happens."""

    tokens: int = 5  # fewer if max_tokens says so
    text: str = "tok "  # of each token
    finish_reason: str = "stop"
    first_ms: int = 0  # before the first token, after the prompt is counted
    delay_ms: int = 0  # before each further token
    cache_read_tokens: int = 0
    input_tokens: int | None = None  # None: one a word

    status: int | None = None  # refuse at once with this status
    retry_after: int | None = None  # seconds, a header of that refusal
    hang: bool = False  # take the request up, and never say a word

    cut_after: int | None = None  # close the connection, in the middle of the stream
    garbage_after: int | None = None  # send an event that is no JSON, and go on
    reclaim_after: int | None = None  # end in band, as a draining replica does
    calls: list[dict[str, str]] = []  # of tools: name and arguments; instead of text, a token each
    logprobs: bool = False  # with each token of a chat
    no_usage: bool = False  # a server that counts nothing: no `usage`, no `sublet`


class FakeReplica:
    """An ASGI application. Its book says what it generated, for each request id."""

    def __init__(self, script: Script = Script(), *, key: str = "fake-key") -> None:  # noqa: B008 - frozen
        self.script = script
        self.key = key
        self.phase = "ok"  # "loading" and "draining" refuse, as they do in the real one
        self.book = Book()
        self.tokenises = True  # does it count the tokens of an answer?
        self.bodies: list[dict[str, Any]] = []  # every completion's body, in order of arrival
        self.reclaimed = asyncio.Event()  # ends all streams in band
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        request, response = Request(scope, receive), Response(send)
        shown = request.header("authorization") or ""
        if not hmac.compare_digest(shown, f"Bearer {self.key}"):
            await _refuse(response, 401, "this replica wants its bearer key")
            return
        try:
            await self._answer(request, response)
        except Gone:
            return
        except (Invalid, NotFound, Conflict) as error:
            status = {Invalid: 400, NotFound: 404, Conflict: 409}[type(error)]
            await _refuse(response, status, str(error))

    async def _answer(self, request: Request, response: Response) -> None:
        match request.method, request.path:
            case "GET", "/health":
                size = {"context_tokens": CONTEXT_TOKENS, "slots": SLOTS}
                value = {"status": self.phase, "model": MODEL, **size}
                await response.whole(200 if self.phase == "ok" else 503, value)
            case "GET", path if path.startswith("/usage/"):
                record = self.book.get(path.removeprefix("/usage/"))
                with suppress(TimeoutError):
                    async with asyncio.timeout(int(request.query("wait_ms") or 0) / 1000):
                        await record.final.wait()
                state = {"state": record.state.value}
                await response.whole(200, {**state, **record.usage.as_dict()})
            case "POST", "/count":
                body = read_object(await request.body(limit_bytes=2**24))
                if body.get("add_special") is False and not self.tokenises:
                    raise NotFound("it counts prompts only")
                await response.whole(200, {"input_tokens": _words(body)})
            case "POST", "/v1/chat/completions" | "/v1/completions":
                await self._complete(request, response)
            case "POST", "/v1/embeddings":
                await self._embed(request, response)
            case _:
                raise NotFound(f"no such call: {request.method} {request.path}")

    async def _embed(self, request: Request, response: Response) -> None:
        """Answer with each input's length, and 1; what hangs is read to its first input."""
        raw = await request.body(limit_bytes=2**24)
        body = read_object(raw)
        self.bodies.append(body)
        inputs = embedding.read(raw).inputs()
        sizes = [len(one.split() if isinstance(one, str) else one) for one in inputs]
        script = self._script_of(body)
        record = self.book.open(request.header("x-request-id") or uuid.uuid4().hex)
        if script.hang:
            record.usage = Usage(input_tokens=sizes[0])
            await request.hung_up()
            record.finish(State.ABORTED, record.usage)
            raise Gone
        record.finish(State.DONE, Usage(input_tokens=sum(sizes)))
        vectors = [[float(size), 1.0] for size in sizes]
        encoding = str(body.get("encoding_format", "float"))
        answer = embedding.whole(vectors, record.usage, model=MODEL, encoding=encoding)
        if script.no_usage:
            del answer["usage"], answer["sublet"]
        if script.cut_after is not None:
            del answer["data"][script.cut_after :]
        await response.whole(200, answer)

    async def _complete(self, request: Request, response: Response) -> None:
        body = read_object(await request.body(limit_bytes=2**24))
        self.bodies.append(body)
        script = self._script_of(body)
        if self.phase != "ok":
            await _refuse(response, 503, f"this replica is {self.phase}")
            return
        if script.status is not None:
            if script.retry_after is not None:
                response.headers["retry-after"] = str(script.retry_after)
            await _refuse(response, script.status, "scripted")
            return
        counted = _words(body) if script.input_tokens is None else script.input_tokens
        if counted > CONTEXT_TOKENS:
            raise Invalid("the prompt is longer than the context")

        record = self.book.open(request.header("x-request-id") or uuid.uuid4().hex)
        response.headers["x-request-id"] = record.request_id
        cached = min(script.cache_read_tokens, counted)
        record.usage = Usage(input_tokens=counted - cached, cache_read_tokens=cached)
        chat = request.path == "/v1/chat/completions"
        work = asyncio.create_task(_Play(script, body, record, response, chat=chat).run(self))
        gone = asyncio.create_task(request.hung_up())
        self.running += 1
        self.idle.clear()
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()
            for task in (work, gone):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            if not record.final.is_set():
                record.finish(State.ABORTED, record.usage)

    def _script_of(self, body: dict[str, Any]) -> Script:
        for text in (body.get("user"), *_texts(body)):
            if isinstance(text, str) and MARK in text:
                start = text.index(MARK) + len(MARK)
                chosen, _ = json.JSONDecoder().raw_decode(text, start)
                merged = msgspec.to_builtins(self.script) | chosen
                return msgspec.convert(merged, Script)
        return self.script

    @asynccontextmanager
    async def serve(self, *, port: int = 0) -> AsyncIterator[str]:
        """Listen on this machine; yield the URL."""
        config = uvicorn.Config(
            self,
            port=port,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        # A cut is told as "returned without completing"; here it is meant.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server = _Server(config)
        serving = asyncio.create_task(server.serve())
        try:
            while not server.started:
                if serving.done():
                    await serving
                await asyncio.sleep(0.01)
            host, bound = server.servers[0].sockets[0].getsockname()[:2]
            yield f"http://{host}:{bound}"
        finally:
            self.reclaimed.set()
            server.should_exit = True
            with suppress(asyncio.CancelledError):
                await serving

    @contextmanager
    def in_thread(self) -> Iterator[str]:
        """Listen in an event loop of its own, for tests that have none."""
        started: threading.Event = threading.Event()
        urls: list[str] = []
        hooks: list[Any] = []

        async def serve() -> None:
            stop = asyncio.Event()
            hooks.append((asyncio.get_running_loop(), stop))
            async with self.serve() as url:
                urls.append(url)
                started.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        assert started.wait(60)
        try:
            yield urls[0]
        finally:
            loop, stop = hooks[0]
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Play:
    """One answer, token by token. A token counts once its delay is over: it is generated."""

    def __init__(
        self,
        script: Script,
        body: dict[str, Any],
        record: Record,
        response: Response,
        *,
        chat: bool,
    ) -> None:
        self._script = script
        self._record = record
        self._response = response
        self._chat = chat
        self._stream = bool(body.get("stream"))
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or script.tokens
        self._tokens = min(script.tokens, limit)
        self._finish = script.finish_reason if script.tokens <= limit else "length"

    async def run(self, fake: FakeReplica) -> None:
        script = self._script
        if script.hang:
            await asyncio.Event().wait()
        if script.calls:
            await self._call()
            return
        for sent in range(self._tokens + 1):
            if sent == script.cut_after:
                if not self._response.began:
                    await self._response.stream(b"")
                return
            if sent == script.garbage_after:
                await self._response.stream(b"data: {this is no JSON\n\n")
            if fake.reclaimed.is_set() or sent == script.reclaim_after:
                await self._reclaim()
                return
            if sent < self._tokens:
                await self._token(first=sent == 0, fake=fake)
        await self._end()

    async def _token(self, *, first: bool, fake: FakeReplica) -> None:
        delay_ms = self._script.first_ms if first else self._script.delay_ms
        if delay_ms:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_ms / 1000):
                    await fake.reclaimed.wait()
                return
        usage = self._record.usage
        self._record.usage = replace(usage, output_tokens=usage.output_tokens + 1)
        if self._stream:
            await self._response.stream(self._event(self._choice(self._script.text, None, first)))

    async def _call(self) -> None:
        """Call tools; the arguments come in two parts, as they do from engines."""
        self._finish = "tool_calls"
        for index, call in enumerate(self._script.calls):
            usage = self._record.usage
            self._record.usage = replace(usage, output_tokens=usage.output_tokens + 1)
            if not self._stream:
                continue
            named = {"id": f"call_{index}x", "type": "function"}
            arguments = call["arguments"]
            for more, part in (
                (named | {"function": {"name": call["name"], "arguments": ""}}, ""),
                ({}, arguments[:4]),
                ({}, arguments[4:]),
            ):
                delta = {"index": index, "function": {"arguments": part}} | more
                choice = {"index": 0, "finish_reason": None, "delta": {"tool_calls": [delta]}}
                await self._response.stream(self._event(choice))
        await self._end()

    def _choice(self, text: str, finish_reason: str | None, first: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        if self._script.logprobs and text:
            choice["logprobs"] = self._logprobs(1)
        if self._chat:
            role = {"role": "assistant"} if first else {}
            return choice | {"delta": role | ({"content": text} if text else {})}
        return choice | {"text": text}

    def _logprobs(self, tokens: int) -> dict[str, Any]:
        one = {"token": self._script.text, "logprob": -0.5, "bytes": None, "top_logprobs": []}
        return {"content": [one] * tokens, "refusal": None}

    def _event(self, *choices: dict[str, Any], **more: object) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return b"data: " + json.dumps(self._head(kind, list(choices)) | more).encode() + b"\n\n"

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._record.request_id, "object": kind, "created": 0, "model": MODEL}
        head |= {"choices": choices}
        return head if self._script.no_usage else head | {"sublet": self._record.usage.as_dict()}

    async def _end(self) -> None:
        usage = self._record.usage
        totals = {} if self._script.no_usage else {"usage": usage.as_openai()}
        self._record.finish(State.DONE, usage)
        if self._stream:
            last = self._event(self._choice("", self._finish, first=False))
            if totals:
                last += self._event(**totals)
            await self._response.stream(last + b"data: [DONE]\n\n", last=True)
            return
        text = self._script.text * usage.output_tokens
        choice = self._choice("", self._finish, first=False)
        if self._chat:
            del choice["delta"]
            choice["message"] = {"role": "assistant", "content": text}
            if self._script.logprobs:
                choice["logprobs"] = self._logprobs(usage.output_tokens)
            if self._script.calls:
                choice["message"] = {
                    "role": "assistant", "content": None,
                    "tool_calls": [
                        {"id": f"call_{index}x", "type": "function", "function": call}
                        for index, call in enumerate(self._script.calls)
                    ],
                }  # fmt: skip
        else:
            choice["text"] = text
        kind = "chat.completion" if self._chat else "text_completion"
        await self._response.whole(200, self._head(kind, [choice]) | totals)

    async def _reclaim(self) -> None:
        self._record.finish(State.ABORTED, self._record.usage)
        code = "model_reclaimed"
        body = error_body("reclaimed", kind=code, code=code, usage=self._record.usage)
        if self._response.began:
            event = b"data: " + json.dumps(body).encode() + b"\n\n"
            await self._response.stream(event, last=True)
        else:
            await self._response.whole(503, body)


def _texts(body: dict[str, Any]) -> Iterator[str]:
    if isinstance(body.get("prompt"), str):
        yield body["prompt"]
    given = body.get("input", [])
    yield from (
        one for one in ([given] if isinstance(given, str) else given) if isinstance(one, str)
    )
    for message in body.get("messages") or []:
        content = message.get("content")
        parts = [{"text": content}] if isinstance(content, str) else content or []
        yield from (part["text"] for part in parts if isinstance(part.get("text"), str))


def _words(body: dict[str, Any]) -> int:
    if isinstance(body.get("prompt"), list):
        return len(body["prompt"])
    if "input" in body:
        inputs = embedding.read(json.dumps(body).encode()).inputs()
        return sum(len(one.split() if isinstance(one, str) else one) for one in inputs)
    texts = list(_texts(body))
    if not texts:
        raise Invalid("messages or prompt is missing")
    return max(1, sum(len(text.split()) for text in texts))


async def _refuse(response: Response, status: int, message: str) -> None:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    await response.whole(status, error_body(message, kind=kind))


async def _main(options: argparse.Namespace, script: Script) -> None:
    fake = FakeReplica(script, key=os.environ.get("SUBLET_REPLICA_KEY", "fake-key"))
    leave = asyncio.Event()

    def drain() -> None:
        fake.phase = "draining"
        leave.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drain)
    async with fake.serve(port=options.port) as url:
        print(json.dumps({"port": int(url.rsplit(":", 1)[1])}), flush=True)
        await leave.wait()
        with suppress(TimeoutError):  # like the real one, it lets streams finish, for a while
            async with asyncio.timeout(DRAIN_SECONDS):
                await fake.idle.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.replica")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", default="{}", help="JSON, or a file that holds it")
    options = parser.parse_args()
    text = options.script
    if not text.lstrip().startswith("{"):
        text = Path(text).read_text(encoding="utf-8")
    asyncio.run(_main(options, msgspec.json.decode(text, type=Script)))


if __name__ == "__main__":
    main()

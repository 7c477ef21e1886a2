"""The gateway's own HTTP server, asked byte by byte over a real connection."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from sublet.core.certificates import ensure
from sublet.gateway import call as calls
from sublet.gateway import http
from sublet.gateway.call import MAX_BODY_BYTES, BodyTooLarge, BodyTooSlow, Call, HungUp, Stopping
from sublet.gateway.http import Server

GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /%C3%A9 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n"
)


@dataclass
class Site:
    """Answers every call with its method, path and body, and remembers what became of it."""

    seen: list[tuple[str, str, bytes, bytes]] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    going_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, call: Call) -> None:
        try:
            body = await call.read()
        except (BodyTooLarge, BodyTooSlow, Stopping, HungUp) as error:
            self.ends.append(type(error).__name__)
            if not isinstance(error, HungUp):
                call.close_after()
                await call.respond(400, [], type(error).__name__.encode())
            return
        self.seen.append((call.method, call.path, call.query, body))
        if call.path == "/stream":
            await call.begin(200, [(b"content-type", b"text/plain")])
            for part in (b"one ", b"two ", b""):
                await call.write(part)
            await call.end(b"three")
        elif call.path == "/wait":
            call.on_gone = lambda: self.ends.append("gone")
            self.begun.set()
            await self.going_on.wait()
            await call.respond(200, [], b"waited")
        elif call.path == "/much":
            await call.begin(200, [])
            for _ in range(1000):
                await call.write(b"x" * 65536)
                self.begun.set()
                if call.gone:
                    self.ends.append("gone")
                    return
            await call.end(b"")
        elif call.path == "/nothing":
            return
        else:
            await call.respond(200, [(b"x-a", b"b")], b"%b %b" % (call.method.encode(), body))


T = TypeVar("T")
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def run(go: Callable[[Site, Server, Reader, Writer], Awaitable[None]]) -> Site:
    async def main() -> Site:
        site = Site()
        server = Server(site.answer)
        listener = socket.create_server(("127.0.0.1", 0))
        await server.listen(listener, None)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            async with asyncio.timeout(30):
                await go(site, server, reader, writer)
        finally:
            writer.transport.abort()
            site.going_on.set()
            await server.stop(within_seconds=30)
        return site

    return on_loop(main())


def on_loop(main: Coroutine[object, object, T]) -> T:
    """Run it on the loop that the gateway runs on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 -- of what the server says to nobody
        await asyncio.sleep(0.001)


async def answer(reader: Reader, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:-2])
    if head_only:
        body = b""
    elif headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return int(head[0].split()[1]), headers, body


def asked(*requests: bytes, closes: bool = False) -> list[tuple[int, dict[str, str], bytes]]:
    """Send these at once and read as many answers."""
    answers = []

    async def go(_: Site, __: Server, reader: Reader, writer: Writer) -> None:
        writer.write(b"".join(requests))
        answers.extend([await answer(reader) for _ in requests])
        if closes:
            assert await reader.read() == b""

    run(go)
    return answers


def test_an_answer_is_whole_and_the_connection_stays() -> None:
    (first, second) = asked(POST, GET)
    assert first[0] == second[0] == 200
    assert first[2] == b"POST hello"
    assert second[2] == b"GET "
    assert first[1]["x-a"] == "b"
    assert first[1]["content-length"] == "10"
    assert "connection" not in first[1]
    assert first[1]["date"].endswith("GMT")


def test_a_stream_comes_in_chunks_and_to_http_1_0_until_the_end() -> None:
    stream = GET.replace(b"/a", b"/stream")
    assert asked(stream, stream)[1][2] == b"one two three"
    status, headers, body = asked(stream.replace(b"1.1", b"1.0"), closes=True)[0]
    assert (status, body) == (200, b"one two three")
    assert headers["connection"] == "close"
    assert "transfer-encoding" not in headers


def test_who_asks_for_it_gets_the_connection_closed_or_kept() -> None:
    (one,) = asked(GET.replace(b"Host: x", b"Host: x\r\nConnection: close"), closes=True)
    assert one[1]["connection"] == "close"
    (one,) = asked(GET.replace(b"1.1", b"1.0"), closes=True)
    assert one[1]["connection"] == "close"
    old = GET.replace(b"1.1", b"1.0").replace(b"Host: x", b"Connection: keep-alive")
    assert asked(old, old)[1][1]["connection"] == "keep-alive"


def test_head_has_no_body() -> None:
    async def go(_: Site, __: Server, reader: Reader, writer: Writer) -> None:
        writer.write(GET.replace(b"GET", b"HEAD") + GET)
        status, headers, _body = await answer(reader, head_only=True)
        assert (status, headers["content-length"]) == (200, "5")
        assert (await answer(reader))[2] == b"GET "

    run(go)


@given(cuts=st.lists(st.integers(0, len(GET + POST + CHUNKED)), max_size=12))
@settings(max_examples=40, deadline=None)
def test_it_does_not_matter_in_which_pieces_requests_come(cuts: list[int]) -> None:
    data = GET + POST + CHUNKED

    async def go(_: Site, __: Server, reader: Reader, writer: Writer) -> None:
        before = 0
        for cut in [*sorted(cuts), len(data)]:
            writer.write(data[before:cut])
            await writer.drain()
            await asyncio.sleep(0)
            before = cut
        bodies = [(await answer(reader))[2] for _ in range(3)]
        assert bodies == [b"GET ", b"POST hello", b"POST hello"]

    site = run(go)
    assert site.seen == [
        ("GET", "/a", b"b=c", b""),
        ("POST", "/a", b"", b"hello"),
        ("POST", "/é", b"", b"hello"),
    ]


def test_a_proxys_form_of_a_path_is_that_path() -> None:
    async def go(_: Site, __: Server, reader: Reader, writer: Writer) -> None:
        for target in (b"http://x/a?b=c", b"http://x", b"*"):
            writer.write(b"OPTIONS %b HTTP/1.1\r\nhost: x\r\n\r\n" % target)
            assert (await answer(reader))[0] == 200

    seen = run(go).seen
    assert [(path, query) for _, path, query, _ in seen] == [("/a", b"b=c"), ("/", b""), ("*", b"")]


def test_who_asks_before_sending_is_told_to_go_on_or_not() -> None:
    expects = POST.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue")

    async def go(_: Site, __: Server, reader: Reader, writer: Writer) -> None:
        writer.write(expects[:-5])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await answer(reader))[2] == b"POST hello"
        writer.write(expects[:-5].replace(b"Length: 5", b"Length: 99999999"))
        assert (await answer(reader))[2] == b"BodyTooLarge"
        assert await reader.read() == b""

    run(go)


@pytest.mark.parametrize("size", [MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
def test_a_body_may_be_so_large(size: int) -> None:
    head = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size
    ((status, _, body),) = asked(head + b"x" * size, closes=False)
    if size > MAX_BODY_BYTES:
        assert (status, body) == (400, b"BodyTooLarge")
    else:
        assert (status, len(body)) == (200, size + 5)


def test_a_body_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_SWALLOWED_BYTES", 2 * MAX_BODY_BYTES)

    async def go(_: Site, __: Server, reader: Reader, writer: Writer) -> None:
        writer.write(POST.replace(b"Length: 5", b"Length: 99999999")[:-5])
        with pytest.raises((OSError, asyncio.IncompleteReadError)):  # noqa: PT012 -- at one of them
            for _ in range(1000):
                writer.write(b"x" * 65536)
                await writer.drain()
            await reader.readuntil(b"never")

    assert run(go).ends == ["BodyTooLarge"]


def test_a_body_that_stops_half_way_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SILENCE_SECONDS", 0.02)
    monkeypatch.setattr(http, "_LOOK_SECONDS", 0.01)
    (one,) = asked(POST[:-1], closes=True)
    assert one[2] == b"BodyTooSlow"


def test_a_body_that_trickles_is_not_waited_for_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_BODY_SECONDS", 0.05)
    monkeypatch.setattr(http, "_LOOK_SECONDS", 0.01)

    async def go(site: Site, _: Server, reader: Reader, writer: Writer) -> None:
        writer.write(POST.replace(b"Length: 5", b"Length: 50000")[:-5])
        while not site.ends:
            writer.write(b"x")
            await asyncio.sleep(0.005)
        assert (await answer(reader))[2] == b"BodyTooSlow"

    assert run(go).ends == ["BodyTooSlow"]


def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SILENCE_SECONDS", 0.05)
    monkeypatch.setattr(http, "_LOOK_SECONDS", 0.01)

    async def go(_: Site, __: Server, reader: Reader, writer: Writer) -> None:
        reading = asyncio.create_task(answer(reader))
        writer.write(GET[:-2] + b"x: ")
        while not reading.done():
            writer.write(b"y")
            await asyncio.sleep(0.002)
        assert (await reading)[0] == 408
        assert await reader.read() == b""

    run(go)


def test_a_connection_that_asks_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_IDLE_SECONDS", 0.02)
    monkeypatch.setattr(http, "_LOOK_SECONDS", 0.01)
    asked(GET, closes=True)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"no HTTP at all\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),  # TLS
        (GET + b"\x00\x00\r\n\r\n", 200),  # a good request before it has its answer
        (b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /a HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", 400),
        (b"GET /a HTTP/1.1\r\nx: " + b"y" * 300_000, 431),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(data: bytes, status: int) -> None:
    async def go(_: Site, __: Server, reader: Reader, writer: Writer) -> None:
        writer.write(data)
        assert (await answer(reader))[0] == status
        assert await reader.read() == b""

    run(go)


def test_garbage_behind_a_request_does_not_cost_it_its_answer() -> None:
    async def go(site: Site, _: Server, reader: Reader, writer: Writer) -> None:
        writer.write(GET.replace(b"/a", b"/wait"))
        await site.begun.wait()
        writer.write(b"\x00\x00\x00")
        await asyncio.sleep(0.02)
        site.going_on.set()
        assert (await answer(reader))[2] == b"waited"
        assert await reader.read() == b""

    run(go)


def test_an_upgrade_is_answered_in_http_1_1() -> None:
    upgrade = GET.replace(b"Host: x", b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c")
    ((status, _, body),) = asked(upgrade, closes=True)
    assert (status, body) == (200, b"GET ")


def test_who_hangs_up_is_noticed_at_once() -> None:
    async def go(site: Site, _: Server, __: Reader, writer: Writer) -> None:
        writer.write(GET.replace(b"/a", b"/wait"))
        await site.begun.wait()
        writer.close()
        await until(lambda: bool(site.ends))

    assert run(go).ends == ["gone"]


def test_who_hangs_up_in_the_middle_of_the_body_is_nobody_to_answer() -> None:
    async def go(site: Site, _: Server, __: Reader, writer: Writer) -> None:
        writer.write(POST[:-1])
        await asyncio.sleep(0.01)
        writer.close()
        await until(lambda: bool(site.ends))

    assert run(go).ends == ["HungUp"]


def test_who_does_not_read_is_waited_for_and_may_leave() -> None:
    async def go(site: Site, server: Server, reader: Reader, writer: Writer) -> None:
        writer.write(GET.replace(b"/a", b"/much"))
        await site.begun.wait()
        (connection,) = server.connections
        await until(lambda: connection.clogged)
        assert await reader.read(1000)
        writer.transport.abort()
        await until(lambda: bool(site.ends))

    assert run(go).ends == ["gone"]


def test_what_nobody_answers_is_broken_off() -> None:
    async def go(_: Site, __: Server, reader: Reader, writer: Writer) -> None:
        writer.write(GET.replace(b"/a", b"/nothing"))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await answer(reader)

    run(go)


def test_told_to_stop_it_answers_what_runs_and_takes_nothing_new() -> None:
    async def go(site: Site, server: Server, reader: Reader, writer: Writer) -> None:
        writer.write(GET.replace(b"/a", b"/wait"))
        await site.begun.wait()
        host, port = writer.get_extra_info("peername")
        idle, other = await asyncio.open_connection(host, port)
        await until(lambda: len(server.connections) == 2)
        stopping = asyncio.create_task(server.stop(within_seconds=30))
        assert await idle.read() == b""
        other.close()
        with pytest.raises(OSError, match="refused"):
            await asyncio.open_connection(host, port)
        site.going_on.set()
        status, headers, body = await answer(reader)
        assert (status, headers["connection"], body) == (200, "close", b"waited")
        await stopping
        assert not server.connections

    run(go)


def test_told_to_stop_it_does_not_wait_for_the_rest_of_a_body() -> None:
    async def go(_: Site, server: Server, reader: Reader, writer: Writer) -> None:
        writer.write(POST[:-1])
        await until(lambda: any(one._call for one in server.connections))
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(server.stop(within_seconds=30))
        assert (await answer(reader))[2] == b"Stopping"
        writer.close()
        await stopping

    run(go)


def test_over_tls_it_is_the_same(tmp_path: Path) -> None:
    made = ensure(tmp_path / "ca", hosts=["localhost"], now=datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server, made.server_key)
    secure = []

    async def note(call: Call) -> None:
        secure.append(call.secure)
        call.close_after()
        await call.respond(200, [], await call.read())

    async def main() -> None:
        server = Server(note)
        listener = socket.create_server(("127.0.0.1", 0))
        await server.listen(listener, context)
        trusting = ssl.create_default_context(cafile=str(made.ca))
        reader, writer = await asyncio.open_connection(
            *listener.getsockname(), ssl=trusting, server_hostname="localhost"
        )
        writer.write(POST)
        assert (await answer(reader))[2] == b"hello"
        assert await reader.read() == b""
        writer.close()
        await server.stop(within_seconds=10)

    on_loop(main())
    assert secure == [True]

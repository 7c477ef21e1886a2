"""The client of replicas, against servers that do right and wrong, byte by byte."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sublet.gateway.wire import Lost, Wire

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Server:
    """Answers each connection's requests by a story: bytes to write, or None to hang up."""

    def __init__(self, *stories: list[bytes | None]) -> None:
        self.stories = list(stories)
        self.requests = 0
        self.connections = 0
        self.left = asyncio.Event()

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        story = self.stories[min(self.connections, len(self.stories) - 1)]
        self.connections += 1
        try:
            for part in story:
                await reader.readuntil(b"{}")
                self.requests += 1
                if part is None:
                    break
                writer.write(part)
                await writer.drain()
            else:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.left.set()
        writer.close()


def run(server: Server, go: Callable[[Wire, tuple[str, int]], Awaitable[None]]) -> None:
    async def play() -> None:
        writers: list[Writer] = []
        tasks: list[asyncio.Task[None]] = []

        async def serve(reader: Reader, writer: Writer) -> None:
            writers.append(writer)
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            await server(reader, writer)

        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = listening.sockets[0].getsockname()[:2]
        wire = Wire()
        try:
            await go(wire, address)
        finally:
            wire.close()
            listening.close()
            await listening.wait_closed()
            for writer in writers:
                writer.transport.abort()
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(play(), 20))


async def ask(wire: Wire, address: tuple[str, int], *, silence: float = 10) -> bytes:
    answer = await wire.send(address, REQUEST, silence_seconds=silence)
    try:
        assert answer.status == 200
        return await answer.read_all(most=1000)
    finally:
        answer.close()


def test_a_connection_whose_answer_was_read_is_asked_again() -> None:
    server = Server([WHOLE, CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", WHOLE])

    async def go(wire: Wire, address: tuple[str, int]) -> None:
        assert [await ask(wire, address) for _ in range(3)] == [b"hello", b"hi", b"hello"]

    run(server, go)
    assert (server.connections, server.requests) == (1, 3)


def test_a_kept_connection_that_died_is_replaced() -> None:
    server = Server([WHOLE, None], [WHOLE])

    async def go(wire: Wire, address: tuple[str, int]) -> None:
        assert await ask(wire, address) == b"hello"
        assert await ask(wire, address) == b"hello"

    run(server, go)
    assert (server.connections, server.requests) == (2, 3)


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 2", b"no HTTP at all\r\n\r\n"])
def test_a_kept_connection_that_is_silent_or_wrong_is_not_asked_twice(begun: bytes) -> None:
    server = Server([WHOLE, begun], [WHOLE])

    async def go(wire: Wire, address: tuple[str, int]) -> None:
        assert await ask(wire, address) == b"hello"
        with pytest.raises(Lost):
            await ask(wire, address, silence=0.05)

    run(server, go)
    assert (server.connections, server.requests) == (1, 2)


def test_a_server_that_asks_for_it_is_not_kept() -> None:
    server = Server([WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")])

    async def go(wire: Wire, address: tuple[str, int]) -> None:
        assert [await ask(wire, address) for _ in range(2)] == [b"hello"] * 2

    run(server, go)
    assert server.connections == 2


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nhalf",
        CHUNKED + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000,
    ],
)
def test_what_breaks_off_or_is_no_answer_is_lost(wrong: bytes | None) -> None:
    async def go(wire: Wire, address: tuple[str, int]) -> None:
        with pytest.raises(Lost):
            await ask(wire, address)

    if wrong is not None and b"half" in wrong:

        async def half(reader: Reader, writer: Writer) -> None:
            await reader.readuntil(b"{}")
            writer.write(wrong)
            writer.close()

        run(half, go)  # type: ignore[arg-type]
    else:
        run(Server([wrong]), go)


def test_silence_is_an_end(caplog: pytest.LogCaptureFixture) -> None:
    async def go(wire: Wire, address: tuple[str, int]) -> None:
        with pytest.raises(Lost, match="silent"):
            await ask(wire, address, silence=0.05)

    run(Server([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"]), go)
    assert not caplog.records


def test_nobody_there_is_lost() -> None:
    async def go(wire: Wire, address: tuple[str, int]) -> None:
        with pytest.raises(Lost):
            await wire.send(("127.0.0.1", 1), REQUEST, silence_seconds=1)

    run(Server([WHOLE]), go)


def test_leaving_in_the_middle_hangs_up_at_once() -> None:
    server = Server([CHUNKED + b"2\r\nhi\r\n"])

    async def go(wire: Wire, address: tuple[str, int]) -> None:
        answer = await wire.send(address, REQUEST, silence_seconds=10)
        assert await answer.read() == b"hi"
        answer.close()
        await asyncio.wait_for(server.left.wait(), 5)

    run(server, go)


def test_who_said_all_is_kept_once_http_is_at_its_end() -> None:
    connections = 0

    async def slow(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await reader.readuntil(b"{}")
            writer.write(CHUNKED + b"2\r\nhi\r\n")
            await asyncio.sleep(0.02)
            writer.write(b"0\r\n\r\n")
        await reader.read()

    async def go(wire: Wire, address: tuple[str, int]) -> None:
        for _ in range(2):
            answer = await wire.send(address, REQUEST, silence_seconds=10)
            assert await answer.read() == b"hi"
            answer.close(said_all=True)
            while not wire._idle:  # noqa: ASYNC110 - nobody is told of it
                await asyncio.sleep(0.005)

    run(slow, go)  # type: ignore[arg-type]
    assert connections == 1


def test_a_body_that_nobody_reads_does_not_fill_the_memory() -> None:
    sent = 0

    async def flood(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        try:
            while sent < 100_000_000:
                writer.write(b"x" * 100_000)
                sent += 100_000
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def go(wire: Wire, address: tuple[str, int]) -> None:
        answer = await wire.send(address, REQUEST, silence_seconds=10)
        before = -1
        while before != sent:  # until it stands still
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 50_000_000
        assert len(await answer.read()) > 0
        answer.close()

    run(flood, go)  # type: ignore[arg-type]

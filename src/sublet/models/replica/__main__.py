"""`python -m sublet.models.replica --recipe NAME --port P`: serve one model until told to go.

Without `--recipe`, the recipe is in SUBLET_REPLICA_RECIPE, as JSON. The bearer key that callers
must show is in SUBLET_REPLICA_KEY; whoever seals the weights gives their key to who shows it. On SIGTERM the replica
drains; the file named by SUBLET_NOTICE_FILE says until when it may ("stops_at").
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import uvicorn

from sublet.core.clock import Clock, SystemClock
from sublet.core.errors import Misconfigured, SubletError, Unavailable
from sublet.models.replica.agent import Agent
from sublet.models.replica.embedding import Embedder
from sublet.models.replica.engine import ADAPT, DROP, EMBED, Ready, Settings
from sublet.models.replica.llama import Llama
from sublet.models.replica.recipe import Adapter, Recipe, load
from sublet.models.replica.served import Served
from sublet.models.replica.weights import Where

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 8.0  # to drain in, when no notice says how long
# Streams are cut this long before the end: the engine stops, and the last counts go out.
RESERVE_SECONDS: Final = 1.0
SHUTDOWN_SECONDS: Final = 0.4  # for answers on their way out
_KEY_TRIES: Final = 60
_KEY_WAIT_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 10.0  # after adapters that cannot be loaded
EXIT_ENGINE_FAILED: Final = 1
EXIT_MISCONFIGURED: Final = 2


class Notice(msgspec.Struct, frozen=True):
    stops_at: datetime


class _Key(msgspec.Struct, frozen=True):
    key: str


class _Adapters(msgspec.Struct, frozen=True):
    adapters: tuple[Adapter, ...]


class Server(uvicorn.Server):
    """uvicorn, which leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Replica:
    """The two halves of a replica, and when they end."""

    def __init__(
        self, recipe: Recipe, options: argparse.Namespace, *, key: str, clock: Clock
    ) -> None:
        self._recipe = recipe
        self._options = options
        self._clock = clock
        self._notice_file: str | None = os.environ.get("SUBLET_NOTICE_FILE")
        self._leaving = asyncio.Event()
        self._exit_code = 0
        self._look = asyncio.Event()  # there may be other adapters
        self._asking = asyncio.Lock()  # of the engine: one line is answered by one line
        self._agent = Agent(
            recipe,
            key=key,
            clock=clock,
            leave=self._leaving.set,
            fail=self._fail,
            max_waiting=options.max_waiting,
            look=self._look.set,
        )

    async def run(self) -> int:
        """Serve until drained, or until the engine dies; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        server = Server(
            uvicorn.Config(
                self._agent,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=75,  # longer than the gateway keeps a pooled connection
                timeout_graceful_shutdown=1,
            )
        )
        with socket.create_server((self._options.host, self._options.port)) as listener:
            log.info("replica.listening", extra={"port": listener.getsockname()[1]})
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            engine = asyncio.create_task(self._run_engine())
            await self._leaving.wait()
            server.should_exit = True
            await asyncio.wait({serving}, timeout=SHUTDOWN_SECONDS)
            for task in (serving, engine):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        return self._exit_code

    def _drain(self) -> None:
        self._agent.drain(seconds=self._seconds_left() - RESERVE_SECONDS)

    def _seconds_left(self) -> float:
        if self._notice_file is None:
            return GRACE_SECONDS
        try:
            notice = msgspec.json.decode(Path(self._notice_file).read_bytes(), type=Notice)
        except (OSError, msgspec.DecodeError) as error:
            log.warning("replica.notice_unreadable", extra={"error": str(error)})
            return GRACE_SECONDS
        return (notice.stops_at - self._clock.now()).total_seconds()

    async def _weights_key(self) -> str:
        """Return the key of its sealed weights, which is nowhere but with the control plane.

        Raises:
            ValueError: nobody gives it.
        """
        url = self._options.weights_key_url
        if url is None:
            raise ValueError("nobody said where the key of the weights is: --weights-key-url")
        answer = await _ask(url, tries=_KEY_TRIES)
        if answer is None:
            raise ValueError("the control plane does not answer, and has the key of the weights")
        return msgspec.json.decode(answer, type=_Key).key

    async def _adapters(self, *, tries: int) -> tuple[Adapter, ...] | None:
        """Return what else it is to serve; None: nobody says it.

        Raises:
            ValueError: it is refused.
        """
        url = self._options.adapters_url
        answer = None if url is None else await _ask(url, tries=tries)
        return None if answer is None else msgspec.json.decode(answer, type=_Adapters).adapters

    def _fail(self) -> None:
        self._exit_code = EXIT_ENGINE_FAILED
        self._leaving.set()

    async def _run_engine(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sublet.models.replica.engine",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            await self._use_engine(process)
        except asyncio.CancelledError:
            raise
        except (OSError, ValueError) as error:
            log.error("replica.engine_failed", extra={"error": str(error)})  # noqa: TRY400
        finally:
            await _end(process)
        log.error("replica.engine_ended", extra={"status": process.returncode})
        self._fail()

    async def _use_engine(self, process: asyncio.subprocess.Process) -> None:
        key = secrets.token_urlsafe(32)
        options = self._options
        adapters = await self._adapters(tries=_KEY_TRIES) or ()
        settings = Settings(
            recipe=self._recipe,
            where=Where(
                assembled=str(options.weights),
                artefacts=None if options.artefacts is None else str(options.artefacts),
                key=None if self._recipe.sealed is None else await self._weights_key(),
            ),
            threads=self._options.threads or _threads(self._recipe.threads),
            key=key,
            adapters=adapters,
        )
        ready = await self._tell(process, msgspec.json.encode(settings) + b"\n")
        if ready is None:
            return
        async with AsyncExitStack() as stack:
            llama = Llama(ready.address, key)
            stack.push_async_callback(self._agent.let_go)

            async def embedding() -> Llama:
                """Start the server of embeddings: whoever never asks for one need not have it."""
                ready = await self._tell(process, EMBED)
                if ready is None:
                    raise Unavailable("the engine ended")
                return await stack.enter_async_context(Llama(ready.address, key))

            self._agent.serve(
                Served(llama, _numbered(adapters)), Embedder(embedding, self._recipe.context_tokens)
            )
            log.info("replica.ready", extra={"model": self._recipe.name})
            following = asyncio.create_task(self._follow(process, adapters, key))
            try:
                await process.wait()
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following

    async def _tell(self, process: asyncio.subprocess.Process, line: bytes) -> Ready | None:
        """Return what the engine says to a line; None: it ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        async with self._asking:
            process.stdin.write(line)
            await process.stdin.drain()
            answer = await process.stdout.readline()
        return msgspec.json.decode(answer, type=Ready) if answer else None

    async def _follow(
        self, process: asyncio.subprocess.Process, adapters: tuple[Adapter, ...], key: str
    ) -> None:
        """Serve other adapters when there are other ones, by another server of the engine."""
        while True:
            await self._look.wait()
            self._look.clear()
            try:
                wanted = await self._adapters(tries=1)
            except ValueError as error:
                log.warning("replica.adapters_refused", extra={"error": str(error)})
                continue
            if wanted is None or _numbered(wanted) == _numbered(adapters):
                continue
            line = ADAPT + msgspec.json.encode(wanted) + b"\n"
            if (ready := await self._tell(process, line)) is None:
                return
            if ready.trouble is not None:
                log.error("replica.adapters_failed", extra={"error": ready.trouble})
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            adapters = wanted
            served = Served(Llama(ready.address, key), _numbered(adapters))
            before = self._agent.replace(served)
            log.info("replica.adapted", extra={"adapters": len(adapters)})
            await before.idle.wait()
            await before.llama.close()
            assert process.stdin is not None
            async with self._asking:
                process.stdin.write(DROP)
                await process.stdin.drain()


def _numbered(adapters: tuple[Adapter, ...]) -> dict[str, int]:
    return {str(one.id): number for number, one in enumerate(adapters)}


async def _ask(url: str, *, tries: int) -> bytes | None:
    """Return what the control plane says to this replica; None: it does not answer.

    Raises:
        ValueError: it refuses.
    """
    headers = {"authorization": f"Bearer {os.environ['SUBLET_REPLICA_KEY']}"}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for left in reversed(range(tries)):  # it may be starting anew
            with suppress(aiohttp.ClientConnectionError, TimeoutError):
                async with session.get(url, headers=headers) as answer:
                    if answer.status == 200:
                        return await answer.read()
                    if answer.status < 500:
                        raise ValueError(f"{url} is refused: {answer.status}")
            if left:
                await asyncio.sleep(_KEY_WAIT_SECONDS)
    return None


def _threads(wanted: int) -> int:
    """Return how many threads the engine gets, with a core left to everybody else.

    Its threads spin while they wait for each other: with as many as there are cores, any
    other work on the machine makes it several times slower than one thread alone.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(wanted, (cores or 2) - 1))


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the engine: it goes when its stdin closes; while it loads, it must be made to."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(0.5):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class _Lines(logging.Formatter):
    """One JSON object a line: the event, and its fields."""

    _PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in vars(record).items() if k not in self._PLAIN}
        line = {"level": record.levelname.lower(), "event": record.getMessage(), **fields}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _recipe(name: str | None) -> Recipe:
    """Raises NotFound, Misconfigured: there is no recipe of this name, or none was given."""
    if name is not None:
        return load(name)
    try:
        return msgspec.json.decode(os.environ.get("SUBLET_REPLICA_RECIPE", ""), type=Recipe)
    except msgspec.DecodeError as error:
        raise Misconfigured(f"SUBLET_REPLICA_RECIPE holds no recipe: {error}") from error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sublet.models.replica", description=__doc__)
    parser.add_argument(
        "--recipe", help="name of the model to serve; default: SUBLET_REPLICA_RECIPE"
    )
    parser.add_argument("--port", type=int, required=True, help="port to listen on; 0: any")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--threads", type=int, help="CPU threads; default: the recipe's, less on a small machine"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path.home() / ".cache" / "sublet" / "weights",
        help="folder in which assembled weights are kept",
    )
    parser.add_argument("--artefacts", type=Path, help="folder of sealed weights")
    parser.add_argument("--weights-key-url", help="address that has the key of sealed weights")
    parser.add_argument("--adapters-url", help="address that has the adapters to serve")
    parser.add_argument(
        "--max-waiting", type=int, default=64, help="requests that may wait for a slot"
    )
    options = parser.parse_args()

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        recipe = _recipe(options.recipe)
        if (missing := recipe.missing()) is not None:
            raise Misconfigured(missing)
        key = os.environ.get("SUBLET_REPLICA_KEY", "")
        if not key:
            raise Misconfigured("SUBLET_REPLICA_KEY must hold the key that callers show")
    except SubletError as error:
        log.error("replica.misconfigured", extra={"error": str(error)})  # noqa: TRY400
        return EXIT_MISCONFIGURED
    replica = Replica(recipe, options, key=key, clock=SystemClock())
    return asyncio.run(replica.run())


if __name__ == "__main__":
    sys.exit(main())

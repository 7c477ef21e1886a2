"""Tells pages that something changed: one look a second for all of them, while anybody looks.

A page names topics. Once something of a topic is on record, every page that shows it is told so,
and asks for its own part again: what it may see is decided there, as for any request. So nothing
but the word "leases" goes out here.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from sublet.console.visit import Visit
from sublet.core.db import Database, load_queries
from sublet.core.errors import SubletError

log = logging.getLogger(__name__)

QUERIES: Final = load_queries("sublet.console")
TOPICS: Final = ("leases", "fleet", "money", "models", "usage")
_EVERY_SECONDS: Final = 1.0
_ALIVE_SECONDS: Final = 20.0


class Watch:
    """Looks at the newest records as long as somebody listens."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._listeners: set[asyncio.Queue[frozenset[str]]] = set()
        self._looking: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def listening(self) -> Any:
        queue: asyncio.Queue[frozenset[str]] = asyncio.Queue(4)
        self._listeners.add(queue)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    async def _look(self) -> None:
        known: dict[str, Any] | None = None
        while self._listeners:
            with contextlib.suppress(SubletError):  # the database is away: look again
                found = await run_in_threadpool(self._newest)
                changed = frozenset(
                    topic for topic in TOPICS if known is not None and found[topic] != known[topic]
                )
                known = found
                for queue in self._listeners if changed else ():
                    if not queue.full():  # one that does not read is told of the next change
                        queue.put_nowait(changed)
            await asyncio.sleep(_EVERY_SECONDS)

    def _newest(self) -> dict[str, Any]:
        with self._db.transaction("console.look") as tx:
            row = tx.execute(QUERIES["newest"]).fetchone()
        assert row is not None
        return row


async def show_events(visit: Visit) -> Response:
    """Stream what changes, as server-sent events."""
    wanted = frozenset(visit.asked("topics").split(",")) & frozenset(TOPICS)
    watch = visit.site.watch
    assert isinstance(watch, Watch)

    async def events() -> AsyncIterator[str]:
        with watch.listening() as queue:
            yield "retry: 3000\n\n"
            while True:
                try:
                    changed = await asyncio.wait_for(queue.get(), _ALIVE_SECONDS)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if mine := sorted(changed & wanted):
                    yield f"event: changed\ndata: {','.join(mine)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")

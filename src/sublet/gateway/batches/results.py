"""The end of a batch: every line is answered or said to be not, and all that was answered is charged."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Database
from sublet.core.failpoint import failpoint
from sublet.core.ids import new_id
from sublet.core.vault import Vault
from sublet.gateway.batches import lines, store
from sublet.gateway.batches.store import Batch, Dialect, Line, Me, bound_to
from sublet.gateway.batches.words import OPENAI, unanswered
from sublet.gateway.service import Service
from sublet.gateway.till import Turn
from sublet.metering.report import Report
from sublet.models import stored
from sublet.models.chest import SealedFile
from sublet.models.stored import New, Purpose, Writer

_WAIT_SECONDS: Final = 0.2
_ANSWERED: Final = "answered"


class _Output:
    """A file of results, begun with its first line."""

    def __init__(self, begin: Callable[[], Writer]) -> None:
        self._begin = begin
        self.writer: Writer | None = None

    def write(self, text: bytes) -> None:
        if self.writer is None:
            self.writer = self._begin()
        self.writer.write(text + b"\n")


class Results:
    def __init__(self, service: Service, db: Database, me: Me, vault: Vault) -> None:
        self._service = service
        self._db = db
        self._me = me
        self._vault = vault

    async def write(self, batch: Batch) -> None:
        """Take a batch whose lines are done to its end.

        Raises:
            Unavailable: the database, or the store of files, does not answer: try again.
        """
        directory, files = self._service.directory, self._service.files
        now = directory.now()
        if not await directory.transact(lambda tx: store.finalize(tx, self._me, batch, now=now)):
            return
        await self._charge(batch)
        await files.aside(self._write, batch)

    async def _charge(self, batch: Batch) -> None:
        """See to it that each answer's use is on record, whatever became of who gave it."""
        directory = self._service.directory
        while True:
            left = await directory.transact(
                lambda tx: store.list_uncharged(tx, batch.id, now=directory.now())
            )
            if not left:
                return
            orphans = [Report.read(bytes(row["report"])) for row in left if not row["alive"]]
            if orphans:
                await self._service.files.aside(self._pay, orphans)
            else:
                await asyncio.sleep(_WAIT_SECONDS)  # its gateway hands it over in a moment

    def _pay(self, reports: Sequence[Report]) -> None:
        """Hand over what gateways left that are gone: from the wallet, as their holds are not ours."""
        turn = Turn(tenant_id=reports[0].tenant_id, before=None, keep=0, next_id=new_id())
        self._service.cashier.till.hand_over(reports, [turn])

    def _write(self, batch: Batch) -> None:
        """Write its files, and end it. In a thread."""
        shelf, now = self._service.files.shelf, self._service.directory.now()

        def begin() -> Writer:
            with self._db.transaction() as tx:
                # What is paid for is kept, however much the tenant keeps.
                return stored.begin(tx, batch.tenant_id, size=0, shelf=shelf, now=now)

        output, errors = _Output(begin), _Output(begin)
        if batch.dialect is Dialect.ANTHROPIC:  # all in one, in the order of the requests
            errors = output
        counts: Counter[str] = Counter()
        source = self._open(batch)
        after = 0
        while page := self._page(batch.id, after):
            after = page[-1]["number"]
            for row in page:
                counts[row["state"]] += 1
                into = output if row["state"] == _ANSWERED else errors
                into.write(self._text(batch, row, source))
        failpoint("gateway.batch.written")
        expires_at = now + timedelta(seconds=batch.output_seconds)
        made = dict.fromkeys((output, errors))
        with self._db.transaction("batch.end") as tx:
            kept: dict[_Output, UUID | None] = {}
            for one in made:
                kept[one] = None
                if one.writer is not None:
                    name = "error" if one is errors and one is not output else "output"
                    new = New(
                        purpose=Purpose.BATCH_OUTPUT,
                        name=f"{OPENAI.of(batch.id)}_{name}.jsonl",
                        expires_at=expires_at,
                        listed=batch.dialect is Dialect.OPENAI,
                    )
                    kept[one] = stored.finish(
                        tx, one.writer, new, shelf=shelf, now=now, limited=False
                    ).id
            store.end(
                tx, self._me, batch.id, output_file=kept[output],
                error_file=kept[errors] if errors is not output else None, counts=counts, now=now,
            )  # fmt: skip

    def _open(self, batch: Batch) -> SealedFile:
        with self._db.transaction() as tx:
            now = batch.created_at  # it may be over its time by now: it is still read
            file = stored.get(tx, batch.tenant_id, batch.input_file, now=now)
            return stored.open_file(tx, file, shelf=self._service.files.shelf)

    def _page(self, batch_id: UUID, after: int) -> list[dict[str, Any]]:
        with self._db.transaction() as tx:
            return store.list_ended(tx, batch_id, after=after)

    def _text(self, batch: Batch, row: dict[str, Any], source: SealedFile) -> bytes:
        if row["answer"] is not None:
            bound = bound_to(batch.id, row["number"])
            return self._vault.open(bytes(row["answer"]), bound_to=bound).encode()
        line = Line(
            batch_id=batch.id, number=row["number"], model="", start=row["start"],
            bytes=row["bytes"], troubles=0,
        )  # fmt: skip
        custom_id = lines.read(source.read(row["start"], row["bytes"])).custom_id
        return unanswered(batch.dialect, custom_id, f"req_{line.id.hex}", row["state"])

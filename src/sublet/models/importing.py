"""Taking in what tenants bring: fetched part by part where it is not sent, then read and judged.

    receiving: list its files ──► fetch each part that is missing ──► checking
    checking:  digests, headers, architecture, size ──► ready, or refused

Every part that was stored is noted, so that whoever takes over goes on where the last one died.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Invalid, NotFound, Refused, Unavailable
from sublet.models import artefacts, catalogue
from sublet.models.artefact import Artefact, File, Origin, State
from sublet.models.catalogue import Shelf
from sublet.models.chest import PART_BYTES, Place, count_parts, part_bytes
from sublet.models.formats import layout

log = logging.getLogger(__name__)

_TELL_EVERY: Final = 16  # parts


class Remote(Protocol):
    """Where files are fetched from."""

    def files(self) -> Sequence[tuple[str, int]]:
        """Return (path, size in bytes) of each.

        Raises:
            Invalid: there are none, or they may not be had.
            Unavailable: it does not answer now.
        """

    def read(self, path: str, offset: int, count: int) -> bytes:
        """Return a piece of a file; raises as `files`."""

    def close(self) -> None: ...


# (source, its secret) → where it is fetched from; raises Invalid: it may not be.
Opens = Callable[[Mapping[str, str], str | None], Remote]


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    db: Database
    clock: Clock
    shelf: Shelf
    opens: Mapping[Origin, Opens]
    stopping: Callable[[], bool] = lambda: False

    def step(self) -> int:
        """Take in all that is to be; return how many were moved on.

        Raises:
            Unavailable: the database did not answer.
        """
        with self.db.transaction() as tx:
            waiting = artefacts.list_at_work(tx)
        moved = 0
        for artefact_id in waiting:
            if self.stopping():
                break
            moved += self._take(artefact_id)
        self._clean()
        return moved

    def _take(self, artefact_id: UUID) -> bool:
        with self.db.transaction() as tx:
            artefact = artefacts.get(tx, artefact_id)
        try:
            if artefact.state is State.RECEIVING:
                artefact = self._fetch(artefact)
            if artefact.state is State.CHECKING:
                self._check(artefact)
                return True
        except (Invalid, NotFound, Refused) as error:
            self._refuse(artefact_id, str(error))
            return True
        except Unavailable as error:  # of the store, or of where it is fetched from: it stays
            log.warning("artefact.waiting", extra={"artefact": artefact_id, "detail": str(error)})
            with self.db.transaction() as tx:
                artefacts.tell(tx, artefact_id, f"waiting: {error}")
        return False

    def _fetch(self, artefact: Artefact) -> Artefact:
        secret = None
        if artefact.secret is not None:
            name = f"artefact/{artefact.id}/source"
            secret = self.shelf.vault.open(artefact.secret, bound_to=name)
        remote = self.opens[artefact.origin](artefact.source, secret)
        try:
            artefact = self._list(artefact, remote)
            self._fetch_parts(artefact, remote)
        finally:
            remote.close()
        with self.db.transaction() as tx:
            current = artefacts.get(tx, artefact.id, lock=True)
            artefacts.move(
                tx, current, State.CHECKING, now=self.clock.now(), detail="its files are read"
            )
            return artefacts.get(tx, artefact.id)

    def _list(self, artefact: Artefact, remote: Remote) -> Artefact:
        """Note which files there are; what was fetched of others is of no use."""
        found = sorted(remote.files())
        layout.find_format([path for path, _ in found])
        if [(file.path, file.size) for file in artefact.files] == found:
            return artefact
        files = [
            File(number=number, path=path, size=size, sha256=None)
            for number, (path, size) in enumerate(found)
        ]
        with self.db.transaction() as tx:
            artefacts.forget_files(tx, artefact.id)
            total = sum(size for _, size in found)
            catalogue.check_room(tx, artefact.tenant_id, total, shelf=self.shelf)
            artefacts.add_files(tx, artefact.id, files)
        return replace(artefact, files=tuple(files))

    def _fetch_parts(self, artefact: Artefact, remote: Remote) -> None:
        key = artefacts.open_key(artefact, self.shelf.vault)
        with self.db.transaction() as tx:
            missing = artefacts.missing_parts(tx, artefact)
        total = sum(count_parts(file.size) for file in artefact.files)
        left = sum(map(len, missing.values()))
        by_number = {file.number: file for file in artefact.files}
        for number, parts in missing.items():
            file = by_number[number]
            for part in parts:
                if self.stopping():
                    raise Unavailable("this control plane is stopping")
                wanted = part_bytes(file.size, part)
                piece = remote.read(file.path, part * PART_BYTES, wanted)
                if len(piece) != wanted:
                    raise Invalid(f"{file.path} ended after {part * PART_BYTES + len(piece)} bytes")
                place = Place(artefact=artefact.id, file=number, part=part)
                self.shelf.chest.put(place, piece, key=key)
                left -= 1
                with self.db.transaction() as tx:
                    current = artefacts.get(tx, artefact.id, lock=True)
                    if current.state is not State.RECEIVING:
                        raise Refused(f"it is {current.state}")
                    artefacts.put_part(
                        tx,
                        artefact.id,
                        file=number,
                        part=part,
                        sha256=hashlib.sha256(piece).digest(),
                    )
                    if left % _TELL_EVERY == 0:
                        artefacts.tell(tx, artefact.id, f"fetched {total - left} of {total} parts")

    def _check(self, artefact: Artefact) -> None:
        key = artefacts.open_key(artefact, self.shelf.vault)
        chest = self.shelf.chest
        sources = {
            file.path: chest.open(artefact.id, file.number, file.size, key=key)
            for file in artefact.files
        }
        facts = layout.check(sources)
        digests: dict[int, bytes] = {}
        for file in artefact.files:
            digest = sources[file.path].sha256()
            if file.sha256 is not None and file.sha256 != digest:
                raise Invalid(f"{file.path} is not what its SHA-256 says: upload it again")
            digests[file.number] = digest
        with self.db.transaction() as tx:
            name = catalogue.find_by_artefact(tx, artefact.id)
            current = artefacts.get(tx, artefact.id, lock=True)
            if current.state is not State.CHECKING or name is None:
                return  # deleted meanwhile
            for number, digest in digests.items():
                artefacts.set_sha256(tx, artefact.id, number, digest)
            current = artefacts.get(tx, artefact.id)
            catalogue.settle(tx, name, current, facts, shelf=self.shelf)
            artefacts.move(tx, current, State.READY, now=self.clock.now(), facts=facts)
        log.info("artefact.ready", extra={"artefact": artefact.id, "model": name})

    def _refuse(self, artefact_id: UUID, why: str) -> None:
        with self.db.transaction() as tx:
            current = artefacts.get(tx, artefact_id, lock=True)
            if current.state not in (State.RECEIVING, State.CHECKING):
                return
            artefacts.move(tx, current, State.REFUSED, now=self.clock.now(), detail=why)
        log.info("artefact.refused", extra={"artefact": artefact_id, "reason": why})

    def _clean(self) -> None:
        """Remove the parts of what is deleted or refused."""
        kept = self.shelf.chest.kept()
        if not kept:
            return
        with self.db.transaction() as tx:
            gone = artefacts.list_gone(tx, kept)
        for artefact_id in gone:
            try:
                self.shelf.chest.remove(artefact_id)
            except Unavailable as error:
                log.warning("artefact.kept", extra={"artefact": artefact_id, "detail": str(error)})

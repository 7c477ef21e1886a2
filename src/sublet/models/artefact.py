"""Files that a tenant brought, such as a model's weights, from the first byte to the last.

    receiving ──► checking ──► ready
        │             └──────► refused
        └──────────────────────► (any of them) ──► deleted

What is `ready` was read: its headers are sound, and it is what it was said to be. `deleted` is for
good: its key is gone, whatever is left of its parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from sublet.core.errors import Refused
from sublet.models.formats.source import Facts


class State(StrEnum):
    RECEIVING = "receiving"  # parts are missing: they are uploaded, or fetched by us
    CHECKING = "checking"  # all are here and are read
    READY = "ready"
    REFUSED = "refused"  # it is not what it should be; its parts are removed
    DELETED = "deleted"


MOVES: Final[Mapping[State, frozenset[State]]] = {
    State.RECEIVING: frozenset({State.CHECKING, State.REFUSED, State.DELETED}),
    State.CHECKING: frozenset({State.READY, State.REFUSED, State.DELETED}),
    State.READY: frozenset({State.DELETED}),
    State.REFUSED: frozenset({State.DELETED}),
    State.DELETED: frozenset(),
}


class Kind(StrEnum):
    WEIGHTS = "weights"
    FILE = "file"  # of a tenant, at the gateway: see `stored.py`
    ADAPTER = "adapter"  # a checkpoint of what was learnt: see `tuning`


class Origin(StrEnum):
    UPLOAD = "upload"  # its tenant sends the parts
    PATH = "path"  # of a folder that the operator opened for imports
    S3 = "s3"  # of a bucket that its tenant named


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    number: int
    path: str
    size: int  # in bytes
    sha256: bytes | None  # of the whole; None: not known before it is here


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    id: UUID
    tenant_id: UUID
    kind: Kind
    state: State
    detail: str | None
    origin: Origin
    source: Mapping[str, str]
    secret: bytes | None
    sealed_key: bytes | None
    facts: Facts | None
    files: tuple[File, ...]
    created_at: datetime
    since: datetime

    @property
    def size(self) -> int:
        """In bytes, of all files."""
        return sum(file.size for file in self.files)

    def check_move(self, to: State) -> None:
        """Raises Refused: it cannot go there from where it is."""
        if to not in MOVES[self.state]:
            raise Refused(f"it is {self.state}, so it cannot become {to}")


def bound_to(artefact_id: UUID, what: str) -> str:
    """Return what a secret of an artefact is bound to, for the vault."""
    return f"artefact/{artefact_id}/{what}"

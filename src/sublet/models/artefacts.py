"""Artefacts in Postgres, and the key of each: what later is used with the chest."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Json

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Conflict, NotFound, Refused
from sublet.core.vault import Vault
from sublet.models.artefact import Artefact, File, Kind, Origin, State, bound_to
from sublet.models.chest import count_parts, new_key
from sublet.models.formats.source import Facts

QUERIES: Final = load_queries("sublet.models", "artefacts.sql")


def add(
    tx: Tx,
    artefact_id: UUID,
    *,
    tenant_id: UUID,
    kind: Kind,
    origin: Origin,
    source: Mapping[str, str],
    secret: str | None,
    files: Sequence[File],
    vault: Vault,
    now: datetime,
) -> None:
    """Add an artefact that receives, with a new key. `secret`: what it is fetched with."""
    key = base64.b64encode(new_key()).decode()
    tx.execute(
        QUERIES["insert_artefact"],
        {
            "id": artefact_id, "tenant_id": tenant_id, "kind": kind, "state": State.RECEIVING,
            "origin": origin, "source": Json(dict(source)),
            "secret": None if secret is None
            else vault.seal(secret, bound_to=bound_to(artefact_id, "source")),
            "sealed_key": vault.seal(key, bound_to=bound_to(artefact_id, "key")), "now": now,
        },
    )  # fmt: skip
    add_files(tx, artefact_id, files)


def add_files(tx: Tx, artefact_id: UUID, files: Iterable[File]) -> None:
    for file in files:
        tx.execute(QUERIES["insert_file"], {"artefact_id": artefact_id, **asdict(file)})


def get(tx: Tx, artefact_id: UUID, *, lock: bool = False) -> Artefact:
    """Raises NotFound: there is none."""
    name = "lock_artefact" if lock else "get_artefact"
    row = one(tx, QUERIES[name], {"id": artefact_id})
    if row is None:
        raise NotFound(f"there is no artefact {artefact_id}")
    files = tx.execute(QUERIES["list_files"], {"id": artefact_id}).fetchall()
    return _artefact(row, files)


def list_at_work(tx: Tx) -> list[UUID]:
    return [row["id"] for row in tx.execute(QUERIES["list_at_work"]).fetchall()]


def move(
    tx: Tx,
    artefact: Artefact,
    to: State,
    *,
    now: datetime,
    detail: str | None = None,
    facts: Facts | None = None,
) -> None:
    """Take it to its next state. The key of what is deleted is destroyed.

    Raises:
        Refused: it cannot go there.
        Conflict: somebody else moved it first.
    """
    artefact.check_move(to)
    row = {
        "id": artefact.id, "before": artefact.state, "state": to, "detail": detail, "now": now,
        "facts": None if facts is None else Json(asdict(facts)),
    }  # fmt: skip
    if one(tx, QUERIES["move"], row) is None:
        raise Conflict(f"artefact {artefact.id} was moved by somebody else")
    if to in (State.REFUSED, State.DELETED):
        tx.execute(QUERIES["forget_parts"], {"id": artefact.id})


def tell(tx: Tx, artefact_id: UUID, detail: str | None) -> None:
    """Say how far it is, or what it waits for."""
    tx.execute(QUERIES["tell"], {"id": artefact_id, "detail": detail})


def open_key(artefact: Artefact, vault: Vault) -> bytes:
    """Return the key of its files.

    Raises:
        Refused: it is deleted, and its key with it.
        Misconfigured: the vault's key is not the one that sealed it.
    """
    if artefact.sealed_key is None:
        raise Refused("it was deleted")
    sealed = vault.open(artefact.sealed_key, bound_to=bound_to(artefact.id, "key"))
    return base64.b64decode(sealed)


def put_part(tx: Tx, artefact_id: UUID, *, file: int, part: int, sha256: bytes) -> None:
    row = {"artefact_id": artefact_id, "file": file, "part": part, "sha256": sha256}
    tx.execute(QUERIES["put_part"], row)


def set_sha256(tx: Tx, artefact_id: UUID, number: int, sha256: bytes) -> None:
    row = {"artefact_id": artefact_id, "number": number, "sha256": sha256}
    tx.execute(QUERIES["set_sha256"], row)


def missing_parts(tx: Tx, artefact: Artefact) -> dict[int, list[int]]:
    """Return {file: the parts of it that have not arrived}, of files that lack any."""
    here = {
        (row["file"], row["part"])
        for row in tx.execute(QUERIES["list_parts"], {"id": artefact.id}).fetchall()
    }
    missing = {
        file.number: [
            part for part in range(count_parts(file.size)) if (file.number, part) not in here
        ]
        for file in artefact.files
    }
    return {file: parts for file, parts in missing.items() if parts}


def forget_files(tx: Tx, artefact_id: UUID) -> None:
    """Begin anew: what was to be fetched is not there any more."""
    tx.execute(QUERIES["forget_parts"], {"id": artefact_id})
    tx.execute(QUERIES["forget_files"], {"id": artefact_id})


def check_quota(tx: Tx, tenant_id: UUID, *, more: int, most: int) -> None:
    """Hold a tenant to what it may keep; later artefacts of it wait for this transaction.

    Raises:
        Refused: it would be more.
    """
    tx.execute(QUERIES["lock_tenant"], {"tenant_id": tenant_id})
    row = one(tx, QUERIES["sum_bytes"], {"tenant_id": tenant_id})
    assert row is not None
    if row["bytes"] + more > most:
        raise Refused(
            f"{more} bytes more would make {row['bytes'] + more}, and a tenant may keep {most}:"
            " delete a model first, or ask the operator"
        )


def list_gone(tx: Tx, ids: Sequence[UUID]) -> list[UUID]:
    """Return those of which nobody needs the parts any more."""
    rows = tx.execute(QUERIES["list_gone"], {"ids": list(ids)}).fetchall()
    return [row["id"] for row in rows]


def _artefact(row: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> Artefact:
    return Artefact(
        id=row["id"],
        tenant_id=row["tenant_id"],
        kind=Kind(row["kind"]),
        state=State(row["state"]),
        detail=row["detail"],
        origin=Origin(row["origin"]),
        source=row["source"],
        secret=row["secret"],
        sealed_key=row["sealed_key"],
        facts=None if row["facts"] is None else Facts(**row["facts"]),
        files=tuple(File(**file) for file in files),
        created_at=row["created_at"],
        since=row["since"],
    )

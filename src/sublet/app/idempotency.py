"""Calls that are safe to send again: one key, one effect, one answer.

A caller names a call with the header `Idempotency-Key`. What it was answered is stored in the
transaction of its effect, so both are there or neither is. A repeat gets that answer again;
one that comes while the first is under way waits for it. A call that fails leaves nothing
behind, and may be sent again under its name.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

import psycopg
from fastapi import Depends, Header, Request, Response
from psycopg.types.json import Json
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from sublet.app.http import AnyCaller, Ours
from sublet.core.clock import Clock
from sublet.core.db import Database, Tx, load_queries, one
from sublet.core.errors import Conflict, Invalid, Refused
from sublet.core.failpoint import failpoint
from sublet.core.ids import derived_id, new_id

log = logging.getLogger(__name__)

QUERIES: Final = load_queries("sublet.app")
HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
# Whoever waits holds a connection, so it is not for long; the caller may come again.
WAIT_SECONDS: Final = 3.0

Document = dict[str, Any]
Key = Annotated[
    str | None,
    Header(
        alias=HEADER,
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="Your name for this call, such as a new UUID: sent again under it with the"
        " same body, it takes effect once and is answered the same",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """One call that changes something, and the name its caller gave it, if any."""

    db: Database
    clock: Clock
    caller: str
    key: str | None
    method: str
    path: str
    status: int  # of the answer when it succeeds
    response: Response

    def replay(self, body: BaseModel) -> Document | None:
        """Return what this call was answered before, or None.

        For those that look around before they change anything: what they would see now may
        no longer be what it was.

        Raises:
            Invalid: the key was used for another call.
        """
        if self.key is None:
            return None
        with self.db.transaction() as tx:
            return self._find(tx, self.key, _digest(body))

    def run(
        self, body: BaseModel, effect: Callable[[Tx], Document], *, shown_once: str | None = None
    ) -> Document:
        """Let `effect` happen and store its answer, in one transaction; or answer as before.

        Args:
            body: what came in; a repeat must bring the same.
            effect: what the call does. If it raises, nothing has happened.
            shown_once: the field of the answer that is a secret. It is not stored, so a repeat
                is refused and told what the first call made.

        Raises:
            Invalid: the key was used for another call.
            Conflict: the first call of this key is still under way.
            Refused: a repeat, whose answer cannot be shown again.
        """
        what = f"{effect.__module__.removeprefix('sublet.')}.{effect.__qualname__.split('.')[0]}"
        with self.db.transaction(what) as tx:
            if self.key is None:
                return effect(tx)
            self._take_turns(tx, self.key)
            digest = _digest(body)
            if (said := self._find(tx, self.key, digest)) is not None:
                if shown_once is not None:
                    raise Refused(
                        f"this call was made before and made {said.get('id')}; its {shown_once}"
                        " was shown then and was not kept. If that answer was lost, revoke it"
                        f" and make another with a new {HEADER}"
                    )
                return said
            document: Document = to_jsonable_python(effect(tx))
            failpoint("api.effect.done")
            row = self._name(self.key) | {
                "method": self.method,
                "path": self.path,
                "body_digest": digest,
                "status": self.status,
                "response": Json({k: v for k, v in document.items() if k != shown_once}),
                "created_at": self.clock.now(),
            }
            tx.execute(QUERIES["insert_answer"], row)
            failpoint("api.answer.stored")
            return document

    def new_id(self, kind: str) -> UUID:
        """Return an id for what is made outside the database: a repeat finds it by its id."""
        return new_id() if self.key is None else derived_id(kind, self.caller, self.key)

    def _name(self, key: str) -> dict[str, Any]:
        return {"caller": self.caller, "key": key}

    def _take_turns(self, tx: Tx, key: str) -> None:
        row = one(tx, QUERIES["try_lock_key"], self._name(key))
        assert row is not None
        if row["mine"]:
            return
        tx.execute(QUERIES["limit_lock_waits"], {"limit": f"{int(WAIT_SECONDS * 1000)}ms"})
        try:
            tx.execute(QUERIES["wait_for_key"], self._name(key))
        except psycopg.errors.LockNotAvailable:
            raise Conflict(
                f"a call with this {HEADER} is still under way; send it again in a moment"
            ) from None
        tx.execute(QUERIES["unlimit_lock_waits"])

    def _find(self, tx: Tx, key: str, digest: bytes) -> Document | None:
        row = one(tx, QUERIES["get_answer"], self._name(key))
        if row is None:
            return None
        before = f"{row['method']} {row['path']}"
        if before != f"{self.method} {self.path}":
            raise Invalid(
                f"this {HEADER} was already used for {before}; a new call needs a new one"
            )
        if row["body_digest"] != digest:
            raise Invalid(
                f"this {HEADER} was already used with another body; a new call needs a new one"
            )
        self.response.status_code = row["status"]
        self.response.headers[REPLAYED] = "true"
        log.info("api.replayed", extra={"caller": self.caller, "path": self.path})
        said: Document = row["response"]
        return said


def once(
    request: Request, response: Response, ours: Ours, found: AnyCaller, key: Key = None
) -> Once:
    """Raises Invalid: the call has two names."""
    if len(request.headers.getlist(HEADER)) > 1:
        raise Invalid(f"send one {HEADER}, not several")
    return Once(
        db=ours.db,
        clock=ours.clock,
        caller="operator" if found.tenant is None else f"tenant:{found.tenant.id}",
        key=key,
        method=request.method,
        path=request.url.path,
        status=request.scope["route"].status_code or 200,
        response=response,
    )


OneCall = Annotated[Once, Depends(once)]


def _digest(body: BaseModel) -> bytes:
    """Return the SHA-256 of what was sent, whatever its spaces and the order of its fields.

    What was left out does not count, so that a later Sublet, with more fields, knows it again.
    """
    sent = body.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).digest()

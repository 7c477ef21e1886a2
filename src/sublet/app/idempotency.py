"""Calls that are safe to send again: one key, one effect, one answer.

A caller names a call with the header `Idempotency-Key`. What it was answered is stored in the
transaction of its effect, so both are there or neither is. A repeat gets that answer again;
one that comes while the first is under way waits for it. A call that fails leaves nothing
behind, and may be sent again under its name.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
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
from sublet.core.errors import Conflict, Invalid, Refused, SubletError
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
            kept = {name: said for name, said in document.items() if name != shown_once}
            _keep(tx, [self._answer(digest, kept)])
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
        row = _answers(tx, [self]).get((self.caller, key))
        return None if row is None else self._said(row, digest)

    def _answer(self, digest: bytes, document: Document) -> dict[str, Any]:
        return {
            "caller": self.caller,
            "key": self.key,
            "method": self.method,
            "path": self.path,
            "body_digest": digest,
            "status": self.status,
            "response": Json(document),
            "created_at": self.clock.now(),
        }

    def _said(self, row: Mapping[str, Any], digest: bytes) -> Document:
        """Return the answer that was kept.

        Raises:
            Invalid: it is of another call.
        """
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


class UnderWay(Conflict):
    """The first call of this key is made by somebody else, at this moment."""


def run_together(
    tx: Tx,
    calls: Sequence[tuple[Once, BaseModel]],
    effect: Callable[[Sequence[int]], Sequence[Document | SubletError]],
) -> list[Document | SubletError]:
    """Do what `Once.run` does for calls of different keys, in one transaction of the caller's.

    Args:
        tx: the caller's: all that is done here is done once it commits.
        calls: each with what came in.
        effect: what those calls do whose places it is given, and each one's answer. Of one for
            which it returns an error nothing may have happened.

    Returns:
        for each call, what `Once.run` would return or raise; UnderWay where that would wait.
    """
    outcomes: dict[int, Document | SubletError] = {}
    named = [place for place, (call, _) in enumerate(calls) if call.key is not None]
    digests = {place: _digest(calls[place][1]) for place in named}
    if named:
        keys = _keys([calls[place][0] for place in named])
        ours = {named[row["place"]] for row in tx.execute(QUERIES["try_lock_keys"], keys)}
        for place in named:
            if place not in ours:
                outcomes[place] = UnderWay(f"a call with this {HEADER} is still under way")
        said = _answers(tx, [calls[place][0] for place in named])
        for place in ours:
            call = calls[place][0]
            if (row := said.get((call.caller, str(call.key)))) is not None:
                try:
                    outcomes[place] = call._said(row, digests[place])  # noqa: SLF001 -- its own
                except Invalid as error:
                    outcomes[place] = error
    fresh = [place for place in range(len(calls)) if place not in outcomes]
    made = effect(fresh) if fresh else []
    kept = []
    for place, outcome in zip(fresh, made, strict=True):
        outcomes[place] = outcome
        if place in digests and not isinstance(outcome, SubletError):
            outcomes[place] = document = to_jsonable_python(outcome)
            kept.append(calls[place][0]._answer(digests[place], document))  # noqa: SLF001
    if kept:
        failpoint("api.effect.done")
        _keep(tx, kept)
        failpoint("api.answer.stored")
    return [outcomes[place] for place in range(len(calls))]


def _keys(calls: Sequence[Once]) -> dict[str, list[str | None]]:
    return {"callers": [call.caller for call in calls], "keys": [call.key for call in calls]}


def _answers(tx: Tx, calls: Sequence[Once]) -> dict[tuple[str, str], Mapping[str, Any]]:
    rows = tx.execute(QUERIES["get_answers"], _keys(calls))
    return {(row["caller"], row["key"]): row for row in rows}


def _keep(tx: Tx, answers: Sequence[Mapping[str, Any]]) -> None:
    columns = {name: [row[name] for row in answers] for name in answers[0]}
    tx.execute(QUERIES["insert_answers"], columns)


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

"""People, their invitations and sessions, and what they changed, in Postgres."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Json

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Invalid, NotFound, Refused
from sublet.core.ids import new_id
from sublet.core.names import checked_name
from sublet.tenants import store
from sublet.tenants.person import (
    FAILURES_WITHIN,
    IDLE,
    INVITED,
    LONGEST,
    MOST_FAILURES,
    Invitation,
    Person,
    PersonId,
    PersonRole,
    Session,
    check_role,
    checked_email,
    digest_of,
    new_token,
)
from sublet.tenants.tenant import TenantId

QUERIES: Final = load_queries("sublet.tenants", "people.sql")


# ── people ───────────────────────────────────────────────────────────────────────────────


def get(tx: Tx, person_id: PersonId) -> Person:
    """Raises NotFound: there is no such person."""
    row = one(tx, QUERIES["get_person"], {"id": person_id})
    if row is None:
        raise NotFound(f"there is no person {person_id}")
    return _person(row)


def find(tx: Tx, email: str) -> tuple[Person, str | None] | None:
    """Return whoever has this address, and the hash of their password, if any."""
    row = one(tx, QUERIES["get_person_by_email"], {"email": email.strip().lower()})
    return None if row is None else (_person(row), row["password_hash"])


def list_people(tx: Tx, tenant_id: TenantId | None) -> list[Person]:
    """List a tenant's people; None: everybody."""
    row = {"tenant_id": tenant_id, "all": tenant_id is None}
    return [_person(found) for found in tx.execute(QUERIES["list_people"], row)]


def any_people(tx: Tx) -> bool:
    row = one(tx, QUERIES["count_people"], {})
    assert row is not None
    return bool(row["people"])


def set_disabled(tx: Tx, person_id: PersonId, *, disabled: bool, now: datetime) -> Person:
    """Let somebody sign in no more, and end what they have open; or let them again.

    Raises:
        NotFound: there is no such person.
        Refused: it is the last owner.
    """
    person = get(tx, person_id)
    if disabled:
        _check_not_last_owner(tx, person)
        tx.execute(QUERIES["end_sessions_of"], {"person_id": person_id, "but": b""})
    row = one(tx, QUERIES["set_disabled"], {"id": person_id, "at": now if disabled else None})
    assert row is not None
    return _person(row)


def set_role(tx: Tx, person_id: PersonId, role: PersonRole) -> Person:
    """Raises NotFound, Invalid: a role of the other kind; Refused: it is the last owner."""
    person = get(tx, person_id)
    check_role(role, person.tenant_id)
    if role is not PersonRole.OWNER:
        _check_not_last_owner(tx, person)
    row = one(tx, QUERIES["set_role"], {"id": person_id, "role": role})
    assert row is not None
    return _person(row)


def _check_not_last_owner(tx: Tx, person: Person) -> None:
    if person.role is not PersonRole.OWNER or person.disabled_at is not None:
        return
    row = one(tx, QUERIES["count_owners"], {})
    assert row is not None
    if row["owners"] == 1:
        raise Refused(f"{person.name} is the only owner: make another one first")


def set_password(tx: Tx, person_id: PersonId, password_hash: str) -> None:
    tx.execute(QUERIES["set_password"], {"id": person_id, "hash": password_hash})


def set_code(tx: Tx, person_id: PersonId, sealed: bytes | None, *, step: int = 0) -> None:
    """Ask for one-time codes made by this secret from now on; None: for none."""
    tx.execute(QUERIES["set_code"], {"id": person_id, "sealed": sealed, "step": step})


def get_code(tx: Tx, person_id: PersonId) -> bytes | None:
    row = one(tx, QUERIES["get_person"], {"id": person_id})
    return None if row is None or row["sealed_code"] is None else bytes(row["sealed_code"])


def take_code(tx: Tx, person_id: PersonId, step: int) -> bool:
    """Say whether the code of this step, or a later one, was not taken yet; it is now."""
    return one(tx, QUERIES["take_code"], {"id": person_id, "step": step}) is not None


# ── invitations ──────────────────────────────────────────────────────────────────────────


def invite(
    tx: Tx, role: PersonRole, *, tenant_id: TenantId | None, email: str | None,
    made_by: PersonId | None, now: datetime,
) -> tuple[Invitation, str]:  # fmt: skip
    """Return an invitation and its token, which nobody can read again.

    Raises:
        Invalid: the role does not go with the tenant, or the address cannot be one.
        NotFound: there is no such tenant.
        Refused: somebody has that address already.
    """
    check_role(role, tenant_id)
    if tenant_id is not None:
        store.get_tenant(tx, tenant_id)
    if email is not None:
        email = checked_email(email)
        if find(tx, email) is not None:
            raise Refused(f"{email} has an account already")
    token = new_token()
    row = {
        "digest": digest_of(token), "id": new_id(), "role": role, "tenant_id": tenant_id,
        "email": email, "made_by": made_by, "now": now, "expires_at": now + INVITED,
    }  # fmt: skip
    tx.execute(QUERIES["insert_invitation"], row)
    return _invitation(row | {"made_at": now}), token


def get_invitation(tx: Tx, token: str, *, now: datetime) -> Invitation:
    """Raises NotFound: no such invitation, or it was used, taken back or is too old."""
    row = one(tx, QUERIES["get_invitation"], {"digest": digest_of(token)})
    if row is None:
        raise NotFound("this invitation is not known here; check that its link was copied whole")
    if row["used_by"] is not None:
        raise NotFound("this invitation was used already; sign in, or ask for another")
    if row["revoked_at"] is not None or row["expires_at"] <= now:
        raise NotFound("this invitation is no longer good; ask for another")
    return _invitation(row)


def list_invitations(tx: Tx, tenant_id: TenantId | None, *, now: datetime) -> list[Invitation]:
    """List open invitations of a tenant's people; None: all."""
    row = {"tenant_id": tenant_id, "all": tenant_id is None, "now": now}
    return [_invitation(found) for found in tx.execute(QUERIES["list_invitations"], row)]


def revoke_invitation(
    tx: Tx, invitation_id: UUID, tenant_id: TenantId | None, *, now: datetime
) -> None:
    """Raises NotFound: there is no such open invitation, or it is another tenant's."""
    row = {"id": invitation_id, "tenant_id": tenant_id, "all": tenant_id is None, "now": now}
    if one(tx, QUERIES["revoke_invitation"], row) is None:
        raise NotFound(f"there is no open invitation {invitation_id}")


def accept(
    tx: Tx, token: str, *, email: str, name: str, password_hash: str, now: datetime
) -> Person:
    """Make the account that an invitation is for.

    Raises:
        NotFound: as `get_invitation`.
        Invalid: the address or the name cannot be one.
        Refused: it is for another address, or somebody has that one.
    """
    found = get_invitation(tx, token, now=now)
    email = checked_email(email)
    if found.email is not None and found.email != email:
        raise Refused(f"this invitation is for {found.email}")
    person = _add(
        tx, found, email=email, name=name, password_hash=password_hash, subject=None, now=now
    )
    tx.execute(QUERIES["use_invitation"], {"digest": digest_of(token), "person_id": person.id})
    return person


def find_by_oidc(
    tx: Tx, subject: str, *, email: str | None, name: str, now: datetime
) -> Person | None:
    """Return whom a provider's word is for; the first time, by an address that it has verified.

    Args:
        tx: the caller's transaction.
        subject: issuer and subject, which stand for one person for ever.
        email: the verified address; None: the provider has not verified any.
        name: as the provider has it.
        now: the present instant.

    Returns:
        None where there is no account and no invitation of that address.
    """
    row = one(tx, QUERIES["get_person_by_subject"], {"subject": subject})
    if row is not None:
        return _person(row)
    if email is None:
        return None
    email = checked_email(email)
    row = one(tx, QUERIES["get_person_by_email"], {"email": email})
    if row is not None:
        if row["oidc_subject"] is not None:
            return None  # the address is another subject's by now
        tx.execute(QUERIES["set_subject"], {"id": row["id"], "subject": subject})
        return _person(row | {"oidc_subject": subject})
    invited = one(tx, QUERIES["find_invitation_of_email"], {"email": email, "now": now})
    if invited is None:
        return None
    person = _add(
        tx, _invitation(invited), email=email, name=name, password_hash=None, subject=subject,
        now=now,
    )  # fmt: skip
    tx.execute(QUERIES["use_invitation"], {"digest": invited["digest"], "person_id": person.id})
    return person


def _add(
    tx: Tx, invitation: Invitation, *, email: str, name: str, password_hash: str | None,
    subject: str | None, now: datetime,
) -> Person:  # fmt: skip
    row = {
        "id": new_id(), "email": email, "name": checked_name(name, what="name"),
        "role": invitation.role, "tenant_id": invitation.tenant_id,
        "password_hash": password_hash, "oidc_subject": subject, "now": now,
    }  # fmt: skip
    made = one(tx, QUERIES["insert_person"], row)
    if made is None:
        raise Refused(f"{email} has an account already: sign in with it")
    return _person(made)


# ── sessions ─────────────────────────────────────────────────────────────────────────────


def open_session(tx: Tx, person: Person, *, confirmed: bool, agent: str, now: datetime) -> str:
    """Return the token of a new session."""
    token = new_token()
    row = {
        "digest": digest_of(token), "person_id": person.id, "confirmed": confirmed,
        "agent": agent[:200], "now": now, "expires_at": now + LONGEST,
    }  # fmt: skip
    tx.execute(QUERIES["forget_sessions"], {"now": now, "idle_since": now - IDLE})
    tx.execute(QUERIES["insert_session"], row)
    return token


def find_session(tx: Tx, token: str, *, now: datetime) -> Session | None:
    """Return whose session it is; None when there is no such one any more."""
    row = one(
        tx,
        QUERIES["get_session"],
        {"digest": digest_of(token), "now": now, "idle_since": now - IDLE},
    )
    if row is None:
        return None
    # Once a minute is enough to know that somebody is still there.
    if (now - row["seen_at"]).total_seconds() > 60:
        tx.execute(QUERIES["touch_session"], {"digest": row["digest"], "now": now})
    return Session(
        digest=bytes(row["digest"]),
        person=_person(row),
        confirmed=row["confirmed"],
        acts_for=row["acts_for"],
        made_at=row["made_at"],
        expires_at=row["expires_at"],
    )


def act_for(tx: Tx, session: Session, tenant_id: TenantId | None) -> None:
    """See and do what is a tenant's, from now on in this session; None: one's own again.

    Raises:
        NotFound: there is no such tenant.
        Invalid: the person is a tenant's.
    """
    if session.person.tenant_id is not None:
        raise Invalid("only people of the operator's act for tenants")
    if tenant_id is not None:
        store.get_tenant(tx, tenant_id)
    tx.execute(QUERIES["set_acts_for"], {"digest": session.digest, "tenant_id": tenant_id})


def list_sessions(tx: Tx, person_id: PersonId, *, now: datetime) -> list[dict[str, Any]]:
    row = {"person_id": person_id, "now": now, "idle_since": now - IDLE}
    return [dict(found) for found in tx.execute(QUERIES["list_sessions"], row)]


def end_session(tx: Tx, digest: bytes) -> None:
    tx.execute(QUERIES["end_session"], {"digest": digest})


def end_other_sessions(tx: Tx, person_id: PersonId, *, but: bytes) -> None:
    tx.execute(QUERIES["end_sessions_of"], {"person_id": person_id, "but": but})


# ── failed sign-ins ──────────────────────────────────────────────────────────────────────


def too_many_failures(tx: Tx, subjects: Mapping[str, str], *, now: datetime) -> bool:
    """Say whether too many sign-ins failed lately: {kind: what}, such as {"email": "a@b.c"}."""
    named = {f"{kind}:{what}": MOST_FAILURES[kind] for kind, what in subjects.items()}
    row = {"subjects": list(named), "since": now - FAILURES_WITHIN}
    return any(
        found["failures"] >= named[found["subject"]]
        for found in tx.execute(QUERIES["count_failures"], row)
    )


def note_failure(tx: Tx, subjects: Mapping[str, str], *, now: datetime) -> None:
    named = [f"{kind}:{what}" for kind, what in subjects.items()]
    tx.execute(QUERIES["insert_failures"], {"subjects": named, "now": now})


def forgive(tx: Tx, email: str, *, now: datetime) -> None:
    """Forget the failures of an account whose owner signed in, and those of long ago."""
    row = {"since": now - FAILURES_WITHIN, "subject": f"email:{email}"}
    tx.execute(QUERIES["forget_failures"], row)


# ── what was changed ─────────────────────────────────────────────────────────────────────


def note_change(
    tx: Tx, change_id: UUID, event: str, *, person_id: PersonId | None, tenant_id: TenantId | None,
    action: str, subject: str, before: object, after: object, now: datetime,
) -> None:  # fmt: skip
    """Record that a change was asked for, done, or refused."""
    row = {
        "change_id": change_id, "event": event, "person_id": person_id, "tenant_id": tenant_id,
        "action": action, "subject": subject[:300],
        "before": None if before is None else Json(before),
        "after": None if after is None else Json(after), "now": now,
    }  # fmt: skip
    tx.execute(QUERIES["insert_change"], row)


def list_changes(
    tx: Tx, tenant_id: TenantId | None, *, before: int | None, limit: int
) -> Sequence[dict[str, Any]]:
    """List what was changed of a tenant's, newest first; None: of everybody's."""
    row = {"tenant_id": tenant_id, "all": tenant_id is None, "before": before, "limit": limit}
    return tx.execute(QUERIES["list_changes"], row).fetchall()


def _person(row: Mapping[str, Any]) -> Person:
    return Person(
        id=PersonId(row["id"]),
        email=row["email"],
        name=row["name"],
        role=PersonRole(row["role"]),
        tenant_id=row["tenant_id"],
        has_password=row["password_hash"] is not None,
        asks_code=row["sealed_code"] is not None,
        has_oidc=row["oidc_subject"] is not None,
        created_at=row["created_at"],
        disabled_at=row["disabled_at"],
    )


def _invitation(row: Mapping[str, Any]) -> Invitation:
    return Invitation(
        id=row["id"],
        role=PersonRole(row["role"]),
        tenant_id=row["tenant_id"],
        email=row["email"],
        made_at=row["made_at"],
        expires_at=row["expires_at"],
    )

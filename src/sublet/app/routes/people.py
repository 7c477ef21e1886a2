"""People who sign in to the console: invite them, list them, shut them out."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from sublet.app.documents import Body, Text
from sublet.app.http import Operator, Ours
from sublet.app.idempotency import OneCall
from sublet.console.page import BASE
from sublet.core.db import Tx
from sublet.tenants import people
from sublet.tenants.person import Person, PersonId, PersonRole
from sublet.tenants.tenant import TenantId

router = APIRouter(prefix="/v1", tags=["people"])


class NewInvitation(Body):
    role: PersonRole = PersonRole.OWNER
    tenant_id: UUID | None = Field(None, description="Whose person it will be, for a tenant's role")
    email: Annotated[Text, Field(max_length=255)] | None = Field(
        None, description="Only for this address; left out, for whoever has the link"
    )


class PersonChange(Body):
    role: PersonRole | None = None
    disabled: bool | None = Field(None, description="Signs in no more, and is signed out at once")


@router.post("/invitations", status_code=201)
def invite(ours: Ours, _: Operator, once: OneCall, body: NewInvitation) -> dict[str, Any]:
    """Make a link that makes one account of the console. It is shown once."""

    def make(tx: Tx) -> dict[str, Any]:
        tenant_id = None if body.tenant_id is None else TenantId(body.tenant_id)
        made, token = people.invite(
            tx, body.role, tenant_id=tenant_id, email=body.email, made_by=None, now=ours.clock.now()
        )
        return {
            "id": made.id,
            "role": made.role,
            "tenant_id": made.tenant_id,
            "email": made.email,
            "expires_at": made.expires_at,
            "url": f"{ours.config.public_url}{BASE}/welcome/{token}",
        }

    return once.run(body, make, shown_once="url")


@router.get("/people")
def list_people(ours: Ours, _: Operator) -> dict[str, Any]:
    """List who may sign in to the console, and as what."""
    with ours.db.transaction() as tx:
        return {"items": [_document(person) for person in people.list_people(tx, None)]}


@router.patch("/people/{person_id}")
def change_person(ours: Ours, _: Operator, person_id: UUID, body: PersonChange) -> dict[str, Any]:
    """Give somebody another role, shut them out, or let them in again."""
    id_, now = PersonId(person_id), ours.clock.now()
    with ours.db.transaction() as tx:
        person = people.get(tx, id_)
        if body.role is not None:
            person = people.set_role(tx, id_, body.role)
        if body.disabled is not None:
            person = people.set_disabled(tx, id_, disabled=body.disabled, now=now)
        return _document(person)


def _document(person: Person) -> dict[str, Any]:
    return {
        "id": person.id,
        "email": person.email,
        "name": person.name,
        "role": person.role,
        "tenant_id": person.tenant_id,
        "one_time_codes": person.asks_code,
        "created_at": person.created_at,
        "disabled_at": person.disabled_at,
    }

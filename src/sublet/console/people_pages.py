"""Who may sign in, whom to invite, and what people changed."""

from typing import Any
from uuid import UUID

from starlette.responses import Response

from sublet.console.page import BASE
from sublet.console.visit import Visit
from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound
from sublet.tenants import people
from sublet.tenants import store as tenants
from sublet.tenants.person import OF_TENANTS, Person, PersonId, PersonRole
from sublet.tenants.tenant import TenantId

_PAGE: int = 100


async def show(visit: Visit) -> Response:
    """List people and open invitations: a tenant's, or everybody's."""
    mine = None if visit.tenant is None else visit.tenant.id
    now = visit.site.ground.clock.now()

    def load(tx: Tx) -> dict[str, Any]:
        known = [visit.tenant] if visit.tenant is not None else tenants.list_tenants(tx)
        return {
            "people": people.list_people(tx, mine),
            "invitations": people.list_invitations(tx, mine, now=now),
            "tenants": {tenant.id: tenant.name for tenant in known},
        }

    found = await visit.db(load)
    return visit.page("people.html", title="People", roles=_roles(visit), link_made=None, **found)


def _roles(visit: Visit) -> list[PersonRole]:
    return [role for role in PersonRole if visit.tenant is None or role in OF_TENANTS]


async def invite(visit: Visit) -> Response:
    """Make an invitation, and show its link once."""
    role = _role(visit)
    if visit.tenant is not None:
        tenant_id: TenantId | None = visit.tenant.id
    else:
        said = visit.said("tenant") if role in OF_TENANTS else None
        tenant_id = None if said is None else TenantId(UUID(said))
    now, email = visit.site.ground.clock.now(), visit.said("email")
    made_by = visit.who.person.id
    invitation, token = await visit.db(
        lambda tx: people.invite(
            tx, role, tenant_id=tenant_id, email=email, made_by=made_by, now=now
        )
    )
    visit.note(
        subject=email or "whoever has the link", after={"role": role, "id": str(invitation.id)}
    )
    link = f"{visit.site.ground.config.public_url}{BASE}/welcome/{token}"
    return visit.page("invited.html", title="Invited", invitation=invitation, address=link)


async def revoke_invitation(visit: Visit) -> Response:
    mine = None if visit.tenant is None else visit.tenant.id
    now, id_ = visit.site.ground.clock.now(), UUID(visit.part("invitation_id"))
    await visit.db(lambda tx: people.revoke_invitation(tx, id_, mine, now=now))
    return visit.go_to("/people", "The invitation is taken back.")


async def change(visit: Visit) -> Response:
    """Give somebody another role, or let them sign in no more."""
    id_, now = PersonId(UUID(visit.part("person_id"))), visit.site.ground.clock.now()
    wanted = visit.must("what")

    def apply(tx: Tx) -> tuple[Person, Person]:
        before = people.get(tx, id_)
        if visit.tenant is not None and before.tenant_id != visit.tenant.id:
            raise NotFound(f"there is no person {id_}")
        if wanted in {"disable", "enable"}:
            if before.id == visit.who.person.id:
                raise Invalid("nobody can take their own sign-in away")
            return before, people.set_disabled(tx, id_, disabled=wanted == "disable", now=now)
        return before, people.set_role(tx, id_, _role(visit))

    before, after = await visit.db(apply)
    visit.note(subject=before.email, before=_told(before), after=_told(after))
    return visit.go_to("/people", f"{after.name}: saved.")


def _role(visit: Visit) -> PersonRole:
    """Raises Invalid: it is none that can be given here."""
    try:
        role = PersonRole(visit.must("role"))
    except ValueError:
        role = None
    if role is None or role not in _roles(visit):
        raise Invalid("role: choose one of those that are offered")
    return role


def _told(person: Person) -> dict[str, Any]:
    return {"role": person.role, "disabled": person.disabled_at is not None}


async def show_changes(visit: Visit) -> Response:
    """List what people changed: who, what, what it was before, and what became of it."""
    mine = None if visit.tenant is None else visit.tenant.id
    before = visit.asked("before")
    if before and not before.isdigit():
        raise Invalid("before: must be a number")
    found = await visit.db(
        lambda tx: people.list_changes(
            tx, mine, before=int(before) if before else None, limit=_PAGE + 1
        )
    )
    more = found[_PAGE - 1]["record"] if len(found) > _PAGE else None
    return visit.page("changes.html", title="Changes", changes=found[:_PAGE], more=more)

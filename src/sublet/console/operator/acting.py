"""Seeing the console as a tenant does, to help one or to be one's own customer."""

from uuid import UUID

from starlette.responses import Response

from sublet.console.visit import Visit
from sublet.core.errors import Invalid
from sublet.tenants import people
from sublet.tenants.tenant import TenantId


async def act_for(visit: Visit) -> Response:
    try:
        tenant_id = TenantId(UUID(visit.must("tenant")))
    except ValueError:
        raise Invalid("tenant: choose one") from None
    who = visit.who
    await visit.db(lambda tx: people.act_for(tx, who, tenant_id))
    return visit.go_to("/")


async def end_acting(visit: Visit) -> Response:
    who = visit.who
    if who.acts_for is not None:
        await visit.db(lambda tx: people.act_for(tx, who, None))
    return visit.go_to("/")

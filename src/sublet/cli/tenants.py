"""`sublet tenant …`: who may use what, for the operator."""

from typing import TYPE_CHECKING, Annotated, Literal
from uuid import UUID

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import Failure
from sublet.cli.output import Column, instant, text, usd, yes_no

if TYPE_CHECKING:
    from sublet.cli.client import Client

TENANT = (
    Column("id", "id"),
    Column("name", "name"),
    Column("kind", "kind"),
    Column("network", "network_allowed", yes_no),
    Column("created", "created_at", instant),
)
WALLET = (
    Column("tenant", "tenant_id"),
    Column("balance", "balance_usd", usd),
    Column("held", "held_usd", usd),
    Column("available", "available_usd", usd),
)

NameOrId = Annotated[str, typer.Argument(metavar="NAME|ID", help="The tenant.")]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Tenants: customers, and the money they have.",
        examples=("sublet tenant create acme", "sublet tenant credit acme 25"),
    )
    root.add_typer(group, name="tenant")
    command(
        group, "create",
        examples=("sublet tenant create acme", "sublet tenant create acme --network --json"),
    )(create)  # fmt: skip
    command(group, "list", examples=("sublet tenant list", "sublet tenant list --json"))(list_all)
    command(group, "show", examples=("sublet tenant show acme",))(show)
    command(
        group, "credit",
        examples=(
            "sublet tenant credit acme 25",
        ),
    )(credit)  # fmt: skip
    command(
        group, "network",
        examples=("sublet tenant network acme on", "sublet tenant network acme off"),
    )(network)  # fmt: skip


def tenant_id(api: "Client", name_or_id: str) -> str:
    """Return the id of the tenant called `name_or_id`, or whose id it is."""
    try:
        return str(UUID(name_or_id))
    except ValueError:
        pass
    for tenant in api.items("/v1/tenants"):
        if tenant["name"] == name_or_id:
            return text(tenant["id"])
    raise Failure(f"no tenant is called {name_or_id!r}; `sublet tenant list` shows them")


def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the tenant is called.")],
    *,
    network: Annotated[
        bool, typer.Option("--network", help="Allow its leases to ask for the network.")
    ] = False,
) -> None:
    """Create a tenant. It has no money and no key yet."""
    with session.operator() as api:
        document = api.post("/v1/tenants", {"name": name, "network_allowed": network})
    session.show(document, TENANT)


def list_all(session: Session) -> None:
    """List all tenants."""
    with session.operator() as api:
        document = api.get("/v1/tenants")
    session.show_items(document, TENANT)


def show(session: Session, tenant: NameOrId) -> None:
    """Show one tenant."""
    with session.operator() as api:
        document = api.get(f"/v1/tenants/{tenant_id(api, tenant)}")
    session.show(document, TENANT)


def credit(
    session: Session,
    tenant: NameOrId,
    amount_usd: Annotated[str, typer.Argument(metavar="AMOUNT_USD", help="Such as 25 or 0.50.")],
    *,
    id: Annotated[  # noqa: A002 -- the option's name
        UUID | None,
        typer.Option(metavar="UUID", help="Repeating a credit with its id adds it only once."),
    ] = None,
) -> None:
    """Put money into a tenant's wallet."""
    body = {"amount_usd": amount_usd}
    if id is not None:
        body["id"] = str(id)
    with session.operator() as api:
        document = api.post(f"/v1/tenants/{tenant_id(api, tenant)}/credits", body)
    session.show(document, WALLET)


def network(
    session: Session,
    tenant: NameOrId,
    allowed: Annotated[
        Literal["on", "off"], typer.Argument(metavar="on|off", help="May it be asked for?")
    ],
) -> None:
    """Allow or forbid the network to a tenant's next leases."""
    with session.operator() as api:
        document = api.patch(
            f"/v1/tenants/{tenant_id(api, tenant)}", {"network_allowed": allowed == "on"}
        )
    session.show(document, TENANT)

"""`sublet console …`: who may sign in to the console."""

from typing import Annotated

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import Failure
from sublet.cli.output import Column, instant, yes_no
from sublet.cli.tenants import tenant_id

PERSON = (
    Column("id", "id"),
    Column("name", "name"),
    Column("e-mail", "email"),
    Column("role", "role"),
    Column("tenant", "tenant_id"),
    Column("codes", "one_time_codes", yes_no),
    Column("since", "created_at", instant),
    Column("shut out", "disabled_at", instant),
)
INVITATION = (
    Column("role", "role"),
    Column("e-mail", "email"),
    Column("good until", "expires_at", instant),
    Column("link", "url"),
)

Who = Annotated[str, typer.Argument(metavar="EMAIL|ID", help="The person.")]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "The console, in a browser: who may sign in to it.",
        examples=("sublet console invite", "sublet console people"),
    )
    root.add_typer(group, name="console")
    command(
        group, "invite",
        examples=(
            "sublet console invite",
            "sublet console invite --role finance --email ada@example.com",
            "sublet console invite --role tenant_admin --tenant acme",
        ),
    )(invite)  # fmt: skip
    command(
        group, "people", examples=("sublet console people", "sublet console people --json")
    )(list_all)  # fmt: skip
    command(group, "shut-out", examples=("sublet console shut-out ada@example.com",))(shut_out)
    command(group, "let-in", examples=("sublet console let-in ada@example.com",))(let_in)


def invite(
    session: Session,
    *,
    role: Annotated[
        str,
        typer.Option(
            metavar="ROLE",
            help="owner, operator, finance, read_only, tenant_admin or tenant_member.",
        ),
    ] = "owner",
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME|ID", help="Whose, for a tenant's role.")
    ] = None,
    email: Annotated[
        str | None, typer.Option(metavar="EMAIL", help="Only for this address.")
    ] = None,
) -> None:
    """Make a link that makes one account. It is shown once."""
    with session.operator() as api:
        body: dict[str, object] = {"role": role}
        if tenant is not None:
            body["tenant_id"] = tenant_id(api, tenant)
        if email is not None:
            body["email"] = email
        document = api.post("/v1/invitations", body)
    session.show(document, INVITATION)


def list_all(session: Session) -> None:
    """List who may sign in."""
    with session.operator() as api:
        document = api.get("/v1/people")
    session.show_items(document, PERSON)


def shut_out(session: Session, person: Who) -> None:
    """Let somebody sign in no more, and sign them out at once."""
    _change(session, person, disabled=True)


def let_in(session: Session, person: Who) -> None:
    """Let somebody sign in again who was shut out."""
    _change(session, person, disabled=False)


def _change(session: Session, person: str, *, disabled: bool) -> None:
    with session.operator() as api:
        known = next(
            (one for one in api.items("/v1/people") if person in {one["id"], one["email"]}), None
        )
        if known is None:
            raise Failure(f"nobody is called {person!r} here; `sublet console people` shows them")
        document = api.patch(f"/v1/people/{known['id']}", {"disabled": disabled})
    session.show(document, PERSON)

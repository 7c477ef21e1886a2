"""`sublet key …`: API keys."""

from datetime import timedelta
from typing import Annotated

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.output import Column, instant, print_json
from sublet.cli.parsing import seconds
from sublet.cli.tenants import tenant_id

KEY = (
    Column("id", "id"),
    Column("name", "name"),
    Column("hint", "hint"),
    Column("created", "created_at", instant),
    Column("expires", "expires_at", instant),
    Column("revoked", "revoked_at", instant),
)
NEW_KEY = (*KEY, Column("key", "key"))
NEW_ACCESS_KEY = (
    *KEY,
    Column("access key id", "access_key_id"),
    Column("secret access key", "secret_access_key"),
)

Tenant = Annotated[
    str | None,
    typer.Option(metavar="NAME|ID", help="Whose (for the operator); else the caller's own."),
]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "API keys. A key is shown once, when it is made.",
        examples=("sublet key create --tenant acme --name laptop", "sublet key list"),
    )
    root.add_typer(group, name="key")
    command(
        group, "create",
        examples=(
            "sublet key create --name ci --expires-in 30d",
            "sublet key create --tenant acme --name laptop",
            "sublet key create --name boto3 --sigv4",
        ),
    )(create)  # fmt: skip
    command(
        group, "list", examples=("sublet key list", "sublet key list --tenant acme --json")
    )(list_all)  # fmt: skip
    command(
        group, "revoke", examples=("sublet key revoke 6f1d2c3b-8f9e-4f57-9a53-0b0f4a0f2c11",)
    )(revoke)  # fmt: skip


def create(
    session: Session,
    *,
    name: Annotated[str, typer.Option(metavar="NAME", help="What it is for.")],
    tenant: Tenant = None,
    expires_in: Annotated[
        int | None,
        typer.Option(
            parser=seconds, metavar="DURATION", help="Such as 12h or 30d; never, if not given."
        ),
    ] = None,
    sigv4: Annotated[
        bool, typer.Option("--sigv4", help="A pair with which AWS's clients sign requests.")
    ] = False,
) -> None:
    """Make a key and print it, once."""
    body: dict[str, object] = {"name": name}
    if sigv4:
        body["sigv4"] = True
    if expires_in is not None:
        from sublet.core.clock import SystemClock  # noqa: PLC0415

        body["expires_at"] = (SystemClock().now() + timedelta(seconds=expires_in)).isoformat()
    if tenant is None:
        with session.tenant() as api:
            document = api.post("/v1/keys", body)
    else:
        with session.operator() as api:
            document = api.post(f"/v1/tenants/{tenant_id(api, tenant)}/keys", body)
    session.show(document, NEW_ACCESS_KEY if sigv4 else NEW_KEY)
    session.say("keep the key now: it is not shown again")


def list_all(session: Session, *, tenant: Tenant = None) -> None:
    """List keys, without their secrets."""
    if tenant is None:
        with session.tenant() as api:
            document = api.get("/v1/keys")
    else:
        with session.operator() as api:
            document = api.get(f"/v1/tenants/{tenant_id(api, tenant)}/keys")
    session.show_items(document, KEY)


def revoke(
    session: Session, key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]
) -> None:
    """Revoke a key: it is refused from now on."""
    from sublet.cli.client import part  # noqa: PLC0415

    with session.operator() as api:
        api.delete(f"/v1/keys/{part(key_id)}")
    if session.json:
        print_json({"id": key_id, "revoked": True})
    else:
        print(f"revoked {key_id}")

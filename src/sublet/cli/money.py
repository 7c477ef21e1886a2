"""`sublet wallet`, `statement`, `charges`, `offers`: what a tenant has, paid and could buy."""

from typing import Annotated

import typer

from sublet.cli.command import Session, command
from sublet.cli.ids import lease_id
from sublet.cli.keys import Tenant
from sublet.cli.output import Column, instant, span, usd
from sublet.cli.tenants import WALLET, tenant_id

CHARGE = (
    Column("happened", "happened_at", instant),
    Column("sku", "sku"),
    Column("quantity", "quantity", right=True),
    Column("amount", "amount_usd", usd, right=True),
    Column("outcome", "outcome"),
    Column("lease", "lease_id", id=True),
    Column("request", "request_id"),
)
MOVEMENT = (
    Column("happened", "happened_at", instant),
    Column("reason", "reason"),
    Column("amount", "amount_usd", usd, right=True),
    Column("number", "sequence", right=True),
)


def _shorter(value: object) -> str:
    """Say what is paid for a shorter notice than the longest, where that is less."""
    items = value if isinstance(value, list) else []
    return ", ".join(
        f"{span(item['notice_seconds'])}: {usd(item['usd_per_gpu_hour'])}" for item in items[:-1]
    )


OFFER = (
    Column("pool", "pool"),
    Column("tier", "tier"),
    Column("per GPU-hour", "usd_per_gpu_hour", usd, right=True),
    Column("firm for", "firm_seconds", span, right=True),
    Column("GPUs now", "gpus_available", right=True),
    Column("notice", "notice_seconds", span, right=True),
    Column("shorter notices", "by_notice", _shorter),
)


def add_to(root: typer.Typer) -> None:
    command(
        root, "wallet", examples=("sublet wallet", "sublet wallet --tenant acme --json")
    )(wallet)  # fmt: skip
    command(
        root, "statement",
        examples=("sublet statement", "sublet statement --tenant acme --limit 20"),
    )(statement)  # fmt: skip
    command(
        root, "charges",
        examples=("sublet charges --limit 20", "sublet charges --lease 3fa8 --json"),
    )(charges)  # fmt: skip
    command(root, "offers", examples=("sublet offers", "sublet offers --json"))(offers)


def wallet(session: Session, *, tenant: Tenant = None) -> None:
    """Show a wallet: balance, held for running work, available."""
    if tenant is None:
        with session.tenant() as api:
            document = api.get("/v1/wallet")
    else:
        with session.operator() as api:
            document = api.get(f"/v1/tenants/{tenant_id(api, tenant)}/wallet")
    session.show(document, WALLET)


def statement(
    session: Session,
    *,
    tenant: Tenant = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most so many, newest first.")
    ] = None,
) -> None:
    """List what moved a wallet's money, newest first: payments, charges, credits."""
    if tenant is None:
        with session.tenant() as api:
            document = api.get("/v1/statement", limit=limit)
    else:
        with session.operator() as api:
            document = api.get(f"/v1/tenants/{tenant_id(api, tenant)}/statement", limit=limit)
    session.show_items(document, MOVEMENT)


def charges(
    session: Session,
    *,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most so many, newest first.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this model request's.")
    ] = None,
    lease: Annotated[str | None, typer.Option(metavar="ID", help="Only this lease's.")] = None,
) -> None:
    """List what was charged, newest first."""
    with session.tenant() as api:
        whole = None if lease is None else lease_id(api, lease)
        document = api.get("/v1/charges", limit=limit, request_id=request_id, lease_id=whole)
    session.show_items(document, CHARGE)


def offers(session: Session) -> None:
    """List what can be leased now, and at which price."""
    with session.tenant() as api:
        document = api.get("/v1/offers")
    session.show_items(document, OFFER)

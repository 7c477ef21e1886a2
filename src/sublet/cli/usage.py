"""`sublet usage`, `sublet tag`: what was used and what it cost, by whatever tells it apart."""

from typing import Annotated, Any, Final

import typer

from sublet.cli.command import Session, command
from sublet.cli.output import Column, usd
from sublet.cli.tenants import tenant_id

_SUMS: Final = (
    Column("cost", "amount_usd", usd, right=True),
    Column("GPU-hours", "gpu_hours", right=True),
    Column("input tokens", "input_tokens", right=True),
    Column("output tokens", "output_tokens", right=True),
)
_FORECAST: Final = (
    Column("month", "month"),
    Column("spent", "spent_usd", usd),
    Column("a day", "a_day_usd", usd),
    Column("days seen", "days_seen"),
    Column("forecast", "forecast_usd", usd),
)
_TAGS: Final = (Column("id", "id"), Column("tags", "tags"))


def add_to(root: typer.Typer) -> None:
    command(
        root, "usage",
        examples=(
            "sublet usage",
            "sublet usage --by model --by tag:team --from 2026-10-01 --to 2026-11-01",
            "sublet usage --forecast --tag team=research",
        ),
    )(usage)  # fmt: skip
    command(
        root, "tag", examples=("sublet tag 3fa85f64-5717-4562-b3fc-2c963f66afa6 team=research",)
    )(tag)


def usage(
    session: Session,
    *,
    by: Annotated[
        list[str] | None,
        typer.Option(help="day, product, model, pool, key, lease, tag:NAME; may be repeated."),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="First day; else this month's.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="The day after the last.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    pool: Annotated[str | None, typer.Option(help="Only this pool.")] = None,
    key_name: Annotated[
        str | None, typer.Option("--key-name", metavar="NAME", help="Only this API key.")
    ] = None,
    lease: Annotated[str | None, typer.Option(help="Only this lease, by its id.")] = None,
    only_tag: Annotated[
        str | None, typer.Option("--tag", metavar="NAME=VALUE", help="Only what has this tag.")
    ] = None,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="What this month comes to, instead.")
    ] = False,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Whose, with the operator's key.")
    ] = None,
) -> None:
    """Show what was used and what it cost, this month by the day if nothing else is asked for."""
    given = {"model": model, "pool": pool, "key": key_name, "lease": lease, "tag": only_tag}
    params: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with session.tenant(as_operator=tenant is not None) as api:
        if tenant is not None:
            params["tenant_id"] = tenant_id(api, tenant)
        if forecast:
            session.show(api.get("/v1/usage/forecast", **params), _FORECAST)
            return
        names = by or ["day"]
        params |= {"by": names, "limit": 1_000}
        params |= {k: v for k, v in (("from", start), ("to", end)) if v is not None}
        document = api.get("/v1/usage", **params)
        while document.get("next_offset") is not None:
            more = api.get("/v1/usage", **params | {"offset": document["next_offset"]})
            document = more | {"items": [*document["items"], *more["items"]]}
    asked = [
        Column(name, "tag" if name.startswith("tag:") else name, id=name == "lease")
        for name in names
    ]
    session.show_items(document, (*asked, *_SUMS))


def tag(
    session: Session,
    subject: Annotated[
        str, typer.Argument(metavar="ID", help="Of an API key, a lease or a reservation.")
    ],
    tags: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE...", help="All of them; none takes them away."),
    ] = None,
    *,
    as_operator: Annotated[
        bool, typer.Option("--as-operator", help="With the operator's key: anybody's.")
    ] = False,
) -> None:
    """Tag what is charged: bills and `sublet usage` tell it apart from now on."""
    pairs = {}
    for one in tags or []:
        name, given, value = one.partition("=")
        if not given:
            raise typer.BadParameter(f"{one[:40]!r} is no NAME=VALUE such as team=research")
        pairs[name] = value
    with session.tenant(as_operator=as_operator) as api:
        session.show(api.put(f"/v1/tags/{subject}", {"tags": pairs}), _TAGS)

"""`sublet usage`, `sublet tag`: what was used and what it cost, by whatever tells it apart."""

from typing import Annotated, Any, Final

import typer

from sublet.cli.command import Session, command, new_group
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
_BUDGET: Final = (
    Column("budget", "name"),
    Column("a month", "amount_usd", usd, right=True),
    Column("spent", "spent_usd", usd, right=True),
    Column("key", "key"),
    Column("tag", "tag"),
    Column("e-mail", "email"),
    Column("webhook", "webhook"),
)
_TAGS: Final = (Column("id", "id"), Column("tags", "tags"))


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Budgets: what you mean to spend in a month, and whom to tell at which shares of it.",
        examples=("sublet budget list",),
    )
    root.add_typer(group, name="budget")
    command(group, "list", examples=("sublet budget list",))(list_budgets)
    command(
        group, "set",
        examples=(
            "sublet budget set all 5000 --email cfo@example.com",
            "sublet budget set research 900 --tag team=research --at 80 --webhook https://example.com/x",
        ),
    )(set_budget)  # fmt: skip
    command(group, "remove", examples=("sublet budget remove research",))(remove_budget)
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


def list_budgets(session: Session) -> None:
    """List your budgets, and what was charged of each this month."""
    with session.tenant() as api:
        session.show_items(api.get("/v1/budgets"), _BUDGET)


def set_budget(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The same again changes it.")],
    amount: Annotated[str, typer.Argument(metavar="USD", help="A month.")],
    *,
    at: Annotated[
        list[int] | None,
        typer.Option("--at", metavar="PERCENT", help="Tell then; else at 50, 80 and 100."),
    ] = None,
    email: Annotated[str, typer.Option(metavar="ADDRESS", help="Whom to tell.")] = "",
    webhook: Annotated[str, typer.Option(metavar="URL", help="What to call, signed.")] = "",
    key_name: Annotated[
        str | None, typer.Option("--key-name", metavar="NAME", help="Only of this API key.")
    ] = None,
    only_tag: Annotated[
        str | None, typer.Option("--tag", metavar="NAME=VALUE", help="Only of what has this tag.")
    ] = None,
) -> None:
    """Say what you mean to spend in a month; nothing stops there, but somebody is told."""
    body = {
        "amount_usd": amount, "percents": at or [50, 80, 100], "email": email, "webhook": webhook,
        "key": key_name, "tag": only_tag,
    }  # fmt: skip
    with session.tenant() as api:
        session.show(api.put(f"/v1/budgets/{name}", body), _BUDGET)


def remove_budget(
    session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="Of the budget.")]
) -> None:
    """Remove a budget."""
    with session.tenant() as api:
        api.delete(f"/v1/budgets/{name}")
    session.say(f"removed {name}")

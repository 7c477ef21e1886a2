"""`sublet contract …`: capacity for months or years, by ramp step, paid used or not."""

from typing import Annotated, Any, Final
from uuid import uuid4

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.ids import whole_id
from sublet.cli.leases import AsOperator
from sublet.cli.output import Column, Document, instant, print_table, usd
from sublet.cli.tenants import tenant_id

CONTRACT: Final = (
    Column("id", "id", id=True),
    Column("name", "name"),
    Column("state", "state"),
    Column("pool", "pool"),
    Column("most GPUs", "most_gpus", right=True),
    Column("starts", "starts_at", instant),
    Column("ends", "ends_at", instant),
    Column("total", "total_usd", usd, right=True),
    Column("tenant", "tenant_id", id=True),
)
TERMS: Final = (
    Column("minimum", "minimum_usd", usd),
    Column("owed of what is missing to it, per cent", "missing_percent"),
    Column("shortfall, per cent", "shortfall_percent"),
    Column("not paid while late, per cent", "late_percent"),
    Column("too late after, days", "late_days"),
    Column("not paid since late", "late_usd", usd),
    Column("not paid since taken back", "taken_back_usd", usd),
    Column("notice, days", "notice_days"),
    Column("recall, days", "recall_days"),
    Column("renewal, days", "renewal_days"),
    Column("ended by", "ended_by"),
)
STEP: Final = (
    Column("reservation", "reservation_id"),
    Column("starts", "starts_at", instant),
    Column("ends", "ends_at", instant),
    Column("GPUs", "gpus", right=True),
    Column("per GPU-hour", "usd_per_gpu_hour", usd, right=True),
    Column("there", "gpus_delivered", right=True),
    Column("taken back", "gpus_taken_back", right=True),
)
LINE: Final = (
    Column("due", "due_at", instant),
    Column("what", "what"),
    Column("GPUs", "gpus", right=True),
    Column("seconds", "seconds", right=True),
    Column("amount", "amount_usd", usd, right=True),
)

Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, or the beginning of it.")]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Contracts: capacity for months or years, by ramp step, paid used or not.",
        examples=("sublet contract list",),
    )
    root.add_typer(group, name="contract")
    command(
        group, "sign",
        examples=(
            "sublet contract sign h1 --tenant acme --until 2027-07-01T00Z --step 2027-01-01T00Z=64@1.90",
        ),
    )(sign)  # fmt: skip
    command(group, "list", examples=("sublet contract list --as-operator",))(list_all)
    command(group, "show", examples=("sublet contract show 3fa8",))(show)
    command(
        group, "bill", examples=("sublet contract bill 3fa8 --from 2027-01-01T00:00Z",)
    )(bill)  # fmt: skip
    command(group, "end", examples=("sublet contract end 3fa8",))(end)


def sign(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you both call it.")],
    *,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="With whom.")],
    step: Annotated[
        list[str],
        typer.Option(metavar="START=GPUS@USD", help="From then on, at so much; may be repeated."),
    ],
    until: Annotated[str, typer.Option(metavar="INSTANT", help="When it ends.")],
    pool: Annotated[str | None, typer.Option(metavar="NAME", help="Which GPUs.")] = None,
    minimum: Annotated[
        str | None, typer.Option(metavar="USD", help="Paid at least, over all of its time.")
    ] = None,
    shortfall: Annotated[
        int | None,
        typer.Option(
            min=0, max=100, metavar="PERCENT", help="Given back of what is not delivered."
        ),
    ] = None,
    late: Annotated[
        int | None,
        typer.Option(
            min=0, max=100, metavar="PERCENT", help="Not paid of GPUs that are not there yet."
        ),
    ] = None,
    late_days: Annotated[
        int | None,
        typer.Option(min=0, metavar="DAYS", help="So late, the tenant may end it at once."),
    ] = None,
    missing: Annotated[
        int | None,
        typer.Option(
            min=0, max=100, metavar="PERCENT", help="Owed of what is missing to the minimum."
        ),
    ] = None,
    notice_days: Annotated[
        int | None, typer.Option(min=0, metavar="DAYS", help="Before the tenant can end it.")
    ] = None,
    recall_days: Annotated[
        int | None, typer.Option(min=0, metavar="DAYS", help="Before you can take it back.")
    ] = None,
    renewal_days: Annotated[
        int | None, typer.Option(min=0, metavar="DAYS", help="It goes on by so many.")
    ] = None,
    exception: Annotated[
        str | None,
        typer.Option(metavar="WHY", help="A price may be below the pool's floor; is kept."),
    ] = None,
) -> None:
    """Sign a contract. Its GPUs are set aside before anything else is sold of them.

    It is owed used or not, a day at a time, each held a day ahead.
    """
    body: Document = {
        "id": str(uuid4()), "name": name, "ends_at": until, "steps": [_step(text) for text in step]
    }  # fmt: skip
    given: dict[str, Any] = {
        "pool": pool, "minimum_usd": minimum, "shortfall_percent": shortfall,
        "notice_days": notice_days, "recall_days": recall_days, "renewal_days": renewal_days,
        "exception": exception, "late_percent": late, "late_days": late_days,
        "missing_percent": missing,
    }  # fmt: skip
    body |= {key: value for key, value in given.items() if value is not None}
    with session.operator() as api:
        body["tenant_id"] = tenant_id(api, tenant)
        document = api.post("/v1/contracts", body)
    session.show(document, (*CONTRACT, *TERMS), more=lambda: _steps(document))


def list_all(session: Session, *, as_operator: AsOperator = False) -> None:
    """List contracts, newest first."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get("/v1/contracts")
    session.show_items(document, CONTRACT)


def show(session: Session, contract: Id, *, as_operator: AsOperator = False) -> None:
    """Show a contract, and the reservation of each of its steps, to lease from."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get(f"/v1/contracts/{_id(api, contract)}")
    session.show(document, (*CONTRACT, *TERMS), more=lambda: _steps(document))


def bill(
    session: Session,
    contract: Id,
    *,
    start: Annotated[
        str | None, typer.Option("--from", metavar="INSTANT", help="What falls due after it.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="INSTANT", help="And until then.")] = None,
    as_operator: AsOperator = False,
) -> None:
    """Show what falls due: a line a day of each step, and what is missing to the minimum."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get(f"/v1/contracts/{_id(api, contract)}/bill", start=start, end=until)
    if session.json:
        session.show(document, ())
        return
    print_table(document.get("lines") or [], LINE)
    print(f"total {usd(document.get('total_usd'))}")


def end(session: Session, contract: Id, *, as_operator: AsOperator = False) -> None:
    """End a contract before its time: a tenant by its notice, the operator by its recall right."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.delete(f"/v1/contracts/{_id(api, contract)}")
    session.show(document, (*CONTRACT, *TERMS))


def _step(text: str) -> Document:
    start, equals, rest = text.partition("=")
    gpus, at, price = rest.partition("@")
    if not (start and equals and at and price and gpus.isascii() and gpus.isdigit()):
        raise Failure(f"{text[:60]!r} is no step such as 2027-01-01T00:00Z=64@1.90", ExitCode.USAGE)
    return {"starts_at": start, "gpus": int(gpus[:9]), "usd_per_gpu_hour": price}


def _steps(document: Document) -> None:
    print()
    print_table(document.get("steps") or [], STEP)


def _id(api: Any, given: str) -> str:
    known = lambda: [str(item["id"]) for item in api.items("/v1/contracts")]  # noqa: E731
    return whole_id(given, known, noun="contract")

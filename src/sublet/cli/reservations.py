"""`sublet reservation …`, `sublet credits`: reserved windows, and what was credited."""

from typing import Annotated
from uuid import UUID, uuid4

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.ids import whole_id
from sublet.cli.leases import AsOperator, Gpus, NoticeOf, Pool, asked
from sublet.cli.output import Column, Document, instant, span, usd

RESERVATION = (
    Column("id", "id", id=True),
    Column("state", "state"),
    Column("pool", "pool"),
    Column("GPUs", "gpus", right=True),
    Column("in use", "gpus_in_use", right=True),
    Column("taken back", "gpus_taken_back", right=True),
    Column("starts", "starts_at", instant),
    Column("ends", "ends_at", instant),
    Column("per GPU-hour", "usd_per_gpu_hour", usd, right=True),
    Column("cost", "cost_usd", usd, right=True),
    Column("notice", "notice_seconds", span),
)
RESALE = (
    Column("id", "id", id=True),
    Column("state", "state"),
    Column("reservation", "reservation_id", id=True),
    Column("GPUs", "gpus", right=True),
    Column("limit per GPU-hour", "limit_usd_per_gpu_hour", usd, right=True),
    Column("your share, %", "share_percent", right=True),
    Column("since", "listed_at", instant),
    Column("until", "ended_at", instant),
)
CREDIT = (
    Column("broken", "broken_at", instant),
    Column("promised until", "promised_until", instant),
    Column("GPUs", "gpus", right=True),
    Column("per cent", "percent", right=True),
    Column("amount", "amount_usd", usd, right=True),
    Column("lease", "lease_id", id=True),
    Column("reservation", "reservation_id", id=True),
)


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Reservations: GPUs from one instant to another, paid used or not.",
        examples=("sublet reservation list",),
    )
    root.add_typer(group, name="reservation")
    command(
        group, "create",
        examples=(
            "sublet reservation create 2026-02-01T08:00Z/2026-02-01T20:00Z --gpus 64",
            "sublet lease create --reservation ID --gpus 32 -- python train.py",
        ),
    )(create)  # fmt: skip
    command(group, "list", examples=("sublet reservation list --json",))(list_all)
    command(group, "show", examples=("sublet reservation show 3fa8",))(show)
    command(
        group, "sell",
        examples=("sublet reservation sell 3fa8 --gpus 16 --limit 1.50",),
    )(sell)  # fmt: skip
    command(group, "pause", examples=("sublet reservation pause 3fa8 --gpus 16",))(pause)
    command(group, "resales", examples=("sublet reservation resales --json",))(list_resales)
    command(group, "take-back", examples=("sublet reservation take-back 71c0",))(take_back)
    command(root, "credits", examples=("sublet credits", "sublet credits --json"))(credited)


def create(
    session: Session,
    window: Annotated[str, typer.Argument(metavar="START/END", help="From when until when.")],
    *,
    pool: Pool = None,
    gpus: Gpus = None,
    notice_of: NoticeOf = None,
) -> None:
    """Reserve a window, to lease from it while it lasts.

    All of its price is held now, and charged an hour at a time, used or not.
    """
    body: Document = {"id": str(uuid4()), **ends_of(window)}
    body |= asked(pool=pool, gpus=gpus, tier=None, longest=None, notice=notice_of)
    with session.tenant() as api:
        document = api.post("/v1/reservations", body)
    how = f"\nlease from it:  sublet lease create --reservation {document.get('id')} -- COMMAND"
    session.show(document, RESERVATION, more=lambda: print(how))


def list_all(session: Session, *, as_operator: AsOperator = False) -> None:
    """List reservations, newest first."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get("/v1/reservations")
    session.show_items(document, RESERVATION)


def show(
    session: Session,
    reservation: Annotated[str, typer.Argument(metavar="ID", help="Or the beginning of it.")],
    *,
    as_operator: AsOperator = False,
) -> None:
    """Show one reservation, and how much of it is in use."""
    with session.tenant(as_operator=as_operator) as api:
        id_ = whole_id(
            reservation,
            lambda: [str(item["id"]) for item in api.items("/v1/reservations", limit=1000)],
            noun="reservation",
        )
        document = api.get(f"/v1/reservations/{UUID(id_)}")
    session.show(document, RESERVATION)


_Reservation = Annotated[str, typer.Argument(metavar="ID", help="Or the beginning of it.")]
_Offered = Annotated[int, typer.Option("--gpus", metavar="N", help="How many of its GPUs.")]


def sell(
    session: Session,
    reservation: _Reservation,
    *,
    gpus: _Offered,
    limit: Annotated[str, typer.Option(metavar="USD", help="The least price of a GPU-hour.")],
) -> None:
    """Sell GPUs of a running window that you do not use, for no less than a limit price.

    They are lent interruptibly; a stated part of what is paid for them is yours.
    """
    _offer(session, reservation, {"gpus": gpus, "limit_usd_per_gpu_hour": limit})


def pause(session: Session, reservation: _Reservation, *, gpus: _Offered) -> None:
    """Let GPUs of a running window go for any price, for a part of it, while you do not use them."""
    _offer(session, reservation, {"gpus": gpus})


def _offer(session: Session, reservation: str, body: Document) -> None:
    with session.tenant() as api:
        id_ = whole_id(
            reservation,
            lambda: [str(item["id"]) for item in api.items("/v1/reservations", limit=1000)],
            noun="reservation",
        )
        document = api.post(f"/v1/reservations/{UUID(id_)}/resales", {"id": str(uuid4()), **body})
    how = f"\nhave them back:  sublet reservation take-back {document.get('id')}"
    session.show(document, RESALE, more=lambda: print(how))


def list_resales(session: Session, *, as_operator: AsOperator = False) -> None:
    """List what was put back on sale, newest first."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get("/v1/resales")
    session.show_items(document, RESALE)


def take_back(
    session: Session,
    resale: Annotated[str, typer.Argument(metavar="ID", help="Or the beginning of it.")],
) -> None:
    """Take GPUs back that were on sale. Whoever uses them has its notice first."""
    with session.tenant() as api:
        id_ = whole_id(
            resale, lambda: [str(item["id"]) for item in api.items("/v1/resales")], noun="resale"
        )
        document = api.delete(f"/v1/resales/{UUID(id_)}")
    session.show(document, RESALE)


def credited(session: Session, *, as_operator: AsOperator = False) -> None:
    """List what was credited for promises that were broken. With --json, with its evidence."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get("/v1/credits")
    session.show_items(document, CREDIT)


def ends_of(window: str) -> Document:
    """Read START/END; the API reads the instants."""
    start, slash, end = window.partition("/")
    if not slash or not start or not end:
        raise Failure(
            f"{window[:60]!r} is no window such as 2026-02-01T08:00Z/2026-02-01T20:00Z",
            ExitCode.USAGE,
        )
    return {"starts_at": start, "ends_at": end}

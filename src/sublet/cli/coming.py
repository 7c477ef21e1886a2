"""`sublet coming …`: capacity that is to come, against which contracts are signed."""

from typing import Annotated, Any, Final
from uuid import uuid4

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.ids import whole_id
from sublet.cli.output import Column, Document, instant

COMING: Final = (
    Column("id", "id", id=True),
    Column("name", "name"),
    Column("state", "state"),
    Column("pool", "pool"),
    Column("GPUs", "gpus", right=True),
    Column("ready", "ready_at", instant),
)
Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, or the beginning of it.")]
Yes = Annotated[
    bool, typer.Option("--yes", help="Do it also where contracts stand on it without GPUs then.")
]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Capacity that is to come: contracts may be signed against it.",
        examples=("sublet coming list",),
    )
    root.add_typer(group, name="coming")
    command(
        group, "declare",
        examples=("sublet coming declare 'hall 2' --pool h200 --gpus 4096 --ready 2027-03-01T00Z",),
    )(declare)  # fmt: skip
    command(group, "list", examples=("sublet coming list",))(list_all)
    command(
        group, "change", examples=("sublet coming change 3fa8 --ready 2027-04-01T00Z --yes",)
    )(change)  # fmt: skip
    command(group, "end", examples=("sublet coming end 3fa8",))(end)


def declare(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What is coming.")],
    *,
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="So many GPUs.")],
    ready: Annotated[str, typer.Option(metavar="INSTANT", help="From when they are expected.")],
    pool: Annotated[str | None, typer.Option(metavar="NAME", help="Of which pool.")] = None,
    new_pool: Annotated[
        bool, typer.Option("--new-pool", help="Nothing of the pool is there yet: make it.")
    ] = False,
) -> None:
    """Declare GPUs that are expected. Contracts may be signed for steps that start then or later.

    Nothing else is sold of them before the cluster shows them.
    """
    body: Document = {"id": str(uuid4()), "name": name, "gpus": gpus, "ready_at": ready}
    if pool is not None:
        body["pool"] = pool
    if new_pool:
        body["new_pool"] = True
    with session.operator() as api:
        document = api.post("/v1/coming-capacity", body)
    session.show(document, COMING)


def list_all(session: Session) -> None:
    """List what is expected, and what is late, by its date."""
    with session.operator() as api:
        document = api.get("/v1/coming-capacity")
    session.show_items(document, COMING)


def change(
    session: Session,
    coming: Id,
    *,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="So many instead.")] = None,
    ready: Annotated[str | None, typer.Option(metavar="INSTANT", help="Then instead.")] = None,
    yes: Yes = False,
) -> None:
    """Say that more or fewer come, or at another time.

    Contracts that would be left without GPUs are listed, and nothing is changed, unless you say
    --yes.
    """
    body: Document = {}
    if gpus is not None:
        body["gpus"] = gpus
    if ready is not None:
        body["ready_at"] = ready
    if not body:
        raise Failure("say what to change: --gpus, --ready or both", ExitCode.USAGE)
    _send(session, coming, body, yes=yes)


def end(session: Session, coming: Id, *, yes: Yes = False) -> None:
    """Say that it is there, before its date, or will not come."""
    _send(session, coming, {"gpus": 0}, yes=yes)


def _send(session: Session, coming: str, body: Document, *, yes: bool) -> None:
    if yes:
        body["confirm"] = True
    with session.operator() as api:
        document = api.patch(f"/v1/coming-capacity/{_id(api, coming)}", body)
    session.show(document, COMING)


def _id(api: Any, given: str) -> str:
    known = lambda: [str(item["id"]) for item in api.items("/v1/coming-capacity")]  # noqa: E731
    return whole_id(given, known, noun="coming capacity")

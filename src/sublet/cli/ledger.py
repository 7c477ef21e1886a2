"""`sublet ledger …`: the record of all money, for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.files import whole
from sublet.cli.logs import Log
from sublet.cli.output import print_json


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "The ledger: every movement of money, for programs that check it.",
        examples=("sublet ledger export --output sublet.journal",),
    )
    root.add_typer(group, name="ledger")
    command(
        group, "export",
        examples=(
            "sublet ledger export --output sublet.journal && hledger -f sublet.journal check -s",
            "sublet ledger export --format beancount > sublet.beancount",
            "sublet ledger export | hledger -f - balance --tree",
        ),
    )(export)  # fmt: skip


def export(
    session: Session,
    *,
    format: Annotated[  # noqa: A002 -- the option's name
        Literal["hledger", "beancount"], typer.Option(help="Which program is to read it.")
    ] = "hledger",
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it there, all of it or nothing."),
    ] = None,
) -> None:
    """Write every movement of money as text that hledger or beancount reads.

    Its last lines say what each account holds, and the program checks them. With --json, as
    JSON lines with their offsets in bytes; with --output, what was written, where.
    """
    with session.operator() as api:
        stream = api.stream("GET", "/v1/ledger/export", params={"format": format})
        if output is None:
            log = Log(json_lines=session.json)
            with stream as response:
                for piece in response.iter_bytes():
                    log.write(piece)
            return
        size_bytes = 0
        with whole(output) as file, stream as response:
            for piece in response.iter_bytes():
                size_bytes += file.write(piece)
    if session.json:
        print_json({"output": str(output), "format": format, "bytes": size_bytes})
    else:
        print(f"{output}  {size_bytes} bytes")

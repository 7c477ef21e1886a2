"""What leases and internal jobs have in common here: wait for one, and end as it ended."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sublet.cli.logs import Log, copy
from sublet.cli.output import Document

if TYPE_CHECKING:
    from sublet.cli.client import Client

Command = Annotated[
    list[str],
    typer.Argument(metavar="COMMAND", help="What to run; all that follows belongs to it."),
]
Environment = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="KEY=VALUE", help="A variable for it; may be repeated."),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")]
Offset = Annotated[int, typer.Option(min=0, metavar="BYTES", help="Leave out the beginning.")]

ENDED: Final = "ended"


def wait(
    api: "Client",
    path: str,
    document: Document,
    *,
    until: Callable[[str], bool],
    looks: int | None = None,
) -> Document:
    """Look until the state is one that `until` accepts, but at most so many times."""
    for pause in islice(_pauses(), looks):
        if until(str(document.get("state"))):
            break
        time.sleep(pause)
        document = api.get(path)
    return document


def follow(api: "Client", path: str, document: Document, log: Log) -> Document:
    """Print the log until the workload has ended; return what it is then."""
    for pause in _pauses():
        if document.get("state") == ENDED:
            break
        copy(api, f"{path}/logs", log, follow=True)
        document = api.get(path)
        if document.get("state") != ENDED:
            time.sleep(pause)
    copy(api, f"{path}/logs", log, follow=False)
    return document


def exit_code(document: Document) -> int:
    """Return the command's exit code; 1 where it has none, because it never came to an end."""
    code = document.get("exit_code")
    return code & 0xFF if isinstance(code, int) else 1


def _pauses() -> Iterator[float]:
    """Ask often at first, for what is quick, and then once a second."""
    pause = 0.1
    while True:
        yield pause
        pause = min(1.0, pause * 1.5)

"""`sublet verify`: re-derive everything from the records, and print every difference."""

import json
import os
import sys
from typing import Annotated

import typer

from sublet.cli.command import Session, command
from sublet.cli.failure import ExitCode, Failure, one_line
from sublet.cli.output import Document, instant, print_json
from sublet.cli.progress import Tell, bar


def add_to(root: typer.Typer) -> None:
    command(
        root, "verify",
        examples=(
            "sublet verify",
            "sublet verify --json",
            "sublet verify --database-url postgresql://replica/sublet",
        ),
    )(verify)  # fmt: skip


def verify(
    session: Session,
    *,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            metavar="URL",
            help="Read this database itself: a replica, or a restored copy. [env: DATABASE_URL]",
        ),
    ] = None,
) -> None:
    """Check every law on all records; exit 1 on a difference.

    Nothing is changed and nobody waits, so it may run at any time.
    """
    url = database_url or (None if _names_an_instance(session) else os.environ.get("DATABASE_URL"))
    with bar(wanted=not session.json) as tell:
        document = _ask(session, tell) if url is None else _read(url, tell)
    if session.json:
        print_json(document)
    else:
        for line in report(document):
            print(line)
    if document.get("differences"):
        raise typer.Exit(ExitCode.FAILED)


def _names_an_instance(session: Session) -> bool:
    options = session.options.or_environment(os.environ)
    return options.url is not None or options.data is not None


def _read(url: str, tell: Tell) -> Document:
    """Audit the database at `url` in this process."""
    from sublet.app import audit  # noqa: PLC0415 -- slow to load
    from sublet.core.errors import Unavailable  # noqa: PLC0415

    try:
        return audit.document(audit.audit_copy(url, tell=tell))
    except Unavailable as error:
        raise Failure(str(error), ExitCode.UNREACHABLE) from None


def _ask(session: Session, tell: Tell) -> Document:
    """Let the instance audit itself."""
    with session.operator() as api:
        if session.json or not sys.stderr.isatty():
            return api.get_slow("/v1/audit")
        with api.stream("GET", "/v1/audit", params={"progress": "true"}) as response:
            for line in response.iter_lines():
                news = json.loads(line)
                if (progress := news.get("progress")) is not None:
                    tell(progress["what"], progress["done"])
                elif (error := news.get("error")) is not None:
                    raise Failure(error["message"], ExitCode.UNREACHABLE)
                else:
                    found: Document = news["audit"]
                    return found
    raise Failure("the audit broke off: run it again", ExitCode.UNREACHABLE)


def report(document: Document) -> list[str]:
    """Return one line a law with what was counted, each followed by its differences."""
    laws: dict[str, dict[str, int]] = document.get("laws") or {}
    differences: list[dict[str, str]] = document.get("differences") or []
    names = list(dict.fromkeys([*laws, *(difference["law"] for difference in differences)]))
    width = max(map(len, names), default=0)
    lines = []
    for law in names:
        wrong = [one_line(d["what"]) for d in differences if d["law"] == law]
        counted = ", ".join(
            f"{number} {what.replace('_', ' ')}" for what, number in laws.get(law, {}).items()
        )
        verdict = f"{len(wrong)} DIFFERENT" if wrong else "holds"
        lines.append(f"{law:<{width}}  {verdict:<12}  {counted or 'nothing to count'}")
        lines.extend(f"  DIFFERENCE {what}" for what in wrong)
    if document.get("as_of"):
        lines.append(f"as of {instant(document['as_of'])}")
    if document.get("seal_head"):
        lines.append(f"the past is sealed up to {document['seal_head']}")
    total = len(differences)
    lines.append("everything adds up" if not total else f"{total} differences")
    return lines

"""`sublet verify`: re-derive everything from the records, and print every difference."""

import typer

from sublet.cli.command import Session, command
from sublet.cli.failure import ExitCode, one_line
from sublet.cli.output import Document, print_json


def add_to(root: typer.Typer) -> None:
    command(root, "verify", examples=("sublet verify", "sublet verify --json"))(verify)


def verify(session: Session) -> None:
    """Check every law on all records; exit 1 on a difference."""
    with session.operator() as api:
        document = api.get_slow("/v1/audit")
    if session.json:
        print_json(document)
    else:
        for line in report(document):
            print(line)
    if document.get("differences"):
        raise typer.Exit(ExitCode.FAILED)


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
    if document.get("seal_head"):
        lines.append(f"the past is sealed up to {document['seal_head']}")
    total = len(differences)
    lines.append("everything adds up" if not total else f"{total} differences")
    return lines

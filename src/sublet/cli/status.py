"""`sublet status`: is it up, and what does it wait for?"""

import typer

from sublet.cli.command import Session, command
from sublet.cli.output import Column, text


def _waiting(value: object) -> str:
    return text(", ".join(map(str, value))) if isinstance(value, list) and value else "nothing"


def _waits(value: object) -> str:
    """Show how long internal jobs waited for leases, by pool."""
    if not isinstance(value, dict):
        return ""
    return text(
        "; ".join(
            f"{pool}: p50 {found['p50_seconds']} s, p99 {found['p99_seconds']} s,"
            f" max {found['max_seconds']} s of {found['jobs']} jobs"
            for pool, found in value.items()
        )
    )


def _suppliers(value: object) -> str:
    found = value if isinstance(value, dict) else {}
    return text("; ".join(f"{name}: {state}" for name, state in found.items()) or "none")


_STATUS = (
    Column("api", "api_url"),
    Column("version", "version"),
    Column("waiting for", "waiting_for", _waiting),
    Column("internal jobs waited", "internal_waits", _waits),
    Column("suppliers", "suppliers", _suppliers),
    Column("gateway", "gateway_url"),
    Column("gateway (http)", "gateway_http_url"),
    Column("ca file", "ca_file"),
)


def add_to(root: typer.Typer) -> None:
    command(root, "status", examples=("sublet status", "sublet status --data /srv/sublet --json"))(
        status
    )


def status(session: Session) -> None:
    """Say where Sublet answers, and what it still waits for."""
    with session.operator() as api:
        document = api.get("/v1/status")
        where = api.instance
    if not where.unsafe_no_sandbox:  # else it was said on the way in
        session.warn_if_unsafe(document)
    shown = document if session.json else {"api_url": where.api_url, **document}
    session.show(shown, _STATUS)

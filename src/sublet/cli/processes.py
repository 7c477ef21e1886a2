"""`sublet up`, `sublet control`, `sublet gateway`: the processes themselves.

The application is imported when one of them runs, never by a client's command.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from sublet.cli.command import Session, command


def add_to(root: typer.Typer) -> None:
    command(
        root, "up", shared=("data",),
        examples=(
            "sublet up",
            "sublet up --data /srv/sublet --slots 8",
            "sublet up --no-model --notice 30 --api-port 8080",
        ),
    )(up)  # fmt: skip
    command(
        root, "control", shared=(),
        examples=(
            "DATABASE_URL=postgresql://db/sublet sublet control",
            "sublet control --engine slurm --slurm /etc/sublet/slurm.toml",
        ),
    )(control)  # fmt: skip
    command(
        root, "gateway", shared=(),
        examples=("DATABASE_URL=postgresql://db/sublet SUBLET_GATEWAY_PORT=443 sublet gateway",),
    )(gateway)  # fmt: skip


def up(
    session: Session,
    *,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = None,
    api_port: Annotated[
        int | None, typer.Option(metavar="N", help="Port of the API and the console.")
    ] = None,
    gateway_port: Annotated[
        int | None, typer.Option(metavar="N", help="The gateway's https port.")
    ] = None,
    gateway_http_port: Annotated[
        int | None, typer.Option(metavar="N", help="The gateway's http port, on loopback only.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="CPU slots to lend where there is no GPU.")
    ] = None,
    notice: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Notice that a new pool gives leases.")
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Host no demo model.")] = False,
    unsafe_no_sandbox: Annotated[
        bool,
        typer.Option("--unsafe-no-sandbox", help="Run tenants' code unguarded: never for others."),
    ] = False,
) -> None:
    """Run a whole Sublet on this machine, in the foreground.

    That is a database, a control plane, a gateway, an engine and a model. Ctrl-C stops it.
    Settings not given here come from the environment: SUBLET_HOST, SUBLET_API_PORT, and so on.
    """
    from sublet import config  # noqa: PLC0415
    from sublet.app.up import up as run  # noqa: PLC0415

    given: dict[str, Any] = {
        "data": session.options.data,
        "host": host,
        "api_port": api_port,
        "gateway_port": gateway_port,
        "gateway_http_port": gateway_http_port,
        "slots": slots,
        "notice_seconds": notice,
        "model": False if no_model else None,
        "unsafe_no_sandbox": True if unsafe_no_sandbox else None,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    raise typer.Exit(run(config.load(**overrides)))


def control(
    _session: Session,
    *,
    engine: Annotated[
        str | None, typer.Option(metavar="local|slurm", help="What runs the work.")
    ] = None,
    slurm: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings of the Slurm cluster.")
    ] = None,
) -> None:
    """Run the control plane alone: API, console and loops.

    Settings not given here come from the environment. SIGTERM leaves leases running: the next one
    goes on with them.
    """
    from sublet.app.control import main  # noqa: PLC0415

    given = {"engine": engine, "slurm": slurm}
    raise typer.Exit(main(**{name: value for name, value in given.items() if value is not None}))


def gateway(_session: Session) -> None:
    """Run a gateway alone: the API to call models through.

    Its settings come from the environment. Any number may run on one database, each with a name
    of its own in SUBLET_GATEWAY_NAME.
    """
    from sublet.app.gateway import main  # noqa: PLC0415

    raise typer.Exit(main())

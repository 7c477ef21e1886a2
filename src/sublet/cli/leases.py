"""`sublet lease …`: lease GPUs, watch what runs on them, give them back."""

from typing import Annotated, Final, Literal
from uuid import UUID, uuid4

import typer

from sublet.cli import workload
from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.ids import lease_id
from sublet.cli.logs import Log, copy
from sublet.cli.output import Column, Document, instant, print_table, span, usd
from sublet.cli.parsing import environment, files, seconds, size_bytes

LEASE = (
    Column("id", "id", id=True),
    Column("state", "state"),
    Column("why", "end_reason"),
    Column("pool", "pool"),
    Column("GPUs", "gpus", right=True),
    Column("tier", "tier"),
    Column("requested", "requested_at", instant),
    Column("exit", "exit_code", right=True),
    Column("charged", "charged_usd", usd, right=True),
)
WHOLE_LEASE = (
    *LEASE[:6],
    Column("per GPU-hour", "usd_per_gpu_hour", usd),
    Column("list price", "list_usd_per_gpu_hour", usd),
    Column("charged", "charged_usd", usd),
    Column("requested", "requested_at", instant),
    Column("running", "running_at", instant),
    Column("stopped", "stopped_at", instant),
    Column("ends", "ends_at", instant),
    Column("stops", "stops_at", instant),
    Column("paid until", "paid_until", instant),
    Column("firm until", "firm_until", instant),
    Column("safe until", "checkpoint_at", instant),
    Column("notice", "notice_seconds", span),
    Column("notice given", "notice_given_seconds", span),
    Column("exit code", "exit_code"),
    Column("detail", "detail"),
    Column("tenant", "tenant_id"),
)
EVENT = (
    Column("happened", "happened_at", instant),
    Column("state", "state"),
    Column("why", "reason"),
    Column("version", "version", right=True),
)
NOTICE = (
    Column("reason", "reason"),
    Column("message", "message"),
    Column("noticed", "noticed_at", instant),
    Column("stops", "stops_at", instant),
)
_HOUR_SECONDS: Final = 3_600

Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, or the beginning of it.")]
Pool = Annotated[str | None, typer.Option(metavar="NAME", help="Which GPUs; any, if not given.")]
Gpus = Annotated[int | None, typer.Option(min=1, metavar="N", help="How many GPUs. [default: 1]")]
Tier = Annotated[
    Literal["interruptible", "on_demand", "reserved"] | None,
    typer.Option(help="How readily it gives way. [default: interruptible]"),
]
Longest = Annotated[
    int | None,
    typer.Option(
        "--max",
        parser=seconds,
        metavar="DURATION",
        help="It ends after that long: 90s, 15m, 1h30m. [default: 1h]",
    ),
]
NoticeOf = Annotated[
    int | None,
    typer.Option(
        "--notice",
        parser=seconds,
        metavar="DURATION",
        help="Be told so long before it goes. [default: the longest of the pool]",
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="START/END", help="Reserve a window: 2026-02-01T08:00Z/2026-02-01T20:00Z."
    ),
]
AsOperator = Annotated[
    bool, typer.Option("--as-operator", help="With the operator's key: everybody's leases.")
]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Leases: GPUs for a command, paid by the second.",
        examples=("sublet lease create -f -- nvidia-smi", "sublet lease list --live"),
    )
    root.add_typer(group, name="lease")
    command(
        group, "create", runs_a_command=True,
        examples=(
            "sublet lease create -f -- echo hello",
            "sublet lease create --gpus 8 --tier on_demand --max 12h -- python train.py",
            "sublet lease create --window 2026-02-01T08:00Z/2026-02-01T20:00Z -- python train.py",
            "sublet lease create --file job.py --env SEED=7 --wait -- python3 job.py",
        ),
    )(create)  # fmt: skip
    command(
        group, "list",
        examples=("sublet lease list", "sublet lease list --live --as-operator --json"),
    )(list_all)  # fmt: skip
    command(group, "show", examples=("sublet lease show 3fa8",))(show)
    command(
        group, "logs", examples=("sublet lease logs -f 3fa8", "sublet lease logs 3fa8 --offset 4096")
    )(logs)  # fmt: skip
    command(group, "end", examples=("sublet lease end 3fa8",))(end)
    command(group, "checkpoint", examples=("sublet lease checkpoint 3fa8",))(checkpoint)
    command(
        group, "connect",
        examples=(
            "ssh -o ProxyCommand='sublet lease connect 3fa8' tenant@lease",
            "sublet lease connect 3fa8 --listen 8888",
        ),
    )(connect)  # fmt: skip
    command(group, "notice", examples=("sublet lease notice 3fa8",))(notice)


def create(
    session: Session,
    command_line: workload.Command,
    *,
    pool: Pool = None,
    gpus: Gpus = None,
    tier: Tier = None,
    longest: Longest = None,
    env: workload.Environment = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            metavar="LOCAL[:REMOTE]",
            help="A file to place in its folder; may be repeated.",
        ),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(parser=size_bytes, metavar="SIZE", help="Limit its memory: 512M, 2G."),
    ] = None,
    network: Annotated[bool, typer.Option("--network", help="Ask for the network.")] = False,
    image: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run it on this image of the operator's.")
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", help="Let you connect to it; see sublet lease connect."),
    ] = False,
    notice_of: NoticeOf = None,
    resumable: Annotated[
        bool, typer.Option("--resumable", help="Reclaimed, come back with the time that is left.")
    ] = False,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An https address of yours that is told of its notice."),
    ] = None,
    window: Window = None,
    reservation: Annotated[
        UUID | None,
        typer.Option(metavar="UUID", help="Lease from this reserved window, which pays for it."),
    ] = None,
    quote: Annotated[
        UUID | None,
        typer.Option(metavar="UUID", help="Lease what was quoted, at its price; see sublet quote."),
    ] = None,
    id: Annotated[  # noqa: A002 -- the option's name
        UUID | None,
        typer.Option(metavar="UUID", help="Choose its id: repeating it leases only once."),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Print its log until it has ended; exit as the command did."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it has ended; exit as the command did.")
    ] = False,
) -> None:
    """Lease GPUs and run a command on them.

    With --follow, stdout is the command's output (with --json it goes to stderr, and stdout
    is the lease once it has ended). Ctrl-C stops watching; the lease goes on.
    """  # fmt: skip
    body: Document = {
        "id": str(id or uuid4()),
        "command": command_line,
        "environment": environment(env or []),
        "files": files(file or []),
        "network": network,
        "interactive": interactive,
        "resumable": resumable,
    }
    if webhook is not None:
        body["webhook"] = webhook
    if image is not None:
        body["image"] = image
    if window is not None or tier == "reserved":
        _book(session, body, pool=pool, gpus=gpus, tier=tier, longest=longest, notice=notice_of,
              window=window, quote=quote, reservation=reservation, memory=memory,
              resumable=resumable, watch=follow or wait)  # fmt: skip
        return
    what = asked(pool=pool, gpus=gpus, tier=tier, longest=longest, notice=notice_of)
    if reservation is not None:
        body |= {"reservation": str(reservation), "gpus": 1} | what
    elif quote is None:
        body |= {"gpus": 1, "tier": "interruptible", "max_seconds": _HOUR_SECONDS} | what
    elif what:
        raise Failure(
            "the quote says which GPUs, how many, for how long and how: give --quote alone",
            ExitCode.USAGE,
        )
    else:
        body["quote"] = str(quote)
    if memory is not None:
        body["memory_bytes"] = memory
    with session.tenant() as api:
        try:
            lease = api.post("/v1/leases", body)
        except Failure as failure:
            if failure.code is ExitCode.UNREACHABLE:
                raise Failure(
                    f"{failure} (to repeat safely: --id {body['id']})", failure.code
                ) from None
            raise
        if not follow and not wait:
            session.show(lease, WHOLE_LEASE, more=lambda: print(_how_to_watch(lease)))
            refused = lease.get("state") == workload.ENDED and lease.get("running_at") is None
            raise typer.Exit(ExitCode.FAILED if refused else 0)
        path = f"/v1/leases/{lease['id']}"
        session.say(f"lease {lease['id']} is {lease['state']}")
        try:
            if follow:
                lease = workload.follow(api, path, lease, Log(to_stderr=session.json))
            else:
                lease = workload.wait(api, path, lease, until=lambda state: state == workload.ENDED)
        except KeyboardInterrupt:
            session.say(f"lease {lease['id']} goes on; `sublet lease end {lease['id']}` ends it")
            raise
    if session.json:
        session.show(lease, ())
    session.say(_ending(lease))
    raise typer.Exit(workload.exit_code(lease))


def _book(
    session: Session,
    body: Document,
    *,
    pool: str | None,
    gpus: int | None,
    tier: str | None,
    longest: int | None,
    notice: int | None,
    window: str | None,
    quote: UUID | None,
    reservation: UUID | None,
    memory: int | None,
    resumable: bool,
    watch: bool,
) -> None:
    """Reserve a window in which the command starts by itself."""
    from sublet.cli.reservations import RESERVATION, ends_of  # noqa: PLC0415 -- it imports us

    wrong = {
        "--max": longest, "--reservation": reservation, "--resumable": resumable or None,
        "--webhook": body.get("webhook"),
        "--follow and --wait": watch or None,
    }  # fmt: skip
    for option, value in wrong.items():
        if value is not None:
            raise Failure(f"a reserved window takes no {option}", ExitCode.USAGE)
    if tier not in {None, "reserved"}:
        raise Failure("a window is reserved: --tier reserved", ExitCode.USAGE)
    if (window is None) == (quote is None):
        raise Failure("give --window START/END, or the --quote of one", ExitCode.USAGE)
    body = {name: value for name, value in body.items() if name not in {"resumable", "webhook"}}
    body |= asked(pool=pool, gpus=gpus, tier=None, longest=None, notice=notice)
    if window is not None:
        body |= ends_of(window)
    if quote is not None:
        body["quote"] = str(quote)
    if memory is not None:
        body["memory_bytes"] = memory
    with session.tenant() as api:
        document = api.post("/v1/reservations", body)
    session.show(document, RESERVATION)


def asked(
    *, pool: str | None, gpus: int | None, tier: str | None, longest: int | None, notice: int | None
) -> Document:
    """Return what was said of a lease's size and terms, as the API calls it."""
    said = {
        "pool": pool, "gpus": gpus, "tier": tier, "max_seconds": longest, "notice_seconds": notice,
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def list_all(
    session: Session,
    *,
    live: Annotated[bool, typer.Option("--live", help="Only those that have not ended.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most so many, newest first.")
    ] = None,
    as_operator: AsOperator = False,
) -> None:
    """List leases, newest first."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get("/v1/leases", live="true" if live else None, limit=limit)
    session.show_items(document, LEASE)


def show(session: Session, lease: Id, *, as_operator: AsOperator = False) -> None:
    """Show one lease, and everything that happened to it."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get(f"/v1/leases/{lease_id(api, lease)}")

    def timeline() -> None:
        print()
        print_table(document.get("events") or [], EVENT)

    session.show(document, WHOLE_LEASE, more=timeline)


def logs(
    session: Session,
    lease: Id,
    *,
    follow: workload.Follow = False,
    offset: workload.Offset = 0,
    as_operator: AsOperator = False,
) -> None:
    """Print what a lease's command wrote.

    With --json, as JSON lines with their offsets in bytes.
    """
    with session.tenant(as_operator=as_operator) as api:
        path = f"/v1/leases/{lease_id(api, lease)}/logs"
        copy(api, path, Log(offset=offset, json_lines=session.json), follow=follow)


def end(session: Session, lease: Id, *, as_operator: AsOperator = False) -> None:
    """Give a lease back. Its command is told to stop, and killed after its notice."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.delete(f"/v1/leases/{lease_id(api, lease)}")
    session.show(document, WHOLE_LEASE)


def checkpoint(session: Session, lease: Id) -> None:
    """Say that a lease's work is safe until now. Who loses less gives way first."""
    with session.tenant() as api:
        document = api.put(f"/v1/leases/{lease_id(api, lease)}/checkpoint", {})
    session.show(document, WHOLE_LEASE)


def connect(
    session: Session,
    lease: Id,
    *,
    listen: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="Listen there instead; 0: any port."),
    ] = None,
) -> None:
    """Connect to what listens in an interactive lease, on the socket $SUBLET_SOCKET.

    Without --listen its bytes are this command's input and output, as ssh's ProxyCommand wants it.
    """
    from sublet.cli import connecting  # noqa: PLC0415 -- slow to load

    with session.tenant() as api:
        id_ = lease_id(api, lease)
        if listen is None:
            connecting.pipe(connecting.dial(api, id_))
        else:
            connecting.forward(listen, lambda: connecting.dial(api, id_), json_line=session.json)


def notice(session: Session, lease: Id) -> None:
    """Show whether a lease was told to go, why, and when."""
    with session.tenant() as api:
        document = api.get(f"/v1/leases/{lease_id(api, lease)}/notice")
    if not session.json and not document.get("stops_at"):
        print("no notice: it may go on")
        return
    session.show(document, NOTICE)


def _how_to_watch(lease: Document) -> str:
    return f"\nfollow its log:  sublet lease logs -f {lease['id']}"


def _ending(lease: Document) -> str:
    parts = [f"lease {lease['id']} ended: {lease.get('end_reason')}"]
    if lease.get("detail"):
        parts.append(str(lease["detail"]))
    if lease.get("exit_code") is not None:
        parts.append(f"exit code {lease['exit_code']}")
    parts.append(f"charged {usd(lease.get('charged_usd') or 0)}")
    return ", ".join(parts)

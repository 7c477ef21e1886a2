"""`sublet internal …`: the organisation's own jobs, which come first."""

from pathlib import PurePath
from typing import Annotated
from uuid import uuid4

import typer

from sublet.cli import workload
from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import Failure
from sublet.cli.ids import job_id
from sublet.cli.logs import Log, copy
from sublet.cli.output import Column, Document, instant, yes_no
from sublet.cli.parsing import environment

JOB = (
    Column("id", "id", id=True),
    Column("name", "name"),
    Column("state", "state"),
    Column("pool", "pool"),
    Column("slots", "gpus", right=True),
    Column("submitted", "submitted_at", instant),
    Column("started", "started_at", instant),
    Column("exited", "exited_at", instant),
    Column("exit", "exit_code", right=True),
    Column("cancelled", "cancelled", yes_no),
)

Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, or the beginning of it.")]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Internal jobs: they come first, and leases give way to them.",
        examples=("sublet internal run --slots 2 -- make train", "sublet internal list"),
    )
    root.add_typer(group, name="internal")
    command(
        group, "run", runs_a_command=True,
        examples=(
            "sublet internal run -- make train",
            "sublet internal run --slots 2 --name nightly --detach -- python3 train.py",
        ),
    )(run)  # fmt: skip
    command(
        group, "list", examples=("sublet internal list", "sublet internal list --json")
    )(list_all)  # fmt: skip
    command(group, "show", examples=("sublet internal show 9c41",))(show)
    command(group, "logs", examples=("sublet internal logs -f 9c41",))(logs)
    command(group, "cancel", examples=("sublet internal cancel 9c41",))(cancel)


def run(
    session: Session,
    command_line: workload.Command,
    *,
    slots: Annotated[int, typer.Option(min=1, metavar="N", help="How many GPUs or CPU slots.")] = 1,
    pool: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which GPUs; any, if not given.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="[default: the command's name]")
    ] = None,
    env: workload.Environment = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit it and return.")] = False,
) -> None:
    """Run an internal job, and exit as it did. Ctrl-C cancels it.

    Its output is printed as it comes. With --json it goes to stderr, and stdout is the job once it has ended.
    """
    id_ = str(uuid4())
    body: Document = {
        "id": id_,
        "name": name or PurePath(command_line[0]).name or "job",
        "gpus": slots,
        "command": command_line,
        "environment": environment(env or []),
    }
    if pool is not None:
        body["pool"] = pool
    path = f"/v1/internal-jobs/{id_}"
    with session.operator() as api:
        try:
            job = api.post("/v1/internal-jobs", body)
            if detach:
                session.show(job, JOB)
                return
            # Say that it waits only once it does: most start at once.
            job = workload.wait(api, path, job, until=_started, looks=3)
            if not _started(str(job.get("state"))):
                session.say(f"internal job {id_} waits for {slots} of {job.get('pool')}")
                job = workload.wait(api, path, job, until=_started)
            job = workload.follow(api, path, job, Log(to_stderr=session.json))
        except KeyboardInterrupt:
            if not detach:
                # Its answer may not have come yet: cancel by the id that we chose.
                try:
                    api.delete(path)
                    session.say(f"internal job {id_} is cancelled")
                except Failure as failure:
                    session.say(f"internal job {id_} could not be cancelled: {failure}")
            raise
    if session.json:
        session.show(job, JOB)
    elif job.get("cancelled"):
        session.say(f"internal job {id_} was cancelled")
    raise typer.Exit(workload.exit_code(job))


def list_all(session: Session) -> None:
    """List jobs that wait, run, or ended not long ago."""
    with session.operator() as api:
        document = api.get("/v1/internal-jobs")
    session.show_items(document, JOB)


def show(session: Session, job: Id) -> None:
    """Show one internal job."""
    with session.operator() as api:
        document = api.get(f"/v1/internal-jobs/{job_id(api, job)}")
    session.show(document, JOB)


def logs(
    session: Session, job: Id, *, follow: workload.Follow = False, offset: workload.Offset = 0
) -> None:
    """Print what an internal job wrote.

    With --json, as JSON lines with their offsets in bytes.
    """
    with session.operator() as api:
        path = f"/v1/internal-jobs/{job_id(api, job)}/logs"
        copy(api, path, Log(offset=offset, json_lines=session.json), follow=follow)


def cancel(session: Session, job: Id) -> None:
    """Cancel an internal job, whether it waits or runs."""
    with session.operator() as api:
        document = api.delete(f"/v1/internal-jobs/{job_id(api, job)}")
    session.show(document, JOB)


def _started(state: str) -> bool:
    return state != "pending"

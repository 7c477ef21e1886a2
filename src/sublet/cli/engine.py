"""`sublet engine slurm …`: what a Slurm cluster lacks for Sublet, and what to add."""

import csv
import getpass
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode
from sublet.cli.output import print_json

Config = Annotated[
    Path | None,
    typer.Option("--slurm", metavar="FILE", help="Settings of the cluster. [env: SUBLET_SLURM]"),
]
Shared = Annotated[
    str | None,
    typer.Option("--shared", metavar="DIR", help="Folder that login and compute nodes share."),
]
Partition = Annotated[
    str | None, typer.Option("--partition", metavar="NAME", help="Where leases run.")
]
Conf = Annotated[str | None, typer.Option("--conf", metavar="FILE", help="The slurm.conf to use.")]


def add_to(root: typer.Typer) -> None:
    engine = new_group(
        "Engines: the clusters that run the work.", examples=("sublet engine slurm check",)
    )
    root.add_typer(engine, name="engine")
    group = new_group(
        "A Slurm cluster: look at it, and see what to add. Nothing is changed.",
        examples=("sublet engine slurm check", "sublet engine slurm plan --notice 30"),
    )
    engine.add_typer(group, name="slurm")
    add_images_to(engine)
    command(
        group, "check", shared=("json",),
        examples=(
            "sublet engine slurm check --slurm /etc/sublet/slurm.toml",
            "sublet engine slurm check --shared /home/sublet --json",
        ),
    )(check)  # fmt: skip
    command(
        group, "history", shared=("json",),
        examples=("sublet engine slurm history --since now-30days > jobs.csv",),
    )(history)  # fmt: skip
    command(
        group, "plan", shared=(),
        examples=("sublet engine slurm plan --slurm /etc/sublet/slurm.toml --notice 30",),
    )(plan)  # fmt: skip


def add_images_to(engine: typer.Typer) -> None:
    images = new_group(
        "Container images that leases may run on, unpacked in the sandbox.",
        examples=("sublet engine image add pytorch docker://pytorch/pytorch",),
    )
    engine.add_typer(images, name="image")
    command(
        images, "add", shared=("json",),
        examples=(
            "sublet engine image add pytorch docker://pytorch/pytorch",
            "sublet engine image add nemo /shared/enroot/nemo.sqsh --images /shared/images",
        ),
    )(add_image)  # fmt: skip


def add_image(
    session: Session,
    name: Annotated[str, typer.Argument(help="What leases ask for it by: --image NAME.")],
    source: Annotated[
        str, typer.Argument(help="A .sqsh of Enroot or Pyxis, a .sif, a .tar, or docker://NAME.")
    ],
    *,
    images: Annotated[
        Path, typer.Option("--images", metavar="DIR", envvar="SUBLET_IMAGES",
                           help="Folder of images, the same on nodes."),
    ],
) -> None:  # fmt: skip
    """Unpack a container image, with the tools that are here, for leases to run on."""
    from sublet.engine import unpacking  # noqa: PLC0415 -- slow to load
    from sublet.engine.images import Images  # noqa: PLC0415

    folder = unpacking.add(Images(root=images), name, source)
    if session.json:
        print_json({"name": name, "folder": str(folder)})
    else:
        print(f"image {name} is in {folder}")


def check(
    session: Session,
    *,
    slurm: Config = None,
    shared: Shared = None,
    partition: Partition = None,
    conf: Conf = None,
) -> None:
    """Say what a Slurm cluster lacks for Sublet; exit 1 if anything."""
    from sublet.core.clock import SystemClock  # noqa: PLC0415 -- slow to load
    from sublet.engine.slurm import setup  # noqa: PLC0415

    findings = setup.check(
        slurm_settings(slurm, shared=shared, partition=partition, conf=conf), SystemClock()
    )
    missing = [finding for finding in findings if finding.level == "missing"]
    if session.json:
        print_json({"ready": not missing, "findings": [asdict(found) for found in findings]})
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{finding.level:<8} {finding.what:<{width}}  {finding.said}")
        print(f"{len(missing)} missing" if missing else "ready")
    if missing:
        raise typer.Exit(ExitCode.FAILED)


def history(
    session: Session,
    *,
    slurm: Config = None,
    conf: Conf = None,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="As sacct takes it: 2026-01-31, now-30days.")
    ] = "now-30days",
    until: Annotated[str | None, typer.Option(metavar="TIME", help="[default: now]")] = None,
) -> None:
    """Print internal jobs of the past from Slurm's accounting, as CSV; no lease is among them."""
    from sublet.engine.slurm.commands import Slurm  # noqa: PLC0415 -- slow to load
    from sublet.engine.slurm.history import check_accounting, internal_jobs  # noqa: PLC0415

    cluster = Slurm(settings=slurm_settings(slurm, conf=conf))
    check_accounting(cluster)
    jobs = internal_jobs(cluster, since=since, until=until)
    if session.json:
        print_json({"items": [asdict(job) for job in jobs]})
        return
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(("submit_time", "start_time", "duration_s", "gpus", "state", "job"))
    for job in jobs:
        rows.writerow(
            (job.submit_time, job.start_time, job.duration_seconds, job.gpus, job.state, job.key)
        )


def plan(
    _session: Session,
    *,
    slurm: Config = None,
    shared: Shared = None,
    partition: Partition = None,
    conf: Conf = None,
    notice: Annotated[
        int, typer.Option(min=1, max=86_400, metavar="SECONDS", help="Notice that leases get.")
    ] = 30,
    nodes: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="What may be lent, such as gpu[01-32]; all with GPUs."),
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whom Sublet runs as. [default: you]")
    ] = None,
) -> None:
    """Print the exact configuration to add to a Slurm cluster. Changes nothing."""
    from sublet.core.clock import SystemClock  # noqa: PLC0415 -- slow to load
    from sublet.engine.slurm import setup  # noqa: PLC0415

    settings = slurm_settings(slurm, shared=shared, partition=partition, conf=conf)
    text = setup.plan(
        settings, SystemClock(), notice_seconds=notice, nodes=nodes, user=user or getpass.getuser()
    )
    print(text, end="")


def slurm_settings(
    slurm: Path | None,
    *,
    shared: str | None = None,
    partition: str | None = None,
    conf: str | None = None,
) -> Any:
    """Read the file that was named, if any; flags win."""
    import os  # noqa: PLC0415
    import tomllib  # noqa: PLC0415

    from sublet.core.errors import Misconfigured  # noqa: PLC0415
    from sublet.engine.slurm.settings import parse_settings  # noqa: PLC0415

    named = slurm or (Path(os.environ["SUBLET_SLURM"]) if os.environ.get("SUBLET_SLURM") else None)
    document: dict[str, object] = {"shared": str(Path("~/sublet").expanduser())}
    if named is not None:
        try:
            document |= tomllib.loads(named.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Misconfigured(f"the Slurm settings {named} cannot be read: {error}") from error
    given = {"shared": shared, "partition": partition, "conf": conf}
    document |= {name: value for name, value in given.items() if value is not None}
    return parse_settings(document, where=str(named or "flags"))

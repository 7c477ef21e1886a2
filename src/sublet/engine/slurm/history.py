"""What internal jobs asked for in the past, from Slurm's accounting."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sublet.core.errors import Refused
from sublet.engine.slurm import accounts, reading
from sublet.engine.slurm.accounts import PastJob
from sublet.engine.slurm.commands import Slurm
from sublet.engine.slurm.pieces import Unknown
from sublet.engine.slurm.view import LEASE_NAME

_LONGEST_SECONDS: Final = 1800.0  # years of jobs take a slurmdbd a while


def internal_jobs(slurm: Slurm, *, since: str, until: str | None = None) -> Iterator[PastJob]:
    """Yield the jobs with GPUs, of all users, that were there in a span of time; no lease of ours.

    Args:
        slurm: the cluster.
        since: a time as sacct takes it: 2026-01-31, now-30days.
        until: the same; None for now.

    Raises:
        Unavailable: accounting did not answer, or in words that we do not know.
        Refused: it answered, and said no, as to a time that is none.
    """
    end = [] if until is None else ["-E", until]
    fields = ",".join(accounts.PAST)
    text = slurm.run("sacct", "-a", "-n", "-P", "-X", "-S", since, *end, "-o", fields)
    try:
        jobs = accounts.read_past(text)
    except Unknown as error:
        raise reading.unavailable(error) from error
    for job in jobs:
        if job.gpus and not LEASE_NAME.fullmatch(job.name):
            yield job


def write_record(
    slurm: Slurm, path: Path, *, fields: Sequence[str], since: str, until: str | None = None
) -> int:
    """Write what accounting has of all users' jobs to a file, with a header and without leases.

    Args:
        slurm: the cluster.
        path: of a new file, in the form of `sacct --parsable2`; instants in seconds since 1970.
        fields: the columns to ask for.
        since: a time as sacct takes it.
        until: the same; None for now.

    Returns:
        how many jobs.

    Raises:
        Unavailable: accounting did not answer.
        Refused: it answered, and said no.
    """
    end = "now" if until is None else until
    wanted = ",".join([*fields, "JobName"])
    options = ("--allusers", "--allocations", "--parsable2", "-S", since, "-E", end, "-o", wanted)
    jobs = -1  # the header is none
    with tempfile.TemporaryFile() as answer, path.open("wb") as file:
        process = slurm.begin("sacct", *options, output=answer.fileno(), times="%s")
        slurm.finish(process, "sacct", timeout_seconds=_LONGEST_SECONDS)
        answer.seek(0)
        for line in answer:
            *values, name = line.rstrip(b"\n").split(b"|", len(fields))
            if not LEASE_NAME.fullmatch(name.decode(errors="replace")):
                file.write(b"|".join(values) + b"\n")
                jobs += 1
    return jobs


def gpus_by_model(slurm: Slurm) -> dict[str, int]:
    """Return how many GPUs of each model the cluster has, broken ones included.

    Raises:
        Unavailable: Slurm did not answer, or in words that we do not know.
    """
    text = slurm.run("sinfo", "-h", "-a", "-N", "-O", reading.node_format())
    try:
        nodes = reading.read_nodes(text)
    except Unknown as error:
        raise reading.unavailable(error) from error
    found: dict[str, int] = defaultdict(int)
    for node in nodes:
        if node.gpu_model != "cpu":
            found[node.gpu_model] += node.gpus
    return dict(found)


def check_accounting(slurm: Slurm) -> None:
    """Raises Refused: this cluster keeps no accounts."""
    config = slurm.run("scontrol", "show", "config")
    if "slurmdbd" not in config:
        raise Refused("this cluster keeps no accounts (AccountingStorageType): there is no history")

"""What internal jobs asked for in the past, from Slurm's accounting."""

from collections.abc import Iterator

from sublet.core.errors import Refused
from sublet.engine.slurm import reading
from sublet.engine.slurm.commands import Slurm
from sublet.engine.slurm.reading import PastJob, Unknown
from sublet.engine.slurm.view import LEASE_NAME


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
    fields = ",".join(reading.PAST)
    text = slurm.run("sacct", "-a", "-n", "-P", "-X", "-S", since, *end, "-o", fields)
    try:
        jobs = reading.read_past(text)
    except Unknown as error:
        raise reading.unavailable(error) from error
    for job in jobs:
        if job.gpus and not LEASE_NAME.fullmatch(job.name):
            yield job


def check_accounting(slurm: Slurm) -> None:
    """Raises Refused: this cluster keeps no accounts."""
    config = slurm.run("scontrol", "show", "config")
    if "slurmdbd" not in config:
        raise Refused("this cluster keeps no accounts (AccountingStorageType): there is no history")

"""Jobs of the past, as Slurm's accounting has them."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sublet.engine.slurm.pieces import NEVER, Unknown, exit_code_of, gpus_of, instant, less, whole

ACCOUNTED: Final = ("JobID", "State", "Start", "End", "ExitCode", "ElapsedRaw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounted:
    """One job as Slurm's accounting has it."""

    key: str
    state: str
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    elapsed_seconds: int

    def earlier(self, by: timedelta) -> "Accounted":
        """Return it on a clock that Slurm's is so far ahead of."""
        return replace(self, started_at=less(self.started_at, by), ended_at=less(self.ended_at, by))


def read_accounted(text: str) -> list[Accounted]:
    """Read `sacct -n -P -X -o` with the fields ACCOUNTED.

    Raises:
        Unknown: a line does not have them.
    """
    found = []
    for line in text.splitlines():
        values = line.split("|")
        if len(values) != len(ACCOUNTED):
            raise Unknown(f"sacct printed {line[:80]!r}")
        key, state, start, end, code, elapsed = values
        found.append(
            Accounted(
                key=key,
                state=state.split()[0] if state else "",
                started_at=instant(start),
                ended_at=instant(end),
                exit_code=exit_code_of(code),
                elapsed_seconds=whole(elapsed),
            )
        )
    return found


PAST: Final = (
    "JobID", "State", "Submit", "Start", "End", "ElapsedRaw", "ReqTRES", "AllocTRES", "JobName",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PastJob:
    """One job of the past, as accounting has it; its instants as Slurm wrote them."""

    key: str
    name: str
    state: str
    submit_time: str
    start_time: str  # "" if it never started
    end_time: str  # "" if it has not ended
    duration_seconds: int
    gpus: int


def read_past(text: str) -> list[PastJob]:
    """Read `sacct -n -P -X -o` with the fields PAST.

    Raises:
        Unknown: a line does not have them.
    """
    found = []
    for line in text.splitlines():
        values = line.split("|", len(PAST) - 1)
        if len(values) < len(PAST):
            raise Unknown(f"sacct printed {line[:80]!r}")
        key, state, submit, start, end, elapsed, asked, given, name = values
        tres = given or asked
        gpus, _ = gpus_of(tres, per_node="", per_job="", per_task="", nodes=1, tasks=1)
        found.append(
            PastJob(
                key=key,
                name=name,
                state=state.split()[0] if state else "",
                submit_time=submit,
                start_time="" if start in NEVER else start,
                end_time="" if end in NEVER else end,
                duration_seconds=whole(elapsed),
                gpus=gpus,
            )
        )
    return found

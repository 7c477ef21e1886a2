"""A fine-tuning job, from its files to a model of its own.

    validating ──► queued ──► running ──► succeeded
        │            │           ├──────► failed       from anywhere: nothing is charged
        └────────────┴───────────┴──────► cancelled    charged up to the last checkpoint

It is `running` from when its tokens were counted and the money for all of them is held. Whoever
trains does so on a lease that may go at any moment; the job itself stays where it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sublet.core.errors import Refused

# From when it was made: its hold ends a day later.
LONGEST: Final = timedelta(days=14)
MOST_EPOCHS: Final = 50
MOST_CHECKPOINTS: Final = 3  # that become models: of the last epochs
# What a text has at least for each token, for an estimate before anybody counted.
BYTES_A_TOKEN: Final = 4


class State(StrEnum):
    VALIDATING = "validating"  # its files are read
    QUEUED = "queued"  # waits for a lease, or its trainer counts
    RUNNING = "running"  # its money is held
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


MOVES: Final[Mapping[State, frozenset[State]]] = {
    State.VALIDATING: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
OPEN: Final = frozenset(state for state, after in MOVES.items() if after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How it learns: low-rank adaptation of every linear layer, with AdamW."""

    epochs: int
    batch_size: int  # examples that are looked at in one step
    learning_rate: float  # at the first step; it falls to zero along a line
    seed: int
    rank: int = 8
    alpha: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a job failed, in OpenAI's words."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    id: UUID
    tenant_id: UUID
    api_key_id: UUID
    base: str
    suffix: str
    training_file: UUID
    validation_file: UUID | None
    method: Method
    metadata: Mapping[str, str]
    price_id: int
    state: State
    error: Trouble | None
    model: str | None
    examples: int | None
    steps: int | None
    tokens: int | None
    hold_id: UUID | None
    lease_id: UUID | None
    secret: str | None
    runs: int
    fruitless: int
    not_before: datetime | None
    cancel_asked_at: datetime | None
    created_at: datetime
    begun_at: datetime | None
    ended_at: datetime | None

    @property
    def source(self) -> str:
        """What its usage names as who counted it."""
        return f"tuning:{self.id}"

    def check_move(self, to: State) -> None:
        """Raises Refused: it cannot go there from where it is."""
        if to not in MOVES[self.state]:
            raise Refused(f"the job is {self.state}, so it cannot become {to}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    step: int
    tokens: int
    epoch: int | None
    artefact_id: UUID
    lease_id: UUID
    metrics: Mapping[str, Any]
    happened_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    id: UUID
    level: str
    message: str
    data: Mapping[str, Any] | None
    created_at: datetime


def own_name(tuning: Tuning, *, step: int | None = None) -> str:
    """Return the name of what comes of a job, without its tenant's; of a checkpoint with its step."""
    base = tuning.base.rpartition("/")[2]
    words = [base[:24], "ft", *([tuning.suffix] if tuning.suffix else []), tuning.id.hex[-8:]]
    return "-".join(words) + ("" if step is None else f".step-{step}")

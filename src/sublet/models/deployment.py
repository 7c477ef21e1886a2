"""A hosted model: a deployment, and the replica that serves it on a lease.

    starting ──► ready ──► draining ──► gone
        └──────────┴────────────┴────────►

A replica's id is its lease's id, so neither can be without the other.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class ReplicaState(StrEnum):
    STARTING = "starting"  # its lease is asked for or coming up, or it loads weights
    READY = "ready"  # takes requests
    DRAINING = "draining"  # its lease is leaving: ends what it serves, takes nothing new
    GONE = "gone"


class Feature(StrEnum):
    """What a model may do beside text from text."""

    TOOLS = "tools"  # calls functions that it is told of
    JSON = "json"  # answers in JSON, of a schema if one is given
    LOGPROBS = "logprobs"  # says how likely each token was
    IMAGES = "images"  # reads them
    EMBEDDINGS = "embeddings"  # turns texts into vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    name: str  # what callers put in `model`
    recipe: str
    context_tokens: int  # input and output of one request together
    wanted: bool  # should a replica run?
    features: frozenset[Feature] = frozenset()
    temperature: float | None = None  # where the caller does not say; None: not known
    top_p: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    id: UUID  # its lease's id
    deployment: str
    url: str  # http://127.0.0.1:PORT, or its node's once it has one
    secret: str  # bearer key, so that only gateways reach it
    state: ReplicaState
    detail: str | None  # why it is not ready, for people; an end reason when it is gone
    since: datetime
    firm: bool = False  # is its lease a promise, or from what is idle just now?

"""A hosted model: a deployment, and the replica that serves it on a lease.

    starting ──► ready ──► draining ──► gone
        └──────────┴────────────┴────────►

A replica's id is its lease's id, so neither can be without the other.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sublet.market.price import Tier


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
class Scaling:
    """How many replicas there may be, and by what they grow and shrink."""

    min_replicas: int = 1
    max_replicas: int = 1
    tier: Tier = Tier.INTERRUPTIBLE  # of the leases of its replicas
    outstanding_tokens: int = 4_096  # that one replica shall have
    first_token_ms: int = 2_000  # that nine of ten requests shall wait at most
    idle_seconds: int = 300  # without a request, before it goes to its minimum


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    name: str  # what callers put in `model`
    recipe: str
    context_tokens: int  # input and output of one request together
    wanted: bool  # should a replica run?
    features: frozenset[Feature] = frozenset()
    temperature: float | None = None  # where the caller does not say; None: not known
    top_p: float | None = None
    owner_id: UUID | None = None  # who alone sees and may use it; None: it is sold to all
    scaling: Scaling = Scaling()
    target: int = 1  # replicas that it shall have now
    fewer_since: datetime | None = None  # since when fewer would do


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
    started_at: datetime | None = None  # when its lease was asked for
    ready_at: datetime | None = None  # when it took its first request
    adapters: frozenset[UUID] = frozenset()  # artefacts of what it serves on top of its model

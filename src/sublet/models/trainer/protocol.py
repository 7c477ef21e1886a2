"""What a trainer and the control plane say to each other: JSON, over the control plane's API.

    GET  /v1/tunings/{job}/work                       what to do, and the keys for it
    PUT  /v1/tunings/{job}/count                      how much it is: the money for it is held
    PUT  /v1/tunings/{job}/progress                   how each step went
    PUT  /v1/tunings/{job}/checkpoints/{id}/key       begin a checkpoint
    PUT  /v1/tunings/{job}/checkpoints/{id}           it is whole: from here on others go on
    PUT  /v1/tunings/{job}/trouble                    it cannot be done

Each may be sent twice. Whoever trains shows the secret of its run; 409 says that it is somebody
else's turn, or nobody's any more.
"""

from uuid import UUID

from msgspec import Struct

from sublet.models.replica.recipe import Recipe
from sublet.models.tuning.job import Method


class File(Struct, frozen=True, kw_only=True):
    """One sealed file in the chest."""

    artefact: UUID
    number: int
    path: str
    size: int
    sha256: str
    key: str  # in base64


class Resume(Struct, frozen=True, kw_only=True):
    """Where to go on from."""

    step: int
    tokens: int
    files: tuple[File, ...]


class Work(Struct, frozen=True, kw_only=True):
    recipe: Recipe
    weights_key: str | None
    method: Method
    training: File
    validation: File | None
    resume: Resume | None
    checkpoint_seconds: float


class Count(Struct, frozen=True, kw_only=True):
    examples: int
    steps: int
    tokens: int  # of all epochs


class Step(Struct, frozen=True, kw_only=True):
    step: int
    train_loss: float
    train_accuracy: float  # of the tokens that were learnt, how many it would have said
    learning_rate: float
    valid_loss: float | None = None  # of the whole validation file, at the end of an epoch
    valid_accuracy: float | None = None


class Steps(Struct, frozen=True, kw_only=True):
    steps: tuple[Step, ...]


class Size(Struct, frozen=True, kw_only=True):
    bytes: int


class Part(Struct, frozen=True, kw_only=True):
    path: str
    size: int
    sha256: str


class Kept(Struct, frozen=True, kw_only=True):
    """A checkpoint that is whole."""

    step: int
    tokens: int  # trained up to it
    epoch: int | None  # that ends with it
    metrics: Step
    files: tuple[Part, ...]  # the first one is what engines load


class Told(Struct, frozen=True, kw_only=True):
    """Why it cannot be done."""

    code: str
    message: str


ADAPTER_FILE = "adapter.gguf"

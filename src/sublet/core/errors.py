"""Every error this package raises on purpose.

SubletError
├── Invalid         the request can never succeed as written
├── Unauthorized    no key, or one that is unknown, expired or revoked
├── NotFound        no such thing, or not yours to see
├── Conflict        the thing changed under you; read it again and retry
├── Refused         a rule said no: no surplus, over a limit
│   ├── Unpaid      the wallet cannot pay for it
│   └── Unconfirmed it touches what was promised, and nobody said that it may
├── Unavailable     something we depend on did not answer; retry later
└── Misconfigured   this instance cannot start as it is set up
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar


class SubletError(Exception):
    """Root of the tree; never raised itself."""

    code: ClassVar[str]  # stable: API bodies, metrics and logs carry it
    retryable: ClassVar[bool] = False  # may the same call succeed later, unchanged?


class Invalid(SubletError):
    code = "invalid"


class Unauthorized(SubletError):
    code = "unauthorized"


class NotFound(SubletError):
    code = "not_found"


class Conflict(SubletError):
    code = "conflict"
    retryable = True


class Refused(SubletError):
    code = "refused"


class Unpaid(Refused):
    code = "insufficient_credit"


class Unconfirmed(Refused):
    code = "unconfirmed"

    def __init__(self, message: str, hits: Sequence[Mapping[str, object]]) -> None:
        super().__init__(message)
        self.hits = hits  # whom it touches, and how


class Unavailable(SubletError):
    code = "unavailable"
    retryable = True


class Misconfigured(SubletError):
    code = "misconfigured"

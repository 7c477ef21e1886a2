"""Everything the gateway refuses, and how clients are told.

One table says status, OpenAI's `type` and `code`, and whether SDKs shall retry by
themselves: `x-should-retry` overrides their own rule, so an empty wallet is not hammered.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

Headers = list[tuple[bytes, bytes]]


class Kind(Enum):
    UNREADABLE = auto()  # the body is not JSON
    INVALID = auto()  # a parameter has a value that cannot be
    UNSUPPORTED = auto()  # a parameter that we do not know, or do not honour
    TOO_LONG = auto()  # the input alone fills the model's context
    UNAUTHORIZED = auto()
    UNPAID = auto()  # the wallet cannot pay for this, whatever finishes meanwhile
    OVER_BUDGET = auto()  # this one request is larger than all that the wallet or a budget has
    BUDGET_SPENT = auto()  # a budget has not enough left until it returns
    IN_FLIGHT = auto()  # it could, but the money is held by what runs now
    FORBIDDEN = auto()  # an operator's key: it spends nothing
    NO_SUCH_PATH = auto()
    NO_SUCH_MODEL = auto()
    NO_SUCH_RESPONSE = auto()  # an answer of before: none is kept
    NO_SUCH_THING = auto()  # a file, a batch or a fine-tune: the tenant has none of this id
    CONFLICT = auto()  # a thing of the tenant's is not in the state for this
    NO_ROOM = auto()  # the tenant keeps too much, or has too many of these
    NO_SUCH_METHOD = auto()
    TOO_SLOW = auto()  # the body did not arrive
    TOO_LARGE = auto()
    ENCODED = auto()  # a compressed body
    RATE_LIMITED = auto()
    REPLAYED = auto()  # a signed request that was served before
    OVER_LIMIT = auto()  # larger than the whole limit: waiting does not help
    INTERNAL = auto()  # a bug of ours
    MODEL_FAILED = auto()  # the replica broke off, or answered with nonsense
    MODEL_BUSY = auto()  # the replica takes no more just now
    NO_IDLE = auto()  # a tier that runs on idle capacity, and nothing is idle
    NOT_READY = auto()  # no replica of this model is up
    RECLAIMED = auto()  # internal jobs took the model's GPUs
    TIMED_OUT = auto()  # the request ran for longer than any may
    SILENT = auto()  # no first token came in time
    STALLED = auto()  # tokens came, and then for too long none
    UNAVAILABLE = auto()  # the database is away
    STOPPING = auto()  # this gateway process is going


@dataclass(frozen=True, slots=True)
class Row:
    status: int
    type: str
    code: str
    retry: bool | None = None  # x-should-retry; None leaves it to the SDK
    after_seconds: float | None = None  # Retry-After, where the failure does not know better


TABLE: Final[Mapping[Kind, Row]] = MappingProxyType(
    {
        Kind.UNREADABLE: Row(400, "invalid_request_error", "invalid_json"),
        Kind.INVALID: Row(400, "invalid_request_error", "invalid_value"),
        Kind.UNSUPPORTED: Row(400, "invalid_request_error", "unsupported_parameter"),
        Kind.TOO_LONG: Row(400, "invalid_request_error", "context_length_exceeded"),
        Kind.UNAUTHORIZED: Row(401, "invalid_request_error", "invalid_api_key"),
        Kind.UNPAID: Row(402, "insufficient_quota", "payment_required", retry=False),
        Kind.OVER_BUDGET: Row(402, "insufficient_quota", "weight_exceeds_budget", retry=False),
        Kind.BUDGET_SPENT: Row(402, "insufficient_quota", "budget_exhausted", retry=False),
        Kind.IN_FLIGHT: Row(
            402, "insufficient_quota", "in_flight_budget_exhausted", retry=True, after_seconds=1
        ),
        Kind.FORBIDDEN: Row(403, "permission_error", "operator_key"),
        Kind.NO_SUCH_PATH: Row(404, "invalid_request_error", "unknown_url"),
        Kind.NO_SUCH_MODEL: Row(404, "invalid_request_error", "model_not_found"),
        Kind.NO_SUCH_RESPONSE: Row(404, "invalid_request_error", "response_not_found"),
        Kind.NO_SUCH_THING: Row(404, "invalid_request_error", "not_found"),
        Kind.CONFLICT: Row(409, "invalid_request_error", "conflict", retry=False),
        Kind.NO_ROOM: Row(429, "rate_limit_error", "quota_exceeded", retry=False),
        Kind.NO_SUCH_METHOD: Row(405, "invalid_request_error", "method_not_allowed"),
        Kind.TOO_SLOW: Row(408, "invalid_request_error", "request_timeout"),
        Kind.TOO_LARGE: Row(413, "invalid_request_error", "request_too_large", retry=False),
        Kind.ENCODED: Row(415, "invalid_request_error", "unsupported_encoding", retry=False),
        Kind.RATE_LIMITED: Row(429, "rate_limit_error", "rate_limit_exceeded", retry=True),
        Kind.REPLAYED: Row(429, "rate_limit_error", "signature_used", retry=True, after_seconds=1),
        Kind.OVER_LIMIT: Row(429, "rate_limit_error", "rate_limit_exceeded", retry=False),
        Kind.INTERNAL: Row(500, "server_error", "internal_error"),
        Kind.MODEL_FAILED: Row(502, "server_error", "model_failed", retry=True),
        Kind.MODEL_BUSY: Row(503, "server_error", "model_busy", retry=True, after_seconds=1),
        Kind.NO_IDLE: Row(503, "server_error", "capacity_unavailable", retry=True, after_seconds=5),
        Kind.NOT_READY: Row(503, "model_not_ready", "model_not_ready", retry=True, after_seconds=2),
        Kind.RECLAIMED: Row(503, "model_reclaimed", "model_reclaimed", retry=True, after_seconds=2),
        Kind.TIMED_OUT: Row(504, "server_error", "request_too_long", retry=False),
        Kind.SILENT: Row(504, "server_error", "first_token_timeout", retry=True, after_seconds=1),
        Kind.STALLED: Row(504, "server_error", "model_stalled", retry=True),
        Kind.UNAVAILABLE: Row(503, "server_error", "unavailable", retry=True, after_seconds=2),
        Kind.STOPPING: Row(503, "server_error", "stopping", retry=True, after_seconds=1),
    }
)


class Failure(Exception):
    """A refusal on its way to the client."""

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        after_seconds: float | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.row = TABLE[kind]
        self.message = message
        self.param = param
        self.after_seconds = self.row.after_seconds if after_seconds is None else after_seconds
        self._headers = headers or []

    @property
    def status(self) -> int:
        return self.row.status

    @property
    def headers(self) -> Headers:
        """What tells SDKs whether and when to retry."""
        headers = list(self._headers)
        if self.row.retry is not None:
            headers.append((b"x-should-retry", b"true" if self.row.retry else b"false"))
        if self.after_seconds is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(self.after_seconds))))
            headers.append(
                (b"retry-after-ms", b"%d" % max(1, math.ceil(self.after_seconds * 1000)))
            )
        return headers

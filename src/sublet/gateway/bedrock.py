"""Amazon Bedrock's runtime in AWS's words: what all its calls share.

Its SDKs know a call by its path, which also names the model, and an error by a header. So a
dialect is made for each request: `find` reads the path, `converse.py` and `invoke.py` make it.

boto3 repeats a call by the status and the exception's name, and knows no `x-should-retry`. The
table below gives it a name that it repeats exactly where `failures.TABLE` says so; a test holds
it to that with boto3's own rules. AWS has no word for an empty wallet: access is denied.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from sublet.gateway import eventstream, openai
from sublet.gateway.ask import Ask
from sublet.gateway.dialect import Dialect, Reply
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.signature import Rejected

_encode: Final = msgspec.json.Encoder().encode


class Verb(StrEnum):
    CONVERSE = "converse"
    CONVERSE_STREAM = "converse-stream"
    INVOKE = "invoke"
    INVOKE_STREAM = "invoke-with-response-stream"
    COUNT_TOKENS = "count-tokens"


@dataclass(frozen=True, slots=True)
class Operation:
    """What a path of the runtime asks for."""

    model: str  # as it was written: an id, a profile or an ARN
    verb: Verb

    @property
    def streams(self) -> bool:
        return self.verb in (Verb.CONVERSE_STREAM, Verb.INVOKE_STREAM)


_PATH: Final = re.compile(rf"^/model/(.+)/({'|'.join(Verb)})\Z", re.DOTALL)


def find(path: str) -> Operation | None:
    """Return the operation that a path, its escapes undone, asks for; None if it is no such path."""
    if not path.startswith("/model/") or (match := _PATH.match(path)) is None:
        return None
    return Operation(match[1], Verb(match[2]))


# ── which model ──────────────────────────────────────────────────────────────────────────

_ARN: Final = re.compile(
    r"^arn:aws[a-z-]*:bedrock:[a-z0-9-]*:[0-9]*:"
    r"(?:foundation-model|inference-profile|application-inference-profile)/(.+)\Z"
)
# Of inference profiles. They promise nothing here: there is one fleet, its operator's.
_GEOGRAPHY: Final = re.compile(r"^(?:us|us-gov|eu|apac|au|ca|jp|sa|global)\.(.+)\Z")
_VERSION: Final = re.compile(r"^(.+?)(?:-v[0-9]+)?:[0-9]+(?::[0-9a-z]+)?\Z")


def name_of(identifier: str, known: Callable[[str], bool]) -> str:
    """Return the name under which a model is sold here, for any of the ways in which AWS names one.

    What is sold under exactly this name goes before what it would be without its prefix, and
    that before what it would be without its version; of what is not sold, the name as it came.
    """
    name = match[1] if (match := _ARN.match(identifier)) else identifier
    without = match[1] if (match := _GEOGRAPHY.match(name)) else name
    for candidate in (name, without):
        if known(candidate):
            return candidate
    for candidate in (name, without):
        if (match := _VERSION.match(candidate)) and known(match[1]):
            return match[1]
    return identifier


# ── refusals ─────────────────────────────────────────────────────────────────────────────

# By our status, and whether waiting helps; some kinds have a name of their own.
_EXCEPTIONS: Final[Mapping[tuple[int, bool], tuple[int, str]]] = MappingProxyType(
    {
        (400, False): (400, "ValidationException"),
        (401, False): (403, "UnrecognizedClientException"),
        (402, False): (403, "AccessDeniedException"),
        (402, True): (429, "ThrottlingException"),
        (403, False): (403, "AccessDeniedException"),
        (404, False): (404, "ResourceNotFoundException"),
        (405, False): (405, "UnknownOperationException"),
        (408, False): (408, "RequestTimeoutException"),
        (409, False): (400, "ConflictException"),
        (413, False): (413, "ValidationException"),
        (415, False): (415, "ValidationException"),
        (429, False): (400, "ServiceQuotaExceededException"),
        (429, True): (429, "ThrottlingException"),
        (500, False): (500, "InternalServerException"),
        (502, True): (503, "ServiceUnavailableException"),
        (503, True): (503, "ServiceUnavailableException"),
        (504, False): (408, "ModelTimeoutException"),
        (504, True): (503, "ServiceUnavailableException"),
    }
)
_NAMED: Final[Mapping[Kind, tuple[int, str]]] = MappingProxyType(
    {
        Kind.NO_SUCH_PATH: (404, "UnknownOperationException"),
        Kind.NOT_READY: (429, "ModelNotReadyException"),
        Kind.RECLAIMED: (429, "ModelNotReadyException"),
    }
)
# What a begun stream may end with: AWS has fewer words there.
_IN_STREAM: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        Kind.RECLAIMED: "serviceUnavailableException",
        Kind.STOPPING: "serviceUnavailableException",
        Kind.UNAVAILABLE: "serviceUnavailableException",
        Kind.INTERNAL: "internalServerException",
    }
)


def refuse(failure: Failure, request_id: str) -> tuple[int, bytes, Headers]:  # noqa: ARG001
    row = failure.row
    status, name = _NAMED.get(failure.kind) or _EXCEPTIONS[row.status, bool(row.retry)]
    if isinstance(failure, Rejected):
        status, name = failure.aws_status, failure.aws_code
    return status, _encode(_error(failure)), [(b"x-amzn-errortype", name.encode())]


def break_off(failure: Failure, request_id: str) -> bytes:  # noqa: ARG001
    name = _IN_STREAM.get(failure.kind, "modelStreamErrorException")
    return eventstream.exception(name, _encode(_error(failure)))


def _error(failure: Failure) -> dict[str, object]:
    # Beside AWS's own field, what a program may want to tell refusals apart by.
    return {
        "message": failure.message,
        "sublet": {"code": failure.row.code, "param": failure.param},
    }


def _unnamed(body: bytes) -> Ask:
    raise AssertionError(f"no call of the runtime was named for {len(body)} bytes")


def _unanswered(ask: Ask, grant: Grant, id_: str, created: int) -> Reply:
    raise AssertionError(f"no call of the runtime was named: {ask.model} {id_} {created} {grant}")


# Of whatever has no model to it, such as a refusal before the call was read.
RUNTIME: Final = Dialect(
    parse=_unnamed,
    reply=_unanswered,
    refuse=refuse,
    break_off=break_off,
    limits=openai.CHAT.limits,
    request_id=b"x-amzn-requestid",
    stream_kind=eventstream.CONTENT_TYPE,
)

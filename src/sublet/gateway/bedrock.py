"""Amazon Bedrock's runtime in AWS's words: Converse, and what all its calls share.

Its SDKs know a call by its path, which also names the model, and an error by a header. So a
dialect is made for each request: `find` reads the path, `dialect` makes it. What InvokeModel
carries, in the words of the model's maker, is in `invoke.py`.

boto3 repeats a call by the status and the exception's name, and knows no `x-should-retry`. The
table below gives it a name that it repeats exactly where `failures.TABLE` says so; a test holds
it to that with boto3's own rules. AWS has no word for an empty wallet: access is denied.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from sublet.core.money import Money
from sublet.gateway import eventstream, openai
from sublet.gateway.ask import Ask
from sublet.gateway.dialect import Dialect, grant_headers, grant_note
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.reading import decode, plain
from sublet.gateway.request import Penalty
from sublet.gateway.signature import Rejected
from sublet.gateway.tariff import Counts

Nothing = Annotated[list[None], Meta(max_length=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
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


# ── requests ─────────────────────────────────────────────────────────────────────────────


class CachePoint(Struct, forbid_unknown_fields=True):
    """A hint that needs nothing: replicas cache every prompt by themselves."""

    type: Literal["default"]
    ttl: Literal["5m", "1h"] | None = None


class Block(Struct, forbid_unknown_fields=True, rename="camel"):
    """One of the two. AWS tells them apart by the field that is there."""

    text: str | None = None
    cache_point: CachePoint | None = None


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Block], Meta(min_length=1)]


class InferenceConfig(Struct, forbid_unknown_fields=True, rename="camel"):
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    stop_sequences: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=500)]], Meta(max_length=16)]
        | None
    ) = None


class MoreFields(Struct, forbid_unknown_fields=True):
    """What Converse has no field for, and the models here take."""

    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class Performance(Struct, forbid_unknown_fields=True):
    latency: Literal["standard"] | None = None


class ServiceTier(Struct, forbid_unknown_fields=True):
    type: Literal["default"]


class Prompt(Struct, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """What can be counted: a request without what is said of its answer."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    system: list[Block] | None = None
    tool_config: None = None
    additional_model_request_fields: MoreFields | None = None


class Body(Prompt, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    inference_config: InferenceConfig | None = None
    performance_config: Performance | None = None
    service_tier: ServiceTier | None = None
    guardrail_config: None = None
    prompt_variables: None = None
    output_config: None = None
    additional_model_response_field_paths: Nothing | None = None
    request_metadata: (
        Annotated[dict[str, Annotated[str, Meta(max_length=256)]], Meta(max_length=16)] | None
    ) = None  # labels


_BODY: Final = msgspec.json.Decoder(Body)
ONLY_EMPTY: Final = frozenset(
    {
        "additionalModelResponseFieldPaths", "guardrailConfig", "outputConfig",
        "performanceConfig", "promptVariables", "serviceTier", "toolConfig",
    }
)  # fmt: skip


def parse(body: bytes, *, model: str, stream: bool) -> Ask:
    """Read a body of Converse or ConverseStream.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    asked = decode(_BODY, body, only_empty=ONLY_EMPTY)
    config = asked.inference_config or InferenceConfig()
    said = {"temperature": config.temperature, "top_p": config.top_p} | _more(asked)
    sampling = {name: value for name, value in said.items() if value is not None}
    if config.stop_sequences:
        at = "inferenceConfig.stopSequences"
        sampling["stop"] = [plain(stop, at=at) for stop in config.stop_sequences]
    return Ask.chat(
        model,
        messages_of(asked),
        sampling=sampling,
        max_tokens=config.max_tokens,
        stream=stream,
        service_tier=None if asked.service_tier is None else asked.service_tier.type,
    )


def messages_of(asked: Prompt) -> list[dict[str, str]]:
    """Return the turns of a prompt.

    Raises:
        Failure: there is something in it that is no text, or its last turn is not the user's.
    """
    turns = [("system", asked.system, "system")] if asked.system else []
    turns += [
        (message.role, message.content, f"messages[{index}].content")
        for index, message in enumerate(asked.messages)
    ]
    if asked.messages[-1].role == "assistant":
        raise Failure(
            Kind.UNSUPPORTED,
            "the last message must be the user's: the models here do not continue an answer that"
            " was begun",
            param="messages",
        )
    messages: list[dict[str, str]] = []
    for role, blocks, at in turns:
        text = _text(blocks, at=at)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + text
        else:
            messages.append({"role": role, "content": text})
    return messages


def _text(blocks: list[Block], *, at: str) -> str:
    texts = []
    for index, block in enumerate(blocks):
        if (block.text is None) == (block.cache_point is None):
            raise Failure(
                Kind.INVALID,
                f"{at}[{index}] must have one field: text or cachePoint",
                param=f"{at}[{index}]",
            )
        if block.text is not None:
            texts.append(block.text)
    return plain("\n".join(texts), at=at)


def _more(asked: Prompt) -> dict[str, object]:
    more = asked.additional_model_request_fields
    return {} if more is None else msgspec.structs.asdict(more)


# ── answers ──────────────────────────────────────────────────────────────────────────────

_STOP_REASONS: Final = {
    "stop": "end_turn", "length": "max_tokens", "content_filter": "content_filtered",
}  # fmt: skip


@dataclass(slots=True)
class Reply:
    ask: Ask
    grant: Grant
    id: str  # 32 hex digits
    created: int
    _began: float = field(default_factory=time.monotonic)

    @property
    def headers(self) -> Headers:
        return grant_headers(self.grant)

    def first(self, counts: Counts | None) -> bytes:  # noqa: ARG002 -- it says that at the end
        return _event("messageStart", role="assistant")

    def text(self, text: str) -> bytes:
        payload = b'{"contentBlockIndex":0,"delta":{"text":' + _encode(text) + b"}}"
        return eventstream.event("contentBlockDelta", payload)

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        return b"".join(
            (
                _event("contentBlockStop", contentBlockIndex=0),
                _event("messageStop", stopReason=_STOP_REASONS[finish_reason]),
                _event("metadata", **self._metadata(counts, charge)),
            )
        )

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        message = {"role": "assistant", "content": [{"text": text}] if text else []}
        return _encode(
            {"output": {"message": message}, "stopReason": _STOP_REASONS[finish_reason]}
            | self._metadata(counts, charge)
        )

    def _metadata(self, counts: Counts, charge: Money) -> dict[str, object]:
        metadata: dict[str, object] = {
            "usage": {
                # As ours are: without what was read from a cache, or written to it.
                "inputTokens": counts.input_tokens,
                "cacheReadInputTokens": counts.cache_read_tokens,
                "cacheWriteInputTokens": counts.cache_write_tokens,
                "outputTokens": counts.completion_tokens,
                "totalTokens": counts.total,
            },
            "metrics": {"latencyMs": round((time.monotonic() - self._began) * 1000)},
            "sublet": grant_note(self.grant, charge),
        }
        if self.ask.service_tier is not None:
            metadata["serviceTier"] = {"type": self.ask.service_tier}
        return metadata


def _event(name: str, **fields: object) -> bytes:
    return eventstream.event(name, _encode(fields))


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


# Of whatever has no model to it, such as a refusal before the call was read.
RUNTIME: Final = Dialect(
    parse=_unnamed,
    reply=Reply,
    refuse=refuse,
    break_off=break_off,
    limits=openai.CHAT.limits,
    request_id=b"x-amzn-requestid",
    stream_kind=eventstream.CONTENT_TYPE,
)


def converse(model: str, *, stream: bool) -> Dialect:
    return replace(RUNTIME, parse=partial(parse, model=model, stream=stream))

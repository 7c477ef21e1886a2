"""Bedrock's InvokeModel: a body in the words of the model's maker, inside AWS's envelope.

Which maker's words they are, the body says: `anthropic_version` is Anthropic's Messages, a
`prompt` is Llama's, `inputText` Titan's and `texts` Cohere's, which ask for embeddings
(`vectors.py`), `messages` alone are OpenAI's chat. Any of them may be put to any model here:
they are only ways of asking. Bodies in the words that the gateway speaks anyway are read and
answered by those dialects, with the model from the path, and their streams cut into frames.
"""

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

from sublet.core.money import Money
from sublet.gateway import anthropic, bedrock, eventstream, openai, vectors
from sublet.gateway.ask import Api, Ask, ToolDelta
from sublet.gateway.converse import Nothing, Prompt, Share, prompt_of
from sublet.gateway.dialect import Dialect, Reply, RichReply, grant_headers, grant_note
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.reading import decode, plain
from sublet.gateway.request import Tokens
from sublet.gateway.tariff import Counts

_encode: Final = msgspec.json.Encoder().encode
_FIELDS: Final = msgspec.json.Decoder(dict[str, Raw])
# Their SDK sends its own newest one here, too. There is one form of answer, whichever it is.
_VERSION: Final = msgspec.json.Decoder(
    Annotated[str, Meta(pattern=r"^(bedrock-)?[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")]
)
TIER: Final = b"x-amzn-bedrock-service-tier"
_LLAMA_TOKENS: Final = 512  # AWS's own default of max_gen_len
# Makes an answer: (ask, grant, 32 hex digits, when in seconds since 1970).
Words = Callable[[Ask, Grant, str, int], Reply]


class Llama(Struct, forbid_unknown_fields=True):
    prompt: Annotated[str, Meta(min_length=1)]
    max_gen_len: Tokens | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    images: Nothing | None = None


class _Input(Struct, forbid_unknown_fields=True):
    body: bytes  # base64


class _CountInput(Struct, forbid_unknown_fields=True, rename="camel"):
    converse: Prompt | None = None
    invoke_model: _Input | None = None


class CountBody(Struct, forbid_unknown_fields=True):
    input: _CountInput


_LLAMA: Final = msgspec.json.Decoder(Llama)
_COUNT: Final = msgspec.json.Decoder(CountBody)


def _read(body: bytes, *, model: str, stream: bool) -> tuple[Words, Ask]:
    """Return whose words a body is in, and what it asks."""
    try:
        fields = _FIELDS.decode(body)
    except msgspec.ValidationError:
        raise Failure(Kind.INVALID, "the body must be a JSON object") from None
    except (ValueError, RecursionError) as error:
        raise Failure(
            Kind.UNREADABLE, f"We could not parse the JSON body of your request: {str(error)[:300]}"
        ) from None
    if "anthropic_version" in fields:
        version = bytes(fields.pop("anthropic_version"))
        try:
            _VERSION.decode(version)
        except ValueError:
            raise Failure(
                Kind.INVALID,
                "anthropic_version must be a date, such as 'bedrock-2023-05-31'",
                param="anthropic_version",
            ) from None
        if bytes(fields.get("anthropic_beta", b"[]")).strip() in (b"[]", b"null"):
            fields.pop("anthropic_beta", None)
        _refuse_named(fields, ("model", "stream"))
        return anthropic.Reply, anthropic.parse(_named(fields, model, stream=stream))
    if "prompt" in fields:
        return LlamaReply, _parse_llama(body, model=model, stream=stream)
    if (words := vectors.read(fields, body, model=model, stream=stream)) is not None:
        return words
    fields.pop("model", None)  # some put it here, too: the path's is the one that counts
    fields.pop("stream", None)  # and so does the path say whether it streams
    if stream:
        fields.setdefault("stream_options", Raw(b'{"include_usage":true}'))
    return openai.Reply, openai.CHAT.parse(_named(fields, model, stream=stream))


def _refuse_named(fields: dict[str, Raw], names: tuple[str, ...]) -> None:
    for name in names:
        if name in fields:
            raise Failure(
                Kind.UNSUPPORTED,
                f"Unknown or unsupported parameter: {name!r}: the path says it",
                param=name,
            )


def _named(fields: dict[str, Raw], model: str, *, stream: bool) -> bytes:
    return _encode(fields | {"model": model, "stream": stream})


def _parse_llama(body: bytes, *, model: str, stream: bool) -> Ask:
    asked = decode(_LLAMA, body, only_empty=frozenset({"images"}))
    payload: dict[str, object] = {"prompt": plain(asked.prompt, at="prompt")}
    for name in ("temperature", "top_p"):
        if (value := getattr(asked, name)) is not None:
            payload[name] = value
    return Ask(
        api=Api.COMPLETION,
        model=model,
        payload=payload,
        max_tokens=asked.max_gen_len or _LLAMA_TOKENS,
        stream=stream,
        include_usage=True,
        service_tier=None,
        prompt_bytes=len(asked.prompt.encode()),
        messages=1,
    )


# ── answers ──────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class LlamaReply:
    """An answer in Llama's words; a stream is of chunks of the same form."""

    ask: Ask
    grant: Grant
    id: str
    created: int

    @property
    def headers(self) -> Headers:
        return grant_headers(self.grant)

    def first(self, counts: Counts | None) -> bytes:
        prompt_tokens = None if counts is None else counts.prompt_tokens
        return _line(_generation("", prompt_tokens, None, None))

    def text(self, text: str) -> bytes:
        return _line(_generation(text, None, None, None))

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        return _line(self._ended("", finish_reason, counts, charge))

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        return _encode(self._ended(text, finish_reason, counts, charge))

    def _ended(
        self, text: str, finish_reason: str, counts: Counts, charge: Money
    ) -> dict[str, object]:
        used = counts.prompt_tokens, counts.completion_tokens
        note = {"sublet": grant_note(self.grant, charge)}
        return _generation(text, *used, finish_reason) | note


def _generation(
    text: str, prompt_tokens: int | None, output_tokens: int | None, reason: str | None
) -> dict[str, object]:
    return {
        "generation": text,
        "prompt_token_count": prompt_tokens,
        "generation_token_count": output_tokens,
        "stop_reason": reason,
    }


def _line(value: dict[str, object]) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


@dataclass(slots=True)
class Enveloped:
    """Another dialect's answer, its events each in a frame of AWS's, its counts in headers."""

    inner: Reply
    tier: str | None = None  # to be said again
    _began: float = field(default_factory=time.monotonic)
    _first_text: float | None = None
    _counts: Counts | None = None

    @property
    def grant(self) -> Grant:
        return self.inner.grant

    @property
    def headers(self) -> Headers:
        headers = list(self.inner.headers)
        if self.tier is not None:
            headers.append((TIER, self.tier.encode()))
        if self._counts is None:  # a stream: what is in its chunks
            headers.append((b"x-amzn-bedrock-content-type", b"application/json"))
        else:
            # Only the header's name says "input tokens": it is what Anthropic's own count is not.
            headers += [
                (b"x-amzn-bedrock-input-token-count", b"%d" % self._counts.prompt_tokens),
                (b"x-amzn-bedrock-output-token-count", b"%d" % self._counts.completion_tokens),
                (b"x-amzn-bedrock-invocation-latency", b"%d" % self._since()),
            ]
        return headers

    def first(self, counts: Counts | None) -> bytes:
        self._first_text = time.monotonic()
        return b"".join(map(_chunk, _events(self.inner.first(counts))))

    def text(self, text: str) -> bytes:
        return b"".join(map(_chunk, _events(self.inner.text(text))))

    def part(
        self, text: str, calls: Sequence[ToolDelta], logprobs: bytes | None, counts: Counts | None
    ) -> bytes:
        assert isinstance(self.inner, RichReply)
        events = _events(self.inner.part(text, calls, logprobs, counts))
        return b"".join(map(_chunk, events))

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        *before, end = _events(self.inner.last(finish_reason, counts, charge))
        first = time.monotonic() if self._first_text is None else self._first_text
        metrics = {
            "inputTokenCount": counts.prompt_tokens,
            "outputTokenCount": counts.completion_tokens,
            "invocationLatency": self._since(),
            "firstByteLatency": round((first - self._began) * 1000),
            "cacheReadInputTokenCount": counts.cache_read_tokens,
            "cacheWriteInputTokenCount": counts.cache_write_tokens,
        }
        # Spliced in, since it is the last field of whatever the chunk is.
        told = end[:-1] + b',"amazon-bedrock-invocationMetrics":' + _encode(metrics) + b"}"
        return b"".join(map(_chunk, [*before, told]))

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        self._counts = counts
        return self.inner.whole(text, finish_reason, counts, charge)

    def _since(self) -> int:
        return round((time.monotonic() - self._began) * 1000)


def _events(stream: bytes) -> Iterator[bytes]:
    """Give the payloads of server-sent events; OpenAI's mark of the end is none."""
    for event in stream.split(b"\n\n"):
        data = event.partition(b"data: ")[2]
        if data and data != b"[DONE]":
            yield data


def _chunk(payload: bytes) -> bytes:
    return eventstream.event("chunk", b'{"bytes":"' + base64.b64encode(payload) + b'"}')


# ── the calls ────────────────────────────────────────────────────────────────────────────


class _Invocation:
    """One call: its answer is in the words of its body."""

    def __init__(self, model: str, *, stream: bool, tier: str | None) -> None:
        self._model = model
        self._tier = tier
        self._stream = stream
        self._words: Words = openai.Reply

    def parse(self, body: bytes) -> Ask:
        self._words, ask = _read(body, model=self._model, stream=self._stream)
        return ask if self._tier is None else replace(ask, service_tier=self._tier)

    def reply(self, ask: Ask, grant: Grant, id_: str, created: int) -> Reply:
        return Enveloped(self._words(ask, grant, id_, created), self._tier)


def dialect(model: str, *, stream: bool, tier: str | None = None) -> Dialect:
    """Return the dialect of one call; `tier`: what its header `TIER` says."""
    call = _Invocation(model, stream=stream, tier=tier)
    return replace(bedrock.RUNTIME, parse=call.parse, reply=call.reply)


def parse_count(body: bytes, *, model: str) -> Ask:
    """Read a body of CountTokens.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    asked = decode(_COUNT, body, only_empty=frozenset({"input"})).input
    if (asked.converse is None) == (asked.invoke_model is None):
        raise Failure(
            Kind.INVALID, "input must have one field: converse or invokeModel", param="input"
        )
    if asked.converse is not None:
        messages, needs = prompt_of(asked.converse)
        return Ask.chat(model, messages, needs=needs)
    assert asked.invoke_model is not None
    return _read(asked.invoke_model.body, model=model, stream=False)[1]


def counted(input_tokens: int) -> bytes:
    """Return the answer of CountTokens."""
    return _encode({"inputTokens": input_tokens})


_REFUSED_HEADERS: Final = {
    b"x-amzn-bedrock-guardrailidentifier": frozenset[str](),
    b"x-amzn-bedrock-guardrailversion": frozenset[str](),
    b"x-amzn-bedrock-trace": frozenset({"DISABLED"}),
    b"x-amzn-bedrock-performanceconfig-latency": frozenset({"standard"}),
    TIER: frozenset({"default", "priority", "flex"}),
}


def check_headers(headers: list[tuple[bytes, bytes]]) -> None:
    """Raises Failure: a header of InvokeModel asks for what the models here do not do."""
    for name, value in headers:
        allowed = _REFUSED_HEADERS.get(name)
        if allowed is not None and value.decode("latin-1") not in allowed:
            told = name.decode()
            raise Failure(
                Kind.UNSUPPORTED,
                f"Unsupported value of the header {told!r}: the models here do not do this",
                param=told,
            )

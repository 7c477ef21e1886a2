"""OpenAI's Responses in their own words. Their SDK, reading strictly, is held against it.

Nothing is kept here after an answer, so none can be fetched, or gone on from by its id:
`store` and `previous_response_id` are refused by name, and every answer says `"store": false`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from sublet.core.money import Money
from sublet.gateway import openai
from sublet.gateway.ask import Ask
from sublet.gateway.dialect import Dialect, grant_headers, grant_note
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.reading import decode, plain
from sublet.gateway.request import Label, Nothing, TextFormat, Tokens
from sublet.gateway.tariff import Counts

# After every other event: an error does not know how many there were.
_LAST: Final = 2**31 - 1


class InputText(Struct, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(Struct, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    text: str
    annotations: Nothing | None = None
    logprobs: Nothing | None = None


class Message(Struct, forbid_unknown_fields=True, kw_only=True):
    """A turn, in the short form, or as an earlier answer's item sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputText | OutputText], Meta(min_length=1)]
    type: Literal["message"] | None = None
    id: Label | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class Text(Struct, forbid_unknown_fields=True):
    format: TextFormat | None = None


class Reasoning(Struct, forbid_unknown_fields=True):
    """Asks for nothing."""

    effort: Literal["none"] | None = None
    summary: None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None  # a hint: "may be left out to save bandwidth"


class Prompt(Struct, forbid_unknown_fields=True, kw_only=True):
    """What can be counted: a request without what is said of its answer."""

    model: str
    input: str | Annotated[list[Message], Meta(min_length=1)]
    instructions: str | None = None
    conversation: None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Nothing | None = None
    truncation: Literal["disabled"] | None = None


class Body(Prompt, forbid_unknown_fields=True, kw_only=True):
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    include: Nothing | None = None
    max_tool_calls: None = None
    top_logprobs: Literal[0] | None = None
    prompt: None = None
    # Labels.
    user: Label | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None


_BODY: Final = msgspec.json.Decoder(Body)
_PROMPT: Final = msgspec.json.Decoder(Prompt)
_ONLY_EMPTY: Final = frozenset(
    {
        "background", "conversation", "include", "max_tool_calls", "parallel_tool_calls",
        "previous_response_id", "prompt", "reasoning", "service_tier", "store", "text",
        "tool_choice", "tools", "top_logprobs", "truncation",
    }
)  # fmt: skip
_encode: Final = msgspec.json.Encoder().encode
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


def parse(body: bytes) -> Ask:
    """Read a body of `/v1/responses`.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    asked = decode(_BODY, body, only_empty=_ONLY_EMPTY)
    sampling: dict[str, object] = {}
    for name in ("temperature", "top_p"):
        if (value := getattr(asked, name)) is not None:
            sampling[name] = value
    echo = {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "temperature": asked.temperature,
        "tool_choice": asked.tool_choice or "auto",
        "top_p": asked.top_p,
        "user": asked.user,
    }
    return Ask.chat(
        asked.model,
        _messages(asked),
        sampling=sampling,
        max_tokens=asked.max_output_tokens,
        stream=bool(asked.stream),
        service_tier="default",
        echo=echo,
    )


def parse_prompt(body: bytes) -> Ask:
    """Read a body of `/v1/responses/input_tokens`.

    Raises:
        Failure: as `parse`.
    """
    asked = decode(_PROMPT, body, only_empty=_ONLY_EMPTY)
    return Ask.chat(asked.model, _messages(asked))


def _messages(asked: Prompt) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    if asked.instructions:
        text = plain(asked.instructions, at="instructions")
        messages.append({"role": "system", "content": text})
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": plain(asked.input, at="input")})
    else:
        for index, message in enumerate(asked.input):
            at = f"input[{index}].content"
            content = message.content
            if not isinstance(content, str):
                content = "\n".join(part.text for part in content)
            # "developer" is their newer word for "system", which chat templates do not know.
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": plain(content, at=at)})
    return messages


@dataclass(slots=True)
class Reply:
    ask: Ask
    grant: Grant
    id: str  # 32 hex digits
    created: int
    _events: int = 0
    _said: list[str] = field(default_factory=list)

    @property
    def headers(self) -> Headers:
        return grant_headers(self.grant)

    def first(self, counts: Counts | None) -> bytes:  # noqa: ARG002 -- it says that at the end
        begun = self._response("in_progress", [], None)
        return b"".join(
            (
                self._event("response.created", response=begun),
                self._event("response.in_progress", response=begun),
                self._event(
                    "response.output_item.added", output_index=0, item=self._item("in_progress", [])
                ),
                self._event("response.content_part.added", **self._place, part=_part("")),
            )
        )

    def text(self, text: str) -> bytes:
        self._said.append(text)
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        text = "".join(self._said)
        status, item = self._ended(text, finish_reason)
        whole = self._whole(text, finish_reason, counts, charge)
        return b"".join(
            (
                self._event("response.output_text.done", **self._place, text=text, logprobs=[]),
                self._event("response.content_part.done", **self._place, part=_part(text)),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event(f"response.{status}", response=whole),
            )
        )

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        return _encode(self._whole(text, finish_reason, counts, charge))

    @property
    def _place(self) -> dict[str, object]:
        return {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}

    def _whole(
        self, text: str, finish_reason: str, counts: Counts, charge: Money
    ) -> dict[str, object]:
        status, item = self._ended(text, finish_reason)
        whole = self._response(status, [item], _INCOMPLETE.get(finish_reason))
        return whole | {"usage": _usage(counts), "sublet": grant_note(self.grant, charge)}

    def _ended(self, text: str, finish_reason: str) -> tuple[str, dict[str, object]]:
        status = "incomplete" if finish_reason in _INCOMPLETE else "completed"
        return status, self._item(status, [_part(text)])

    def _response(
        self, status: str, output: Sequence[object], reason: str | None
    ) -> dict[str, object]:
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "model": self.ask.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": self.ask.service_tier,
            "store": False,
            "text": {"format": {"type": "text"}},
            "tools": [],
            "truncation": "disabled",
            "usage": None,
            "sublet": grant_note(self.grant),
        } | dict(self.ask.echo)

    def _item(self, status: str, content: Sequence[object]) -> dict[str, object]:
        return {
            "id": f"msg_{self.id}", "type": "message", "status": status, "role": "assistant",
            "content": content,
        }  # fmt: skip

    def _event(self, name: str, **fields: object) -> bytes:
        data = _encode({"type": name, "sequence_number": self._events} | fields)
        self._events += 1
        return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(counts: Counts) -> dict[str, object]:
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": counts.cache_read_tokens,
            "cache_write_tokens": counts.cache_write_tokens,
        },
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
        "total_tokens": counts.total,
    }


def _break_off(failure: Failure, request_id: str) -> bytes:  # noqa: ARG001
    error = {
        "type": "error", "sequence_number": _LAST, "code": failure.row.code,
        "message": failure.message, "param": failure.param,
    }  # fmt: skip
    return b"event: error\ndata: " + _encode(error) + b"\n\n"


def counted(input_tokens: int) -> bytes:
    """Return the answer of `input_tokens`."""
    return _encode({"object": "response.input_tokens", "input_tokens": input_tokens})


def not_kept(id_: str) -> Failure:
    """Return what to say of an answer of before."""
    return Failure(
        Kind.NO_SUCH_RESPONSE,
        f"there is no response {id_[:100]!r}: answers are not kept here; send what was said before"
        " as `input`",
    )


RESPONSES: Final = Dialect(
    parse=parse,
    reply=Reply,
    refuse=openai.CHAT.refuse,
    break_off=_break_off,
    limits=openai.CHAT.limits,
)

"""OpenAI's Responses in their own words. Their SDK, reading strictly, is held against it.

Nothing is kept after an answer unless `store: true` asks for it (`kept.py`): then it can be fetched,
gone on from by its id, and deleted. Every answer says in `store` whether it is.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from sublet.core.money import Money
from sublet.gateway import openai
from sublet.gateway.ask import Ask, ToolCall, ToolDelta, gather
from sublet.gateway.dialect import Dialect, grant_headers, grant_note
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.responses_body import parse
from sublet.gateway.tariff import Counts

# After every other event: an error does not know how many there were.
_LAST: Final = 2**31 - 1
# What may be in a query: what asks for nothing.
_QUERIES: Final = frozenset(
    {("stream", "false"), ("order", "desc"), ("include_obfuscation", "false")}
)
_TEXT: Final = -1  # among the items of an answer; calls have their places


_encode: Final = msgspec.json.Encoder().encode
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(slots=True)
class Reply:
    ask: Ask
    grant: Grant
    id: str  # 32 hex digits
    created: int
    _events: int = 0
    _began: float = field(default_factory=time.monotonic)
    _said: list[str] = field(default_factory=list)
    _order: list[int] = field(default_factory=list)  # of its items, as they began: _TEXT, or a call
    _calls: dict[int, ToolCall] = field(default_factory=dict)

    @property
    def headers(self) -> Headers:
        return grant_headers(self.grant)

    def first(self, counts: Counts | None) -> bytes:  # noqa: ARG002 -- it says that at the end
        begun = self._response("in_progress", [], None)
        events = self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )
        # With tools it is not known yet whether there is any text.
        return events if self.ask.rich else events + self._open()

    def _open(self) -> bytes:
        self._order.append(_TEXT)
        return self._event(
            "response.output_item.added",
            output_index=self._order.index(_TEXT),
            item=self._item("in_progress", []),
        ) + self._event("response.content_part.added", **self._place, part=_part(""))

    def text(self, text: str) -> bytes:
        self._said.append(text)
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def part(
        self,
        text: str,
        calls: Sequence[ToolDelta],
        logprobs: bytes | None,  # noqa: ARG002 -- refused by name in this dialect
        counts: Counts | None,  # noqa: ARG002 -- it says that at the end
    ) -> bytes:
        """Return events for text and for calls of tools, each of which is an item of its own."""
        events = b""
        if text:
            if _TEXT not in self._order:
                events += self._open()
            events += self.text(text)
        for delta in calls:
            new = delta.at not in self._calls
            call = gather(self._calls, delta)
            if new:
                self._order.append(delta.at)
            place: dict[str, object] = {
                "item_id": self._call_id(delta.at), "output_index": self._order.index(delta.at),
            }  # fmt: skip
            if new:
                item = self._call_item(delta.at, ToolCall(call.id, call.name), "in_progress")
                events += self._event(
                    "response.output_item.added", output_index=place["output_index"], item=item
                )
            if delta.arguments:
                events += self._event(
                    "response.function_call_arguments.delta", **place, delta=delta.arguments
                )
        return events

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        text = "".join(self._said)
        status, item = self._ended(text, finish_reason)
        whole = self._whole(text, finish_reason, counts, charge)
        events = []
        if _TEXT in self._order:
            events += [
                self._event("response.output_text.done", **self._place, text=text, logprobs=[]),
                self._event("response.content_part.done", **self._place, part=_part(text)),
                self._event(
                    "response.output_item.done", output_index=self._order.index(_TEXT), item=item
                ),
            ]
        for at, call in self._calls.items():
            index = self._order.index(at)
            events += [
                self._event(
                    "response.function_call_arguments.done",
                    item_id=self._call_id(at), output_index=index,
                    name=call.name, arguments=call.arguments,
                ),
                self._event(
                    "response.output_item.done", output_index=index,
                    item=self._call_item(at, call, status),
                ),
            ]  # fmt: skip
        return b"".join([*events, self._event(f"response.{status}", response=whole)])

    def _call_id(self, at: int) -> str:
        return f"fc_{self.id}{at:02d}"

    def _call_item(self, at: int, call: ToolCall, status: str) -> dict[str, object]:
        return {
            "id": self._call_id(at), "type": "function_call", "status": status,
            "call_id": call.id, "name": call.name, "arguments": call.arguments,
        }  # fmt: skip

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        return _encode(self._whole(text, finish_reason, counts, charge))

    def kept(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        """Return what is fetched later: the same, whether or not it was streamed."""
        return self.whole(text or "".join(self._said), finish_reason, counts, charge)

    def not_kept(self) -> None:
        """Say in what is still to be said that it could not be kept."""
        self.ask = replace(self.ask, echo={**self.ask.echo, "store": False})

    def said(self, text: str) -> dict[str, object]:
        """Return the answer as a turn, in the form that replicas read."""
        turn: dict[str, object] = {"role": "assistant", "content": text or "".join(self._said)}
        if self._calls:
            turn["content"] = turn["content"] or None
            turn["tool_calls"] = [
                {
                    "id": call.id, "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self._calls.values()
            ]  # fmt: skip
        return turn

    def begun(self, status: str) -> bytes:
        """Return it as it is before there is anything of it."""
        return _encode(self._response(status, [], None))

    @property
    def _place(self) -> dict[str, object]:
        index = self._order.index(_TEXT)
        return {"item_id": f"msg_{self.id}", "output_index": index, "content_index": 0}

    def _whole(
        self, text: str, finish_reason: str, counts: Counts, charge: Money
    ) -> dict[str, object]:
        status, item = self._ended(text, finish_reason)
        output = [
            item if at == _TEXT else self._call_item(at, self._calls[at], status)
            for at in self._order or [_TEXT]
        ]
        whole = self._response(status, output, _INCOMPLETE.get(finish_reason), ended=True)
        return whole | {"usage": _usage(counts), "sublet": grant_note(self.grant, charge)}

    def _ended(self, text: str, finish_reason: str) -> tuple[str, dict[str, object]]:
        status = "incomplete" if finish_reason in _INCOMPLETE else "completed"
        return status, self._item(status, [_part(text)])

    def _response(
        self, status: str, output: Sequence[object], reason: str | None, *, ended: bool = False
    ) -> dict[str, object]:
        elapsed = int(time.monotonic() - self._began)
        completed_at = self.created + elapsed if ended else None
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "completed_at": completed_at,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "model": self.ask.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "max_tool_calls": None,
            "top_logprobs": 0,
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

    def _event(self, event: str, **fields: object) -> bytes:
        data = _encode({"type": event, "sequence_number": self._events} | fields)
        self._events += 1
        return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


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


def check_query(query: bytes) -> None:
    """Raises Failure: it asks for what is not done with an answer of before."""
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if (name, value) not in _QUERIES:
            raise Failure(
                Kind.UNSUPPORTED, f"Unknown or unsupported parameter: {name[:100]!r}", param=name
            )


def _break_off(failure: Failure, request_id: str) -> bytes:  # noqa: ARG001
    error = {
        "type": "error", "sequence_number": _LAST, "code": failure.row.code,
        "message": failure.message, "param": failure.param,
    }  # fmt: skip
    return b"event: error\ndata: " + _encode(error) + b"\n\n"


def counted(input_tokens: int) -> bytes:
    """Return the answer of `input_tokens`."""
    return _encode({"object": "response.input_tokens", "input_tokens": input_tokens})


def deleted(name: str) -> bytes:
    """Return the answer of DELETE."""
    return _encode({"id": name, "object": "response", "deleted": True})


def input_items(items: Sequence[Mapping[str, object]]) -> bytes:
    """Return a page with all that was asked, the newest first, as theirs."""
    data = list(reversed(items))
    page = {"object": "list", "data": data, "has_more": False}
    return _encode(page | {"first_id": data[0]["id"], "last_id": data[-1]["id"]})


RESPONSES: Final = Dialect(
    parse=parse,
    reply=Reply,
    refuse=openai.CHAT.refuse,
    break_off=_break_off,
    limits=openai.CHAT.limits,
)

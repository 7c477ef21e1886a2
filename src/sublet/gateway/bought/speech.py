"""What a supplier's dialect is, and what all of them share.

A **speech** turns our one request (`Ask`, whose payload is in OpenAI's form) into a supplier's, and makes
a **reader** that turns its stream back into pieces. Answers are always asked for as streams: so the
first token is waited for no longer than agreed, and what came is known when it breaks.

Nothing is dropped in silence: what a dialect cannot say is a reason not to ask that supplier (`unable`).
Only `seed`, which nobody promises to honour, may be left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sublet.gateway.answers import Piece
from sublet.gateway.ask import Api, Ask
from sublet.suppliers.supplier import DEFAULT, Source
from sublet.suppliers.usage import Used  # noqa: TC001 -- annotations are looked at elsewhere

LONGEST_EVENT = 1 << 20


class Nonsense(Exception):
    """It answers in no way that its dialect knows."""


class Stopped(Exception):
    """It says inside its stream that it goes no further."""


class Request(NamedTuple):
    """What is sent: the path behind the supplier's address, and headers that carry the key."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Reader:
    """Reads one stream. What it says of itself is kept as it comes."""

    def __init__(self) -> None:
        self.used: Used | None = None  # what it said last of what it used
        self.final = False  # and that was its last word
        self.tier: str | None = None  # as which it was served, in our words
        self.request: str | None = None  # the supplier's name for it
        self.done = False
        self.answer_bytes = 0  # of text, and of calls of tools
        self.thought_bytes = 0  # of reasoning that it showed

    def feed(self, data: bytes) -> list[Piece]:
        """Return what these bytes brought.

        Raises:
            Nonsense: they are no such stream.
            Stopped: the supplier ends it with an error.
        """
        raise NotImplementedError

    def said(self, piece: Piece) -> Piece:
        """Count what a piece shows."""
        self.answer_bytes += len(piece.text.encode())
        for call in piece.calls:
            self.answer_bytes += len(call.arguments.encode()) + len((call.name or "").encode())
        return piece


class Speech(Protocol):
    def unable(self, ask: Ask) -> str | None:
        """Return what of it this dialect cannot say; None: it can say all of it."""

    def request(
        self, ask: Ask, source: Source, *, key: str, tier: str, most_output: int
    ) -> Request: ...

    def reader(self) -> Reader: ...


class Events:
    """The data of server-sent events, from bytes as they come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises Nonsense: an event does not end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_EVENT:
            raise Nonsense("an event without an end")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


# ── a conversation, taken apart ──────────────────────────────────────────────────────────


class Text(NamedTuple):
    text: str


class Picture(NamedTuple):
    media: str  # 'image/png', …
    data: str  # base64


class Called(NamedTuple):
    id: str
    name: str
    arguments: dict[str, Any]


class Result(NamedTuple):
    id: str
    name: str  # of the function that was called
    text: str


Part = Text | Picture | Called | Result


@dataclass(slots=True)
class Turn:
    role: str  # 'user' or 'assistant'
    parts: list[Part] = field(default_factory=list)


def turns_of(ask: Ask) -> tuple[str, list[Turn]]:
    """Return what the system says, and the turns: users' and assistant's by turns.

    Raises:
        Nonsense: a call's arguments are no JSON object, so they cannot be said elsewhere.
    """
    system, turns = list[str](), list[Turn]()
    names = dict[str, str]()
    messages = ask.payload["messages"]
    assert isinstance(messages, Sequence)
    for message in messages:
        role = message["role"]
        if role == "system":
            system += [part.text for part in _content(message) if isinstance(part, Text)]
            continue
        parts: list[Part] = []
        if role == "tool":
            id_ = message["tool_call_id"]
            text = "\n".join(part.text for part in _content(message) if isinstance(part, Text))
            parts.append(Result(id_, names.get(id_, id_), text))
        else:
            parts += _content(message)
            for call in message.get("tool_calls") or ():
                name = call["function"]["name"]
                names[call["id"]] = name
                parts.append(Called(call["id"], name, _object(call["function"]["arguments"])))
        speaker = "assistant" if role == "assistant" else "user"
        if not turns or turns[-1].role != speaker:
            turns.append(Turn(speaker))
        turns[-1].parts += parts
    return "\n\n".join(system), [turn for turn in turns if turn.parts]


def _content(message: Mapping[str, Any]) -> list[Part]:
    content = message.get("content")
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [Text(content)]
    parts: list[Part] = []
    for part in content:
        if part["type"] == "text":
            if part["text"]:
                parts.append(Text(part["text"]))
        else:
            head, _, data = part["image_url"]["url"].partition(";base64,")
            parts.append(Picture(head.removeprefix("data:"), data))
    return parts


def _object(arguments: str) -> dict[str, Any]:
    try:
        read = json.loads(arguments or "{}")
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise Nonsense("a call's arguments are no JSON object")
    return read


# ── what a dialect can say ───────────────────────────────────────────────────────────────


def unable_to_say(ask: Ask, can: frozenset[str]) -> str | None:
    """Return a parameter that a dialect has no word for."""
    if ask.api is not Api.CHAT:
        return ask.api.value
    for name in ask.payload:
        # Ids of tokens mean something else to another model's tokenizer.
        if name == "logit_bias" or (name not in can and name not in ("messages", "seed")):
            return name
    try:
        turns_of(ask)
    except Nonsense:
        return "tool_calls"
    return None


def stops_of(ask: Ask) -> list[str]:
    stop = ask.payload.get("stop")
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else list(stop)  # type: ignore[call-overload]


def tools_of(ask: Ask) -> list[dict[str, Any]]:
    """Return the functions that may be called: name, description, parameters."""
    tools = ask.payload.get("tools") or ()
    return [tool["function"] for tool in tools]  # type: ignore[attr-defined]


_OURS = {
    "default": DEFAULT, "standard": DEFAULT, "auto": DEFAULT, "on_demand": DEFAULT,
    "priority": "priority", "fast": "priority", "flex": "flex", "batch": "batch",
}  # fmt: skip


def our_tier(theirs: str | None) -> str | None:
    """Return a tier in our words; None where it says nothing that we know."""
    return None if theirs is None else _OURS.get(theirs.lower())

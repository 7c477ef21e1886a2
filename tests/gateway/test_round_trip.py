"""What is said in any dialect is one and the same thing, there and back.

A conversation is said in the words of each dialect; what a replica is asked must be that
conversation, whosever words it came in. An answer of text and calls of tools, cut anywhere, is
written in the words of each; who reads the parts of the stream, or the whole, must find that answer.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.test_messages import GRANT

from sublet.core.money import Money
from sublet.gateway import anthropic, converse, invoke, openai, request, responses, responses_body
from sublet.gateway.ask import Api, Ask, ToolDelta
from sublet.gateway.dialect import RichReply
from sublet.gateway.tariff import Counts

WORDS: Final = st.text(max_size=12).map(lambda text: text.replace("\0", "") or "a")
NAMES: Final = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
INPUTS: Final = st.dictionaries(
    NAMES, st.none() | st.booleans() | st.integers(-(2**31), 2**31) | WORDS, max_size=3
)
SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "string"}}}


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    name: str
    input: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said. A user's has results of the calls before, or text; not both."""

    role: str
    text: str | None
    calls: tuple[Call, ...] = ()
    results: tuple[tuple[str, str], ...] = ()  # (a call's id, what came of it)


@dataclass(frozen=True, slots=True)
class Talk:
    system: str | None
    turns: tuple[Turn, ...]
    tools: tuple[str, ...]  # their names
    choice: str | None  # a tool's name: it must be called; "any": one of them
    sampling: Mapping[str, float]  # temperature, top_p
    stops: tuple[str, ...]
    most: int


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    tools = draw(st.lists(NAMES, max_size=3, unique=True))
    turns: list[Turn] = []
    for at in range(draw(st.integers(0, 3))):
        turns.append(Turn("user", draw(WORDS)))
        named = draw(st.lists(st.sampled_from(tools), max_size=2)) if tools else []
        calls = tuple(Call(f"call_{at}_{n}", name, draw(INPUTS)) for n, name in enumerate(named))
        turns.append(Turn("assistant", draw(st.none() | WORDS) if calls else draw(WORDS), calls))
        if calls:
            turns.append(Turn("user", None, results=tuple((c.id, draw(WORDS)) for c in calls)))
            turns.append(Turn("assistant", draw(WORDS)))
    turns.append(Turn("user", draw(WORDS)))
    return Talk(
        system=draw(st.none() | WORDS),
        turns=tuple(turns),
        tools=tuple(tools),
        choice=draw(st.none() | st.sampled_from([*tools, "any"])) if tools else None,
        sampling=draw(
            st.fixed_dictionaries(
                {}, optional={"temperature": st.floats(0, 1), "top_p": st.floats(0, 1)}
            )
        ),
        stops=tuple(draw(st.lists(st.sampled_from(["a", "END"]), max_size=4))),
        most=draw(st.integers(1, 1000)),
    )


# ── what is asked, in everybody's words ──────────────────────────────────────────────────


def in_chat(talk: Talk) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if talk.system is not None:
        messages.append({"role": "developer", "content": talk.system})
    for turn in talk.turns:
        for id_, came in turn.results:
            messages.append({"role": "tool", "tool_call_id": id_, "content": came})
        if turn.text is None and not turn.calls:
            continue
        said: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if turn.calls:
            said["tool_calls"] = [
                {
                    "id": call.id, "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.input)},
                }
                for call in turn.calls
            ]  # fmt: skip
        messages.append(said)
    body = {"model": "m", "messages": messages, "max_completion_tokens": talk.most} | talk.sampling
    if talk.stops:
        body["stop"] = list(talk.stops)
    if talk.tools:
        functions = [{"name": name, "parameters": SCHEMA} for name in talk.tools]
        body["tools"] = [{"type": "function", "function": each} for each in functions]
    if talk.choice == "any":
        body["tool_choice"] = "required"
    elif talk.choice is not None:
        body["tool_choice"] = {"type": "function", "function": {"name": talk.choice}}
    return body


def in_responses(talk: Talk) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for turn in talk.turns:
        for id_, came in turn.results:
            items.append({"type": "function_call_output", "call_id": id_, "output": came})
        if turn.text is not None:
            kind = "output_text" if turn.role == "assistant" else "input_text"
            content = [{"type": kind, "text": turn.text}]
            items.append({"type": "message", "role": turn.role, "content": content})
        for call in turn.calls:
            arguments = json.dumps(call.input)
            items.append(
                {"type": "function_call", "call_id": call.id, "name": call.name}
                | {"arguments": arguments}
            )
    body = {"model": "m", "input": items, "max_output_tokens": talk.most} | talk.sampling
    if talk.system is not None:
        body["instructions"] = talk.system
    if talk.tools:
        body["tools"] = [
            {"type": "function", "name": name, "parameters": SCHEMA} for name in talk.tools
        ]
    if talk.choice == "any":
        body["tool_choice"] = "required"
    elif talk.choice is not None:
        body["tool_choice"] = {"type": "function", "name": talk.choice}
    return body


def in_messages(talk: Talk) -> dict[str, Any]:
    messages = []
    for turn in talk.turns:
        blocks: list[dict[str, Any]] = [
            {"type": "tool_result", "tool_use_id": id_, "content": [{"type": "text", "text": came}]}
            for id_, came in turn.results
        ]
        if turn.text is not None:
            blocks.append({"type": "text", "text": turn.text})
        blocks += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}
            for call in turn.calls
        ]
        messages.append({"role": turn.role, "content": blocks})
    body = {"model": "m", "messages": messages, "max_tokens": talk.most} | talk.sampling
    if talk.system is not None:
        body["system"] = [{"type": "text", "text": talk.system}]
    if talk.stops:
        body["stop_sequences"] = list(talk.stops)
    if talk.tools:
        body["tools"] = [{"name": name, "input_schema": SCHEMA} for name in talk.tools]
    if talk.choice == "any":
        body["tool_choice"] = {"type": "any"}
    elif talk.choice is not None:
        body["tool_choice"] = {"type": "tool", "name": talk.choice}
    return body


def in_converse(talk: Talk) -> dict[str, Any]:
    messages = []
    for turn in talk.turns:
        blocks: list[dict[str, Any]] = [
            {"toolResult": {"toolUseId": id_, "content": [{"text": came}]}}
            for id_, came in turn.results
        ]
        if turn.text is not None:
            blocks.append({"text": turn.text})
        blocks += [
            {"toolUse": {"toolUseId": call.id, "name": call.name, "input": call.input}}
            for call in turn.calls
        ]
        messages.append({"role": turn.role, "content": blocks})
    names = {"temperature": "temperature", "top_p": "topP"}
    config: dict[str, Any] = {names[name]: value for name, value in talk.sampling.items()}
    config["maxTokens"] = talk.most
    if talk.stops:
        config["stopSequences"] = list(talk.stops)
    body: dict[str, Any] = {"messages": messages, "inferenceConfig": config}
    if talk.system is not None:
        body["system"] = [{"text": talk.system}]
    if talk.tools:
        tools = [
            {"toolSpec": {"name": name, "inputSchema": {"json": SCHEMA}}} for name in talk.tools
        ]
        body["toolConfig"] = {"tools": tools}
    if talk.choice == "any":
        body["toolConfig"]["toolChoice"] = {"any": {}}
    elif talk.choice is not None:
        body["toolConfig"]["toolChoice"] = {"tool": {"name": talk.choice}}
    return body


def in_messages_on_bedrock(talk: Talk) -> dict[str, Any]:
    body = in_messages(talk) | {"anthropic_version": "bedrock-2023-05-31"}
    del body["model"]
    return body


Parse = Callable[[bytes], Ask]
ASKED: Final[dict[str, tuple[Callable[[Talk], dict[str, Any]], Parse]]] = {
    "chat": (in_chat, lambda body: request.parse(Api.CHAT, body)),
    "responses": (in_responses, responses_body.parse),
    "messages": (in_messages, anthropic.parse),
    "converse": (in_converse, lambda body: converse.parse(body, model="m", stream=False)),
    "invoke chat": (in_chat, invoke.dialect("m", stream=False).parse),
    "invoke messages": (in_messages_on_bedrock, invoke.dialect("m", stream=False).parse),
}


def heard(ask: Ask) -> Talk:
    """Read what a replica is asked."""
    payload: dict[str, Any] = dict(ask.payload)
    messages = list(payload["messages"])
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
    turns: list[Turn] = []
    for message in messages:
        if message["role"] == "tool":
            result = (message["tool_call_id"], message["content"])
            if turns[-1].results:
                turns[-1] = Turn("user", None, results=(*turns[-1].results, result))
            else:
                turns.append(Turn("user", None, results=(result,)))
            continue
        calls = tuple(
            Call(each["id"], each["function"]["name"], json.loads(each["function"]["arguments"]))
            for each in message.get("tool_calls", ())
        )
        turns.append(Turn(message["role"], message["content"], calls))
    tools = []
    for tool in payload.get("tools", ()):
        assert tool["function"]["parameters"] == SCHEMA
        tools.append(tool["function"]["name"])
    choice = payload.get("tool_choice")
    if choice is not None:
        choice = "any" if choice == "required" else choice["function"]["name"]
    assert ask.max_tokens is not None
    return Talk(
        system=system,
        turns=tuple(turns),
        tools=tuple(tools),
        choice=choice,
        sampling={name: payload[name] for name in ("temperature", "top_p") if name in payload},
        stops=tuple(payload.get("stop", ())),
        most=ask.max_tokens,
    )


@given(talk=talks())
def test_a_conversation_is_the_same_whosever_words_it_comes_in(talk: Talk) -> None:
    for dialect, (say, parse) in ASKED.items():
        # Responses have no such parameter.
        meant = replace(talk, stops=()) if dialect == "responses" else talk
        assert heard(parse(json.dumps(say(meant)).encode())) == meant, dialect


# ── what is answered ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    calls: tuple[Call, ...]
    finish: str
    prompt_tokens: int  # all of them, also those that were read from the cache
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and the pieces in which a replica said it."""

    answer: Answer
    counts: Counts
    pieces: tuple[str | ToolDelta, ...]


def cut(text: str, places: Sequence[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(ends)]


@st.composite
def answers(draw: st.DrawFn) -> Said:
    text = draw(st.text(max_size=30))
    inputs = draw(st.lists(INPUTS, max_size=3))
    calls = [Call(f"call_{at}", draw(NAMES), given_) for at, given_ in enumerate(inputs)]
    if not calls and not text:
        text = "a"
    places = st.lists(st.integers(0, 100), max_size=4)
    pieces: list[str | ToolDelta] = list(cut(text, draw(places)))
    for at, call in enumerate(calls):
        pieces.append(ToolDelta(at, call.id, call.name, ""))
        arguments = json.dumps(call.input)
        pieces += [ToolDelta(at, None, None, part) for part in cut(arguments, draw(places))]
    numbers = st.integers(0, 10**6)
    counts = Counts(
        input_tokens=draw(numbers), cache_read_tokens=draw(numbers), output_tokens=draw(numbers)
    )
    finish = "tool_calls" if calls else draw(st.sampled_from(["stop", "length", "content_filter"]))
    answer = Answer(text, tuple(calls), finish, counts.prompt_tokens, counts.completion_tokens)
    return Said(answer, counts, tuple(pieces))


def events(stream: bytes) -> list[dict[str, Any]]:
    """Read server-sent events as a program that knows nothing of us would."""
    found = []
    for block in stream.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line.startswith("data: ")]
        found += [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
    return found


def frames(stream: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    buffer = EventStreamBuffer()
    buffer.add_data(stream)
    for frame in buffer:
        message = frame.to_response_dict()
        yield message["headers"][":event-type"], json.loads(message["body"])


CHAT_ENDS: Final = {"stop", "length", "content_filter", "tool_calls"}
OTHER_ENDS: Final = {
    "end_turn": "stop", "max_tokens": "length", "refusal": "content_filter",
    "content_filtered": "content_filter", "tool_use": "tool_calls",
}  # fmt: skip
Pieces = dict[int, dict[str, str]]


def _calls(found: Pieces) -> tuple[Call, ...]:
    ordered = [found[at] for at in sorted(found)]
    return tuple(Call(c["id"], c["name"], json.loads(c["input"] or "{}")) for c in ordered)


def streamed_chat(stream: bytes) -> Answer:
    text, found, finish, usage = "", Pieces(), "", {}
    for event in events(stream):
        if event["usage"]:
            usage = event["usage"]
            continue
        (choice,) = event["choices"]
        text += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls", ()):
            begun = found.setdefault(call["index"], {"input": ""})
            if "id" in call:
                begun |= {"id": call["id"], "name": call["function"]["name"]}
            begun["input"] += call["function"]["arguments"]
        finish = choice["finish_reason"] or finish
    assert finish in CHAT_ENDS
    return Answer(text, _calls(found), finish, usage["prompt_tokens"], usage["completion_tokens"])


def whole_chat(body: bytes) -> Answer:
    value = json.loads(body)
    (choice,) = value["choices"]
    calls = tuple(
        Call(each["id"], each["function"]["name"], json.loads(each["function"]["arguments"]))
        for each in choice["message"].get("tool_calls", ())
    )
    return Answer(
        choice["message"]["content"] or "", calls, choice["finish_reason"],
        value["usage"]["prompt_tokens"], value["usage"]["completion_tokens"],
    )  # fmt: skip


def _responded(value: Mapping[str, Any]) -> Answer:
    text, calls = "", []
    for item in value["output"]:
        if item["type"] == "message":
            text += "".join(part["text"] for part in item["content"])
        else:
            calls.append(Call(item["call_id"], item["name"], json.loads(item["arguments"])))
    reasons = {None: "stop", "max_output_tokens": "length", "content_filter": "content_filter"}
    finish = reasons[(value["incomplete_details"] or {}).get("reason")]
    used = value["usage"]
    return Answer(
        text, tuple(calls), "tool_calls" if calls else finish,
        used["input_tokens"], used["output_tokens"],
    )  # fmt: skip


def streamed_responses(stream: bytes) -> Answer:
    text, arguments, last = "", dict[str, str](), dict[str, Any]()
    numbers = []
    for event in events(stream):
        numbers.append(event["sequence_number"])
        if event["type"] == "response.output_text.delta":
            text += event["delta"]
        elif event["type"] == "response.function_call_arguments.delta":
            arguments[event["item_id"]] = arguments.get(event["item_id"], "") + event["delta"]
        last = event
    assert numbers == list(range(len(numbers)))
    assert last["type"] in {"response.completed", "response.incomplete"}
    answer = _responded(last["response"])
    # What came in parts is what the end says.
    assert text == answer.text
    assert [json.loads(each) for each in arguments.values()] == [c.input for c in answer.calls]
    return answer


def whole_responses(body: bytes) -> Answer:
    return _responded(json.loads(body))


def streamed_messages(stream: bytes) -> Answer:
    text, found, finish, usage = "", Pieces(), "", {}
    opened = set()
    for event in events(stream):
        match event["type"]:
            case "content_block_start":
                opened.add(event["index"])
                block = event["content_block"]
                if block["type"] == "tool_use":
                    found[event["index"]] = {"id": block["id"], "name": block["name"], "input": ""}
            case "content_block_delta" if event["delta"]["type"] == "text_delta":
                assert event["index"] in opened
                text += event["delta"]["text"]
            case "content_block_delta":
                assert event["index"] in opened
                found[event["index"]]["input"] += event["delta"]["partial_json"]
            case "content_block_stop":
                opened.remove(event["index"])
            case "message_delta":
                finish, usage = event["delta"]["stop_reason"], event["usage"]
            case _:
                pass
    assert not opened
    return Answer(
        text, _calls(found), OTHER_ENDS[finish], _all_input(usage), usage["output_tokens"]
    )


def _all_input(usage: Mapping[str, int]) -> int:
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return sum(usage[name] for name in names)


def whole_messages(body: bytes) -> Answer:
    value = json.loads(body)
    text = "".join(block["text"] for block in value["content"] if block["type"] == "text")
    calls = tuple(
        Call(block["id"], block["name"], block["input"])
        for block in value["content"]
        if block["type"] == "tool_use"
    )
    used = value["usage"]
    return Answer(
        text, calls, OTHER_ENDS[value["stop_reason"]], _all_input(used), used["output_tokens"]
    )


def streamed_converse(stream: bytes) -> Answer:
    text, found, finish, usage = "", Pieces(), "", {}
    for name, event in frames(stream):
        match name:
            case "contentBlockStart":
                use = event["start"]["toolUse"]
                begun = {"id": use["toolUseId"], "name": use["name"], "input": ""}
                found[event["contentBlockIndex"]] = begun
            case "contentBlockDelta" if "text" in event["delta"]:
                text += event["delta"]["text"]
            case "contentBlockDelta":
                found[event["contentBlockIndex"]]["input"] += event["delta"]["toolUse"]["input"]
            case "messageStop":
                finish = event["stopReason"]
            case "metadata":
                usage = event["usage"]
            case _:
                pass
    return Answer(
        text, _calls(found), OTHER_ENDS[finish], _converse_input(usage), usage["outputTokens"]
    )


def _converse_input(usage: Mapping[str, int]) -> int:
    return usage["totalTokens"] - usage["outputTokens"]


def whole_converse(body: bytes) -> Answer:
    value = json.loads(body)
    text, calls = "", []
    for block in value["output"]["message"]["content"]:
        text += block.get("text", "")
        if "toolUse" in block:
            use = block["toolUse"]
            calls.append(Call(use["toolUseId"], use["name"], use["input"]))
    usage = value["usage"]
    return Answer(
        text, tuple(calls), OTHER_ENDS[value["stopReason"]], _converse_input(usage),
        usage["outputTokens"],
    )  # fmt: skip


Read = Callable[[bytes], Answer]
ANSWERED: Final[dict[str, tuple[Callable[..., RichReply], Read, Read]]] = {
    "chat": (openai.Reply, streamed_chat, whole_chat),
    "responses": (responses.Reply, streamed_responses, whole_responses),
    "messages": (anthropic.Reply, streamed_messages, whole_messages),
    "converse": (converse.Reply, streamed_converse, whole_converse),
}


@given(said=answers(), plain=st.booleans())
def test_an_answer_is_the_same_whosever_words_it_goes_out_in(said: Said, plain: bool) -> None:
    """Text alone goes the short way where nobody asked for more."""
    plain = plain and not said.answer.calls
    tools = () if plain else tuple(call.name for call in said.answer.calls) or ("t",)
    talk = Talk(None, (Turn("user", "a"),), tools, None, {}, (), 5)
    for dialect, (make, read_stream, read_whole) in ANSWERED.items():
        say, parse = ASKED[dialect]
        body = say(talk)
        if dialect == "chat":
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        ask = parse(json.dumps(body).encode())
        assert ask.rich is not plain
        end = (said.answer.finish, said.counts, Money(3))

        reply = make(ask, GRANT, "0" * 32, 7)
        parts = [reply.first(None), *written(reply, said, plain=plain), reply.last(*end)]
        assert read_stream(b"".join(parts)) == said.answer, dialect

        # Who asked for it whole: the same pieces are noted, and nothing of them is sent.
        reply = make(ask, GRANT, "0" * 32, 7)
        if not plain:
            list(written(reply, said, plain=False))
        assert read_whole(reply.whole(said.answer.text, *end)) == said.answer, dialect


def written(reply: RichReply, said: Said, *, plain: bool) -> Iterator[bytes]:
    for piece in said.pieces:
        if isinstance(piece, ToolDelta):
            yield reply.part("", [piece], None, None)
        else:
            yield reply.text(piece) if plain else reply.part(piece, [], None, None)

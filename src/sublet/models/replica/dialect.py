"""OpenAI's dialect, at this edge: from a caller's body to the engine's, and back."""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from sublet.core.errors import Invalid
from sublet.models.replica.llama import Choice, Chunk
from sublet.models.replica.recipe import Recipe
from sublet.models.replica.usage import Usage

MAX_STOPS: Final = 16

# What a caller may say to the engine. Anything else is dropped: llama.cpp has switches, such
# as the slot to use, with which one tenant could reach another's.
PASSED_ON: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "response_format",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A caller's request in the engine's words."""

    chat: bool
    stream: bool
    path: str  # of the engine
    body: dict[str, Any]
    prompt: str  # for likeness with other prompts only


def translate(raw: bytes, recipe: Recipe, *, chat: bool) -> Job:
    """Read a body of /v1/chat/completions (`chat`) or /v1/completions.

    Raises:
        Invalid: this replica cannot do what it asks for.
    """
    body = read_object(raw)
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise Invalid(f"only {name} = 1 is served")
    for name in ("tools", "functions", "echo", "suffix"):
        if body.get(name):
            raise Invalid(f"{name} is not served by {recipe.name}")
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise Invalid("stream must be true or false")

    prompt = read_prompt(body, chat=chat)
    engine = {name: body[name] for name in PASSED_ON if body.get(name) is not None}
    engine.setdefault("temperature", recipe.sampling.temperature)
    engine.setdefault("top_p", recipe.sampling.top_p)
    if chat and engine.get("logprobs"):
        engine.setdefault("top_logprobs", 1)  # the engine's own default is twenty a token
    engine |= prompt
    engine["max_tokens"] = _limit(body, recipe)
    engine["stop"] = _stops(body, recipe, chat=chat)
    return Job(
        chat=chat,
        stream=stream,
        path="/v1/chat/completions" if chat else "/v1/completions",
        body=engine,
        prompt=msgspec.json.encode(prompt).decode(),
    )


def read_object(raw: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Invalid(f"the body is not a JSON object: {error}") from error


def read_prompt(body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """Return the part of a body that the engine will count as input.

    Raises:
        Invalid: it is missing, or of a shape that is not served.
    """
    if chat:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Invalid("messages must be a list of at least one message")
        return {"messages": [_message(message) for message in messages]}
    match body.get("prompt"):
        case str(prompt) | [str(prompt)]:
            return {"prompt": prompt}
        case [*tokens] if tokens and all(type(token) is int for token in tokens):
            return {"prompt": tokens}
        case _:
            raise Invalid("prompt must be one string, or one list of token ids")


def _message(message: object) -> dict[str, Any]:
    match message:
        case {"role": "system" | "developer" | "user" | "assistant" as role, "content": content}:
            pass
        case {"role": str(role)} if role in {"system", "developer", "user", "assistant"}:
            raise Invalid(f"a message of role {role} has no content")
        case _:
            raise Invalid("each message needs a role (system, user, assistant) and a content")
    match content:
        case str():
            return {"role": role, "content": content}
        case list():
            texts = [_text(part) for part in content]
            return {"role": role, "content": " ".join(texts)}
        case _:
            raise Invalid("a message's content must be text, or a list of text parts")


def _text(part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise Invalid("only text parts are served")


def _limit(body: dict[str, Any], recipe: Recipe) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        limit = body.get(name)
        if limit is None:
            continue
        if type(limit) is not int or limit < 1:
            raise Invalid(f"{name} must be a whole number of at least 1")
        return limit
    return recipe.sampling.max_tokens


def _stops(body: dict[str, Any], recipe: Recipe, *, chat: bool) -> list[str]:
    match body.get("stop"):
        case None:
            own: list[str] = []
        case str(stop):
            own = [stop]
        case [*stops] if all(isinstance(stop, str) for stop in stops) and len(stops) <= MAX_STOPS:
            own = stops
        case _:
            raise Invalid(f"stop must be a string, or a list of at most {MAX_STOPS} strings")
    # A plain completion has no turns to keep apart, so only the caller knows where it ends.
    merged = [*own, *recipe.stop] if chat else own
    return [stop for stop in dict.fromkeys(merged) if stop]


@dataclass(slots=True, kw_only=True)
class Reply:
    """Turns the engine's chunks into OpenAI's, or gathers them into one answer."""

    id: str
    job: Job
    model: str
    created: int  # seconds since 1970
    trim: bool
    text: str = ""
    finish_reason: str | None = None
    began: bool = False
    logprobs: list[Any] = field(default_factory=list)

    def choice(self, chunk: Chunk) -> dict[str, Any] | None:
        """Return what `chunk` adds to the answer, as a streamed choice; None if nothing."""
        if not chunk.choices or chunk.prompt_progress is not None:
            return None
        choice = chunk.choices[0]
        text = self._trimmed(_content(choice))
        self.finish_reason = choice.finish_reason or self.finish_reason
        if not text and choice.finish_reason is None and choice.logprobs is None:
            return None
        self.text += text
        shaped: dict[str, Any] = {"index": 0, "finish_reason": choice.finish_reason}
        if self.job.chat:
            shaped["delta"] = {"content": text} if text or not self.began else {}
            if not self.began:
                shaped["delta"] = {"role": "assistant"} | shaped["delta"]
        else:
            shaped["text"] = text
        shaped["logprobs"] = choice.logprobs
        if choice.logprobs is not None and not self.job.stream:
            self.logprobs += choice.logprobs.get("content") or []
        self.began = True
        return shaped

    def event(self, choice: dict[str, Any], usage: Usage) -> bytes:
        return _event(self._head() | {"choices": [choice], "sublet": usage.as_dict()})

    def last_events(self, usage: Usage) -> bytes:
        head = self._head()
        last = {"choices": [], "usage": usage.as_openai(), "sublet": usage.as_dict()}
        return _event(head | last) + b"data: [DONE]\n\n"

    def whole(self, usage: Usage) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": self.finish_reason,
            "logprobs": {"content": self.logprobs} if self.logprobs else None,
        }
        if self.job.chat:
            choice["message"] = {"role": "assistant", "content": self.text}
        else:
            choice["text"] = self.text
        return {
            **self._head(whole=True),
            "choices": [choice],
            "usage": usage.as_openai(),
            "sublet": usage.as_dict(),
        }

    def _head(self, *, whole: bool = False) -> dict[str, Any]:
        if self.job.chat:
            kind = "chat.completion" if whole else "chat.completion.chunk"
        else:
            kind = "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _trimmed(self, text: str) -> str:
        """Drop white space before the first word. It was generated, so it stays counted."""
        if self.trim and self.job.chat and not self.text:
            return text.lstrip()
        return text


def _content(choice: Choice) -> str:
    return choice.delta.get("content") or choice.text


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def error_body(
    message: str, *, kind: str, code: str | None = None, usage: Usage | None = None
) -> dict[str, Any]:
    """Return OpenAI's error object, with the exact counts where there are some."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return {"error": error} | ({} if usage is None else {"sublet": usage.as_dict()})


def error_event(message: str, *, kind: str, usage: Usage) -> bytes:
    """Return an error told inside a stream that already began."""
    return _event(error_body(message, kind=kind, code=kind, usage=usage))

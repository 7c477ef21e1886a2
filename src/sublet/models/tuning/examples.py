"""Examples to learn from: a conversation a line, in OpenAI's words. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from sublet.models.tuning.job import Trouble

MOST: Final = 100_000  # of one file
LONGEST: Final = 1 << 20  # bytes of one
_FEWEST: Final = 2


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Meta(min_length=1)]
    name: str | None = None
    weight: Literal[0, 1] | None = None  # 0: it is not learnt


class Example(Struct, forbid_unknown_fields=True):
    messages: Annotated[list[Message], Meta(min_length=2, max_length=1000)]

    def learnt(self) -> list[int]:
        """Return which of its messages are learnt: what the assistant says, if nothing forbids."""
        return [
            number
            for number, message in enumerate(self.messages)
            if message.role == "assistant" and message.weight != 0
        ]


_EXAMPLE: Final = msgspec.json.Decoder(Example)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    examples: int
    bytes: int  # of what is said in them


def read(text: bytes) -> Example:
    """Return an example that `check` found right."""
    return _EXAMPLE.decode(text)


def check(lines: Iterable[tuple[int, bytes]], *, param: str) -> Read | Trouble:
    """Look through a file; `param` names it. The first thing that is wrong is told."""
    examples = said = 0

    def wrong(number: int, why: str) -> Trouble:
        return Trouble(code="invalid_file", message=f"Line {number}: {why}", param=param)

    for number, (_, text) in enumerate(lines, start=1):
        if len(text) > LONGEST:
            return wrong(number, f"it is longer than {LONGEST} bytes")
        if not text.strip():
            continue
        try:
            example = _EXAMPLE.decode(text)
        except msgspec.ValidationError as error:
            return wrong(number, str(error)[:300])
        except (ValueError, RecursionError):
            return wrong(number, "it is not parseable as JSON")
        if not example.learnt():
            return wrong(number, "no message of the assistant is to be learnt from")
        examples += 1
        said += sum(len(message.content.encode()) for message in example.messages)
        if examples > MOST:
            return wrong(number, f"a file may have {MOST} examples")
    fewest = _FEWEST if param == "training_file" else 1
    if examples < fewest:
        return Trouble(
            code="invalid_n_examples",
            message=f"The file has {examples} examples; it must have at least {fewest}.",
            param=param,
        )
    return Read(examples=examples, bytes=said)

"""Examples as tokens: which of them are learnt, and in which order they are looked at."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sublet.models.tuning import examples

IGNORED: Final = -100  # of a label: this token is read, not learnt

# (messages, is the assistant to go on?) → the text that the model reads
Render = Callable[[Sequence[dict[str, str]], bool], str]
# text → (its tokens, where each begins and ends in it)
Tokenise = Callable[[str], tuple[list[int], list[tuple[int, int]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    ids: list[int]
    labels: list[int]  # as long: the same, or IGNORED


def read(
    lines: Iterable[bytes], *, render: Render, tokenise: Tokenise, context_tokens: int
) -> list[Tokens]:
    """Return each example as the model reads it, cut to its context.

    Raises:
        ValueError: nothing of an example is left to be learnt; says of which.
    """
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        example = examples.read(line)
        messages = [{"role": one.role, "content": one.content} for one in example.messages]
        text = render(messages, False)
        spans = [_span(messages, place, text, render) for place in example.learnt()]
        ids, places = tokenise(text)
        labels = [
            id_ if any(begin < end and first <= begin < last for first, last in spans) else IGNORED
            for id_, (begin, end) in zip(ids, places, strict=True)
        ]
        ids, labels = ids[:context_tokens], labels[:context_tokens]
        if all(label == IGNORED for label in labels[1:]):  # the first one follows nothing
            raise ValueError(
                f"Line {number}: what is to be learnt lies beyond the {context_tokens} tokens that"
                " the model reads"
            )
        found.append(Tokens(ids=ids, labels=labels))
    return found


def _span(
    messages: Sequence[dict[str, str]], place: int, text: str, render: Render
) -> tuple[int, int]:
    """Return where in `text` an answer of the assistant begins and ends, its end mark included."""
    before = render(messages[:place], True) if place else ""
    until = render(messages[: place + 1], False)
    if not (text.startswith(before) and text.startswith(until)):
        # A template that says something else of what is not the end: look for the words.
        begin = text.find(messages[place]["content"], len(_shared(before, text)))
        return (begin, begin + len(messages[place]["content"])) if begin >= 0 else (0, 0)
    return len(before), len(until)


def _shared(one: str, other: str) -> str:
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return one[:place]
    return min(one, other, key=len)


def batches(count: int, *, size: int, epoch: int, seed: int) -> list[list[int]]:
    """Return which examples each step of an epoch looks at: always the same for the same seed."""
    import random  # noqa: PLC0415 - said here, beside what it may be used for

    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - an order, no secret
    return [order[start : start + size] for start in range(0, count, size)]


def padded(rows: Sequence[Tokens]) -> dict[str, Any]:
    """Return rows of one length, as lists: ids, labels, and which are there at all."""
    longest = max(len(row.ids) for row in rows)
    return {
        "input_ids": [row.ids + [0] * (longest - len(row.ids)) for row in rows],
        "labels": [row.labels + [IGNORED] * (longest - len(row.labels)) for row in rows],
        "attention_mask": [[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows],
    }

"""Reading a replica's events, however the network cuts them up."""

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.gateway.answers import Broken, Gone, Piece, read_events, refused
from sublet.gateway.ask import Api, Ask
from sublet.gateway.failures import Kind
from sublet.gateway.tariff import Counts

ASK = Ask(
    api=Api.CHAT,
    model="m",
    payload={},
    max_tokens=None,
    stream=True,
    include_usage=False,
    service_tier=None,
    prompt_bytes=0,
    messages=1,
)
COUNT = b'"sublet":{"input_tokens":1,"cache_read_tokens":2,"output_tokens":3}'
TWO = (
    b': reading the prompt\n\ndata: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9"}}],'
    + COUNT
    + b'}\r\n\r\ndata:{"choices":[{"index":0,"delta":{},"finish_reason":"strange"}]}\n\n'
)
DONE = b"data: [DONE]\n\n"


def read(parts: list[bytes]) -> list[Piece]:
    left = [part for part in parts if part]
    found: list[Piece] = []

    async def come() -> bytes:
        return left.pop(0) if left else b""

    async def take(pieces: list[Piece]) -> None:
        found.extend(pieces)

    answer: Any = SimpleNamespace(read=come)
    asyncio.run(read_events(answer, ASK, take))
    return found


@given(st.lists(st.integers(0, len(TWO + DONE)), max_size=8))
def test_the_same_pieces_come_however_the_bytes_are_cut(cuts: list[int]) -> None:
    whole, edges = TWO + DONE, [0, *sorted(cuts), len(TWO + DONE)]
    parts = [whole[a:b] for a, b in pairwise(edges)]
    counts = Counts(input_tokens=1, cache_read_tokens=2, output_tokens=3)
    assert read(parts) == [Piece("é", None, counts), Piece("", "stop", None)]


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        (b"", Kind.MODEL_FAILED),
        (b"data: {\n\n", Kind.MODEL_FAILED),
        (b'data: {"sublet":{"input_tokens":-1}}\n\n', Kind.MODEL_FAILED),
        (b"x" * 2_000_000, Kind.MODEL_FAILED),
        (b'data: {"error":{"type":"engine_failed"}}\n\n', Kind.MODEL_FAILED),
        (b'data: {"error":{"type":"model_reclaimed"},' + COUNT + b"}\n\n", Kind.RECLAIMED),
    ],
)
def test_every_end_but_done_is_a_break(tail: bytes, kind: Kind) -> None:
    with pytest.raises(Broken) as broken:
        read([TWO, tail])
    assert broken.value.failure.kind is kind
    assert (broken.value.counts is not None) == (kind is Kind.RECLAIMED)


@pytest.mark.parametrize(
    ("status", "answer", "kind"),
    [
        (400, b'{"error":{"message":"no","code":"invalid"}}', Kind.INVALID),
        (400, b'{"error":{"code":"context_length_exceeded"}}', Kind.TOO_LONG),
        (401, b'{"error":{"message":"wants its bearer key"}}', Kind.MODEL_FAILED),
        (409, b'{"error":{"code":"conflict"}}', Kind.MODEL_FAILED),
        (500, b"<html>", Kind.MODEL_FAILED),
        (503, b'{"error":{"type":"overloaded"}}', Kind.MODEL_BUSY),
        (503, b'{"error":{"type":"engine_failed"}}', Kind.MODEL_FAILED),
        (503, b'{"error":{"type":"model_reclaimed"}}', Kind.RECLAIMED),
        (503, b'{"error":{"type":"unavailable","code":"draining"}}', None),
    ],
)
def test_a_replicas_refusal_becomes_ours(status: int, answer: bytes, kind: Kind | None) -> None:
    told = refused(status, answer, ASK)
    if kind is None:
        assert isinstance(told, Gone)
        return
    assert isinstance(told, Broken)
    assert told.failure.kind is kind
    assert "bearer" not in told.failure.message

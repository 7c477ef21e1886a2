"""The rules inside the agent, without an engine."""

import asyncio
import json
from typing import Any

import pytest

from sublet.core.errors import Conflict, Invalid, NotFound, Refused
from sublet.models.replica.dialect import Reply, translate
from sublet.models.replica.llama import Choice, Chunk
from sublet.models.replica.pins import RANKS, Pins
from sublet.models.replica.recipe import load
from sublet.models.replica.usage import Book, State, Usage

RECIPE = load("gemma-3-270m")
HI = [{"role": "user", "content": "Hi"}]


def job(body: dict[str, Any], *, chat: bool = True) -> dict[str, Any]:
    return translate(json.dumps(body).encode(), RECIPE, chat=chat).body


def test_slots_are_lent_in_the_order_of_asking() -> None:
    async def scene() -> None:
        pins = Pins(1, max_waiting=3)
        assert await pins.take("a") == 0
        waiting = [asyncio.create_task(pins.take(name)) for name in "bcd"]
        await asyncio.sleep(0)
        assert pins.waiting == 3
        with pytest.raises(Refused):
            await pins.take("e")

        waiting[0].cancel()  # it hung up while it waited
        pins.give(0)
        assert await waiting[1] == 0
        assert not waiting[2].done()
        pins.give(0)
        assert await waiting[2] == 0

    asyncio.run(scene())


def test_a_better_tier_goes_first_and_takes_the_place_of_a_worse_one() -> None:
    async def scene() -> None:
        pins = Pins(1, max_waiting=3)
        await pins.take("a")
        waiting = {}
        for name, tier in (("b", "batch"), ("f", "flex"), ("d", "default")):
            waiting[name] = asyncio.create_task(pins.take(name, rank=RANKS[tier]))
            await asyncio.sleep(0)
        with pytest.raises(Refused):
            await pins.take("g", rank=RANKS["batch"])
        waiting["p"] = asyncio.create_task(pins.take("p", rank=RANKS["priority"]))
        with pytest.raises(Refused, match="better tier"):
            await waiting["b"]
        assert pins.waiting == 3
        for name in "pdf":
            assert not waiting[name].done()
            pins.give(0)
            assert await waiting[name] == 0

    asyncio.run(scene())


def test_a_slot_lent_to_a_request_that_just_hung_up_is_not_lost() -> None:
    async def scene() -> None:
        pins = Pins(1, max_waiting=3)
        await pins.take("a")
        waiting = asyncio.create_task(pins.take("b"))
        await asyncio.sleep(0)
        pins.give(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(1):
            assert await pins.take("c") == 0

    asyncio.run(scene())


def test_the_slot_that_read_the_likest_prompt_is_preferred() -> None:
    async def scene() -> None:
        pins = Pins(3, max_waiting=0)
        for prompt in ("tell me a story", "translate this", "tell me a joke"):
            await pins.take(prompt)
        for slot in (0, 1, 2):
            pins.give(slot)
        assert await pins.take("translate that") == 1
        assert await pins.take("tell me a joke about cats") == 2

    asyncio.run(scene())


def test_the_book_forgets_old_requests_but_none_that_runs() -> None:
    book = Book(keep=2)
    running = book.open("running")
    for name in ("one", "two", "three"):
        book.open(name).finish(State.DONE, Usage(output_tokens=1))
    assert book.get("running") is running
    assert book.get("three").usage.output_tokens == 1
    with pytest.raises(NotFound):
        book.get("one")
    with pytest.raises(Conflict):
        book.open("running")


def test_what_the_caller_leaves_open_is_the_recipes() -> None:
    body = job({"messages": HI})
    assert body["temperature"] == RECIPE.sampling.temperature
    assert body["max_tokens"] == RECIPE.sampling.max_tokens
    assert body["stop"] == list(RECIPE.stop)


def test_the_callers_wishes_come_first_and_stops_are_merged() -> None:
    body = job({"messages": HI, "temperature": 1, "max_completion_tokens": 7, "stop": "END"})
    assert (body["temperature"], body["max_tokens"]) == (1, 7)
    assert body["stop"] == ["END", *RECIPE.stop]
    plain = job({"prompt": "x", "stop": ["END"]}, chat=False)
    assert plain["stop"] == ["END"], "a plain completion has no turns to stop at"


def test_switches_of_the_engine_are_not_for_callers() -> None:
    body = job({"messages": HI, "id_slot": 3, "cache_prompt": False, "n_predict": 9, "user": "u"})
    assert body.keys().isdisjoint({"id_slot", "cache_prompt", "n_predict", "user"})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": "Hi"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": HI, "n": 2},
        {"messages": HI, "stream": "yes"},
        {"messages": HI, "tools": [{"type": "function"}]},
        {"messages": HI, "max_tokens": "many"},
        {"messages": HI, "stop": ["x"] * 20},
    ],
)
def test_what_is_not_served_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        job(body)


def test_what_is_no_json_object_is_refused() -> None:
    for raw in (b"", b"[]", b"{"):
        with pytest.raises(Invalid):
            translate(raw, RECIPE, chat=True)


@pytest.mark.parametrize(
    ("trim", "said"), [(True, ["Paris", " is"]), (False, [" ", " Paris", " is"])]
)
def test_space_before_the_first_word_is_dropped_from_the_text_only(
    trim: bool, said: list[str]
) -> None:
    chosen = translate(json.dumps({"messages": HI}).encode(), RECIPE, chat=True)
    reply = Reply(id="x", job=chosen, model="m", created=0, trim=trim)
    pieces = [" ", " Paris", " is"]
    choices = [reply.choice(Chunk(choices=[Choice(delta={"content": text})])) for text in pieces]
    spoken = [choice["delta"]["content"] for choice in choices if choice is not None]
    assert spoken == said
    whole = reply.whole(Usage(input_tokens=2, cache_read_tokens=3, output_tokens=3))
    assert whole["choices"][0]["message"]["content"] == "".join(said)
    assert whole["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 3},
    }

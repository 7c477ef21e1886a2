"""Whom a request goes to, with all that is known of many replicas."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.gateway.ask import Api, Ask
from sublet.gateway.embeddings import ask_for
from sublet.gateway.routing import Routing, beginning_of
from sublet.models.deployment import Replica, ReplicaState

MANY = [
    Replica(
        id=UUID(int=number), deployment="m", url=f"http://127.0.0.1:{number}", secret="s",
        state=ReplicaState.READY, detail=None, since=datetime(2026, 1, 1, tzinfo=UTC),
    )
    for number in range(1, 5)
]  # fmt: skip
A, B, C, D = MANY


def ask(*said: str) -> Ask:
    return Ask.chat("m", [{"role": "user", "content": text} for text in said])


def pick(
    routing: Routing, what: str, *, tried: list[Replica] | None = None, now: float = 0
) -> Replica:
    found = routing.pick(MANY, ask(what), tried=tried or [], now=now)
    assert found is not None
    return found


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60))
def test_nobody_has_much_more_to_do_than_another(said: list[str]) -> None:
    routing = Routing()
    for what in said:
        routing.begin(pick(routing, what))
    loads = [routing.load[replica.id] for replica in MANY]
    assert max(loads) - min(loads) <= 5
    assert sum(loads) == len(said)


def test_a_conversation_stays_where_it_is_cached_until_that_is_too_busy() -> None:
    routing = Routing()
    first = pick(routing, "hello")
    other = pick(routing, "else")
    for _ in range(4):
        routing.begin(first)
    assert pick(routing, "hello") is first
    routing.begin(first)
    assert pick(routing, "hello") is not first
    assert other in MANY
    assert beginning_of(ask("a", "b", "c")) == beginning_of(ask("a", "b", "d", "e"))
    assert beginning_of(ask("a")) != beginning_of(ask("b"))


def test_who_failed_rests_longer_each_time_and_is_asked_when_nobody_else_is_left() -> None:
    routing = Routing()
    routing.failed(A, now=0)
    assert all(pick(routing, str(n)) is not A for n in range(20))
    assert pick(routing, "x", tried=[B, C, D]) is A
    assert routing.pick(MANY, ask("x"), tried=MANY, now=0) is None
    assert any(pick(routing, f"z{n}", now=0.6) is A for n in range(20))
    routing.failed(A, now=1)
    assert all(pick(routing, str(n), now=1.9) is not A for n in range(20))
    assert routing.sick(MANY) == [A]
    routing.answered(A)
    assert routing.sick(MANY) == []
    assert any(pick(routing, f"y{n}", now=1.9) is A for n in range(20))


def test_who_is_busy_is_left_alone_for_as_long_as_it_asks_and_is_not_sick() -> None:
    routing = Routing()
    routing.failed(B, now=0, seconds=7)
    assert all(pick(routing, str(n), now=6.9) is not B for n in range(20))
    assert any(pick(routing, f"z{n}", now=7) is B for n in range(20))
    assert routing.sick(MANY) == []
    routing.forget(set())
    assert not routing._rests


def test_a_plain_prompt_has_a_beginning_too() -> None:
    def plain(prompt: str) -> Ask:
        return Ask(
            api=Api.COMPLETION, model="m", payload={"prompt": prompt}, max_tokens=1, stream=False,
            include_usage=False, service_tier=None, prompt_bytes=1, messages=1,
        )  # fmt: skip

    assert beginning_of(plain("x" * 2000)) == beginning_of(plain("x" * 1500 + "y"))
    assert beginning_of(plain("a")) != beginning_of(plain("b"))


# ── tiers ────────────────────────────────────────────────────────────────────────────────

FIRM = [replace(A, firm=True), replace(B, firm=True)]
IDLE = [C, D]


def of_tier(
    tier: str | None, ready: list[Replica], *, tried: list[Replica] | None = None
) -> set[UUID]:
    routing, found = Routing(), set()
    for number in range(40):
        asked = replace(ask(str(number)), service_tier=tier)
        replica = routing.pick(ready, asked, tried=tried or [], now=0)
        if replica is not None:
            routing.begin(replica)
            found.add(replica.id)
    return found


@pytest.mark.parametrize("tier", ["flex", "batch"])
def test_what_is_sold_from_idle_capacity_runs_on_nothing_else(tier: str) -> None:
    assert of_tier(tier, FIRM + IDLE) == {C.id, D.id}
    assert of_tier(tier, FIRM) == set()
    assert of_tier(tier, FIRM[:1]) == set()
    assert of_tier(tier, FIRM + IDLE, tried=IDLE) == set()


def test_the_best_tier_prefers_what_was_promised_and_others_take_all() -> None:
    assert of_tier("priority", FIRM + IDLE) == {A.id, B.id}
    assert of_tier("priority", FIRM + IDLE, tried=FIRM) == {C.id, D.id}
    assert of_tier("priority", IDLE) == {C.id, D.id}
    for tier in ("default", None):
        assert of_tier(tier, FIRM + IDLE) == {A.id, B.id, C.id, D.id}


def test_embeddings_have_a_beginning_too() -> None:
    assert beginning_of(ask_for("m", ["a"])) != beginning_of(ask_for("m", ["b"]))
    assert Routing().pick(MANY, ask_for("m", ["a"]), tried=[], now=0) in MANY

"""Responses that are kept: fetched, gone on from, cancelled, deleted; sealed, and nobody else's."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import openai
import pytest
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, eventually, says

SECRET = "a-word-that-nobody-else-may-see"


def told(text: str = "", **script: Any) -> str:
    return text + str(says(**script)[0]["content"])


@pytest.fixture
def tenant_key(stage: Stage) -> Iterator[tuple[Any, str]]:
    tenant, key = stage.tenant()
    yield tenant, key
    stage.check_books()


def rows(stage: Stage, name: str) -> list[dict[str, Any]]:
    with stage.db.transaction() as tx:
        id_ = UUID(hex=name.removeprefix("resp_"))
        return tx.execute("SELECT * FROM stored_response WHERE id = %s", [id_]).fetchall()


@pytest.mark.parametrize("stream", [False, True])
def test_it_is_fetched_as_it_was_answered_until_it_is_deleted(
    stage: Stage, tenant_key: tuple[Any, str], stream: bool
) -> None:
    tenant, key = tenant_key
    client = stage.client(key)
    asked: dict[str, Any] = {
        "model": MODEL, "input": told(SECRET, tokens=2), "store": True, "metadata": {"a": "b"},
    }  # fmt: skip
    if stream:
        with client.responses.stream(**asked) as events:
            made: Any = events.get_final_response()
    else:
        made = client.responses.create(**asked)
    assert made.store is True
    fetched = client.responses.retrieve(made.id)
    assert fetched.output_text == made.output_text == "tok tok "
    for name in ("id", "status", "usage", "metadata", "created_at", "model", "sublet"):
        assert getattr(fetched, name) == getattr(made, name)
    (item,) = client.responses.input_items.list(made.id).data
    assert item.type == "message" and SECRET in str(item.to_dict())

    (row,) = rows(stage, made.id)
    assert row["expires_at"] - row["created_at"] == timedelta(days=30)
    for word in (SECRET, "tok tok", MODEL):
        assert word.encode() not in bytes(row["sealed"])
    _, other = stage.tenant()
    strange = stage.client(other).responses
    for call in (strange.retrieve, strange.delete, strange.cancel, strange.input_items.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.NotFoundError):
        strange.create(model=MODEL, input="x", previous_response_id=made.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)

    client.responses.delete(made.id)
    assert rows(stage, made.id) == []
    with pytest.raises(openai.NotFoundError, match="30 days"):
        client.responses.retrieve(made.id)
    usage = stage.usage(tenant)
    stage.paid(tenant, usage["input_tokens"] * INPUT + 2 * OUTPUT)  # once: to fetch costs nothing


def test_a_row_put_in_another_s_place_is_not_opened(
    stage: Stage, tenant_key: tuple[Any, str]
) -> None:
    _, key = tenant_key
    client = stage.client(key)
    one, two = (
        client.responses.create(model=MODEL, input=told(tokens=1), store=True) for _ in range(2)
    )
    with stage.db.transaction() as tx:
        tx.execute(
            "UPDATE stored_response SET sealed = (SELECT sealed FROM stored_response WHERE id = %s)"
            " WHERE id = %s",
            [UUID(hex=one.id.removeprefix("resp_")), UUID(hex=two.id.removeprefix("resp_"))],
        )
    with pytest.raises(openai.InternalServerError):
        client.responses.retrieve(two.id)
    assert client.responses.retrieve(one.id).id == one.id


def test_a_conversation_goes_on_from_an_answer(stage: Stage, tenant_key: tuple[Any, str]) -> None:
    _, key = tenant_key
    client = stage.client(key)
    first = client.responses.create(
        model=MODEL, input=told("mine ", tokens=1), instructions="Be kind.", store=True
    )
    second = client.responses.create(
        model=MODEL, input=told(tokens=1), previous_response_id=first.id, store=True
    )
    assert second.previous_response_id == first.id
    third = client.responses.create(
        model=MODEL, input=told(tokens=1), previous_response_id=second.id, instructions="Be brief."
    )
    assert third.store is False
    said = [(turn["role"], turn["content"]) for turn in stage.fake.bodies[-1]["messages"]]
    assert [role for role, _ in said] == [
        "system", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert said[0][1] == "Be brief.", "instructions are one request's"
    assert said[1][1].startswith("mine ")
    assert said[2][1] == said[4][1] == "tok "
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, input="x", previous_response_id=third.id)


def test_one_in_the_background_is_fetched_when_it_is_done(
    stage: Stage, tenant_key: tuple[Any, str]
) -> None:
    tenant, key = tenant_key
    client = stage.client(key)
    made = client.responses.create(
        model=MODEL, input=told(tokens=4, delay_ms=200), background=True, store=True
    )
    assert (made.status, made.background, made.output) == ("queued", True, [])
    assert client.responses.retrieve(made.id).status == "in_progress"
    eventually(lambda: client.responses.retrieve(made.id).status == "completed", seconds=20)
    done = client.responses.retrieve(made.id)
    assert done.output_text == "tok tok tok tok "
    assert done.usage is not None
    stage.paid(tenant, done.usage.input_tokens * INPUT + 4 * OUTPUT)
    assert client.responses.cancel(made.id).status == "completed", "too late"
    more = client.responses.create(model=MODEL, input=told(tokens=1), previous_response_id=made.id)
    assert more.status == "completed"
    assert [turn["role"] for turn in stage.fake.bodies[-1]["messages"]] == [
        "user", "assistant", "user",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_one_in_the_background_is_stopped_and_what_it_used_is_charged(
    stage: Stage, tenant_key: tuple[Any, str], how: str
) -> None:
    tenant, key = tenant_key
    client = stage.client(key)
    made = client.responses.create(
        model=MODEL, input=told(tokens=500, delay_ms=50), background=True, store=True
    )
    eventually(lambda: stage.fake.running > 0)
    if how == "cancel":
        assert client.responses.cancel(made.id).status == "cancelled"
        assert client.responses.retrieve(made.id).status == "cancelled"
    else:
        client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)
    usage = stage.usage(tenant)
    assert (usage["outcome"], usage["output_tokens"] < 500) == ("aborted", True)
    stage.paid(tenant, usage["input_tokens"] * INPUT + usage["output_tokens"] * OUTPUT)


def test_one_that_fails_in_the_background_says_why(stage: Stage) -> None:
    tenant, key = stage.tenant(1)
    client = stage.client(key)
    made = client.responses.create(model=MODEL, input=told(tokens=1), background=True, store=True)
    eventually(lambda: client.responses.retrieve(made.id).status == "failed")
    error = client.responses.retrieve(made.id).error
    assert error is not None and error.code == "server_error" and "wallet" in error.message
    with pytest.raises(openai.NotFoundError):  # that can be said at once
        client.responses.create(model="nobody", input="x", background=True, store=True)
    stage.paid(tenant, 0)


def test_one_whose_gateway_died_has_failed(own_stage: Stage) -> None:
    stage = own_stage
    gateway = stage.start()
    _, key = stage.tenant()
    made = stage.client(key).responses.create(
        model=MODEL, input=told(tokens=500, delay_ms=100), background=True, store=True
    )
    eventually(lambda: stage.fake.running > 0)
    gateway.kill()
    with stage.db.transaction() as tx:
        tx.execute("UPDATE gateway SET seen_at = seen_at - interval '1 minute'")
    stage.start()
    assert stage.client(key).responses.retrieve(made.id).status == "failed"
    with stage.db.transaction() as tx:
        tx.execute(
            "UPDATE stored_response SET created_at = created_at - interval '31 days',"
            " expires_at = expires_at - interval '31 days'"
        )
    id_ = UUID(hex=made.id.removeprefix("resp_"))
    with stage.db.transaction() as tx:
        # It is there, and stays while we hold it, whoever cleans up meanwhile; but nobody is shown it.
        held = tx.execute("SELECT FROM stored_response WHERE id = %s FOR UPDATE", [id_]).fetchall()
        with pytest.raises(openai.NotFoundError):
            stage.client(key).responses.retrieve(made.id)
    assert held
    assert stage.gateway is not None
    stage.gateway.stop()
    stage.start()  # it is looked after once a minute, and at the start
    eventually(lambda: rows(stage, made.id) == [])


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"background": True}, "background"),
        ({"background": True, "store": True, "stream": True}, "background"),
        ({"store": "yes"}, "store"),
        ({"previous_response_id": 5}, "previous_response_id"),
    ],
)
def test_what_cannot_be_is_refused_by_name(stage: Stage, more: dict[str, Any], param: str) -> None:
    _, key = stage.tenant()
    answer = stage.post(key, "/v1/responses", input="x", **more)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("query", ["stream=true", "include[]=reasoning", "after=x"])
def test_a_query_that_is_not_done_is_refused_by_name(stage: Stage, query: str) -> None:
    _, key = stage.tenant()
    answer = httpx.get(
        f"{stage.url}/v1/responses/resp_{'0' * 32}?{query}",
        headers={"authorization": f"Bearer {key}"},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")

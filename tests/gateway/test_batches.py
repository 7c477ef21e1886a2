"""Batches over running gateways: each line once, charged once, whatever dies meanwhile."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import anthropic
import openai
import pytest
from tests.fakes.replica import Script
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, eventually, says

from sublet.core.money import Rate
from sublet.gateway.batches.room import Room, room
from sublet.market import store as market
from sublet.market.price import input_sku, model_tier, output_sku
from sublet.models import store as models
from sublet.models.deployment import Deployment, Feature, Replica, ReplicaState, Scaling
from sublet.models.scaling import Load
from sublet.tenants import limits
from sublet.tenants.limit import LimitKind
from sublet.tenants.tenant import Role, Tenant

TOKENS: Final = 3
EACH: Final = 2 * (INPUT // 2) + TOKENS * (OUTPUT // 2)  # nanos of one line, of two words
CHAT: Final = "/v1/chat/completions"


def sell_batches(stage: Stage) -> None:
    """Price the tier, and say how many slots the replica has."""
    now = datetime.now(UTC)
    deployment = Deployment(
        name=MODEL, recipe="gemma-3-270m", context_tokens=4096, wanted=True,
        features=frozenset(Feature),
    )  # fmt: skip
    with stage.db.transaction() as tx:
        models.put_deployment(tx, deployment, now=now)
        for sku, nanos in ((input_sku, INPUT // 2), (output_sku, OUTPUT // 2)):
            market.set_price(tx, sku(model_tier(MODEL, "batch")), Rate(nanos=nanos, per=1), now=now)


@pytest.fixture(scope="module")
def shop(stage: Stage) -> Stage:
    sell_batches(stage)
    return stage


def line(number: int, *, url: str = CHAT, body: dict[str, Any] | None = None) -> dict[str, Any]:
    script = {"tokens": TOKENS, "text": f"w{number} "}
    asked = {"model": MODEL, "messages": says(**script), "max_tokens": TOKENS} | (body or {})
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": asked}


def send(client: openai.OpenAI, lines: Any, *, endpoint: Any = CHAT, **more: Any) -> Any:
    text = lines if isinstance(lines, bytes) else b"".join(
        json.dumps(one).encode() + b"\n" for one in lines
    )  # fmt: skip
    file = client.files.create(file=("lines.jsonl", text), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch_id: str, *, seconds: float = 60) -> Any:
    eventually(
        lambda: (
            client.batches.retrieve(batch_id).status
            in {"completed", "failed", "expired", "cancelled"}
        ),
        seconds=seconds,
    )
    return client.batches.retrieve(batch_id)


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    read = [json.loads(one) for one in client.files.content(file_id).text.splitlines()]
    found = {one["custom_id"]: one for one in read}
    assert len(found) == len(read), "a line is there twice"
    return found


def check_charged(stage: Stage, tenant: Tenant, answers: dict[str, Any]) -> None:
    """Each answer has its usage, and nothing else has one."""
    asked = {usage["request_id"] for usage in stage.usages(tenant)}
    assert asked == {one["response"]["request_id"] for one in answers.values()}
    assert len(stage.usages(tenant)) == len(answers)
    stage.paid(tenant, len(answers) * EACH)
    stage.check_books()


def test_a_batch_is_answered_and_charged_at_its_tier(shop: Stage) -> None:
    tenant, key = shop.tenant()
    client = shop.client(key)
    lines = [line(number) for number in range(12)]
    lines[5]["body"]["colour"] = "red"
    lines[6]["body"]["stream"] = True
    batch = send(client, lines, metadata={"for": "test"})
    assert batch.status == "validating" and batch.id.startswith("batch_")
    assert batch.expires_at == batch.created_at + 86_400
    done = ended(client, batch.id)
    assert (done.status, done.metadata, done.errors) == ("completed", {"for": "test"}, None)
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (12, 10, 2)
    answers, refused = results(client, done.output_file_id), results(client, done.error_file_id)
    assert set(refused) == {"line-5", "line-6"} and len(answers) == 10
    for number in (0, 11):
        response = answers[f"line-{number}"]["response"]
        assert response["status_code"] == 200
        said = response["body"]["choices"][0]["message"]["content"]
        assert said == f"w{number} " * TOKENS
        assert answers[f"line-{number}"]["error"] is None
    assert refused["line-5"]["response"]["status_code"] == 400
    assert refused["line-5"]["response"]["body"]["error"]["param"] == "colour"
    assert "streams nothing" in refused["line-6"]["response"]["body"]["error"]["message"]
    check_charged(shop, tenant, answers)
    sources = {usage["source"] for usage in shop.usages(tenant)}
    assert sources == {f"batch:{_uuid(batch.id)}"}
    output = client.files.retrieve(done.output_file_id)
    assert output.purpose == "batch_output" and output.expires_at is not None
    # Lines are gone with their batch; so is what was answered, but for its file.
    with shop.db.transaction() as tx:
        left = tx.execute("SELECT count(*) AS n FROM batch_line WHERE batch_id = %s",
                          [_uuid(batch.id)]).fetchone()  # fmt: skip
    assert left == {"n": 0}
    assert [one.id for one in client.batches.list()] == [batch.id]
    _, others = shop.tenant()
    for call in (shop.client(others).batches.retrieve, shop.client(others).batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No such batch"):
            call(batch.id)
    with pytest.raises(openai.ConflictError, match="cannot be cancelled"):
        client.batches.cancel(batch.id)
    client.files.delete(batch.input_file_id)


def _uuid(name: str) -> str:
    digits = name.rpartition("_")[2]
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


@pytest.mark.parametrize(
    ("endpoint", "body", "says_"),
    [
        ("/v1/completions", {"prompt": '#script:{"tokens": 2}'}, "text"),
        ("/v1/responses", {"input": '#script:{"tokens": 2}'}, "output"),
        ("/v1/embeddings", {"input": "some words"}, "embedding"),
    ],
)  # fmt: skip
def test_the_other_endpoints(shop: Stage, endpoint: str, body: dict[str, Any], says_: str) -> None:
    tenant, key = shop.tenant()
    client = shop.client(key)
    one = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": MODEL} | body}
    done = ended(client, send(client, [one], endpoint=endpoint).id)
    assert done.request_counts.completed == 1, results(client, done.error_file_id)
    assert says_ in json.dumps(results(client, done.output_file_id)["a"]["response"]["body"])
    assert len(shop.usages(tenant)) == 1
    shop.check_books()


@pytest.mark.parametrize(
    ("lines", "code", "at"),
    [
        (b"this is no JSON\n", "invalid_json_line", 1),
        (b"\n", "empty_file", None),
        (b'{"custom_id": "a"}\n', "missing_required_parameter", 1),
        ([line(1), line(1)], "duplicate_custom_id", 2),
        ([line(1), line(2, url="/v1/completions")], "invalid_url", 2),
        ([line(1), line(2) | {"method": "GET"}], "invalid_request", 2),
        ([line(1), line(2, body={"model": "none"})], "model_not_available", 2),
        ([line(1), line(2) | {"colour": "red"}], "invalid_request", 2),
    ],
)
def test_what_cannot_be_worked_on_fails_as_a_whole(
    shop: Stage, lines: Any, code: str, at: int | None
) -> None:
    tenant, key = shop.tenant()
    client = shop.client(key)
    failed = ended(client, send(client, lines).id)
    assert failed.status == "failed" and failed.output_file_id is None
    assert failed.failed_at is not None
    assert (failed.errors.data[0].code, failed.errors.data[0].line) == (code, at)
    assert shop.usages(tenant) == [] and shop.open_holds() == 0


def test_what_is_no_batch_is_refused_at_once(own_stage: Stage) -> None:
    own_stage.start()
    tenant, key = own_stage.tenant()
    _, others = own_stage.tenant()
    client = own_stage.client(key)
    theirs = own_stage.client(others).files.create(file=("a.jsonl", b"{}"), purpose="batch")
    data = client.files.create(file=("a.jsonl", b"{}"), purpose="user_data")
    for file, endpoint, match in (
        (theirs.id, CHAT, "No such File"), (data.id, CHAT, "purpose"), ("x", CHAT, "No such File"),
        (data.id, "/v1/moderations", "endpoint must be one of"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=match):
            client.batches.create(
                input_file_id=file,
                endpoint=endpoint,  # type: ignore[arg-type]
                completion_window="24h",
            )
    # A tier without a price is not sold.
    failed = ended(client, send(client, [line(1)]).id)
    assert failed.status == "failed"
    assert "no price for tier 'batch'" in failed.errors.data[0].message
    assert own_stage.usages(tenant) == []


def test_a_wallet_and_a_budget_hold(shop: Stage) -> None:
    tenant, key = shop.tenant(nanos=4 * EACH)
    client = shop.client(key)
    done = ended(client, send(client, [line(number) for number in range(8)]).id)
    answers, refused = results(client, done.output_file_id), results(client, done.error_file_id)
    assert len(answers) == 4 and len(refused) == 4
    assert {one["response"]["status_code"] for one in refused.values()} == {402}
    check_charged(shop, tenant, answers)
    rich, key = shop.tenant()
    with shop.db.transaction() as tx:
        limits.set_limit(
            tx, rich.id, None, LimitKind.DAY, 3 * EACH, by=Role.OPERATOR, now=datetime.now(UTC)
        )
    client = shop.client(key)
    done = ended(client, send(client, [line(number) for number in range(6)]).id)
    answers = results(client, done.output_file_id)
    assert len(answers) == 3
    check_charged(shop, rich, answers)


def test_cancelled_and_expired_batches_say_what_was_not_answered(shop: Stage) -> None:
    tenant, key = shop.tenant()
    client = shop.client(key)
    with slow(shop, delay_ms=150):
        batch = send(client, [line(number) for number in range(40)])
        eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 2)
        with pytest.raises(openai.ConflictError, match="still reads this file"):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = ended(client, batch.id)
    assert done.status == "cancelled" and done.cancelled_at is not None
    answers, left = results(client, done.output_file_id), results(client, done.error_file_id)
    assert len(answers) + len(left) == 40 and len(left) > 10
    assert {one["error"]["code"] for one in left.values()} == {"batch_cancelled"}
    check_charged(shop, tenant, answers)

    tenant, key = shop.tenant()
    client = shop.client(key)
    shop.set_replica(ReplicaState.DRAINING, "reclaimed")
    try:
        batch = send(client, [line(number) for number in range(3)])
        eventually(lambda: client.batches.retrieve(batch.id).status == "in_progress")
        with shop.db.transaction() as tx:
            tx.execute(
                "UPDATE batch SET expires_at = created_at + interval '1 ms' WHERE id = %s",
                [_uuid(batch.id)],
            )
        done = ended(client, batch.id)
    finally:
        shop.set_replica(ReplicaState.READY)
    assert done.status == "expired" and done.output_file_id is None
    left = results(client, done.error_file_id)
    assert {one["error"]["code"] for one in left.values()} == {"batch_expired"}
    assert shop.usages(tenant) == []


@contextmanager
def slow(stage: Stage, *, delay_ms: int) -> Iterator[None]:
    """Let the replica take its time, whatever it is asked: `says` does not say it."""
    before = stage.fake.script
    stage.fake.script = Script(first_ms=delay_ms)
    try:
        yield
    finally:
        stage.fake.script = before


def test_lines_wait_for_a_model_that_was_reclaimed(shop: Stage) -> None:
    tenant, key = shop.tenant()
    client = shop.client(key)
    with slow(shop, delay_ms=100):
        batch = send(client, [line(number) for number in range(20)])
        eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 2)
        shop.set_replica(ReplicaState.DRAINING, "reclaimed")
        eventually(lambda: not shop.fake.running)
        shop.set_replica(ReplicaState.READY)
    done = ended(client, batch.id)
    answers = results(client, done.output_file_id)
    assert len(answers) == 20 and done.error_file_id is None
    check_charged(shop, tenant, answers)


@pytest.mark.parametrize(
    "plan",
    [
        "gateway.batch.answered kill", "gateway.batch.kept kill", "gateway.batch.written kill",
        "gateway.hand_over.paid kill", "batch.end.after_commit kill",
    ],
)  # fmt: skip
def test_whatever_a_gateway_dies_of(own_stage: Stage, plan: str) -> None:
    sell_batches(own_stage)
    folder = own_stage.folder / "failpoints"
    for name in ("reached", "fired"):
        (folder / name).mkdir(parents=True)
    own_stage.start(failpoints=str(folder))
    tenant, key = own_stage.tenant()
    client = own_stage.client(key)
    batch = send(client, [line(number) for number in range(10)])
    (folder / "plan").write_text(plan + "\n")
    assert own_stage.gateway is not None
    gateway = own_stage.gateway
    gateway.process.wait(120)
    own_stage.start(failpoints=str(folder))
    client = own_stage.client(key)
    done = ended(client, batch.id)
    answers = results(client, done.output_file_id)
    assert len(answers) == 10 and done.error_file_id is None
    check_charged(own_stage, tenant, answers)


def test_two_gateways_share_and_one_takes_over(own_stage: Stage) -> None:
    sell_batches(own_stage)
    one = own_stage.start(name="one")
    two = own_stage.start(name="two", spool=str(own_stage.folder / "other"))
    tenant, key = own_stage.tenant()
    client = own_stage.client(key)
    with slow(own_stage, delay_ms=50):
        batch = send(client, [line(number) for number in range(60)])
        eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 5)
        one.kill()
        done = ended(client, batch.id, seconds=90)
    answers = results(client, done.output_file_id)
    assert len(answers) == 60 and done.error_file_id is None
    own_stage.start(name="one")  # what it had on its disk comes late, and changes nothing
    two.stop()
    check_charged(own_stage, tenant, answers)


# ── Anthropic's ──────────────────────────────────────────────────────────────────────────


def theirs(stage: Stage, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key=key, base_url=stage.url, max_retries=0, _strict_response_validation=True
    )


def request(number: int, **more: Any) -> Any:
    script = {"tokens": TOKENS, "text": f"w{number} "}
    params = {"model": MODEL, "max_tokens": TOKENS, "messages": says(**script)} | more
    return {"custom_id": f"line-{number}", "params": params}


def test_message_batches(shop: Stage) -> None:
    tenant, key = shop.tenant()
    with theirs(shop, key) as client:
        made = client.messages.batches.create(
            requests=[*[request(number) for number in range(6)], request(6, colour="red"),
                      request(7, model="none")]
        )  # fmt: skip
        assert made.processing_status == "in_progress" and made.results_url is None
        assert made.id.startswith("msgbatch_")

        def over() -> bool:
            return client.messages.batches.retrieve(made.id).processing_status == "ended"

        eventually(over, seconds=60)
        done = client.messages.batches.retrieve(made.id)
        counts = done.request_counts
        assert (counts.succeeded, counts.errored, counts.processing) == (6, 2, 0)
        read = list(client.messages.batches.results(made.id))
        assert [one.custom_id for one in read] == [f"line-{number}" for number in range(8)]
        assert read[3].result.type == "succeeded"
        assert read[3].result.message.content[0].text == "w3 " * TOKENS  # type: ignore[union-attr]
        assert read[6].result.type == "errored"
        assert "colour" in read[6].result.error.error.message
        assert read[7].result.error.error.type == "not_found_error"  # type: ignore[union-attr]
        assert [one.id for one in client.messages.batches.list()] == [made.id]
        # Their files are not among the tenant's own, and end with the batch.
        assert shop.client(key).files.list().data == []
        shop.paid(tenant, 6 * EACH)
        assert client.messages.batches.delete(made.id).type == "message_batch_deleted"
        with pytest.raises(anthropic.NotFoundError):
            client.messages.batches.retrieve(made.id)
    shop.check_books()


def test_message_batches_in_pages_cancelled_and_refused(shop: Stage) -> None:
    _, key = shop.tenant()
    shop.set_replica(ReplicaState.DRAINING, "reclaimed")
    try:
        with theirs(shop, key) as client:
            ids = [client.messages.batches.create(requests=[request(1)]).id for _ in range(3)]
            listed = client.messages.batches.list(limit=2)
            assert [one.id for one in listed.data] == ids[:0:-1] and listed.has_more
            assert [one.id for one in listed] == ids[::-1]
            before = client.messages.batches.list(before_id=ids[0], limit=1)
            assert [one.id for one in before.data] == [ids[1]] and before.has_more
            with pytest.raises(anthropic.ConflictError):
                client.messages.batches.delete(ids[0])
            assert client.messages.batches.cancel(ids[0]).processing_status == "canceling"
            eventually(
                lambda: client.messages.batches.retrieve(ids[0]).processing_status == "ended"
            )
            (read,) = client.messages.batches.results(ids[0])
            assert read.result.type == "canceled"
            for requests in ([], [request(1), request(1)], [{"custom_id": "a b", "params": {}}]):
                with pytest.raises(anthropic.BadRequestError):
                    client.messages.batches.create(requests=requests)
    finally:
        shop.set_replica(ReplicaState.READY)


# ── what is left over ────────────────────────────────────────────────────────────────────

DEPLOYMENT: Final = Deployment(
    name="m", recipe="r", context_tokens=100, wanted=True, scaling=Scaling(first_token_ms=1000)
)


def replicas(number: int) -> list[Replica]:
    one = Replica(
        id=_id(0), deployment="m", url="", secret="", state=ReplicaState.READY, detail=None,
        since=datetime.now(UTC),
    )  # fmt: skip
    return [one] * number


def _id(number: int) -> Any:
    from uuid import UUID  # noqa: PLC0415

    return UUID(int=number)


@pytest.mark.parametrize(
    ("idle", "slots", "requests", "first_token_ms", "running", "expected"),
    [
        (1, 8, 0, None, 0, Room(7, 0)),  # a slot stays free
        (2, 8, 3, None, 4, Room(7, 0)),
        (1, 8, 8, None, 0, Room(0, 0)),
        (1, 8, 7, None, 3, Room(0, 2)),  # interactive requests came: lines give way
        (0, 8, 0, None, 3, Room(0, 3)),  # reclaimed
        (1, 1, 0, None, 0, Room(1, 0)),
        (1, 1, 1, None, 0, Room(0, 0)),
        (1, 1, 1, None, 1, Room(0, 1)),
        (1, 8, 1, 600, 0, Room(0, 0)),  # first tokens come late enough already
        (1, 8, 1, 400, 0, Room(6, 0)),
        (1, 8, 0, 900, 0, Room(7, 0)),  # of a while ago
    ],
)
def test_room_for_lines(
    idle: int, slots: int, requests: int, first_token_ms: int | None, running: int, expected: Room
) -> None:
    load = Load(requests=requests, first_token_ms=first_token_ms)
    assert room(replicas(idle), DEPLOYMENT, load, slots=slots, running=running) == expected


def test_interactive_requests_go_first(shop: Stage) -> None:
    """With lines on all slots but one, interactive ones come at once, and lines give way."""
    tenant, key = shop.tenant()
    client = shop.client(key)
    with slow(shop, delay_ms=300):
        batch = send(client, [line(number) for number in range(16)])
        eventually(lambda: shop.fake.running > 0)
        asked = [shop.post(key, messages=says(tokens=1, first_ms=0), max_tokens=1) for _ in "abc"]
        assert {one.status_code for one in asked} == {200}
    done = ended(client, batch.id)
    assert len(results(client, done.output_file_id)) == 16
    assert len(shop.usages(tenant)) == 19
    shop.check_books()

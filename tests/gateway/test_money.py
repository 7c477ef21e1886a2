"""No tenant overspends, nobody is refused who can pay, and a hang-up is charged exactly."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from openai import APIStatusError, APITimeoutError, OpenAI
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, eventually, says

from sublet.core.money import Money
from sublet.core.seal import seal_all
from sublet.invoices import dunning
from sublet.invoices import service as bills
from sublet.invoices import store as invoices
from sublet.invoices.dunning import Action, Step
from sublet.invoices.invoice import Invoice
from sublet.ledger import store as ledger
from sublet.tenants.tenant import Tenant


def hung_up(stage: Stage, client: OpenAI, tenant: Tenant, *, after: int) -> None:
    """Read a stream of 1,000 slow tokens, and leave after some of them."""
    with client.chat.completions.create(
        model=MODEL, messages=says(tokens=1000, delay_ms=5), stream=True
    ) as stream:
        for number, _ in enumerate(stream):
            if number >= after:
                break
    eventually(lambda: bool(stage.usages(tenant)))


@pytest.mark.parametrize("after", [1, 7, 40])
def test_a_stream_that_is_left_is_charged_exactly_what_was_generated(
    stage: Stage, after: int
) -> None:
    tenant, key = stage.tenant()
    with stage.client(key) as client:
        hung_up(stage, client, tenant, after=after)
    usage = stage.usage(tenant)
    generated = stage.fake.book.get(usage["request_id"]).usage
    assert usage["outcome"] == "aborted"
    assert usage["output_tokens"] == generated.output_tokens < 200
    assert usage["input_tokens"] == generated.input_tokens
    assert after <= usage["delivered_tokens"] <= usage["output_tokens"]
    stage.paid(tenant, INPUT + generated.output_tokens * OUTPUT)
    stage.check_books()


def test_leaving_stops_the_generation_within_250_ms(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with (
        stage.client(key) as client,
        client.chat.completions.create(
            model=MODEL, messages=says(tokens=4000, delay_ms=1), stream=True
        ) as stream,
    ):
        next(stream)
    left = time.monotonic()
    eventually(lambda: stage.fake.running == 0, seconds=2)
    assert time.monotonic() - left < 0.25
    stage.usage(tenant)


@pytest.mark.parametrize("streaming", [False, True])
def test_leaving_before_the_first_token_costs_only_the_input_read(
    stage: Stage, *, streaming: bool
) -> None:
    tenant, key = stage.tenant()
    messages = says(tokens=9, first_ms=60_000)
    with stage.client(key) as client, pytest.raises(APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model=MODEL, messages=messages, stream=streaming
        )
    eventually(lambda: stage.fake.running == 0, seconds=2)
    usage = stage.usage(tenant)
    assert (usage["outcome"], usage["output_tokens"]) == ("aborted", 0)
    assert (usage["delivered_tokens"], usage["input_tokens"]) == (0, 1)
    stage.paid(tenant, INPUT)
    stage.check_books()


def test_leaving_an_answer_that_is_not_streamed_is_charged_too(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{stage.url}/v1/chat/completions",
            json={"model": MODEL, "messages": says(tokens=1000, delay_ms=5)},
            headers={"authorization": f"Bearer {key}"},
            timeout=0.4,
        )
    eventually(lambda: stage.fake.running == 0, seconds=2)
    usage = stage.usage(tenant)
    generated = stage.fake.book.get(usage["request_id"]).usage.output_tokens
    assert (usage["output_tokens"], usage["delivered_tokens"]) == (generated, 0)
    assert generated > 0
    stage.check_books()


@pytest.mark.parametrize("nanos", [0, 1, INPUT])
def test_an_empty_wallet_is_a_402_that_the_sdk_does_not_retry(stage: Stage, nanos: int) -> None:
    tenant, key = stage.tenant(nanos)
    asked = len(stage.fake.bodies)
    with stage.client(key, retries=5) as client, pytest.raises(APIStatusError) as refused:
        client.chat.completions.create(model=MODEL, messages=says(tokens=1))
    assert (refused.value.status_code, refused.value.code) == (402, "payment_required")
    assert refused.value.type == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert "add credit" in refused.value.message
    assert refused.value.response.request.headers.get("x-stainless-retry-count") == "0"
    assert len(stage.fake.bodies) == asked
    stage.paid(tenant, 0)
    stage.check_books()


def test_a_suspended_tenant_is_a_402_once_what_was_held_ahead_is_used_and_served_once_it_paid(
    stage: Stage,
) -> None:
    tenant, key = stage.tenant(0)
    with stage.db.transaction() as tx:
        ledger.open_account(tx, "house:bank", prepaid=False)
        bills.set_credit_line(tx, tenant.id, Money(20_000_000), now=datetime.now(UTC))
        profile = replace(bills.profile_of(tx, tenant), threshold=Money(1))
        invoices.put_profile(tx, profile)
    # 2,000 tokens cost a cent, which is due at once.
    assert stage.post(key, messages=says(tokens=2_000), max_tokens=2_000).status_code == 200
    until = time.monotonic() + 60
    while (invoice := bill(stage, tenant)) is None:
        assert time.monotonic() < until, "its charge never came"
        time.sleep(0.05)
    with stage.db.transaction() as tx:
        dunning.set_steps(tx, [Step(days=0, action=Action.SUSPEND)])
        (step,) = bills.dun_due(tx, tenant.id, now=datetime.now(UTC))
        dunning.set_steps(tx, [])
        assert step.action is Action.SUSPEND
        assert dunning.is_suspended(tx, tenant)

    def ask() -> httpx.Response:
        # As long as it likes, and so to the last token that is paid for.
        return stage.post(key, messages=says(tokens=400))

    def refused() -> object:
        answer = ask()
        return answer.status_code == 402 and answer.json()["error"]["code"]

    # Until what runs is settled, its money is said to be in use.
    eventually(lambda: refused() == "payment_required")
    with stage.db.transaction() as tx:
        due = Money(invoice.payable_nanos)
        bills.pay(tx, invoice.number, due, reference="transfer 1", now=datetime.now(UTC))
        assert not dunning.is_suspended(tx, tenant)
    assert ask().status_code == 200
    stage.check_books()


def bill(stage: Stage, tenant: Tenant) -> Invoice | None:
    """Issue what is over the tenant's threshold, if its charges are there already."""
    seal_all(stage.db, now=datetime.now(UTC))
    with stage.db.transaction() as tx:
        return bills.issue_due(tx, tenant.id, now=datetime.now(UTC))


def test_more_than_the_wallet_has_is_refused_with_what_would_fit(stage: Stage) -> None:
    _, key = stage.tenant(INPUT + 9 * OUTPUT)
    response = stage.post(key, messages=says(tokens=1), max_tokens=10)
    assert response.status_code == 402
    assert "set max_tokens to 9 or less" in response.json()["error"]["message"]
    assert stage.post(key, messages=says(tokens=1), max_tokens=9).status_code == 200


@pytest.mark.parametrize("streaming", [False, True])
def test_max_tokens_unset_is_clipped_to_the_wallet_and_said(
    stage: Stage, *, streaming: bool
) -> None:
    tenant, key = stage.tenant(INPUT + 3 * OUTPUT + 1)
    response = stage.post(key, messages=says(tokens=100), stream=streaming)
    assert response.status_code == 200
    assert response.headers["x-sublet-max-tokens"] == "3"
    assert response.headers["x-sublet-max-tokens-clipped"] == "wallet"
    if not streaming:
        body = response.json()
        assert body["sublet"] == {
            "max_tokens": 3, "clipped_by": "wallet", "charge_nanos": INPUT + 3 * OUTPUT,
        }  # fmt: skip
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 3
    else:
        assert '"clipped_by":"wallet"' in response.text
    stage.check_books()
    assert stage.wallet(tenant).available.nanos == 1
    stage.check_books()


def test_money_held_by_another_request_is_worth_a_retry(stage: Stage) -> None:
    tenant, key = stage.tenant(2 * (INPUT + 10 * OUTPUT) - 1)
    with (
        stage.client(key) as client,
        client.chat.completions.create(
            model=MODEL, messages=says(tokens=10, delay_ms=100), stream=True, max_tokens=10
        ) as stream,
    ):
        next(stream)
        refused = stage.post(key, messages=says(tokens=1), max_tokens=10)
        assert refused.status_code == 402
        assert refused.json()["error"]["code"] == "in_flight_budget_exhausted"
        assert refused.headers["x-should-retry"] == "true"
        assert refused.headers["retry-after"] == "1"
    eventually(lambda: stage.wallet(tenant).debits_pending == 0)
    assert stage.post(key, messages=says(tokens=1), max_tokens=1).status_code == 200


def test_a_hundred_at_once_on_a_wallet_worth_seven_serve_exactly_seven(stage: Stage) -> None:
    each = INPUT + 2 * OUTPUT
    tenant, key = stage.tenant(7 * each)
    # Slow enough that no hold is settled before the last of the hundred asks.
    messages = says(tokens=2, first_ms=4000)
    with (
        httpx.Client(
            base_url=stage.url, timeout=180, headers={"authorization": f"Bearer {key}"}
        ) as client,
        ThreadPoolExecutor(100) as pool,
    ):

        def ask(_: int) -> int:
            body = {"model": MODEL, "messages": messages, "max_tokens": 2}
            return client.post("/v1/chat/completions", json=body).status_code

        answers = list(pool.map(ask, range(100)))
    assert sorted(set(answers)) == [200, 402]
    assert answers.count(200) == 7
    stage.check_books()
    assert stage.wallet(tenant).available.nanos == 0
    assert len(stage.usages(tenant)) == 7
    stage.check_books()


def test_a_count_above_the_hold_is_never_charged(stage: Stage) -> None:
    tenant, key = stage.tenant()
    # The replica says 3,000 input tokens: more than its prompt has bytes.
    messages = says(tokens=1, input_tokens=3000)
    response = stage.post(key, messages=messages, max_tokens=1)
    assert response.status_code == 200
    stage.check_books()
    bound = len(messages[0]["content"]) + 100
    assert INPUT + OUTPUT <= stage.wallet(tenant).debits_posted <= bound * INPUT + OUTPUT
    stage.check_books()


@pytest.mark.parametrize("streaming", [False, True])
def test_what_nobody_can_count_is_not_charged(stage: Stage, *, streaming: bool) -> None:
    tenant, key = stage.tenant()
    stage.fake.tokenises = False
    try:
        response = stage.post(key, messages=says(tokens=2, no_usage=True), stream=streaming)
    finally:
        stage.fake.tokenises = True
    if streaming:
        assert "did not count" in response.text
        assert "[DONE]" not in response.text
    else:
        assert response.status_code == 502
    stage.paid(tenant, 0)
    stage.check_books()


def test_a_step_that_fails_while_money_is_held_gives_all_of_it_back(
    own_stage: Stage, folder: Path
) -> None:
    steps = ("gateway.request.held", "gateway.request.generated")
    for name in ("reached", "fired"):
        (folder / name).mkdir()
    (folder / "plan").write_text("".join(f"{step} error\n" for step in steps))
    own_stage.start(failpoints=str(folder))
    tenant, key = own_stage.tenant()
    asked = {"messages": says(tokens=1), "max_tokens": 1}
    assert [own_stage.post(key, **asked).status_code for _ in range(3)] == [503, 503, 200]
    own_stage.paid(tenant, INPUT + OUTPUT)
    own_stage.check_books()


def test_many_hang_ups_at_random_leave_nothing_held(stage: Stage) -> None:
    tenant, key = stage.tenant()

    def leave(number: int) -> None:
        body = (
            b'{"model":"%s","stream":true,"messages":[{"role":"user","content":'
            b'"#script:{\\"tokens\\":500,\\"delay_ms\\":2}"}]}' % MODEL.encode()
        )
        host, port = stage.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as one:
            one.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
                + key.encode()
                + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
                + body
            )
            time.sleep(number * 0.004)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(60)))
    eventually(lambda: stage.fake.running == 0)
    stage.check_books()
    for usage in stage.usages(tenant):
        generated = stage.fake.book.get(usage["request_id"]).usage
        assert usage["output_tokens"] == generated.output_tokens
        assert usage["input_tokens"] == generated.input_tokens

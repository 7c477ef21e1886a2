"""Real commands on leased slots, internal jobs first."""

import json
import re
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import anthropic
import openai
import pytest
from botocore.exceptions import ClientError
from tests.e2e.instance import MODEL, Instance, instant, until
from tests.fakes.supplier import KEY, FakeSupplier, Script
from tests.gateway.aws import bearing

pytestmark = pytest.mark.e2e


def test_a_lease_runs_sandboxed_and_its_log_can_be_followed(instance: Instance) -> None:
    # It looks for a key that it must not find, at the very path that we know.
    script = f"echo started; id -u; cat {instance.data}/ready.json; ls /root; sleep 0.5; echo done; exit 7"
    run = instance.cli("lease", "create", "--follow", "--", "sh", "-c", script)
    assert run.returncode == 7, run.stderr
    lines = run.stdout.splitlines()
    assert "started" in lines
    assert "done" in lines
    assert "0" not in lines, "not root"
    assert instance.ready["operator_key"] not in run.stdout
    assert "No such file" in run.stdout or "Permission denied" in run.stdout


def test_a_lease_is_billed_by_the_second_it_was_usable(instance: Instance) -> None:
    _, key = instance.tenant("seconds")
    lease = instance.lease(key, command=["sleep", "2.2"], gpus=2)
    held = Decimal(instance.wallet(key)["held_usd"])
    assert held == Decimal("0.03") * 2 * 60 / 3600, "the first minute is held before it starts"
    ended = instance.await_lease(lease["id"], "ended")
    assert ended["end_reason"] == "completed"
    assert ended["exit_code"] == 0
    usable = (instant(ended["stopped_at"]) - instant(ended["running_at"])).total_seconds()

    def charged() -> list[dict[str, object]]:
        return instance.charges(key)

    charge = until(charged)[0]
    assert charge["gpu_seconds"] == 2 * int(usable) == charge["quantity"]
    # 0.03 USD an hour is 8333.3… nanodollars a second: rounded once, half to even.
    assert Decimal(charge["amount_usd"]) * 10**9 == round(
        Decimal(30_000_000 * charge["quantity"]) / 3600
    )
    until(lambda: Decimal(instance.wallet(key)["held_usd"]) == 0)


def test_a_lease_ends_with_its_time_and_when_it_is_given_back(instance: Instance) -> None:
    timed = instance.lease(command=["sleep", "100"], max_seconds=2)
    given = instance.lease(command=["sh", "-c", "trap 'exit 4' TERM; sleep 100 & wait"])
    instance.await_lease(given["id"], "running")
    assert instance.cli("lease", "end", given["id"]).returncode == 0
    ended = instance.await_lease(given["id"], "ended")
    assert (ended["end_reason"], ended["exit_code"]) == ("released", 4)
    ended = instance.await_lease(timed["id"], "ended")
    assert ended["end_reason"] == "expired"
    assert ended["charged_usd"] == "0.000016667"


def test_one_id_starts_one_lease(instance: Instance) -> None:
    body = {"id": "6e1a2b9c-3f61-4a83-9d5a-0a53f1f6a001", "command": ["true"]}
    first = instance.lease(**body)
    assert instance.lease(**body)["id"] == first["id"]
    other = instance.api("POST", "/v1/leases", body | {"gpus": 2}, key=instance.ready["tenant_key"])
    assert other.status_code == 422
    stranger = instance.tenant("stranger")[1]
    assert instance.api("POST", "/v1/leases", body, key=stranger).status_code == 422


def test_one_idempotency_key_starts_one_lease_and_one_job(instance: Instance) -> None:
    for path, key in (
        ("/v1/leases", instance.ready["tenant_key"]), ("/v1/internal-jobs", None),
    ):  # fmt: skip
        body, name = {"command": ["true"]}, f"one call of {path}"
        first, again = (
            instance.api("POST", path, body, key=key, named=name) for _ in range(2)
        )  # fmt: skip
        assert first.status_code == again.status_code == 201, again.text
        assert first.content == again.content
        assert again.headers["Idempotency-Replayed"] == "true"
        other = instance.api("POST", path, body | {"gpus": 2}, key=key, named=name)
        assert other.status_code == 422


def test_what_cannot_be_sold_is_refused_with_its_reason(instance: Instance) -> None:
    key = instance.ready["tenant_key"]
    too_many = instance.api("POST", "/v1/leases", {"command": ["true"], "gpus": 99}, key=key)
    assert too_many.status_code == 422
    assert "has 4 GPUs" in too_many.json()["error"]["message"]
    _, poor = instance.tenant("no money", usd="0.000001")
    unpaid = instance.api("POST", "/v1/leases", {"command": ["true"]}, key=poor)
    assert unpaid.status_code == 402
    assert instance.wallet(poor)["held_usd"] == "0.00"
    network = instance.api("POST", "/v1/leases", {"command": ["true"], "network": True}, key=key)
    assert network.status_code == 409


def test_nothing_is_priced_below_its_floor_without_a_named_exception(instance: Instance) -> None:
    key = instance.ready["operator_key"]
    cost = {"watts": 100, "pue": 1, "kwh_usd": "0.1"}
    assert instance.api("GET", "/v1/pools/cpu/floor", key=key).status_code == 404
    assert instance.api("PUT", "/v1/pools/cpu/floor", cost, key=key).json()["floor_usd"] == "0.01"
    path, low = "/v1/prices/lease:cpu:interruptible", {"usd": "0.009", "per": "hour"}
    before = instance.api("GET", "/v1/prices", key=key).json()
    refused = instance.api("PUT", path, low, key=key)
    assert refused.status_code == 409
    assert "its floor is 0.01" in refused.json()["error"]["message"]
    assert instance.api("GET", "/v1/prices", key=key).json() == before


def test_an_empty_wallet_ends_a_lease_where_its_money_does(instance: Instance) -> None:
    # One minute and a little: the second minute cannot be held.
    _, key = instance.tenant("one minute", usd="0.0006")
    lease = instance.lease(key, command=["sh", "-c", "trap 'exit 0' TERM; sleep 300 & wait"])
    ended = instance.await_lease(lease["id"], "ended", seconds=90)
    assert ended["end_reason"] == "credit_exhausted"
    assert ended["charged_usd"] == "0.0005"
    assert instance.wallet(key) | {"tenant_id": ""} == {
        "tenant_id": "", "balance_usd": "0.0001", "held_usd": "0.00", "available_usd": "0.0001",
    }  # fmt: skip


def test_internal_jobs_take_every_slot_within_the_notice(instance: Instance) -> None:
    instance.await_model()
    polite = instance.lease(
        command=[
            "sh",
            "-c",
            "trap 'cat $SUBLET_NOTICE_FILE; exit 5' TERM; while :; do sleep 0.1; done",
        ]
    )
    stubborn = instance.lease(command=["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    firm = instance.lease(command=["sleep", "300"], tier="on_demand")
    for lease in (polite, stubborn, firm):
        instance.await_lease(lease["id"], "running")
    assert instance.api("GET", "/v1/fleet").json()["pools"][0]["idle"] == 0
    # A base model that continues a text goes on until it is stopped.
    stream = instance.openai(strict=False).completions.create(
        model=MODEL, prompt="1, 2, 3, 4, 5, 6, 7,", stream=True, max_tokens=3500, temperature=1.0
    )
    next(iter(stream))
    # So that there is a second to charge, and to credit.
    running_at = instant(instance.show_lease(firm["id"])["running_at"])
    until(lambda: datetime.now(UTC) - running_at > timedelta(seconds=2), what="two seconds")
    run = instance.cli(
        "internal", "run", "--slots", "4", "--", "sh", "-c", "echo mine; nproc; sleep 1"
    )
    assert run.returncode == 0, run.stderr
    assert "mine" in run.stdout
    job = instance.api("GET", "/v1/internal-jobs").json()["items"][-1]
    waited = (instant(job["started_at"]) - instant(job["submitted_at"])).total_seconds()
    assert waited <= 10 + 2, waited
    metrics = instance.api("GET", "/metrics").text
    assert 'sublet_internal_wait_seconds{pool="cpu",quantile="1"}' in metrics
    assert instance.api("GET", "/v1/status").json()["internal_waits"]["cpu"]["max_seconds"] > 0
    ended = {
        lease["id"]: instance.await_lease(lease["id"], "ended")
        for lease in (polite, stubborn, firm)
    }
    assert {shown["end_reason"] for shown in ended.values()} == {"reclaimed"}
    assert ended[polite["id"]]["exit_code"] == 5
    assert ended[stubborn["id"]]["exit_code"] == 137
    notice = json.loads(instance.cli("lease", "logs", polite["id"]).stdout.splitlines()[-1])
    assert notice["reason"] == "reclaimed"
    shown = instance.api("GET", f"/v1/leases/{polite['id']}/notice").json()
    assert instant(shown["stops_at"]) == instant(notice["stops_at"])

    # The stream was told, not just cut; and it is charged for what was generated.
    with pytest.raises(openai.APIError) as cut:
        for _ in stream:
            pass
    assert "model_reclaimed" in str(cut.value.body)

    # The firm lease's tenant was credited what was left of the hour that it was promised.
    def charged() -> Decimal:
        return Decimal(instance.show_lease(firm["id"])["charged_usd"])

    until(charged, what="the charge")
    with instance.database() as connection:
        credited = connection.execute(
            "SELECT amount_nanos FROM transfer WHERE reason = 'credit'"
        ).fetchall()
    hour = Decimal(firm["usd_per_gpu_hour"]) * 10**9
    assert [abs(hour - charged() * 10**9 - row["amount_nanos"]) <= 2 for row in credited] == [True]
    instance.await_model()
    answer = instance.openai().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is the capital of France?"}]
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    instance.verify()


def test_a_reclaimed_model_says_so_and_comes_back(instance: Instance) -> None:
    instance.await_model()
    submitted = instance.api("POST", "/v1/internal-jobs", {"gpus": 4, "command": ["sleep", "600"]})
    job = submitted.json()["id"]

    seen: list[openai.APIStatusError] = []

    def refused() -> bool:
        """Is it refused as reclaimed? Before, the gateway may only know that nobody answers."""
        try:
            instance.openai(max_retries=0).chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=1
            )
        except openai.APIStatusError as error:
            seen.append(error)
            return bool(error.response.json()["error"]["type"] == "model_reclaimed")
        return False

    until(refused)
    error = seen[-1]
    assert {found.status_code for found in seen} == {503}
    assert error.response.headers["x-should-retry"] == "true"
    assert re.fullmatch(r"\d+", error.response.headers["retry-after"])
    assert instance.api("DELETE", f"/v1/internal-jobs/{job}").status_code == 202
    instance.await_model()
    instance.verify()


HELLO = [{"role": "user", "content": "hi"}]


def by_openai(instance: Instance) -> str:
    answer = instance.openai().chat.completions.create(
        model=MODEL,
        messages=HELLO,  # type: ignore[arg-type]
        max_tokens=9,
    )
    return answer.choices[0].message.content or ""


def by_responses(instance: Instance) -> str:
    answer = instance.openai().responses.create(model=MODEL, input="hi", max_output_tokens=9)
    return answer.output_text


def by_anthropic(instance: Instance) -> str:
    url, key = instance.ready["gateway_http_url"], instance.ready["tenant_key"]
    with anthropic.Anthropic(api_key=key, base_url=url) as client:
        said = client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)  # type: ignore[arg-type]
    return "".join(block.text for block in said.content if block.type == "text")


def by_boto3(instance: Instance) -> str:
    ready = instance.ready
    with bearing(ready["gateway_url"], ready["tenant_key"], ca=ready["ca_file"]) as client:
        said = client.converse_stream(
            modelId=MODEL,
            messages=[{"role": "user", "content": [{"text": "hi"}]}],
            inferenceConfig={"maxTokens": 9},
        )
        events = list(said["stream"])
    return "".join(
        event["contentBlockDelta"]["delta"]["text"]
        for event in events
        if "contentBlockDelta" in event
    )


def test_a_reclaimed_models_answers_are_bought_from_any_dialect_for_any(
    instance: Instance,
) -> None:
    instance.await_model()
    submitted = instance.api("POST", "/v1/internal-jobs", {"gpus": 4, "command": ["sleep", "600"]})
    asks: list[Callable[[Instance], str]] = [by_openai, by_responses, by_anthropic, by_boto3]
    paths = {"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta", "bedrock": ""}
    with FakeSupplier() as outside:
        outside.scripts["big"] = Script(text="bought ", tokens=3)
        for number, ((dialect, path), ask) in enumerate(zip(paths.items(), asks, strict=True)):
            file = instance.data.parent / f"{dialect}.toml"
            file.write_text(
                textwrap.dedent(f"""
                    name = "{dialect}"
                    dialect = "{dialect}"
                    url = "{outside.url}{path}"
                    [[models]]
                    model = "big"
                    sells = "{MODEL}"
                    [models.prices.default]
                    input = "0.01"
                    output = "0.02"
                    [[limits]]
                    measure = "requests"
                    span = "minute"
                    amount = "5"
                """)
            )
            put = instance.cli("supplier", "put", str(file))
            assert put.returncode == 0 and "has no key yet" in put.stderr, put.stderr
            key = instance.api("POST", f"/v1/suppliers/{dialect}/key", {"key": KEY})
            assert key.json() == {"name": dialect, "has_key": True}

            def bought(ask: Callable[[Instance], str] = ask) -> bool:
                try:
                    return ask(instance) == "bought bought bought "
                except (openai.APIError, anthropic.APIError, ClientError):
                    return False  # the model leaves, or the gateway has not heard of the supplier

            until(bought, what=f"an answer by {ask.__name__} out of {dialect}")
            assert instance.cli("supplier", "stop", dialect).returncode == 0
            assert outside.bodies, number

        def recorded() -> list[dict[str, object]] | None:
            items = instance.api("GET", "/v1/purchases").json()["items"]
            return items if len(items) == len(outside.bill) else None

        purchases = until(recorded, what="the record of what was bought")
    assert {one["supplier"] for one in purchases} == set(paths)
    assert {one["cost_usd"] for one in purchases} == {"0.00000026"}  # 20 in, 3 out
    job = submitted.json()["id"]
    assert instance.api("DELETE", f"/v1/internal-jobs/{job}").status_code == 202
    # Its invoice: one request that we do not know, and one that is missing.
    lines = ["request_id,amount_usd", "chatcmpl-1,0.00000026", "other,0.5"]
    invoice = instance.data.parent / "invoice.csv"
    invoice.write_text("\n".join(lines) + "\n")
    today = datetime.now(UTC).date()
    days = ["--from", str(today - timedelta(days=1)), "--to", str(today + timedelta(days=1))]
    told = instance.cli("supplier", "reconcile", "openai", str(invoice), *days, "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["unexplained_usd"] == "0.00"
    assert [one["what"] for one in found["differences"]][:1] == ["unknown"]
    hedge = instance.cli("supplier", "hedge", "--days", "1", "--json")
    assert [one["deployment"] for one in json.loads(hedge.stdout)["items"]] == [MODEL]
    assert instance.cli("supplier", "list").returncode == 0
    assert "stopped" in instance.cli("status").stdout
    assert "sublet_supplier_quota_left" in instance.api("GET", "/metrics").text
    instance.await_model()
    instance.verify()


def test_a_new_instance_says_what_it_may_sell_and_why_no_more(instance: Instance) -> None:
    def planned() -> dict[str, object] | None:
        (pool,) = instance.api("GET", "/v1/surplus").json()["pools"]
        found: dict[str, object] | None = pool["plan"]
        return found

    plan = until(planned, what="a plan")
    assert plan["gpus"] == 4
    assert plan["firm"] == {"1h": 0, "4h": 0, "24h": 0}
    # One is kept, where what is wanted, also by jobs that wait, leaves any.
    assert plan["reserve"] == min(1, max(4 - int(str(plan["demand"])), 0))
    shown = instance.cli("surplus")
    assert shown.returncode == 0, shown.stderr
    assert "cold_start (1h, 4h, 24h): too little is known" in shown.stdout

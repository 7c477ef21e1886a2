"""A real model, asked through the real SDK, paid from a real wallet."""

import json
import ssl
import time
from decimal import Decimal
from operator import mul
from typing import Any

import anthropic
import httpx
import openai
import pytest
from tests.e2e.instance import MODEL, Instance, until

pytestmark = pytest.mark.e2e
ASKED = "What is the capital of France?"
COOL = {"temperature": 0}  # their SDK has no parameter for it any more
QUESTION = [{"role": "user", "content": ASKED}]
STORY = [{"role": "user", "content": "Tell me a very long story about the sea."}]


def test_chat_answers_and_charges_what_it_used(instance: Instance) -> None:
    _, key = instance.tenant("chat")
    answer = instance.openai(key).chat.completions.create(model=MODEL, messages=QUESTION)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    wallet = instance.settled(key)
    details = answer.usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    by_sku = {charge["sku"].rpartition(":")[2]: charge for charge in instance.charges(key)}
    assert by_sku["output"]["quantity"] == answer.usage.completion_tokens
    assert sum(
        by_sku.get(kind, {"quantity": 0})["quantity"] for kind in ("input", "cache_read")
    ) == (answer.usage.prompt_tokens)
    assert by_sku.get("cache_read", {"quantity": 0})["quantity"] == cached
    spent = sum(Decimal(charge["amount_usd"]) for charge in by_sku.values())
    assert Decimal(wallet["balance_usd"]) == 1 - spent


def test_streams_in_the_sdk_s_own_shapes(instance: Instance) -> None:
    client = instance.openai()
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert len(chunks) > 3
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_plain_completions_and_the_list_of_models(instance: Instance) -> None:
    client = instance.openai()
    done = client.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=6)
    assert done.usage is not None
    assert done.usage.completion_tokens == 6
    assert done.choices[0].finish_reason == "length"
    # The SDK's type for a piece forbids the null that OpenAI itself sends before the last one.
    pieces = instance.openai(strict=False).completions.create(
        model=MODEL, prompt="One, two, three,", max_tokens=6, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == done.choices[0].text
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-0")


def test_the_demo_model_s_features_work(instance: Instance) -> None:
    client = instance.openai()
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format=form, max_tokens=60
    )
    said = json.loads(answer.choices[0].message.content or "")
    assert set(said) == {"city", "big"} and isinstance(said["big"], bool)
    response = client.responses.create(
        model=MODEL, input=ASKED, max_output_tokens=60,
        text={"format": {"type": "json_schema", "name": "city", "schema": schema}},
    )  # fmt: skip
    assert set(json.loads(response.output_text)) == {"city", "big"}

    likely = client.chat.completions.create(
        model=MODEL, messages=QUESTION, logprobs=True, top_logprobs=2, max_tokens=5
    )
    assert likely.choices[0].logprobs is not None
    tokens = likely.choices[0].logprobs.content
    assert tokens is not None and likely.usage is not None
    assert len(tokens) == likely.usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


def test_embeddings_are_charged_by_their_input(instance: Instance) -> None:
    _, key = instance.tenant("embeds")
    texts = ["The cat sat on the mat.", "A kitten sat on a rug.", "Revenue grew by a tenth."]
    answer = instance.openai(key).embeddings.create(
        model=MODEL, input=texts, encoding_format="float"
    )
    cat, kitten, money = (row.embedding for row in answer.data)
    assert sum(map(mul, cat, kitten)) > sum(map(mul, cat, money))
    easy = instance.openai(key, strict=False).embeddings.create(model=MODEL, input=texts[0])
    assert easy.data[0].embedding == pytest.approx(cat, abs=1e-3)
    instance.settled(key)
    charged = instance.charges(key)
    assert {charge["sku"] for charge in charged} == {f"model:{MODEL}:input"}
    tokens = answer.usage.prompt_tokens + easy.usage.prompt_tokens
    assert sum(charge["quantity"] for charge in charged) == tokens
    instance.verify()


def test_the_same_model_answers_in_anthropics_words(instance: Instance) -> None:
    with anthropic.Anthropic(
        api_key=instance.ready["tenant_key"],
        base_url=instance.ready["gateway_http_url"],
        _strict_response_validation=True,
    ) as client:
        answer = client.messages.create(
            model=MODEL,
            max_tokens=20,
            extra_body=COOL,
            messages=[{"role": "user", "content": ASKED}],
        )
        with client.messages.stream(
            model=MODEL,
            max_tokens=20,
            extra_body=COOL,
            messages=[{"role": "user", "content": ASKED}],
        ) as stream:
            streamed = "".join(stream.text_stream)
        prompt = client.messages.count_tokens(
            model=MODEL, messages=[{"role": "user", "content": ASKED}]
        )
    (block,) = answer.content
    assert block.type == "text" and "Paris" in block.text
    assert streamed == block.text
    used = answer.usage
    assert used.input_tokens + (used.cache_read_input_tokens or 0) == prompt.input_tokens
    request = "req_" + answer.id.removeprefix("msg_")
    until(
        lambda: (
            request in {c["request_id"] for c in instance.charges(instance.ready["tenant_key"])}
        ),
        what="its charge",
    )


def test_https_with_our_own_ca(instance: Instance) -> None:
    trust = ssl.create_default_context(cafile=instance.ready["ca_file"])
    with openai.DefaultHttpxClient(verify=trust) as http_client:
        client = openai.OpenAI(
            base_url=instance.ready["gateway_url"] + "/v1",
            api_key=instance.ready["tenant_key"],
            http_client=http_client,
        )
        answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=5)
    assert answer.usage is not None
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(instance.ready["gateway_url"] + "/healthz")


def test_a_hang_up_is_charged_exactly_what_was_generated(instance: Instance) -> None:
    _, key = instance.tenant("hang-up")
    with instance.database() as connection:
        row = connection.execute("SELECT url, secret FROM replica WHERE state = 'ready'").fetchone()
    assert row is not None
    for after in (1, 4, 9):
        stream = instance.openai(key).chat.completions.create(
            model=MODEL, messages=STORY, stream=True, max_tokens=900
        )
        for number, _ in enumerate(stream):
            if number == after:
                break
        stream.response.close()
        hung_up = time.monotonic()

        def settled(
            request_id: str = stream.response.headers["x-request-id"],
        ) -> list[dict[str, object]]:
            return [c for c in instance.charges(key) if c["request_id"] == request_id]

        charges = until(settled, what="the charge")
        assert time.monotonic() - hung_up < 5
        counted = httpx.get(
            f"{row['url']}/usage/{stream.response.headers['x-request-id']}",
            headers={"Authorization": f"Bearer {row['secret']}"},
        ).json()
        assert counted["state"] == "aborted"
        billed = next(c for c in charges if c["sku"].endswith(":output"))
        assert billed["quantity"] == counted["output_tokens"]
        assert billed["outcome"] == "aborted"
        # Stopped at once: far fewer than were asked for.
        assert after <= billed["quantity"] < after + 60
    instance.settled(key)
    instance.verify()


def test_an_empty_wallet_is_a_402_that_is_not_retried(instance: Instance) -> None:
    _, key = instance.tenant("poor", usd=None)
    seen: list[int] = []

    with openai.DefaultHttpxClient(
        event_hooks={"response": [lambda response: seen.append(response.status_code)]}
    ) as http_client:
        client = instance.openai(key, http_client=http_client, max_retries=5)
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert refused.value.status_code == 402
    assert seen == [402]


def test_a_nearly_empty_wallet_clips_the_answer_and_says_so(instance: Instance) -> None:
    _, key = instance.tenant("nearly", usd="0.000030")
    answer = instance.openai(key).chat.completions.with_raw_response.create(
        model=MODEL, messages=STORY
    )
    assert answer.headers["x-sublet-max-tokens-clipped"] == "wallet"
    limit = int(answer.headers["x-sublet-max-tokens"])
    parsed = answer.parse()
    assert parsed.usage is not None
    assert parsed.usage.completion_tokens <= limit
    assert Decimal(instance.settled(key)["balance_usd"]) >= 0


def test_two_tenants_see_nothing_of_each_other(instance: Instance) -> None:
    _, ours = instance.tenant("ours")
    theirs_id, theirs = instance.tenant("theirs")
    instance.openai(theirs).chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2)
    assert instance.charges(ours) == []
    assert Decimal(instance.wallet(ours)["balance_usd"]) == 1
    lease = instance.lease(theirs, command=["sleep", "30"])
    for method, path in (
        ("GET", f"/v1/leases/{lease['id']}"),
        ("DELETE", f"/v1/leases/{lease['id']}"),
        ("GET", f"/v1/leases/{lease['id']}/logs"),
        ("GET", f"/v1/leases/{lease['id']}/notice"),
    ):
        answer = instance.api(method, path, key=ours)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert instance.api("GET", "/v1/leases", key=ours).json()["items"] == []
    their_key = instance.api("GET", f"/v1/tenants/{theirs_id}/keys").json()["items"][0]["id"]
    assert instance.api("DELETE", f"/v1/keys/{their_key}", key=ours).status_code == 404
    assert instance.api("GET", "/v1/tenants", key=ours).status_code == 403
    assert instance.api("DELETE", f"/v1/leases/{lease['id']}", key=theirs).status_code == 202
    instance.await_lease(lease["id"], "ended")

"""The clients that customers have, unchanged, against a running gateway and a real model.

Each is given an address and a key, and the CA's file for https; nothing else is special.
"""

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import openai
import pytest
from langchain_aws import BedrockEmbeddings, ChatBedrock, ChatBedrockConverse
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai.providers import bedrock
from tests.e2e.instance import MODEL, Instance, until
from tests.gateway.aws import REGION, bearing, signing

pytestmark = pytest.mark.e2e
ASKED = "What is the capital of France?"
TURNS = [{"role": "user", "content": [{"text": ASKED}]}]
CONFIG = {"maxTokens": 12, "temperature": 0}
VERCEL = Path(__file__).parent / "vercel"


class Door(NamedTuple):
    """All that a client needs."""

    url: str
    ca: str
    key: str
    access_key: tuple[str, str]

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


@pytest.fixture(scope="module")
def door(instance: Instance) -> Iterator[Door]:
    """A tenant's keys; and in the end everything that was used is charged, and the books are right."""
    tenant_id, key = instance.tenant("clients")
    made = instance.cli(
        "key", "create", "--tenant", tenant_id, "--name", "signs", "--sigv4", "--json"
    )
    assert made.returncode == 0, made.stderr
    pair = json.loads(made.stdout)
    yield Door(
        instance.ready["gateway_url"],
        instance.ready["ca_file"],
        key,
        (pair["access_key_id"], pair["secret_access_key"]),
    )
    wallet = instance.settled(key)
    spent = sum(Decimal(charge["amount_usd"]) for charge in instance.charges(key))
    assert Decimal(wallet["balance_usd"]) == 1 - spent < 1
    instance.verify()


@pytest.mark.parametrize("auth", ["bearer", "signed"])
def test_boto3(door: Door, auth: str) -> None:
    made = (
        bearing(door.url, door.key, ca=door.ca)
        if auth == "bearer"
        else signing(door.url, door.access_key, ca=door.ca, attempts=8)
    )
    with made as client:
        reply = client.converse(modelId=MODEL, messages=TURNS, inferenceConfig=CONFIG)
        stream = client.converse_stream(
            modelId=f"us.{MODEL}-v1:0", messages=TURNS, inferenceConfig=CONFIG
        )
        events = list(stream["stream"])
        count = client.count_tokens(modelId=MODEL, input={"converse": {"messages": TURNS}})
        body = {"messages": [{"role": "user", "content": ASKED}], "max_tokens": 12}
        invoked = client.invoke_model(modelId=MODEL, body=json.dumps(body))
        completion = json.loads(invoked["body"].read())
    text = reply["output"]["message"]["content"][0]["text"]
    assert "Paris" in text
    told = [e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e]
    assert "".join(told) == text == completion["choices"][0]["message"]["content"]
    for used in (reply["usage"], events[-1]["metadata"]["usage"]):
        assert used["inputTokens"] + used["cacheReadInputTokens"] == count["inputTokens"]


def test_boto3_s_control_plane(door: Door) -> None:
    with bearing(door.url, door.key, ca=door.ca, service="bedrock") as client:
        (model,) = client.list_foundation_models()["modelSummaries"]
        (profile,) = client.list_inference_profiles()["inferenceProfileSummaries"]
    assert (model["modelId"], profile["inferenceProfileId"]) == (MODEL, f"global.{MODEL}")


@pytest.mark.parametrize("auth", ["bearer", "signed"])
@pytest.mark.parametrize(
    ("client", "path", "model"),
    [
        (anthropic.AnthropicBedrock, "", f"us.{MODEL}-v1:0"),
        (anthropic.AnthropicBedrockMantle, "/anthropic", MODEL),
    ],
)
def test_anthropic_s_bedrock_clients(
    door: Door, auth: str, client: Any, path: str, model: str
) -> None:
    keys: dict[str, Any] = (
        {"api_key": door.key}
        if auth == "bearer"
        else {"aws_access_key": door.access_key[0], "aws_secret_key": door.access_key[1]}
    )
    with (
        anthropic.DefaultHttpxClient(verify=door.trust) as http_client,
        client(
            base_url=door.url + path,
            aws_region=REGION,
            http_client=http_client,
            max_retries=5,
            **keys,
        ) as made,
    ):
        asked: dict[str, Any] = {
            "model": model, "max_tokens": 12, "messages": [{"role": "user", "content": ASKED}],
        }  # fmt: skip
        answer = made.messages.create(**asked)
        with made.messages.stream(**asked) as stream:
            streamed = "".join(stream.text_stream)
    (block,) = answer.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert streamed == block.text


@pytest.mark.parametrize("auth", ["bearer", "signed"])
def test_openai_s_bedrock_provider(door: Door, auth: str) -> None:
    keys: dict[str, Any] = (
        {"api_key": door.key}
        if auth == "bearer"
        else {"access_key_id": door.access_key[0], "secret_access_key": door.access_key[1]}
    )
    provider = bedrock(base_url=f"{door.url}/openai/v1", region=REGION, endpoint="runtime", **keys)
    with (
        openai.DefaultHttpxClient(verify=door.trust) as http_client,
        openai.OpenAI(provider=provider, http_client=http_client, max_retries=5) as client,
    ):
        answer = client.responses.create(model=MODEL, input=ASKED, max_output_tokens=12)
        chat = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": ASKED}], max_tokens=12
        )
    assert "Paris" in answer.output_text
    assert chat.choices[0].message.content == answer.output_text


def test_langchain_openai(instance: Instance, door: Door) -> None:
    chat = ChatOpenAI(
        model=MODEL,
        api_key=door.key,
        base_url=instance.ready["gateway_http_url"] + "/v1",
        max_tokens=12,
        temperature=0,
        stream_usage=True,
    )
    answer = chat.invoke(ASKED)
    pieces = list(chat.stream(ASKED))
    assert "Paris" in str(answer.content)
    assert "".join(str(piece.content) for piece in pieces) == answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_langchain_aws(door: Door) -> None:
    with signing(door.url, door.access_key, ca=door.ca, attempts=8) as client:
        chat = ChatBedrockConverse(
            client=client, model=MODEL, provider="sublet", max_tokens=12, temperature=0,
            region_name=REGION,
        )  # fmt: skip
        answer = chat.invoke([("system", "Be brief."), ("human", ASKED)])
        pieces = list(chat.stream([("system", "Be brief."), ("human", ASKED)]))
    assert "Paris" in str(answer.text)
    assert "".join(str(piece.text) for piece in pieces) == str(answer.text)
    used = answer.usage_metadata
    assert used is not None
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]


def test_langchain_aws_in_makers_words(door: Door) -> None:
    with signing(door.url, door.access_key, ca=door.ca, attempts=8) as client:
        chat = ChatBedrock(
            client=client, model=f"us.{MODEL}-v1:0", provider="anthropic", region=REGION,
            model_kwargs={"max_tokens": 12, "temperature": 0}, beta_use_converse_api=False,
        )  # fmt: skip
        answer = chat.invoke(ASKED)
        pieces = list(chat.stream(ASKED))
    assert "Paris" in str(answer.text)
    assert "".join(str(piece.text) for piece in pieces) == str(answer.text)


def test_embeddings_are_the_same_whoever_asks(instance: Instance, door: Door) -> None:
    texts = [ASKED, "so"]
    plain = instance.openai(door.key).embeddings.create(
        model=MODEL, input=texts, encoding_format="float"
    )
    wanted = [row.embedding for row in plain.data]
    made = {
        "langchain-openai": OpenAIEmbeddings(
            model=MODEL, api_key=door.key, check_embedding_ctx_length=False,
            base_url=instance.ready["gateway_http_url"] + "/v1",
        ).embed_documents(texts),
    }  # fmt: skip
    with signing(door.url, door.access_key, ca=door.ca, attempts=8) as client:
        for provider in ("amazon", "cohere"):
            made[provider] = BedrockEmbeddings(
                client=client, model_id=MODEL, provider=provider, region_name=REGION
            ).embed_documents(texts)
    for name, vectors in made.items():
        for vector, same in zip(vectors, wanted, strict=True):
            assert vector == pytest.approx(same, abs=1e-3), name


def test_openai_s_sdk_keeps_fetches_and_goes_on(instance: Instance, door: Door) -> None:
    responses = instance.openai(door.key).responses
    first = responses.create(model=MODEL, input=ASKED, max_output_tokens=12, store=True)
    assert responses.retrieve(first.id).output_text == first.output_text
    second = responses.create(
        model=MODEL, input="And of Italy?", previous_response_id=first.id, max_output_tokens=12
    )
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(first.id)
    behind = responses.create(
        model=MODEL, input=ASKED, max_output_tokens=20, background=True, store=True
    )
    until(
        lambda: responses.retrieve(behind.id).status in {"completed", "incomplete"},
        what="an answer in the background",
    )


@pytest.mark.parametrize("auth", ["bearer", "signed"])
def test_curl(door: Door, auth: str) -> None:
    keys = (
        ["-H", f"Authorization: Bearer {door.key}"]
        if auth == "bearer"
        else ["--aws-sigv4", f"aws:amz:{REGION}:bedrock", "--user", ":".join(door.access_key)]
    )
    body = json.dumps({"messages": TURNS, "inferenceConfig": CONFIG})
    ran = subprocess.run(
        [
            "curl", "-sS", "--fail-with-body", "--cacert", door.ca, *keys,
            "-H", "Content-Type: application/json", "-d", body,
            f"{door.url}/model/{MODEL}/converse",
        ],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    assert "Paris" in json.loads(ran.stdout)["output"]["message"]["content"][0]["text"]


def test_the_vercel_ai_sdk(door: Door) -> None:
    node = shutil.which("node")
    if node is None or not (VERCEL / "node_modules").is_dir():
        told = "needs Node.js, and `npm ci --prefix tests/e2e/vercel --ignore-scripts`"
        pytest.skip(told)  # also in CI: a package host that is away is no fault of ours
    settings = {
        "url": door.url, "key": door.key, "model": MODEL, "prompt": ASKED,
        "accessKeyId": door.access_key[0], "secretAccessKey": door.access_key[1],
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    ran = subprocess.run(
        [node, "ask.mjs"],
        cwd=VERCEL,
        env=kept | {"NODE_EXTRA_CA_CERTS": door.ca},
        input=json.dumps(settings),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    heard, vectors = told["heard"], told["vectors"]
    assert len(heard) == 5
    assert vectors["openai"]["tokens"] == vectors["bedrock"]["tokens"] > 0
    for made, same in zip(*(vectors[name]["embeddings"] for name in vectors), strict=True):
        assert made == pytest.approx(same, abs=1e-3)
    for name, said in heard.items():
        assert "Paris" in said["text"], name
        assert said["streamed"] == said["text"], name
        assert said["reason"] == said["streamedReason"] in {"stop", "length"}, name
        assert said["usage"]["outputTokens"] == said["streamedUsage"]["outputTokens"] > 0, name
    prompts = {said["usage"]["inputTokens"] for said in heard.values()}
    assert len(prompts) == 1, "one prompt has one length, in whatever words it is asked"

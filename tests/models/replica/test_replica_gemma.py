"""A replica with its real model: what it says, and that it counts what the engine did."""

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import openai
import pytest
from tests.models.replica.harness import COUNTS, KEY, MODEL, Running, chunks_of, until

from sublet.models.replica.recipe import load

TALE = {"prompt": "Once upon a time", "max_tokens": 600, "stream": True}
STOPS_WITHIN_SECONDS = 0.25
STOPS_WITHIN_STEPS = 4  # where other work slows the machine down: in steps of the engine then
BATCH_TOKENS = load(MODEL).batch_tokens


def asked(question: str, **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **more}


def counts(value: dict[str, Any]) -> dict[str, int]:
    return {name: value[name] for name in COUNTS}


def since(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in COUNTS}


def long_prompt() -> str:
    """Return a prompt of some 1200 tokens that no slot has read before."""
    return f"{uuid4()} " + " ".join(f"item {i} is number {i}," for i in range(120))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of France?", "Paris"),
        ("2+2", "4"),
        ("Say hello", "Hello"),
        ("Who are you?", "assistant"),
    ],
)
def test_it_answers_simple_questions_sanely(gemma: Running, question: str, expected: str) -> None:
    answer = gemma.client.post("/v1/chat/completions", json=asked(question)).json()
    said = answer["choices"][0]["message"]["content"]
    assert expected in said
    assert said == said.strip(), "neither the template's space nor its line break shows"
    assert "User:" not in said
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == MODEL


def test_every_chunk_carries_the_count_so_far_and_the_last_is_the_engines(gemma: Running) -> None:
    body = asked("List three colours", stream=True)
    before, id_ = gemma.counters(), str(uuid4())
    with gemma.client.stream(
        "POST", "/v1/chat/completions", json=body, headers={"x-request-id": id_}
    ) as answer:
        assert answer.headers["x-request-id"] == id_
        chunks = list(chunks_of(answer))
    generated = [chunk["sublet"]["output_tokens"] for chunk in chunks]
    assert generated == sorted(generated)
    assert generated[0] >= 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"

    last = chunks[-1]
    assert counts(last["sublet"]) == since(before, gemma.counters())
    assert last["usage"]["prompt_tokens"] == gemma.count(body)
    assert (
        last["usage"]["prompt_tokens"]
        == last["sublet"]["input_tokens"] + last["sublet"]["cache_read_tokens"]
    )
    assert last["usage"]["completion_tokens"] == last["sublet"]["output_tokens"]
    assert gemma.usage(id_) == {"state": "done", **last["sublet"]}


def test_a_prompt_seen_before_is_counted_as_cached_and_adds_up(gemma: Running) -> None:
    body = asked("What is the capital of Italy?")
    for _ in range(2):
        answer = gemma.client.post("/v1/chat/completions", json=body).json()
    assert answer["sublet"]["cache_read_tokens"] > answer["sublet"]["input_tokens"] > 0
    assert answer["usage"]["prompt_tokens"] == gemma.count(body)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "The capital of France is"},
        {"prompt": ["<eos> in the middle <bos>"]},
        {"prompt": [2, 818, 5279, 529, 7001, 563]},
        asked("Grüße, 你好 🙂"),
        {"messages": [{"role": "system", "content": "Be brief."}, *asked("Hi")["messages"]]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    ],
)
def test_what_is_counted_beforehand_is_what_the_engine_counts(
    gemma: Running, body: dict[str, Any]
) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    answer = gemma.client.post(path, json=body | {"max_tokens": 1}).json()
    assert answer["usage"]["prompt_tokens"] == gemma.count(body)


def test_a_callers_stop_string_ends_the_answer_and_does_not_show(gemma: Running) -> None:
    body = asked("Count from 1 to 5", stop=[" 4"], stream=True)
    with gemma.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = list(chunks_of(answer))
    said = "".join(
        choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]
    )
    assert said.startswith("1, 2, 3")
    assert "4" not in said
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_the_openai_sdk_understands_it(gemma: Running) -> None:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{gemma.port}/v1", api_key=KEY, max_retries=0
    ) as client:
        question = [{"role": "user", "content": "Say hello"}]
        whole = client.chat.completions.create(model=MODEL, messages=question, logprobs=True)  # type: ignore[arg-type]
        assert whole.usage is not None
        assert whole.choices[0].message.content
        assert whole.choices[0].logprobs is not None
        stream = client.completions.create(
            model=MODEL, prompt="One, two,", max_tokens=4, stream=True, logit_bias={"506": -100}
        )
        chunks = list(stream)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 4
        with pytest.raises(openai.BadRequestError, match="exceeds the available context"):
            client.completions.create(model=MODEL, prompt="word " * 5000)


def test_a_hang_up_while_generating_stops_the_engine_and_the_count_is_exact(
    gemma: Running,
) -> None:
    late = []
    for _ in range(3):
        before, id_ = gemma.counters(), str(uuid4())
        with gemma.client.stream(
            "POST", "/v1/completions", json=TALE, headers={"x-request-id": id_}
        ) as answer:
            seen, began = 0, time.monotonic()
            for chunk in chunks_of(answer):
                seen = seen or chunk["sublet"]["output_tokens"]
                if chunk["sublet"]["output_tokens"] >= 10:
                    break
            step = (time.monotonic() - began) / (10 - seen)
        late.append(seconds_too_late(gemma, step))

        usage = gemma.usage(id_)
        assert usage["state"] == "aborted"
        assert counts(usage) == since(before, gemma.counters())
        assert 10 <= usage["output_tokens"] < 100
    assert min(late) == 0, late


@pytest.mark.parametrize("stream", [True, False])
def test_a_hang_up_while_a_prompt_is_read_stops_the_engine_and_the_count_is_exact(
    gemma: Running, stream: bool
) -> None:
    late = []
    for _ in range(3):
        prompt = {"prompt": long_prompt()}
        before, id_ = gemma.counters(), str(uuid4())
        began = time.monotonic()
        connection = gemma.send("/v1/completions", prompt | {"stream": stream}, request_id=id_)
        until(partial(gemma.has_read, id_, more_than=4 * BATCH_TOKENS), what="reading")
        step = (time.monotonic() - began) / 5
        connection.close()
        late.append(seconds_too_late(gemma, step))

        usage = gemma.usage(id_)
        assert usage["state"] == "aborted"
        assert usage["output_tokens"] == 0
        assert 30 < usage["input_tokens"] < gemma.count(prompt)
        assert counts(usage) == since(before, gemma.counters())
    assert min(late) == 0, late


def seconds_too_late(gemma: Running, step_seconds: float) -> float:
    """Return how much longer than promised the engine runs on after a hang-up just now."""
    began = time.monotonic()
    until(lambda: not gemma.busy(), what="stopping")
    allowed = max(STOPS_WITHIN_SECONDS, STOPS_WITHIN_STEPS * step_seconds)
    return max(0.0, time.monotonic() - began - allowed)


def test_many_hang_ups_at_once_add_up_to_the_engines_own_counters(gemma: Running) -> None:
    """More requests than slots: some hang up while they generate, some while they wait."""
    before = gemma.counters()
    ids = [str(uuid4()) for _ in range(7)]
    slow = [gemma.send("/v1/completions", TALE, request_id=id_) for id_ in ids]
    until(lambda: gemma.health()[1]["waiting"] == 3, what="waiting")
    until(lambda: all(gemma.progress(id_)["output_tokens"] for id_ in ids[:4]))
    for connection in reversed(slow):
        connection.close()

    usages = [gemma.usage(id_) for id_ in ids]
    assert [usage["state"] for usage in usages] == ["aborted"] * 7
    assert [usage["input_tokens"] for usage in usages[4:]] == [0, 0, 0], "they never ran"
    total = {name: sum(usage[name] for usage in usages) for name in COUNTS}
    assert total == since(before, gemma.counters())
    assert gemma.health()[1]["running"] == 0


def test_more_requests_than_slots_are_all_answered(gemma: Running) -> None:
    body = {"prompt": "One, two, three,", "max_tokens": 8}
    before = gemma.counters()

    def ask(_: int) -> dict[str, Any]:
        answer = httpx.post(
            f"http://127.0.0.1:{gemma.port}/v1/completions",
            json=body,
            headers={"authorization": f"Bearer {KEY}"},
            timeout=180,
            trust_env=False,
        )
        value: dict[str, Any] = answer.json()
        return value

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    total = {name: sum(answer["sublet"][name] for answer in answers) for name in COUNTS}
    assert total == since(before, gemma.counters())


def test_usage_can_be_awaited_while_a_request_runs(gemma: Running) -> None:
    id_ = str(uuid4())
    connection = gemma.send("/v1/completions", TALE, request_id=id_)
    until(lambda: gemma.progress(id_)["output_tokens"] > 2)
    assert gemma.usage(id_, wait_ms=1)["state"] == "running"
    closing = threading.Timer(0.05, connection.close)
    closing.start()
    assert gemma.usage(id_, wait_ms=10_000)["state"] == "aborted"
    closing.join()


def test_a_request_id_is_used_once(gemma: Running) -> None:
    headers = {"x-request-id": str(uuid4())}
    body = {"prompt": "One", "max_tokens": 1}
    assert gemma.client.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert gemma.client.post("/v1/completions", json=body, headers=headers).status_code == 409


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "word " * 5000}, "exceeds the available context"),
        ({"prompt": ["one", "two"]}, "prompt"),
        ({"prompt": "x", "n": 2}, "n = 1"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "stop": 7}, "stop"),
        ({}, "prompt"),
    ],
)
def test_what_cannot_be_served_is_refused_in_openais_words(
    gemma: Running, body: dict[str, Any], says: str
) -> None:
    answer = gemma.client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    too_long = "context_length_exceeded" if "context" in says else error["code"]
    assert error["code"] == too_long


@pytest.mark.parametrize("path", ["/health", "/slots", "/metrics", "/usage/x", "/nothing"])
def test_nothing_is_said_without_the_key(gemma: Running, path: str) -> None:
    for authorization in ("", "Bearer wrong", KEY):
        answer = gemma.client.get(path, headers={"authorization": authorization})
        assert answer.status_code == 401
        assert answer.json()["error"]["message"]


def test_unknown_calls_and_unknown_requests_are_not_found(gemma: Running) -> None:
    assert gemma.client.get("/usage/never-seen").status_code == 404
    assert gemma.client.get("/nothing").status_code == 404


# ── embeddings ───────────────────────────────────────────────────────────────────────────


def embedded(gemma: Running, inputs: object, **more: object) -> dict[str, Any]:
    answer = gemma.client.post("/v1/embeddings", json={"input": inputs, **more})
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    return value


def test_embeddings_are_counted_to_the_token_and_like_texts_are_alike(gemma: Running) -> None:
    texts = ["The cat sat on the mat.", "A kitten sat on a rug.", "Revenue grew by a tenth."]
    answer = embedded(gemma, texts)
    assert answer["usage"]["prompt_tokens"] == answer["sublet"]["input_tokens"]
    assert answer["usage"]["prompt_tokens"] == sum(gemma.count({"prompt": t}) for t in texts)
    assert answer["usage"]["prompt_tokens"] == gemma.count({"input": texts})
    cat, kitten, money = (np.array(row["embedding"]) for row in answer["data"])
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-3)
    assert cat @ kitten > cat @ money

    (alone,) = embedded(gemma, texts[0])["data"]
    assert alone["embedding"] == pytest.approx(cat, abs=1e-3), "whatever else was asked with it"
    (packed,) = embedded(gemma, texts[0], encoding_format="base64")["data"]
    unpacked = np.frombuffer(base64.b64decode(packed["embedding"]), "<f4")
    assert unpacked == pytest.approx(cat, abs=1e-3)


def test_embeddings_of_tokens_are_those_of_their_text(gemma: Running) -> None:
    (text,) = embedded(gemma, "x")["data"]
    tokens = [2, 236781]  # <bos> and "x"
    assert gemma.count({"prompt": "x"}) == len(tokens)
    one, two = (embedded(gemma, given)["data"][0] for given in (tokens, [tokens]))
    assert one["embedding"] == two["embedding"] == text["embedding"]


@pytest.mark.parametrize("inputs", [[], "", [""], [1, "a"], [[]], 5, [2**31]])
def test_inputs_that_cannot_be_are_refused(gemma: Running, inputs: object) -> None:
    answer = gemma.client.post("/v1/embeddings", json={"input": inputs})
    assert answer.status_code == 400, answer.text


def test_an_input_longer_than_the_context_is_named(gemma: Running) -> None:
    answer = gemma.client.post("/v1/embeddings", json={"input": ["short", [5] * 5000]})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "input[1] has 5000 tokens" in answer.json()["error"]["message"]


def test_embeddings_end_when_the_client_hangs_up(gemma: Running) -> None:
    id_ = str(uuid4())
    inputs = [[number % 1000 + 300] * 100 for number in range(400)]
    connection = gemma.send("/v1/embeddings", {"input": inputs}, request_id=id_)
    until(lambda: gemma.has_read(id_, more_than=0), what="reading")
    connection.close()
    ended = gemma.usage(id_)
    assert ended["state"] == "aborted"
    assert 0 < ended["input_tokens"] < 40_000

"""Usage as each supplier says it, read into kinds that add up: golden files, one a dialect."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.suppliers.usage import (
    KINDS,
    AnthropicUsage,
    BedrockUsage,
    GeminiUsage,
    OpenAIUsage,
    Used,
    check,
)

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    pytest.param(path.stem, case, id=f"{path.stem}: {case['what']}")
    for path in sorted(GOLDEN.glob("*.json"))
    for case in json.loads(path.read_text())
]


def read(dialect: str, usage: Any) -> Used:
    match dialect:
        case "openai":
            return msgspec.convert(usage, OpenAIUsage).used()
        case "xai":
            return msgspec.convert(usage, OpenAIUsage).used_of_xai()
        case "gemini":
            return msgspec.convert(usage, GeminiUsage).used()
        case "bedrock":
            return msgspec.convert(usage, BedrockUsage).used()
    so_far: AnthropicUsage | None = None
    for said in usage:
        so_far = msgspec.convert(said, AnthropicUsage).after(so_far)
    assert so_far is not None
    return so_far.used()


@pytest.mark.parametrize(("dialect", "case"), CASES)
def test_each_way_of_counting_is_read_as_it_is_meant(dialect: str, case: dict[str, Any]) -> None:
    used = read(dialect, case["usage"])
    assert {kind: n for kind, n in used.quantities() if n} == case["used"]
    assert used.doubt == case.get("doubt")


def test_there_are_golden_files_for_five_dialects() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == {
        "openai", "xai", "anthropic", "gemini", "bedrock",
    }  # fmt: skip


N = st.integers(0, 10**6)


@given(N, N, N, N, N)
def test_an_honest_count_adds_up_in_every_dialect(
    fresh: int, read_: int, write: int, output: int, thought: int
) -> None:
    prompt, made = fresh + read_ + write, output + thought
    openai = {
        "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": read_, "cache_write_tokens": write},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }  # fmt: skip
    xai = openai | {"completion_tokens": output}
    for said in (read("openai", openai), read("xai", xai), read("openai", xai)):
        assert said == Used(
            input=fresh, cache_read=read_, cache_write=write, output=output, reasoning=thought
        )
    gemini = {
        "promptTokenCount": fresh + read_, "cachedContentTokenCount": read_,
        "candidatesTokenCount": output, "thoughtsTokenCount": thought,
        "totalTokenCount": fresh + read_ + made,
    }  # fmt: skip
    assert read("gemini", gemini).total == fresh + read_ + made
    bedrock = {
        "inputTokens": fresh, "outputTokens": output, "totalTokens": prompt + output,
        "cacheReadInputTokens": read_, "cacheWriteInputTokens": write,
    }  # fmt: skip
    assert read("bedrock", bedrock).total == prompt + output
    assert read("bedrock", bedrock | {"inputTokens": prompt}) == read("bedrock", bedrock)


def test_more_than_was_asked_for_or_shown_is_doubted_and_still_counted() -> None:
    used = Used(input=5, output=900)
    assert check(used, most_output=1000, answer_bytes=1000).doubt is None
    doubted = check(used, most_output=16, answer_bytes=40)
    assert doubted.doubt is not None and "asked for 16" in doubted.doubt
    assert "40 bytes" in doubted.doubt
    assert [n for _, n in doubted.quantities()] == [n for _, n in used.quantities()]
    assert len(KINDS) == 6

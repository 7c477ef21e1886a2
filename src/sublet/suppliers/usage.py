"""What a supplier says a call used, in kinds that add up.

Each supplier counts in its own way, and each way has cost somebody money who read it as another:

    openai     prompt_tokens hold the cached and the written ones, completion_tokens the reasoning
    xai        completion_tokens do not hold the reasoning; the numbers by modality overlap
    anthropic  input_tokens hold neither the cached nor the written ones
    gemini     promptTokenCount holds the cached ones, candidatesTokenCount not the thoughts
    bedrock    inputTokens hold the cached ones or not: totalTokens says which

What comes out is disjoint, and its sum is the supplier's own total where it gives one. Where it is
not, or where a part is larger than its whole, the use has a `doubt`: it is paid as it was told, and
named when the invoice is looked at. Pure: no network, no database.
"""

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

KINDS: Final = (
    "input", "cache_read", "cache_write", "cache_write_long", "output", "reasoning",
)  # fmt: skip
_Count = Annotated[int, Meta(ge=0, le=2**53)]


class Used(Struct, frozen=True, kw_only=True):
    """Tokens of one call, disjoint."""

    input: _Count = 0  # worked on, and not kept
    cache_read: _Count = 0
    cache_write: _Count = 0  # kept for minutes
    cache_write_long: _Count = 0  # kept for an hour
    output: _Count = 0
    reasoning: _Count = 0
    doubt: str | None = None  # what of it cannot be right

    @property
    def prompt(self) -> int:
        return self.input + self.cache_read + self.cache_write + self.cache_write_long

    @property
    def made(self) -> int:
        return self.output + self.reasoning

    @property
    def total(self) -> int:
        return self.prompt + self.made

    def quantities(self) -> Iterator[tuple[str, int]]:
        for kind in KINDS:
            yield kind, getattr(self, kind)

    def doubted(self, doubt: str | None) -> "Used":
        """Return it with one doubt more."""
        if doubt is None:
            return self
        both = doubt if self.doubt is None else f"{self.doubt}; {doubt}"
        return msgspec.structs.replace(self, doubt=both)


# ── OpenAI and xAI ───────────────────────────────────────────────────────────────────────


class _PromptDetails(Struct):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None


class _CompletionDetails(Struct):
    reasoning_tokens: _Count | None = None


class OpenAIUsage(Struct):
    prompt_tokens: _Count
    completion_tokens: _Count = 0
    total_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: _Count | None = None  # some that speak it say this instead

    def used(self) -> Used:
        return self._used(reasoning_apart=False)

    def used_of_xai(self) -> Used:
        return self._used(reasoning_apart=True)

    def _used(self, *, reasoning_apart: bool) -> Used:
        details, made = self.prompt_tokens_details, self.completion_tokens_details
        read = (details.cached_tokens if details else None) or self.prompt_cache_hit_tokens or 0
        write = (details.cache_write_tokens if details else None) or 0
        thought = (made.reasoning_tokens if made else None) or 0
        prompt, completion = self.prompt_tokens, self.completion_tokens
        # Whoever counts the reasoning apart says so by the total.
        whole = prompt + completion
        if thought and self.total_tokens is not None and self.total_tokens != whole:
            reasoning_apart = self.total_tokens == whole + thought
        elif thought and self.total_tokens == whole:
            reasoning_apart = False
        doubt = None
        if read + write > prompt:
            read = min(read, prompt)
            write = min(write, prompt - read)
            doubt = "more of the prompt was cached than it has tokens"
        if not reasoning_apart and thought > completion:
            thought, doubt = completion, "more was thought than answered"
        used = Used(
            input=prompt - read - write,
            cache_read=read,
            cache_write=write,
            output=completion if reasoning_apart else completion - thought,
            reasoning=thought,
            doubt=doubt,
        )
        return used.doubted(_adds_up(used, self.total_tokens))


# ── Anthropic ────────────────────────────────────────────────────────────────────────────


class _Creation(Struct):
    ephemeral_5m_input_tokens: _Count | None = None
    ephemeral_1h_input_tokens: _Count | None = None


class AnthropicUsage(Struct):
    """Of `message_start`, and then of `message_delta`, which counts on and may leave things out."""

    input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_creation: _Creation | None = None
    output_tokens: _Count | None = None
    service_tier: str | None = None

    def after(self, before: "AnthropicUsage | None") -> "AnthropicUsage":
        """Return the two as one: what is said later stands."""
        if before is None:
            return self
        said = {
            name: getattr(before, name) if getattr(self, name) is None else getattr(self, name)
            for name in self.__struct_fields__
        }
        return AnthropicUsage(**said)

    def used(self) -> Used:
        written = self.cache_creation_input_tokens or 0
        long, doubt = 0, None
        if self.cache_creation is not None:
            short = self.cache_creation.ephemeral_5m_input_tokens or 0
            long = self.cache_creation.ephemeral_1h_input_tokens or 0
            if self.cache_creation_input_tokens is None:
                written = short + long
            elif short + long != written:
                long = min(long, written)
                doubt = "what was written to the cache does not add up"
        return Used(
            input=self.input_tokens or 0,
            cache_read=self.cache_read_input_tokens or 0,
            cache_write=written - long,
            cache_write_long=long,
            output=self.output_tokens or 0,
            doubt=doubt,
        )


# ── Gemini ───────────────────────────────────────────────────────────────────────────────


class GeminiUsage(Struct, rename="camel"):
    prompt_token_count: _Count = 0
    cached_content_token_count: _Count = 0
    candidates_token_count: _Count = 0
    thoughts_token_count: _Count = 0
    tool_use_prompt_token_count: _Count = 0
    total_token_count: _Count | None = None

    def used(self) -> Used:
        prompt, read, doubt = self.prompt_token_count, self.cached_content_token_count, None
        if read > prompt:
            read, doubt = prompt, "more of the prompt was cached than it has tokens"
        used = Used(
            input=prompt - read + self.tool_use_prompt_token_count,
            cache_read=read,
            output=self.candidates_token_count,
            reasoning=self.thoughts_token_count,
            doubt=doubt,
        )
        return used.doubted(_adds_up(used, self.total_token_count))


# ── Bedrock ──────────────────────────────────────────────────────────────────────────────


class _CacheDetail(Struct, rename="camel"):
    ttl: str = ""
    input_tokens: _Count = 0


class BedrockUsage(Struct, rename="camel"):
    input_tokens: _Count
    output_tokens: _Count
    total_tokens: _Count | None = None
    cache_read_input_tokens: _Count = 0
    cache_write_input_tokens: _Count = 0
    cache_details: list[_CacheDetail] = []

    def used(self) -> Used:
        read, write = self.cache_read_input_tokens, self.cache_write_input_tokens
        # Whether the input holds the cached ones, the total says; where it does not, they are apart.
        inside = (
            read + write > 0
            and self.total_tokens == self.input_tokens + self.output_tokens
            and read + write <= self.input_tokens
        )
        long = sum(detail.input_tokens for detail in self.cache_details if detail.ttl == "1h")
        doubt = None
        if long > write:
            long, doubt = write, "what was written to the cache does not add up"
        used = Used(
            input=self.input_tokens - (read + write if inside else 0),
            cache_read=read,
            cache_write=write - long,
            cache_write_long=long,
            output=self.output_tokens,
            doubt=doubt,
        )
        total = self.total_tokens
        if total == self.input_tokens + self.output_tokens and not inside:
            return used  # a total that leaves the cached ones out
        return used.doubted(_adds_up(used, total))


def _adds_up(used: Used, total: int | None) -> str | None:
    if total is None or total == used.total:
        return None
    return f"its parts are {used.total} tokens, its total {total}"


def check(used: Used, *, most_output: int | None, answer_bytes: int) -> Used:
    """Return it with a doubt where it counts more than can have been.

    Args:
        used: what the supplier says.
        most_output: the most tokens that it was asked for; None: as many as it likes.
        answer_bytes: of all that came: a token that is shown has at least one.
    """
    if most_output is not None and used.made > most_output:
        used = used.doubted(f"{used.made} tokens of output, asked for {most_output} at most")
    if used.output > answer_bytes + _UNSHOWN:
        used = used.doubted(f"{used.output} tokens of output in {answer_bytes} bytes")
    return used


_UNSHOWN: Final = 256  # tokens around calls of tools, and ends of turns, that nobody sees

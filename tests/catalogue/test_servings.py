"""A serving recipe is a file: what it says is what is started, and what it cannot serve is told."""

from pathlib import Path
from uuid import UUID

import pytest

from sublet.core.errors import Invalid, NotFound
from sublet.models import serving
from sublet.models.formats.source import Facts
from sublet.models.replica.recipe import Licence, Recipe, SealedFile, SealedWeights
from sublet.models.serving import SERVINGS, Serving

GIB = 1 << 30
FACTS = Facts(
    format="safetensors", architecture="LlamaForCausalLM", parameters=8_030_261_248,
    weights_bytes=16 * GIB, context_tokens=131_072, layers=32, cache_token_bytes=131_072,
    chat_template=True,
)  # fmt: skip


def recipe(name: str, facts: Facts = FACTS) -> Recipe:
    made = serving.load(name)
    context = made.context_for(facts, None)
    made.check(facts, context_tokens=context)
    return made.recipe(
        name="acme/llama", title="Llama", context_tokens=context,
        weights=SealedWeights(
            artefact=UUID(int=1), files=(SealedFile(path="model.safetensors", size=1, sha256="00"),)
        ),
        licence=Licence(name="llama3", url="https://llama.example"),
    )  # fmt: skip


def test_three_engines_ship() -> None:
    found = {name: serving.load(name) for name in serving.available()}
    assert {one.engine for one in found.values()} == {"llama.cpp", "vllm", "sglang"}


def test_vllm_is_started_as_its_file_says() -> None:
    command, environment = serving.command_line(
        recipe("vllm"), weights=Path("/job/weights"), port=8001, key="secret"
    )
    assert command == [
        "vllm", "serve", "/job/weights", "--served-model-name", "acme/llama",
        "--host", "127.0.0.1", "--port", "8001", "--tensor-parallel-size", "1",
        "--max-model-len", "32768", "--max-num-seqs", "256", "--max-num-batched-tokens", "8192",
        "--gpu-memory-utilization", "0.9", "--load-format", "safetensors",
        "--enable-prefix-caching", "--enable-prompt-tokens-details", "--no-enable-log-requests",
    ]  # fmt: skip
    assert environment["VLLM_API_KEY"] == "secret"
    assert "secret" not in command


def test_sglang_is_started_as_its_file_says() -> None:
    command, _ = serving.command_line(
        recipe("sglang"), weights=Path("/job/weights"), port=8002, key="secret"
    )
    assert command == [
        "python3", "-m", "sglang.launch_server", "--model-path", "/job/weights",
        "--served-model-name", "acme/llama", "--host", "127.0.0.1", "--port", "8002",
        "--api-key", "secret", "--tp-size", "1", "--context-length", "32768",
        "--max-running-requests", "256", "--chunked-prefill-size", "8192",
        "--mem-fraction-static", "0.88", "--load-format", "safetensors",
        "--enable-cache-report", "--enable-metrics",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_no_recipe_that_ships_lets_a_model_bring_code(name: str) -> None:
    told = (SERVINGS / f"{name}.toml").read_text(encoding="utf-8")
    assert "trust-remote-code" not in told
    assert '"--load-format", "safetensors"' in told


def test_the_recipe_is_chosen_by_what_the_weights_are() -> None:
    assert serving.choose(FACTS).engine in {"vllm", "sglang"}
    assert serving.choose(replaced(format="gguf", architecture="llama")).name == "llama.cpp"
    with pytest.raises(Invalid, match="no recipe serves the architecture 'unheard'"):
        serving.choose(replaced(architecture="unheard"))


def replaced(**changes: object) -> Facts:
    from dataclasses import replace  # noqa: PLC0415

    return replace(FACTS, **changes)  # type: ignore[arg-type]


def test_what_does_not_fit_is_told_before_a_lease_is_spent() -> None:
    vllm = serving.load("vllm")
    with pytest.raises(Invalid, match=r"needs 144\.5 GiB"):
        vllm.check(replaced(weights_bytes=140 * GIB), context_tokens=32_768)
    with pytest.raises(Invalid, match="does not serve the architecture 'BertModel'"):
        vllm.check(replaced(architecture="BertModel"), context_tokens=4096)
    with pytest.raises(Invalid, match="not gguf"):
        vllm.check(replaced(format="gguf"), context_tokens=4096)
    with pytest.raises(Invalid, match=r"context_tokens must lie in 1…32768"):
        vllm.context_for(FACTS, 65_536)
    assert vllm.context_for(replaced(context_tokens=2048), None) == 2048


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('engine = "vllm"', 'engine = "tgi"', "engine has tgi"),
        ('"{port}"', '"{prot}"', "no word that is filled in"),
        ("slots = 256", "slots = 0", "slots must be at least 1"),
        ("cpu = false", "cpus = false", "unknown key cpus"),
        ('formats = ["safetensors"]', 'formats = ["pickle"]', "formats has pickle"),
        ("memory_bytes = 72_000_000_000", "memory_bytes = 0", "memory_bytes must be"),
    ],
)
def test_a_file_that_says_too_little_or_too_much_is_refused(
    old: str, new: str, says: str | None
) -> None:
    told = (SERVINGS / "vllm.toml").read_text(encoding="utf-8")
    assert old in told
    if says is None:
        assert isinstance(serving.parse(told, source="vllm.toml"), Serving)
        return
    with pytest.raises(Invalid, match=says):
        serving.parse(told.replace(old, new, 1), source="bad.toml")


def test_an_operators_own_recipe_goes_before_the_one_that_ships(tmp_path: Path) -> None:
    told = (SERVINGS / "vllm.toml").read_text(encoding="utf-8")
    (tmp_path / "vllm.toml").write_text(told.replace("slots = 256", "slots = 7"), encoding="utf-8")
    assert serving.load("vllm", own=tmp_path).slots == 7
    assert serving.load("sglang", own=tmp_path).slots == 256
    with pytest.raises(NotFound, match=r"there are: llama\.cpp, sglang, vllm"):
        serving.load("../vllm")

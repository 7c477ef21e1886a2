"""Serving recipes: how an engine serves whatever model somebody brings. A file each, no code.

A serving recipe says which formats and architectures its engine reads, what a replica needs, and
where the engine is a program of its own, its command line. With a model's weights it makes a
`Recipe`, which is all that a replica needs to know.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sublet.core.errors import Invalid, NotFound
from sublet.models.formats.source import Facts
from sublet.models.replica.recipe import (
    Licence,
    Price,
    Recipe,
    Sampling,
    SealedWeights,
    check_values,
    read,
)

SERVINGS: Final = Path(__file__).parent / "servings"
_FEATURES: Final = frozenset({"tools", "json", "logprobs", "images"})
_ENGINES: Final = frozenset({"llama.cpp", "vllm", "sglang"})
_FORMATS: Final = frozenset({"gguf", "safetensors"})
# What a command may leave open.
_HOLES: Final = frozenset(
    {"weights", "name", "port", "key", "gpus", "threads", "slots", "context_tokens", "batch_tokens"}
)
_HOLE: Final = re.compile(r"\{([^{}]*)\}")
# The engine's own memory, beside weights and caches.
_OVERHEAD_BYTES: Final = 512 << 20
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    name: str
    title: str
    engine: str
    formats: tuple[str, ...]
    architectures: tuple[str, ...]
    cpu: bool  # runs where there is no GPU
    gpus: int
    memory_bytes: int  # of all its GPUs, for weights and caches
    threads: int
    slots: int
    context_tokens: int  # of one slot, at most
    batch_tokens: int
    sampling: Sampling
    price: Price
    features: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    trim: bool = False
    command: tuple[str, ...] = ()  # where the engine is a program of its own
    environment: Mapping[str, str] = field(default_factory=dict)

    def context_for(self, facts: Facts, asked: int | None) -> int:
        """Return the context of a slot: as asked, or as long as model and recipe allow.

        Raises:
            Invalid: what is asked is longer.
        """
        most = min(self.context_tokens, facts.context_tokens)
        if asked is None:
            return most
        if not 1 <= asked <= most:
            raise Invalid(
                f"context_tokens must lie in 1…{most}: the model was trained for"
                f" {facts.context_tokens}, and recipe {self.name} serves {self.context_tokens}"
            )
        return asked

    def check(self, facts: Facts, *, context_tokens: int) -> None:
        """Hold a model against what this recipe serves, before a lease is spent on it.

        Raises:
            Invalid: its format or architecture is not served, or it is too large.
        """
        if facts.format not in self.formats:
            raise Invalid(
                f"recipe {self.name} serves {', '.join(self.formats)}, not {facts.format}"
            )
        if facts.architecture not in self.architectures:
            raise Invalid(
                f"recipe {self.name} does not serve the architecture {facts.architecture!r}; it"
                f" serves: {', '.join(self.architectures)}"
            )
        cache = self.slots * context_tokens * facts.cache_token_bytes if self.engine == "llama.cpp" else (
            context_tokens * facts.cache_token_bytes  # paged: one whole context must fit
        )  # fmt: skip
        needs = facts.weights_bytes + cache + _OVERHEAD_BYTES
        if needs > self.memory_bytes:
            raise Invalid(
                f"the model needs {needs / _GIB:.1f} GiB ({facts.weights_bytes / _GIB:.1f} of"
                f" weights, {cache / _GIB:.1f} of caches for {context_tokens} tokens), and a replica"
                f" of recipe {self.name} has {self.memory_bytes / _GIB:.1f}: ask for a shorter"
                " context, or another recipe"
            )

    def recipe(
        self,
        *,
        name: str,
        title: str,
        context_tokens: int,
        weights: SealedWeights,
        licence: Licence,
        chat_template: str = "",
    ) -> Recipe:
        """Return what a replica of this model must know."""
        sampling = Sampling(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=min(self.sampling.max_tokens, context_tokens),
        )
        return Recipe(
            name=name,
            title=title,
            engine=self.engine,
            gpus=self.gpus,
            threads=self.threads,
            slots=self.slots,
            context_tokens=context_tokens,
            batch_tokens=self.batch_tokens,
            chat_template=chat_template,
            stop=self.stop,
            trim=self.trim,
            licence=licence,
            sampling=sampling,
            price=self.price,
            features=self.features,
            sealed=weights,
            cpu=self.cpu,
            command=self.command,
            environment=self.environment,
        )


def available(own: Path | None = None) -> list[str]:
    """Return the names of the serving recipes that ship, and of the operator's `own`."""
    return sorted(path.stem for folder in _folders(own) for path in folder.glob("*.toml"))


def load(name: str, *, own: Path | None = None) -> Serving:
    """Read a serving recipe by its name; the operator's own goes before one that ships.

    Raises:
        NotFound: there is none of this name.
        Invalid: the file does not say what a serving recipe must.
    """
    for folder in _folders(own):
        path = folder / f"{name}.toml"
        if path.parent == folder and path.is_file():
            serving = parse(path.read_text(encoding="utf-8"), source=path.name)
            if serving.name != name:
                raise Invalid(f"{path.name}: its name is {serving.name!r}, not the file's")
            return serving
    raise NotFound(f"no recipe {name[:100]!r}; there are: {', '.join(available(own))}")


def parse(text: str, *, source: str) -> Serving:
    """Read a serving recipe from TOML; `source` names it in errors.

    Raises:
        Invalid: it is not TOML, or a key is missing, unknown or of no use.
    """
    serving = read(text, Serving, source=source)
    for said, known, what in (
        ((serving.engine,), _ENGINES, "engine"),
        (serving.formats, _FORMATS, "formats"),
        (serving.features, _FEATURES, "features"),
    ):
        if unknown := sorted(set(said) - known):
            raise Invalid(
                f"{source}: {what} has {', '.join(unknown)}; there are {', '.join(sorted(known))}"
            )
    if not serving.formats or not serving.architectures:
        raise Invalid(f"{source}: formats and architectures name at least one each")
    if bool(serving.command) == (serving.engine == "llama.cpp"):
        raise Invalid(
            f"{source}: llama.cpp is run by Sublet's own agent and takes no command; others need one"
        )
    for piece in (*serving.command, *serving.environment.values()):
        if unknown := sorted(set(_HOLE.findall(piece)) - _HOLES):
            raise Invalid(
                f"{source}: {{{unknown[0]}}} is no word that is filled in; there are"
                f" {', '.join(sorted(_HOLES))}"
            )
    check_values(serving, source)
    if serving.memory_bytes < 1:
        raise Invalid(f"{source}: memory_bytes must be at least 1")
    return serving


def choose(facts: Facts, *, own: Path | None = None) -> Serving:
    """Return the first serving recipe, by name, that serves a model of these facts.

    Raises:
        Invalid: none does.
    """
    every = [load(name, own=own) for name in available(own)]
    for serving in every:
        if facts.format in serving.formats and facts.architecture in serving.architectures:
            return serving
    raise Invalid(
        f"no recipe serves the architecture {facts.architecture!r} as {facts.format}; there are:"
        f" {', '.join(serving.name for serving in every)}"
    )


def command_line(
    recipe: Recipe, *, weights: Path, port: int, key: str
) -> tuple[list[str], dict[str, str]]:
    """Return (command, environment) of an engine that is a program of its own.

    Args:
        recipe: with a command.
        weights: the folder of its files, or the one file.
        port: on this machine, for it to listen on.
        key: for it to ask of whoever calls it.
    """
    words = {
        "weights": str(weights), "name": recipe.name, "port": str(port), "key": key,
        "gpus": str(recipe.gpus), "threads": str(recipe.threads), "slots": str(recipe.slots),
        "context_tokens": str(recipe.context_tokens), "batch_tokens": str(recipe.batch_tokens),
    }  # fmt: skip

    def fill(text: str) -> str:
        return _HOLE.sub(lambda hole: words[hole[1]], text)

    return [fill(piece) for piece in recipe.command], {
        name: fill(value) for name, value in recipe.environment.items()
    }


def _folders(own: Path | None) -> list[Path]:
    return [SERVINGS] if own is None else [own, SERVINGS]

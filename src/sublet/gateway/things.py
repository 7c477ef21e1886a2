"""The paths of what a tenant keeps at the gateway, and what may be done with each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote


class Things(StrEnum):
    FILES = "files"
    BATCHES = "batches"
    MESSAGE_BATCHES = "messages/batches"
    TUNINGS = "fine_tuning/jobs"


_PATH: Final = re.compile(
    r"^(?:(?:/openai)?/v1/(files|batches|fine_tuning/jobs)|(?:/anthropic)?/v1/(messages/batches))((?:/[^/]+){0,2})\Z"
)
_READ: Final = b"GET, HEAD, OPTIONS"
# By what is behind the kind in a path: "" for all of them, "*" for one, and verbs behind that.
_METHODS: Final[Mapping[Things, Mapping[str, bytes]]] = MappingProxyType(
    {
        Things.FILES: {
            "": b"GET, HEAD, POST, OPTIONS",
            "*": b"GET, HEAD, DELETE, OPTIONS",
            "content": _READ,
        },
        Things.BATCHES: {"": b"GET, HEAD, POST, OPTIONS", "*": _READ, "cancel": b"POST, OPTIONS"},
        Things.TUNINGS: {
            "": b"GET, HEAD, POST, OPTIONS",
            "*": _READ,
            "cancel": b"POST, OPTIONS",
            "events": _READ,
            "checkpoints": _READ,
        },
        Things.MESSAGE_BATCHES: {
            "": b"GET, HEAD, POST, OPTIONS",
            "*": b"GET, HEAD, DELETE, OPTIONS",
            "cancel": b"POST, OPTIONS",
            "results": _READ,
        },
    }
)


@dataclass(frozen=True, slots=True)
class Thing:
    """What a path names: all of a kind, one by its id, or something of that one."""

    kind: Things
    rest: tuple[str, ...]
    methods: bytes


@lru_cache(1024)
def find(path: str) -> Thing | None:
    """Return what a path names, if it is of these."""
    found = _PATH.match(path)
    if found is None:
        return None
    kind = Things(found[1] or found[2])
    rest = tuple(unquote(part) for part in found[3].split("/")[1:])
    what = rest[1] if len(rest) > 1 else "*" if rest else ""
    methods = _METHODS[kind].get(what)
    return None if methods is None else Thing(kind, rest, methods)

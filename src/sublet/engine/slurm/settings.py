"""How Sublet reaches a Slurm cluster, read once from a file."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from sublet.core.errors import Misconfigured


class Format(StrEnum):
    AUTO = "auto"  # JSON where it is offered, known and fast enough
    JSON = "json"
    TEXT = "text"


class Windows(StrEnum):
    """What becomes of a firm window that an internal job wants the GPUs of."""

    YIELD = "yield"  # the job comes first, as everywhere
    HOLD = "hold"  # Slurm holds its whole nodes against everybody
    OFF = "off"  # there are no reservations in Slurm


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """`docs/operate/slurm.md` says what each is for; a test holds it to this list."""

    shared: Path  # a folder that login and compute nodes see under the same path
    partition: str = "sublet"  # leases run here, and its nodes are what may be lent
    account: str | None = None  # leases are submitted with it
    qos: str | None = None
    python: str = "python3"  # on compute nodes: 3.11 or newer
    conf: str | None = None  # SLURM_CONF, where it is not the default
    bin: str | None = None  # folder of Slurm's commands, where they are not on PATH
    windows: Windows = Windows.YIELD  # how firm windows stand in Slurm as reservations
    format: Format = Format.AUTO
    rest: str | None = (
        None  # slurmrestd, such as http://127.0.0.1:6820: queue and nodes are read there
    )
    rest_token: str | None = None  # file of its token; else SLURM_JWT
    timeout_seconds: float = 15.0  # of each command of Slurm
    longest_period_seconds: float = 10.0  # between two looks at a slow controller


def load_settings(path: Path) -> SlurmSettings:
    """Read a TOML file.

    Raises:
        Misconfigured: it cannot be read, or holds a key that is unknown or of the wrong kind.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Misconfigured(f"the Slurm settings {path} cannot be read: {error}") from error
    return parse_settings(document, where=str(path))


def parse_settings(document: Mapping[str, object], *, where: str) -> SlurmSettings:
    """Make settings of what a file holds.

    Raises:
        Misconfigured: names the key, what is wrong with it, and what it may be.
    """
    if "exclusive" in document:  # as it was once
        raise Misconfigured(f"{where}: 'exclusive' is said of each pool now: take it out, and"
                            " `sublet pool set POOL --exclusive`")  # fmt: skip
    known = {field.name for field in fields(SlurmSettings)}
    if unknown := sorted(set(document) - known):
        raise Misconfigured(f"{where}: {unknown[0]!r} is no setting of Slurm; there are: "
                            f"{', '.join(sorted(known))}")  # fmt: skip
    shared = document.get("shared")
    if not isinstance(shared, str) or not shared.startswith("/"):
        raise Misconfigured(f"{where}: 'shared' must be the absolute path of a folder that login"
                            " and compute nodes share")  # fmt: skip
    settings = SlurmSettings(shared=Path(shared))
    for name, value in document.items():
        if name != "shared":
            settings = replace(settings, **{name: _checked(name, value, where=where)})
    return settings


_TEXTS: Final = frozenset({"partition", "python"})
_OPTIONAL_TEXTS: Final = frozenset({"account", "qos", "conf", "bin", "rest_token"})


def _checked(name: str, value: object, *, where: str) -> Any:
    if name in _TEXTS | _OPTIONAL_TEXTS and isinstance(value, str) and value:
        return value
    if name == "rest" and isinstance(value, str):
        address = urlsplit(value)
        if address.scheme in {"http", "https"} and address.hostname:
            return value.rstrip("/")
    if name == "format" and value in set(Format):
        return Format(str(value))
    if name == "windows" and value in set(Windows):
        return Windows(str(value))
    if name.endswith("_seconds") and isinstance(value, int | float) and value > 0:
        return float(value)
    kinds = {
        "format": "auto, json or text",
        "windows": "yield, hold or off",
        "rest": "an address such as http://127.0.0.1:6820",
    }
    kind = kinds.get(name, "a positive number" if name.endswith("_seconds") else "a text")
    raise Misconfigured(f"{where}: {name!r} must be {kind}, not {value!r}")

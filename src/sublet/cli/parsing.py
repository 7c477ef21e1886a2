"""What people write on the command line, as values.

Every function raises typer.BadParameter, which Typer prints with the option's name.
"""

import re
from pathlib import Path
from typing import Final

import typer

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(?:[0-9]+[smhdw])+")
_DURATION_PART: Final = re.compile(r"([0-9]+)([smhdw])")
_SIZE: Final = re.compile(r"([0-9]+)([kmgt]?)(?:i?b)?", re.IGNORECASE)
_LONGEST_SECONDS: Final = 10 * 366 * 86_400


def seconds(text: str) -> int:
    """Read a duration: "90s", "15m", "1h30m", "7d", or a bare number of seconds."""
    if text.isascii() and text.isdigit():
        total = int(text[:20])
    elif _DURATION.fullmatch(text):
        total = sum(int(n[:20]) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
    else:
        raise typer.BadParameter(f"{text[:40]!r} is not a duration such as 90s, 15m, 1h30m or 7d")
    if not 0 < total <= _LONGEST_SECONDS:
        raise typer.BadParameter(f"{text[:40]!r} must be more than nothing and at most ten years")
    return total


def size_bytes(text: str) -> int:
    """Read a size: "512M", "2GiB", or a bare number of bytes. A K is 1024 bytes."""
    if (match := _SIZE.fullmatch(text)) is None:
        raise typer.BadParameter(f"{text[:40]!r} is not a size such as 512M or 2G")
    number, unit = match.groups()
    total = int(number[:20]) << 10 * " kmgt".index(unit.lower() or " ")
    if not 0 < total < 2**63:
        raise typer.BadParameter(f"{text[:40]!r} must be more than nothing and below 8 exabytes")
    return total


def environment(pairs: list[str]) -> dict[str, str]:
    """Read KEY=VALUE pairs; a value may hold further `=`, and may be empty."""
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{pair[:40]!r} is not KEY=VALUE", param_hint="--env")
        if key in values:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint="--env")
        values[key] = value
    return values


def files(specs: list[str]) -> dict[str, str]:
    """Read the files named as LOCAL or LOCAL:REMOTE into {remote path: base64}."""
    # Here and not above: most commands send no files.
    from base64 import b64encode  # noqa: PLC0415

    contents: dict[str, str] = {}
    for spec in specs:
        local, remote = file_names(spec, exists=Path(spec).is_file())
        if remote in contents:
            raise typer.BadParameter(f"{remote!r} is given twice", param_hint="--file")
        try:
            contents[remote] = b64encode(Path(local).read_bytes()).decode()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise typer.BadParameter(f"{local}: {why}", param_hint="--file") from None
    return contents


def file_names(spec: str, *, exists: bool) -> tuple[str, str]:
    """Split LOCAL[:REMOTE]; `exists` says that the whole of `spec` is a file's name here."""
    local, colon, remote = spec.rpartition(":")
    if exists or not colon:
        local, remote = spec, Path(spec).name
    if not local or not remote:
        raise typer.BadParameter(f"{spec[:80]!r} is not LOCAL or LOCAL:REMOTE", param_hint="--file")
    return local, remote


def limit(text: str) -> int | None:
    """Read a number of GPUs; None for "none", which is no limit."""
    if text.lower() == "none":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise typer.BadParameter(
            f"{text[:40]!r} is neither a number of GPUs nor none", param_hint="--limit"
        )
    return int(text)


def share(text: str) -> float:
    """Read a share such as 0.99."""
    if not re.fullmatch(r"[01](\.[0-9]{1,9})?", text, re.ASCII):
        raise typer.BadParameter(f"{text[:40]!r} is not a share such as 0.99")
    return float(text)

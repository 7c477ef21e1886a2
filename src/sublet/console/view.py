"""Templates, and how values are written in them."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sublet.console.page import BASE

_ROOT: Final = resources.files("sublet.console")
NONE: Final = "\N{EN DASH}"  # where there is no value
_MINUS: Final = "\N{MINUS SIGN}"
KINDS: Final[Mapping[str, str]] = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@cache
def asset(name: str) -> bytes:
    """Return a file that pages load. Raises FileNotFoundError: there is no such one."""
    if "/" in name or name.partition(".")[2] not in KINDS:
        raise FileNotFoundError(name)
    return (_ROOT / "static" / name).read_bytes()


@cache
def asset_address(name: str) -> str:
    """Return an address that changes with the file, so that browsers may keep it for ever."""
    version = hashlib.sha256(asset(name)).hexdigest()[:12]
    return f"{BASE}/static/{version}/{name}"


def usd(value: Any, places: int = 2) -> str:
    """Write an amount for people: "$1,234.50"; more places where it would be nothing."""
    if value is None:
        return NONE
    number = float(value)
    if number and abs(number) < 0.01 and places == 2:
        places = 6
    sign = _MINUS if number < 0 else ""
    return f"{sign}${abs(number):,.{places}f}"


def rate(value: Any) -> str:
    """Write a price of a unit: cents, and what is smaller only where there is some of it."""
    if value is None:
        return NONE
    return usd(value, 2 if round(float(value) * 100, 6) % 1 == 0 else 4)


def number(value: Any, places: int = 0) -> str:
    return NONE if value is None else f"{float(value):,.{places}f}"


def share(value: Any, places: int = 1) -> str:
    return NONE if value is None else f"{100 * float(value):.{places}f} %"


def seconds(value: Any) -> str:
    """Write a duration in its two largest units: "2 h 5 min"."""
    if value is None:
        return NONE
    if isinstance(value, timedelta):
        value = value.total_seconds()
    left = float(value)
    if left < 10 and left != int(left):
        return f"{left:.2f} s"
    whole = round(left)
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if whole >= size or (name == "s" and not parts):
            parts.append(f"{whole // size} {name}")
            whole %= size
    return " ".join(parts[:2])


def instant(value: Any) -> Markup | str:
    """Write an instant in UTC; the browser shows it in the reader's own zone, too."""
    if value is None:
        return NONE
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="seconds"), at.strftime("%Y-%m-%d %H:%M:%S")
    )


def words(value: Any) -> str:
    """Write an enum's value for people: "on demand"."""
    return NONE if value is None else str(value).replace("_", " ")


def data(value: object) -> Markup:
    """Write JSON into a page's data block: "<" could end it."""
    text = json.dumps(value, separators=(",", ":"), default=str)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))  # noqa: S704 -- JSON, and no "<"


def link(path: str, **query: Any) -> str:
    """Return an address of the console with these parameters; those that are None are left out."""
    asked = {name: value for name, value in query.items() if value is not None and value != ""}
    return f"{BASE}{path}" + (f"?{urlencode(asked)}" if asked else "")


def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("sublet.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "usd": usd, "rate": rate, "number": number, "share": share, "seconds": seconds, "instant": instant,
        "words": words, "data": data,
    }  # fmt: skip
    made.globals |= {"asset": asset_address, "link": link, "base": BASE}
    return made

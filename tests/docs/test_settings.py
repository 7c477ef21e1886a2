"""docs/operate/settings.md says what config.py says."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

from typer.main import get_command

from sublet.cli.root import build
from sublet.config import Config, variable_of

PAGE = Path(__file__).parents[2] / "docs" / "operate" / "settings.md"
# Where the default is found out, or is no literal.
_WORDS = {
    "data": "~/.local/share/sublet",
    "slots": "one for each CPU core",
    "database_url": "an embedded PostgreSQL",
}


def _rows() -> dict[str, tuple[str, str]]:
    """Return {variable: (flag, default)} of the page's table."""
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.*?) \| .+ \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    return {name: (flag.strip("`"), default.strip("`")) for name, flag, default in rows}


def test_every_setting_is_on_the_page_and_nothing_else() -> None:
    assert list(_rows()) == [variable_of(field.name) for field in fields(Config)]


def test_the_defaults_on_the_page_are_those_in_force() -> None:
    rows = _rows()
    for field in fields(Config):
        default = field.default
        if isinstance(default, bool):
            default = int(default)
        expected = _WORDS.get(field.name) or ("none" if default is None else str(default))
        assert default is not MISSING or field.name in _WORDS, field.name
        assert rows[variable_of(field.name)][1] == expected


def test_the_flags_on_the_page_are_those_of_sublet_up() -> None:
    up = get_command(build()).commands["up"]  # type: ignore[attr-defined]
    taken = {option for parameter in up.params for option in parameter.opts}
    named = {flag for flag, _ in _rows().values() if flag != "none"}
    assert named == taken - {"--help"}

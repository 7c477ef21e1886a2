"""Names that people give to things: what may be one."""

import unicodedata
from typing import Final

from sublet.core.errors import Invalid

_LONGEST: Final = 100
_REFUSED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def checked_name(name: str, *, what: str) -> str:
    """Return `name` trimmed and in Unicode's composed form.

    Raises:
        Invalid: empty, over 100 characters, or with control characters or lone surrogates.
    """
    name = unicodedata.normalize("NFC", name.strip())
    if not name:
        raise Invalid(f"{what} must not be empty")
    if len(name) > _LONGEST:
        raise Invalid(f"{what} must have at most {_LONGEST} characters")
    # Cc: control, such as NUL; Zl, Zp: a line ends; Cs: half a character; Cf: invisible, so that
    # two names look alike.
    if any(unicodedata.category(character) in _REFUSED for character in name):
        raise Invalid(f"{what} must not have control or invisible characters")
    return name

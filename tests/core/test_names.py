import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.errors import Invalid
from sublet.core.names import checked_name


@pytest.mark.parametrize("name", ["acme", "Société Générale", "東京", "ACME & Sons (2)", "x" * 100])
def test_names_of_the_world_are_names(name: str) -> None:
    assert checked_name(name, what="name") == name


def test_one_name_is_written_in_one_way() -> None:
    assert checked_name("  Cafe\u0301 ", what="name") == "Caf\u00e9"


@pytest.mark.parametrize(
    "name",
    [
        "", "   ", "a\x00b", "a\nb", "a\x7fb", "a\x85b", "a\ud800b", "\udfff", "a\u200bb",
        "a\u200db", "a\u202eb", "a\ufeffb", "a\u00adb", "a\u2066b", "a\u2028b", "a\u2029b",
        "x" * 101,
    ],
)  # fmt: skip
def test_what_would_deceive_or_break_is_no_name(name: str) -> None:
    with pytest.raises(Invalid, match="name"):
        checked_name(name, what="name")


@given(st.text(max_size=120))
def test_a_name_that_was_taken_is_taken_again_unchanged(text: str) -> None:
    try:
        name = checked_name(text, what="name")
    except Invalid:
        return
    assert checked_name(name, what="name") == name
    assert name.isprintable() or any(
        unicodedata.category(character) in {"Zs", "Co", "Cn"} for character in name
    )
    name.encode()

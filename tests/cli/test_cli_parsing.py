from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from sublet.cli import parsing
from sublet.cli.failure import Failure, one_line
from sublet.cli.ids import whole_id
from sublet.cli.leases import create
from sublet.cli.models import pieces
from sublet.cli.verify import report
from sublet.market.price import Tier


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("15m", 900), ("1h", 3_600), ("1h30m", 5_400), ("30d", 2_592_000),
        ("2w", 1_209_600), ("45", 45),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: int) -> None:
    assert parsing.seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "0", "0s", "-5s", "1.5h", "1 h", "1y", "9" * 30 + "s", "٣s", "٣"]
)
def test_what_is_no_duration_is_said_to_be_none(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parsing.seconds(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512M", 512 << 20), ("2G", 2 << 30), ("2GiB", 2 << 30), ("1kb", 1024), ("4096", 4096)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parsing.size_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "M", "0", "-1M", "1.5G", "1X", "9" * 25])
def test_what_is_no_size_is_said_to_be_none(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parsing.size_bytes(text)


def test_environment_values_may_hold_anything() -> None:
    pairs = ["A=1", "B=x=y", "C="]
    assert parsing.environment(pairs) == {"A": "1", "B": "x=y", "C": ""}


@pytest.mark.parametrize("pairs", [["A"], ["=1"], [""], ["A=1", "A=2"]])
def test_environment_pairs_need_one_key_each(pairs: list[str]) -> None:
    with pytest.raises(typer.BadParameter):
        parsing.environment(pairs)


@pytest.mark.parametrize(
    ("spec", "exists", "names"),
    [
        ("job.py", False, ("job.py", "job.py")),
        ("src/job.py", False, ("src/job.py", "job.py")),
        ("src/job.py:run/main.py", False, ("src/job.py", "run/main.py")),
        ("odd:name.py", True, ("odd:name.py", "odd:name.py")),
        ("odd:name.py:job.py", False, ("odd:name.py", "job.py")),
    ],
)
def test_file_names(spec: str, exists: bool, names: tuple[str, str]) -> None:
    assert parsing.file_names(spec, exists=exists) == names


@pytest.mark.parametrize("spec", ["", ":", "a:", ":b"])
def test_a_file_needs_both_its_names(spec: str) -> None:
    with pytest.raises(typer.BadParameter):
        parsing.file_names(spec, exists=False)


def test_files_are_read_and_encoded(folder: Path) -> None:
    (folder / "job.py").write_bytes(b"\x00\xff")
    assert parsing.files([f"{folder}/job.py:main.py"]) == {"main.py": "AP8="}
    for bad in ([str(folder)], [f"{folder}/none.py"], [f"{folder}/job.py:x"] * 2):
        with pytest.raises(typer.BadParameter):
            parsing.files(bad)


def test_a_lending_limit_may_be_lifted() -> None:
    assert (parsing.limit("none"), parsing.limit("0"), parsing.limit("64")) == (None, 0, 64)
    for bad in ("", "-1", "many", "1.5"):
        with pytest.raises(typer.BadParameter):
            parsing.limit(bad)


@given(st.text())
def test_whatever_is_said_stays_on_one_line_and_steers_no_terminal(text: str) -> None:
    said = one_line(text)
    assert len(said.splitlines()) <= 1
    assert said.isprintable() or "\ufffd" in said


A, B = "aaaa0000-0000-0000-0000-000000000001", "aaaabbbb-0000-0000-0000-000000000002"


def test_an_id_may_be_given_by_its_unique_beginning() -> None:
    assert whole_id("aaaab", lambda: [A, B], noun="lease") == B
    assert whole_id("AAAA0000", lambda: [A, B, A], noun="lease") == A
    assert whole_id(A, list, noun="lease") == A  # whole: not looked up


@pytest.mark.parametrize("given", ["aaa", "aaaa", "ffff"])
def test_an_id_that_names_not_exactly_one_thing_is_refused(given: str) -> None:
    with pytest.raises(Failure):
        whole_id(given, lambda: [A, B], noun="lease")


def test_a_streamed_answer_is_put_together_from_its_events() -> None:
    lines = [
        ": comment",
        'data: {"choices": [{"delta": {"role": "assistant"}}]}',
        "",
        'data: {"choices": [{"delta": {"content": "Once"}}]}',
        'data: {"choices": [{"delta": {"content": " upon"}}]}',
        'data: {"choices": [], "usage": {"completion_tokens": 2}}',
        "data: [DONE]",
        'data: {"choices": [{"delta": {"content": "never"}}]}',
    ]
    assert list(pieces(lines)) == ["Once", " upon"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('data: {"error": {"message": "the replica left"}}', "the replica left"),
        ("data: {", "the gateway sent an event that is not JSON"),
        ("", "the answer broke off"),
    ],
)
def test_a_streamed_answer_that_fails_says_why(line: str, message: str) -> None:
    with pytest.raises(Failure, match=message):
        list(pieces([line]))


def test_the_audit_lists_each_law_with_its_differences() -> None:
    document = {
        "laws": {"money": {"transfers": 12, "open_holds": 1}, "internal_first": {}},
        "differences": [{"law": "money", "what": "transfer 7 is not balanced"}],
    }
    assert report(document) == [
        "money           1 DIFFERENT   12 transfers, 1 open holds",
        "  DIFFERENCE transfer 7 is not balanced",
        "internal_first  holds         nothing to count",
        "1 differences",
    ]
    assert report({"laws": {}, "differences": []}) == ["everything adds up"]


def test_the_tiers_on_the_command_line_are_the_markets() -> None:
    offered = get_args(get_args(get_type_hints(create)["tier"])[0])
    # What a contract holds is leased from its steps, with --reservation.
    assert set(offered) == set(Tier) - {Tier.CONTRACT}

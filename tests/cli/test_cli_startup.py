"""Shell completion starts the command at every press of Tab."""

import os
import subprocess
import sys

import pytest

# Typer itself loads pydantic as soon as it reads an option of a command.
HEAVY = {
    "aiohttp", "fastapi", "httpx", "lightgbm", "numpy", "polars", "psycopg", "rich", "ssl", "starlette", "sublet.app",
    "sublet.cli.client", "uvicorn",
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], {*HEAVY, "pydantic"}),
        (["lease", "create", "--help"], HEAVY),
        (["audit", "--help"], HEAVY),
    ],
)
def test_help_loads_nothing_that_is_slow(arguments: list[str], heavy: set[str]) -> None:
    program = (
        "import sys; from sublet.cli.root import run; code = run(sys.argv[1:]);"
        " print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert heavy & set(done.stderr.split()) == set()


def test_completion_offers_the_commands() -> None:
    environment = {
        **os.environ,
        "_SUBLET_COMPLETE": "complete_bash",
        "COMP_WORDS": "sublet lease ",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from sublet.cli import main; main()"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [
        "create", "list", "show", "logs", "end", "checkpoint", "connect", "notice",
    ]  # fmt: skip


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from sublet.cli import main; sys.exit(main())", "-h"],
        stdout=writing, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.stderr == b""

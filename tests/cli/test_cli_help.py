"""Every command explains itself, alike."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.cli.fake_api import Sublet
from typer.main import get_command

from sublet.cli.root import build

ROOT: Any = get_command(build())
# They talk to no API: what they print is for whoever started them.
PROCESSES = {("up",), ("control",), ("gateway",)}
# They read files, and talk to no API either; what they print is for programs too.
LOCAL = {("audit",), ("stress",), ("capital",), ("signals", "events")}

# Groups that do something when they are called alone.
ANSWERING = {("signals",)}


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


PATHS = list(walk(ROOT))
GROUPS = {path[:-1] for path in PATHS if path}
COMMANDS = [path for path in PATHS if path not in GROUPS]


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_has_an_example_of_the_command_itself(bare: Sublet, path: tuple[str, ...]) -> None:
    result = bare(*path, "--help")
    assert result.code == 0 and result.err == ""
    _, _, examples = result.out.partition("Examples:\n")
    assert " ".join(["sublet", *path]) in examples.partition("\n\n")[0]
    assert max(map(len, result.out.splitlines())) <= 100


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_of_a_client_can_print_json(path: tuple[str, ...]) -> None:
    command = ROOT
    for name in path:
        command = command.commands[name]
    options = {name for parameter in command.params for name in parameter.opts}
    shared = {"--data", "--url", "--key", "--ca", "--json"}
    if path[0] == "engine":  # asks the cluster, not an instance
        return
    if path in LOCAL:
        shared = {"--json"}
    assert shared <= options or path in PROCESSES


@pytest.mark.parametrize("path", sorted(GROUPS - ANSWERING), ids=" ".join)
def test_a_group_alone_prints_its_help(bare: Sublet, path: tuple[str, ...]) -> None:
    assert bare(*path) == bare(*path, "--help")


def test_the_root_completes_shells_and_says_its_version(bare: Sublet) -> None:
    assert "--install-completion" in bare("--help").out
    assert bare("--version").out.count(".") == 2

"""How a command fails: one line on stderr, and an exit code that says what kind it was."""

import sys
from enum import IntEnum


class ExitCode(IntEnum):
    FAILED = 1  # the API said no, or what was asked for was not found
    USAGE = 2  # the command line or the set-up is wrong; nothing was sent
    UNREACHABLE = 3  # nothing answered, or the answer broke off
    INTERRUPTED = 130  # Ctrl-C


class Failure(Exception):
    """Ends the command with `message` as its only line on stderr."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


def one_line(text: str) -> str:
    """Return `text` on a single line, with nothing in it that steers a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def say(text: str) -> None:
    """Tell the person at the terminal something that is not the command's result."""
    print(f"sublet: {one_line(text)}", file=sys.stderr, flush=True)

"""The whole command line, and how it ends."""

import io
import os
import sys
from contextlib import suppress

import typer
from typer.main import get_command

from sublet import __version__
from sublet.cli import (
    assets,
    audit,
    backtest,
    coming,
    contracts,
    engine,
    export,
    fleet,
    index,
    internal,
    invoices,
    keys,
    leases,
    ledger,
    limits,
    models,
    money,
    people,
    prices,
    processes,
    quotes,
    reservations,
    returns,
    signals,
    simulate,
    status,
    suppliers,
    surplus,
    tenants,
    usage,
    verify,
)  # fmt: skip
from sublet.cli.command import new_root
from sublet.cli.failure import ExitCode, Failure, say
from sublet.core.errors import Misconfigured, SubletError


def build() -> typer.Typer:
    root = new_root(
        "Rent out the GPUs you are not using. Have them back the moment you need them.",
        examples=(
            "sublet up",
            "sublet status",
            "sublet lease create -f -- echo hello",
            'sublet model chat gemma-3-270m "Once upon a time"',
            "sublet internal run --slots 2 -- make train",
            "sublet verify",
            "sublet audit sacct.txt --html idle.html",
        ),
        version=__version__,
    )
    for module in (
        processes, status, leases, keys, limits, money, models, tenants, internal, fleet, prices, ledger,
        engine, verify, backtest, audit, surplus, quotes,
        reservations, contracts, coming, simulate, index, signals, assets, returns, invoices,
        export, usage, suppliers, people,
    ):  # fmt: skip
        module.add_to(root)
    return root


def run(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not end a listing
    try:
        # Not Typer's own ending: it prints usage errors on several lines.
        result = get_command(build()).main(arguments, prog_name="sublet", standalone_mode=False)
        sys.stdout.flush()
    except Failure as failure:
        say(str(failure))
        return failure.code
    except SubletError as error:
        say(str(error))
        return ExitCode.USAGE if isinstance(error, Misconfigured) else ExitCode.FAILED
    except typer.TyperException as error:
        say(_usage(error))
        return error.exit_code
    except UnicodeEncodeError:  # bytes that are no text cannot be sent as JSON
        say("the command line must be UTF-8")
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return ExitCode.FAILED
    return result if isinstance(result, int) else 0


def _usage(error: typer.TyperException) -> str:
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    return f"{message} (see `{context.command_path} --help`)" if context else message


def _forget_stdout() -> None:
    """Whoever read us has gone: let the flush at exit go nowhere, silently."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The `sublet` command: a thin client of the HTTP API.

It must start quickly, because shell completion starts it at every press of Tab: what is slow
to load (the HTTP client, tables, the application itself) is loaded by the command that needs
it. A test holds this.
"""

import sys


def main() -> int:
    """Run the command line. Returns the exit code."""
    # httpx's own command line: a fifth of the time of one of our commands, were it imported with it.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    try:
        from sublet.cli.root import run  # noqa: PLC0415 -- Ctrl-C may come while it loads

        return run()
    except KeyboardInterrupt:
        return 130

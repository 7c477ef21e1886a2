"""The `sublet` command: a thin client of the HTTP API.

Importing it must stay quick, because shell completion does so at every press of Tab: what is
slow to load (the HTTP client, tables, the application itself) is loaded by the command that
needs it. A test holds this.
"""

from sublet.cli.root import main

__all__ = ["main"]

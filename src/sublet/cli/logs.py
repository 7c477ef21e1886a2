"""Following a workload's log to its end, across lost connections."""

import codecs
import json
import sys
import time
from typing import TYPE_CHECKING, BinaryIO, Final

from sublet.cli.failure import ExitCode, Failure

if TYPE_CHECKING:
    from sublet.cli.client import Client

# How often in a row a broken stream is asked for again, waiting twice as long each time.
_ATTEMPTS: Final = 3
_FIRST_WAIT_SECONDS: Final = 0.5
# A log is silent while its workload is; after this long it is asked for again, because a
# machine that vanished is as silent.
_SILENT_SECONDS: Final = 60


class Log:
    """Where a log goes, and how much of it has been printed."""

    def __init__(
        self, *, offset: int = 0, json_lines: bool = False, to_stderr: bool = False
    ) -> None:
        self.offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if json_lines else None
        self._out: BinaryIO = (sys.stderr if to_stderr else sys.stdout).buffer

    def write(self, piece: bytes) -> None:
        if self._decoder is None:
            self._out.write(piece)
        else:
            line = {"offset": self.offset, "text": self._decoder.decode(piece)}
            self._out.write(json.dumps(line).encode() + b"\n")
        self._out.flush()
        self.offset += len(piece)


def copy(api: "Client", path: str, log: Log, *, follow: bool) -> None:
    """Print the log at `path` from where `log` stands; with `follow`, until it ends.

    Raises:
        Failure: it was refused, or could not be had again after breaking off.
    """
    from sublet.cli.client import BrokenOff  # noqa: PLC0415 -- slow to load

    begun = False
    failures = 0
    while True:
        stands = log.offset
        try:
            _copy_once(api, path, log, follow=follow)
            return
        except Failure as failure:
            begun = begun or isinstance(failure, BrokenOff)
            if not (follow and begun and failure.code is ExitCode.UNREACHABLE):
                raise
            if isinstance(failure, BrokenOff) and failure.silent:
                failures = 0
                continue
            failures = 1 if log.offset > stands else failures + 1
            if failures > _ATTEMPTS:
                raise
        time.sleep(_FIRST_WAIT_SECONDS * 2 ** (failures - 1))


def _copy_once(api: "Client", path: str, log: Log, *, follow: bool) -> None:
    params = {"offset": log.offset, "follow": "true" if follow else None}
    with api.stream("GET", path, params=params, silent_seconds=_SILENT_SECONDS) as response:
        for piece in response.iter_bytes():
            log.write(piece)

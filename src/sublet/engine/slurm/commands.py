"""Slurm's own commands, and what their failures mean."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from sublet.core.errors import Refused, Unavailable
from sublet.engine.slurm.settings import SlurmSettings

# What the clients say while nobody answers, in all versions so far.
_AWAY = (
    "unable to contact slurm controller",
    "connection refused",
    "connection timed out",
    "socket timed out",
    "unable to contact",
    "zero bytes were transmitted",
    "slurm backup controller in standby mode",
    "communication connection failure",
    "problem talking to the database",
    "unexpected message received",
    "message receive failure",
    "munged",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """Runs commands with one environment and one time limit."""

    settings: SlurmSettings

    def environment(self) -> dict[str, str]:
        """Return what Slurm's commands get: no setting of whoever started us slips in."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in {"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SLURM_CONF", "SLURM_JWT"}
        }
        # Instants are printed as local time, without a zone.
        ours = {"TZ": "UTC", "SLURM_TIME_FORMAT": "standard"}
        if self.settings.conf is not None:
            ours["SLURM_CONF"] = self.settings.conf
        return kept | ours

    def find(self, program: str) -> str:
        """Raises Unavailable: it is not installed."""
        path = None if self.settings.bin is None else self.settings.bin
        found = shutil.which(program, path=path)
        if found is None:
            raise Unavailable(
                f"Slurm's command {program} is not on {path or 'PATH'}: run Sublet on a login node,"
                " or name the folder of its commands with `bin` in the Slurm settings"
            )
        return found

    def run(self, program: str, *arguments: str) -> str:
        """Return what a command printed.

        Raises:
            Unavailable: Slurm did not answer; nothing is known to have changed.
            Refused: it answered, and said no.
        """
        return self.finish(self.begin(program, *arguments), program)

    def begin(
        self,
        program: str,
        *arguments: str,
        keep: Sequence[int] = (),
        output: int | None = None,
        times: str = "standard",
    ) -> subprocess.Popen[str]:
        """Start a command; `keep` are descriptors that it shall hold open as long as it lives."""
        return subprocess.Popen(
            [self.find(program), *arguments],
            env=self.environment() | {"SLURM_TIME_FORMAT": times},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.PIPE,
            pass_fds=tuple(keep),
            text=True,
            errors="replace",
        )

    def finish(
        self, process: subprocess.Popen[str], program: str, *, timeout_seconds: float | None = None
    ) -> str:
        timeout = timeout_seconds or self.settings.timeout_seconds
        with process:
            try:
                output, error = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise Unavailable(f"{program} did not answer within {timeout:g} s") from None
        if process.returncode == 0:
            return output or ""
        lines = [line for line in error.splitlines() if line.strip()]
        said = lines[-1].strip() if lines else f"exit status {process.returncode}"
        if any(sign in error.lower() for sign in _AWAY):
            raise Unavailable(f"Slurm did not answer: {said}")
        raise Refused(f"{program}: {said}")

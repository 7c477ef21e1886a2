"""The queue from slurmrestd: what is asked most often starts no program."""

import contextlib
import getpass
import http.client
import json
import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sublet.core.errors import Unavailable
from sublet.engine.slurm import reading
from sublet.engine.slurm.pieces import Unknown
from sublet.engine.slurm.reading import SlurmJob
from sublet.engine.slurm.settings import SlurmSettings

# Newest first. What older ones print is not known.
_VERSIONS: Final = ("v0.0.42", "v0.0.41", "v0.0.40", "v0.0.39", "v0.0.38")


class Rest:
    def __init__(self, settings: SlurmSettings) -> None:
        assert settings.rest is not None
        self._url = settings.rest
        self._token_file = settings.rest_token
        self._timeout_seconds = settings.timeout_seconds
        self._version: str | None = None

    def jobs(self) -> list[SlurmJob]:
        """Return every job that Slurm's queue shows.

        Raises:
            Unavailable: slurmrestd or slurmctld did not answer, or not in words that we know.
        """
        try:
            return reading.read_jobs_json(self._ask())
        except Unknown as error:
            raise Unavailable(f"slurmrestd at {self._url}: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"slurmrestd at {self._url} did not answer: {error}") from error

    def _ask(self) -> str:
        for version in _VERSIONS if self._version is None else (self._version,):
            status, text = self._get(f"/slurm/{version}/jobs")
            if status == http.client.OK:
                self._version = version
                return text
            if status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
                raise Unknown("it does not accept the token: see `scontrol token`")
            if status != http.client.NOT_FOUND:
                raise Unknown(
                    f"HTTP status {status}: {_errors(text)} (22.05 says no more of a token that"
                    " has expired: see `scontrol token`)"
                )
        self._version = None  # it may be another one tomorrow
        raise Unknown(f"it offers none of {', '.join(_VERSIONS)}")

    def _get(self, path: str) -> tuple[int, str]:
        address = urlsplit(self._url)
        secure = address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        headers = {"X-SLURM-USER-NAME": getpass.getuser(), "X-SLURM-USER-TOKEN": self._token()}
        connection = kind(str(address.hostname), address.port, timeout=self._timeout_seconds)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")

    def _token(self) -> str:
        """Read it anew each time: tokens expire, and somebody writes new ones."""
        if self._token_file is not None:
            return Path(self._token_file).read_text(encoding="ascii").strip()
        return os.environ.get("SLURM_JWT", "")


def _errors(text: str) -> str:
    """Return what an answer says of what is wrong, in a line."""
    try:
        rows = json.loads(text)["errors"]
        said = [str(row.get("error") or row.get("description")) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError):
        return text[:200]
    return "; ".join(said)[:200]

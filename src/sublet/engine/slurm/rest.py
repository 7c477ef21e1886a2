"""The queue and the nodes from slurmrestd: what is asked again and again starts no program."""

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
from sublet.engine.slurm.reading import SlurmJob, SlurmNode
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
            Unavailable: slurmrestd or slurmctld did not answer, or refused.
            Unknown: it speaks none of the versions that we know, or not as they do.
        """
        return reading.read_jobs_json(self._ask("jobs"))

    def nodes(self, partition: str) -> list[SlurmNode]:
        """Return the nodes of a partition. Raises as `jobs` does."""
        return reading.read_nodes_json(self._ask("nodes"), partition=partition)

    def _ask(self, what: str) -> str:
        try:
            return self._answer(what)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"slurmrestd at {self._url} did not answer: {error}") from error

    def _answer(self, what: str) -> str:
        for version in _VERSIONS if self._version is None else (self._version,):
            status, text = self._get(f"/slurm/{version}/{what}")
            if status == http.client.OK:
                self._version = version
                if errors := _errors(text):
                    raise Unavailable(f"slurmrestd at {self._url} answers with errors: {errors}")
                return text
            if status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
                raise Unavailable(
                    f"slurmrestd at {self._url} does not accept the token: see `scontrol token`"
                )
            if status != http.client.NOT_FOUND:
                said = _errors(text) or text[:200]
                raise Unavailable(
                    f"slurmrestd at {self._url}: HTTP status {status}: {said} (22.05 says no more of"
                    " a token that has expired: see `scontrol token`)"
                )
        self._version = None  # it may be another one tomorrow
        raise Unknown(f"slurmrestd at {self._url} offers none of {', '.join(_VERSIONS)}")

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
    """Return what an answer says of what is wrong, in a line; "" for nothing."""
    try:
        rows = json.loads(text).get("errors") or []
        said = [str(row.get("error") or row.get("description")) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return "; ".join(said)[:200]

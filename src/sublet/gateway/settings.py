"""How one gateway process runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.gateway.purse import IDLE_SECONDS

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one gateway process runs."""

    database_url: str
    spool: Path  # a folder: what was used stays there until it is handed over
    name: str = "gateway"  # one process a name; its successor returns what it held
    workers: int = 1  # processes on these ports; the others' names end with a number
    host: str = LOOPBACK  # where https listens; http only ever listens on loopback
    http_port: int = 8001
    https_port: int = 8443
    certificate: Path | None = None  # without one there is no https
    private_key: Path | None = None
    requests_per_minute: int = 600  # of one key
    tokens_per_minute: int = 1_000_000  # of one key
    first_token_seconds: float = 120.0  # how long a stream's first token may take,
    stall_seconds: float = 60.0  # … and each further one
    tuning: Path | None = None  # a file with other values of these four, read when it changes
    drain_seconds: float = 10.0  # how long streams may go on after SIGTERM
    vault: Path | None = None  # the key that opens access keys' secrets; without, none is taken
    traces: str | None = None  # where an OTLP collector takes them
    traces_share: float = 1.0  # of the calls that are traced, when their callers do not say
    artefacts: Path | None = None  # the folder of sealed files; without, none is kept here
    tenant_bytes: int = 1 << 40  # of models and files that one tenant may keep
    most_file_bytes: int = 512 << 20  # of one file
    purse_seconds: float = IDLE_SECONDS  # then money held ahead goes back to a tenant's wallet

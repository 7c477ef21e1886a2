"""The gateway's process. `sublet gateway`."""

import logging
import os
import sys
from typing import Final

from sublet.app.logs import log_to_stderr
from sublet.app.secrets import VAULT
from sublet.app.sharing import artefacts_of
from sublet.config import load
from sublet.core import failpoint
from sublet.core.certificates import ensure
from sublet.core.clock import SystemClock
from sublet.core.errors import Misconfigured, SubletError
from sublet.core.migrations import wait_until_migrated
from sublet.gateway.server import serve
from sublet.gateway.settings import Settings

log = logging.getLogger(__name__)

# The control plane, which makes the tables, may start beside us.
_CONTROL_WAIT_SECONDS: Final = 60.0


def main() -> int:
    """Run from the environment; say in one line what is wrong with it."""
    log_to_stderr()
    if failpoint.arm(os.environ):
        log.warning("failpoints.armed")
    try:
        config = load()
        if config.database_url is None:
            raise Misconfigured("DATABASE_URL is not set: the gateway keeps its money there")
        certificates = ensure(config.data / "ca", hosts=[config.host], now=SystemClock().now())
        wait_until_migrated(config.database_url, wait_seconds=_CONTROL_WAIT_SECONDS)
        serve(
            Settings(
                database_url=config.database_url,
                spool=config.data / "spool",
                name=config.gateway_name,
                workers=config.gateway_workers,
                host=config.host,
                http_port=config.gateway_http_port,
                https_port=config.gateway_port,
                certificate=certificates.server,
                private_key=certificates.server_key,
                vault=config.data / VAULT,
                artefacts=artefacts_of(config),
                tenant_bytes=config.model_bytes,
                most_file_bytes=config.file_bytes,
                purse_seconds=config.purse_seconds,
                tuning=config.gateway_settings,
                traces=config.gateway_traces,
                traces_share=config.gateway_traces_share,
            )
        )
    except SubletError as error:
        print(f"sublet: {error}", file=sys.stderr)  # noqa: T201 -- for the person who started it
        return 2 if isinstance(error, Misconfigured) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Logs are events with fields, one JSON line each; never a prompt, a key or a card."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event: dict[str, object] = {
            "at": at, "level": record.levelname.lower(), "event": record.getMessage()
        }  # fmt: skip
        event |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            event["error"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str, ensure_ascii=False)


def log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Their per-request lines say nothing that our events do not.
    for noisy in ("uvicorn.access", "uvicorn.error", "httpx", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

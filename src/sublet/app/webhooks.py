"""Telling tenants of notices, in threads of its own: no reclaim waits for it."""

import hashlib
import hmac
import http.client
import json
import logging
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Final

from sublet.app.posting import Poster
from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Unavailable
from sublet.leases import webhooks
from sublet.leases.advancing import notice_of
from sublet.leases.webhook import Address, again_at, check_url, is_public
from sublet.leases.webhooks import Webhook

log = logging.getLogger(__name__)

_EVERY_SECONDS: Final = 0.25
_AT_ONCE: Final = 16
_OF_A_TENANT: Final = 4
_CLAIM: Final = timedelta(seconds=30)


def secret_of(signing_key: str, lease_id: object) -> str:
    """Return what a lease's webhook is signed with; its tenant can read it."""
    return hmac.new(
        signing_key.encode(), f"webhook/{lease_id}".encode(), hashlib.sha256
    ).hexdigest()


class Webhooks(threading.Thread):
    """Sends what is due until it is told to stop. Several control planes may: each has its own."""

    def __init__(
        self,
        db: Database,
        *,
        clock: Clock,
        signing_key: str,
        allowed: Callable[[Address], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(name="control-webhooks", daemon=True)
        self._db = db
        self._clock = clock
        self._signing_key = signing_key
        self._poster = Poster(allowed=allowed, tls=tls)
        self._stopped = threading.Event()

    def run(self) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook") as threads:
            while not self._stopped.wait(_EVERY_SECONDS):
                try:
                    self.send_due(threads)
                except Unavailable as error:
                    log.warning("webhooks.unavailable", extra={"detail": str(error)})
                except Exception:
                    log.exception("webhooks.failed")

    def stop(self) -> None:
        self._stopped.set()

    def send_due(self, threads: ThreadPoolExecutor) -> int:
        """Send what is due, and return how many that were.

        Raises:
            Unavailable: the database did not answer.
        """
        now = self._clock.now()
        with self._db.transaction() as tx:
            due = webhooks.claim(tx, now=now, until=now + _CLAIM, limit=_AT_ONCE, each=_OF_A_TENANT)
        list(threads.map(self._send, due))
        return len(due)

    def _send(self, webhook: Webhook) -> None:
        try:
            status = self._post(webhook)
            failed = None if 200 <= status < 300 else f"it answered {status}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            failed = str(error) or type(error).__name__
        now = self._clock.now()
        stops_at = webhook.lease.stops_at
        assert stops_at is not None
        next_at = again_at(webhook.attempts, now=now, stops_at=stops_at) if failed else None
        outcome = None if next_at is not None else "given_up" if failed else "delivered"
        with self._db.transaction("webhook.note") as tx:
            webhooks.note(
                tx, webhook.lease.id, outcome=outcome, next_at=next_at, detail=failed or "delivered"
            )
        extra = {"lease": webhook.lease.id, "attempt": webhook.attempts, "detail": failed}
        log.info("webhook.sent", extra=extra)

    def _post(self, webhook: Webhook) -> int:
        url = check_url(webhook.url)
        notice = notice_of(webhook.lease)
        body = json.dumps(
            {
                "lease_id": str(webhook.lease.id),
                "reason": str(notice.reason),
                "message": notice.message,
                "noticed_at": notice.noticed_at.isoformat(),
                "stops_at": notice.stops_at.isoformat(),
            }
        ).encode()
        secret = secret_of(self._signing_key, webhook.lease.id)
        return self._poster.post(url, body, secret, at=self._clock.now())

"""Sending what is kept to be sent: e-mails by SMTP, with the invoice they are about; signed calls."""

import hashlib
import hmac
import http.client
import logging
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.message import EmailMessage
from typing import Final
from urllib.parse import unquote, urlsplit

from sublet.app.posting import Poster
from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.invoices import outgoing, store
from sublet.invoices.document import as_document, as_pdf
from sublet.invoices.outgoing import Channel, Outgoing
from sublet.leases.webhook import check_url

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS: Final = 15.0
_CLAIM: Final = timedelta(minutes=2)
_AT_ONCE: Final = 20


def secret_of(signing_key: str, tenant_id: object) -> str:
    """Return what calls to a tenant's addresses are signed with; it can read it."""
    return hmac.new(
        signing_key.encode(), f"alerts/{tenant_id}".encode(), hashlib.sha256
    ).hexdigest()


class Post:
    """Sends what is due. Several control planes may: each takes its own."""

    def __init__(
        self, db: Database, *, clock: Clock, signing_key: str, smtp: str | None,
        sender: str, seller: str, poster: Poster | None = None, tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._db = db
        self._clock = clock
        self._signing_key = signing_key
        self._smtp = smtp
        self._sender = sender
        self._seller = seller
        self._poster = poster or Poster()
        self._tls = tls or ssl.create_default_context()

    def step(self) -> int:
        """Send what is due, and return how many that were; without a mail server, calls alone.

        Raises:
            Unavailable: the database did not answer.
        """
        now = self._clock.now()
        channels = [Channel.WEBHOOK] + ([Channel.EMAIL] if self._smtp else [])
        with self._db.transaction("mail.claim") as tx:
            due = outgoing.claim(tx, channels, now=now, until=now + _CLAIM, limit=_AT_ONCE)
        for one in due:
            self._send(one)
        return len(due)

    def _send(self, one: Outgoing) -> None:
        failed = None
        if one.is_stale(self._clock.now()):
            failed = "it is too old to be sent"
        else:
            try:
                if one.channel is Channel.EMAIL:
                    self._mail(one)
                else:
                    self._call(one)
            except (OSError, smtplib.SMTPException, http.client.HTTPException, ValueError) as error:
                failed = str(error) or type(error).__name__
        now = self._clock.now()
        next_at = one.again_at(now) if failed else None
        outcome = None if next_at is not None else "given_up" if failed else "delivered"
        with self._db.transaction("mail.note") as tx:
            outgoing.note(
                tx, one.id, outcome=outcome, next_at=next_at, detail=failed or "delivered"
            )
        extra = {"channel": str(one.channel), "attempt": one.attempts, "detail": failed}
        log.info("mail.sent", extra=extra)

    def _call(self, one: Outgoing) -> None:
        secret = secret_of(self._signing_key, one.tenant_id)
        status = self._poster.post(
            check_url(one.target), one.body.encode(), secret, at=self._clock.now()
        )
        if not 200 <= status < 300:
            raise OSError(f"it answered {status}")

    def _mail(self, one: Outgoing) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._sender, one.target, one.subject
        message["Message-ID"] = f"<{one.id}@{self._sender.rpartition('@')[2].strip('>')}>"
        message.set_content(one.body)
        if one.invoice_id is not None:
            with self._db.transaction() as tx:
                row = store.get_row(tx, id_=one.invoice_id)
            document = as_document(row, seller=self._seller)
            message.add_attachment(
                as_pdf(document), maintype="application", subtype="pdf",
                filename=f"{document['number']}.pdf",
            )  # fmt: skip
        with self._server() as server:
            server.send_message(message)

    @contextmanager
    def _server(self) -> Iterator[smtplib.SMTP]:
        """Connect to the mail server; encrypted where it can, and always before a password goes."""
        assert self._smtp is not None
        url = urlsplit(self._smtp)
        assert url.hostname is not None
        server: smtplib.SMTP
        if url.scheme == "smtps":
            server = smtplib.SMTP_SSL(
                url.hostname, url.port or 465, timeout=_TIMEOUT_SECONDS, context=self._tls
            )
        else:
            server = smtplib.SMTP(url.hostname, url.port or 587, timeout=_TIMEOUT_SECONDS)
        with server:
            if url.scheme == "smtp":
                server.ehlo()
                if server.has_extn("starttls"):
                    server.starttls(context=self._tls)
                elif url.password:
                    raise OSError(f"{url.hostname} offers no STARTTLS: no password is sent to it")
            if url.username:
                server.login(unquote(url.username), unquote(url.password or ""))
            yield server

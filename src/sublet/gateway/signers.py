"""Callers who sign instead of showing a key: found, checked, and each signature used once."""

import logging
from typing import Final

from sublet.core.errors import Misconfigured, Unauthorized, Unavailable
from sublet.core.vault import Vault
from sublet.gateway import signature
from sublet.gateway.directory import Directory
from sublet.gateway.exchange import Exchange
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.signature import GOOD_FOR, Rejected, Seen, Signed, replayed
from sublet.tenants.tenant import Caller, Signer

log: Final = logging.getLogger(__name__)


class Signers:
    def __init__(self, directory: Directory, vault: Vault | None) -> None:
        self._directory = directory
        self._vault = vault
        self._seen = Seen()

    async def identify(self, exchange: Exchange) -> Caller:
        """Return who signed a request; its body is read once its key is known and its date is near.

        Raises:
            Failure: nobody of ours, or not as it is now.
            Unavailable: the key is new here, and the database is away.
        """
        if self._vault is None:
            raise Rejected(
                "UnrecognizedClientException",
                "this gateway takes no signed requests: it was started without the key to the"
                " secrets of access keys. A key that is shown, as a bearer, works",
            )
        headers = exchange.headers
        signed = signature.read(exchange.header(b"authorization") or "", headers)
        signature.check_time(signed, now=self._directory.now())
        try:
            signer = await self._directory.find_signer(signed.access_key_id)
        except Unauthorized as error:
            raise Rejected("UnrecognizedClientException", str(error)) from error
        signature.verify(
            signed,
            secret=_open(self._vault, signer, exchange),
            method=exchange.method,
            target=exchange.target,
            headers=headers,
            body=await exchange.read_body(),
        )
        await self._use(signed)
        return signer

    async def _use(self, signed: Signed) -> None:
        """Raises Failure: it was used before, here or on another gateway."""
        self._seen.take(signed, now=self._directory.now())
        try:
            first = await self._directory.use_signature(signed.signature, good_for=GOOD_FOR)
        except Unavailable:
            log.warning("gateway.signatures_not_shared")  # what this process knows must do
        else:
            if not first:
                raise replayed()


def _open(vault: Vault, signer: Signer, exchange: Exchange) -> str:
    try:
        return vault.open(signer.sealed_secret, bound_to=signer.access_key_id)
    except Misconfigured as error:
        log.error(  # noqa: TRY400 -- what is wrong is in the message
            "gateway.vault", extra={"request": exchange.request_id, "detail": str(error)}
        )
        raise Failure(
            Kind.INTERNAL,
            "this gateway cannot read the secrets of access keys, its log says why; a key that is"
            " shown, as a bearer, works",
        ) from error

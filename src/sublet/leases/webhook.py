"""The rules of a webhook: to which addresses one may go, how it is signed, when it is sent again."""

import hashlib
import hmac
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from sublet.core.errors import Invalid

MOST_ATTEMPTS: Final = 8
_LONGEST: Final = 2_000
_FIRST: Final = timedelta(seconds=1)
_NAT64: Final = IPv6Network("64:ff9b::/96")
Address = IPv4Address | IPv6Address


def check_url(url: str) -> SplitResult:
    """Read the address of a webhook.

    Raises:
        Invalid: it is no plain https address.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid(f"webhook: {url[:60]!r} is no address: {error}") from None
    plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= _LONGEST
    if not plain or parts.scheme != "https" or not parts.hostname or port == 0:
        raise Invalid(
            f"webhook: {url[:60]!r} is no address such as https://example.com/notices?of=mine"
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise Invalid("webhook: an address has no user, password or fragment in it")
    return parts


def is_public(address: Address) -> bool:
    """Say whether an address is on the public internet: a tenant must reach nothing of ours."""
    if isinstance(address, IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour
        if hidden is None and address.teredo is not None:
            return False
        if hidden is not None:
            return is_public(hidden)
        if address in _NAT64:
            return is_public(IPv4Address(address.packed[-4:]))
    return address.is_global and not address.is_multicast


def signature(secret: str, body: bytes, *, at: int) -> str:
    """Return the header `Sublet-Signature`: when, in seconds since the epoch, and by whom."""
    said = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={said}"


def again_at(attempts: int, *, now: datetime, stops_at: datetime) -> datetime | None:
    """Return when it is sent again after so many attempts; None: not any more.

    Twice as long after each, and never once the lease is gone.
    """
    at = now + _FIRST * 2 ** (attempts - 1)
    return at if attempts < MOST_ATTEMPTS and at < stops_at else None

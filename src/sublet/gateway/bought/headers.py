"""What suppliers say in their answers' headers, and in refusals: what is left, and when to come again."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from sublet.gateway.bought.speech import our_tier
from sublet.suppliers.quota import Limit, Measure, Span, Told

_MEASURES: Final = {
    "requests": Measure.REQUESTS, "tokens": Measure.TOKENS, "input-tokens": Measure.INPUT_TOKENS,
    "output-tokens": Measure.OUTPUT_TOKENS,
}  # fmt: skip
_SPAN: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|h|m|s)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST: Final = 3600.0  # seconds that anybody may ask to be left alone


def left_of(
    headers: Mapping[bytes, bytes], now: datetime
) -> Iterator[tuple[Measure, int | None, int, datetime]]:
    """Yield what is left: (measure, of how much, how much, when it is whole again)."""
    for name, measure in _MEASURES.items():
        for form in ("x-ratelimit-{1}-{0}", "anthropic-ratelimit-{0}-{1}"):
            left = _number(headers.get(form.format(name, "remaining").encode()))
            if left is None:
                continue
            amount = _number(headers.get(form.format(name, "limit").encode()))
            reset = headers.get(form.format(name, "reset").encode(), b"").decode("ascii", "replace")
            yield measure, amount, left, _until(reset, now)
            break


def told_of(
    limits: list[Limit], measure: Measure, amount: int | None, left: int, until: datetime
) -> tuple[Limit, Told] | None:
    """Return which of the limits that is: the one of as much, else the shortest."""
    mine = [limit for limit in limits if limit.measure is measure]
    if not mine:
        return None
    same = [limit for limit in mine if limit.amount == amount]
    limit = same[0] if same else min(mine, key=lambda it: list(Span).index(it.span))
    return limit, Told(amount=amount, left=left, until=until)


def tier_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return as which tier it was served, of those who say so in a header."""
    said = headers.get(b"x-gemini-service-tier") or headers.get(b"x-amzn-bedrock-service-tier")
    return None if said is None else our_tier(said.decode("ascii", "replace"))


def request_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the supplier's name for the request."""
    for name in (b"request-id", b"x-amzn-requestid", b"x-request-id"):
        if (said := headers.get(name)) is not None:
            return said.decode("ascii", "replace")[:200]
    return None


def rest_of(headers: Mapping[bytes, bytes], body: bytes, now: datetime) -> float | None:
    """Return for how many seconds a refusal asks to be left alone; None: it does not say."""
    milliseconds = _number(headers.get(b"retry-after-ms"))
    if milliseconds is not None:
        return min(_LONGEST, milliseconds / 1000)
    said = headers.get(b"retry-after", b"").decode("ascii", "replace").strip()
    if said:
        seconds = _number(said.encode())
        if seconds is not None:
            return min(_LONGEST, float(seconds))
        try:
            at = parsedate_to_datetime(said)
        except ValueError:
            return None
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return max(0.0, min(_LONGEST, (at - now).total_seconds()))
    return _retry_info(body)


def _retry_info(body: bytes) -> float | None:
    """Return what Google's errors say: a detail of type RetryInfo."""
    try:
        details = json.loads(body)["error"]["details"]
        for detail in details:
            if str(detail.get("@type", "")).endswith("RetryInfo"):
                return min(_LONGEST, _seconds(str(detail["retryDelay"])) or 0.0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def _number(said: bytes | None) -> int | None:
    if said is None or not said.strip().isdigit() or len(said) > 18:
        return None
    return int(said)


def _until(said: str, now: datetime) -> datetime:
    seconds = _seconds(said)
    if seconds is not None:
        return now + timedelta(seconds=min(seconds, 86_400.0))
    try:
        at = datetime.fromisoformat(said)
    except ValueError:
        return now + timedelta(seconds=60)
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _seconds(said: str) -> float | None:
    """Return a length such as 6m0s, 1.5s, 120ms or 12."""
    parts = _SPAN.findall(said)
    if parts and "".join(number + unit for number, unit in parts) == said:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return float(said) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", said) else None

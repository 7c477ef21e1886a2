"""Bodies of requests: JSON into a dialect's own structs, or a refusal that names the place."""

import json
import math
import re
from typing import Final, TypeVar

import msgspec

from sublet.gateway.failures import Failure, Kind

T = TypeVar("T")

_LONGEST: Final = 300  # of a message to the client; names in it may be the client's own
_UNKNOWN: Final = re.compile(
    r"^Object contains unknown field `(.*?)`(?: - at `\$(.*)`)?$", re.DOTALL
)
_PLACE: Final = re.compile(r"^(.*) - at (?:`key` in )?`\$\.?(.*)`$", re.DOTALL)


def decode(
    decoder: msgspec.json.Decoder[T], body: bytes, *, only_empty: frozenset[str], at: str = ""
) -> T:
    """Read one body.

    Args:
        decoder: of a struct that forbids unknown fields.
        body: as it came.
        only_empty: parameters of the dialect that the models here do not do.
        at: the parameter that it is a part of.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), only_empty, at) from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(body, error) from None


def plain(text: str, *, at: str) -> str:
    # Engines written in C end a text there, and would answer half of it.
    if "\0" in text:
        raise Failure(Kind.INVALID, f"{at} must not have NUL characters", param=at)
    return text


def _invalid(reason: str, only_empty: frozenset[str], at: str) -> Failure:
    if match := _UNKNOWN.match(reason):
        inside = ".".join(part for part in (at, (match[2] or "").lstrip(".")) if part)
        param = f"{inside}.{match[1]}" if inside else match[1]
        return Failure(
            Kind.UNSUPPORTED,
            f"Unknown or unsupported parameter: '{param[:_LONGEST]}'",
            param=param[:_LONGEST],
        )
    match = _PLACE.match(reason)
    what, param = (match[1], match[2]) if match else (reason, "")
    unsupported = re.split(r"[.\[]", param, maxsplit=1)[0] in only_empty
    param = ".".join(part for part in (at, param) if part)
    if unsupported:
        return Failure(
            Kind.UNSUPPORTED,
            f"Unsupported value of '{param}': the models here do not do this ({what[:_LONGEST]})",
            param=param,
        )
    named = f"Invalid '{param}'" if param else "Invalid request"
    return Failure(Kind.INVALID, f"{named}: {what[:_LONGEST]}", param=param or None)


def _unreadable(body: bytes, error: Exception) -> Failure:
    """Say more than "malformed" where Python's laxer reader can tell which parameter it is."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        read = None
    for name, value in read.items() if isinstance(read, dict) else ():
        if _has_half_characters(name) or _has_half_characters(value):
            return Failure(
                Kind.INVALID,
                "the text has half a character (a lone surrogate), which no model can read",
                param=name.encode("utf-8", "replace").decode()[:_LONGEST],
            )
        if isinstance(value, float) and not math.isfinite(value):
            return Failure(Kind.INVALID, f"{name} must be a number", param=name[:_LONGEST])
    return Failure(
        Kind.UNREADABLE,
        f"We could not parse the JSON body of your request: {str(error)[:_LONGEST]}",
    )


def _has_half_characters(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    except RecursionError:
        return False
    return False

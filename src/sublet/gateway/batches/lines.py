"""The lines of a batch's file: read one by one, and held to what OpenAI asks of them. Pure."""

from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from sublet.gateway.batches.store import Read
from sublet.gateway.call import MAX_BODY_BYTES

MOST: Final = 50_000  # lines of one file
LONGEST: Final = MAX_BODY_BYTES + 4096  # bytes of one: a request's body and what is around it
_MOST_ERRORS: Final = 100

CustomId = Annotated[str, Meta(min_length=1, max_length=512)]


class Line(Struct, forbid_unknown_fields=True):
    """One request."""

    custom_id: CustomId
    method: Literal["POST"]
    url: str
    body: Raw


class _Model(Struct):
    """All that is read of a body beforehand: the rest is looked at when its turn comes."""

    model: str


_LINE: Final = msgspec.json.Decoder(Line)
_BODY: Final = msgspec.json.Decoder(_Model)


def read(text: bytes) -> Line:
    """Return a line that `check` found right."""
    return _LINE.decode(text)


def check(lines: Iterable[tuple[int, bytes]], *, endpoint: str) -> Read:
    """Look through a file.

    Args:
        lines: (where it starts, its text) of each.
        endpoint: what all of them must call.

    Returns:
        either lines, or errors, as OpenAI words them.
    """
    found, seen, number = Read(), dict[str, int](), 0
    for start, text in lines:
        number += 1
        if not text.strip():
            continue
        if len(found.lines) >= MOST:
            _add(found, "too_many_requests", number, f"A batch may have {MOST} requests.")
            break
        try:
            line = _LINE.decode(text)
            model = _BODY.decode(line.body).model
        except msgspec.ValidationError as error:
            _add_invalid(found, number, str(error))
        except (ValueError, RecursionError):
            if len(text) > LONGEST:
                message = f"This line is longer than {LONGEST} bytes."
            else:
                message = "This line is not parseable as valid JSON."
            _add(found, "invalid_json_line", number, message)
        else:
            if line.custom_id in seen:
                message = (
                    f"The custom_id {line.custom_id[:100]!r} for this request is a duplicate of"
                    f" the one in line {seen[line.custom_id]}."
                )
                _add(found, "duplicate_custom_id", number, message, "custom_id")
            elif line.url != endpoint:
                message = (
                    f"The URL provided for this request ({line.url[:100]!r}) does not match the"
                    f" batch endpoint ({endpoint})."
                )
                _add(found, "invalid_url", number, message, "url")
            seen.setdefault(line.custom_id, number)
            found.lines.append((number, model, start, len(text)))
        if len(found.errors) >= _MOST_ERRORS:
            break
    if not found.lines and not found.errors:
        _add(found, "empty_file", None, "The input file has no requests in it.")
    return found


def check_models(found: Read, models: dict[str, str | None]) -> None:
    """Add an error for each model that cannot be asked: {model: why not, or None}."""
    told = set()
    for number, model, _, _ in found.lines:
        why = models.get(model)
        if why is not None and model not in told:
            told.add(model)
            _add(found, "model_not_available", number, why, "body.model")


def _add_invalid(found: Read, number: int, reason: str) -> None:
    what, _, place = reason.partition(" - at `$.")
    if what.startswith("Object missing required field `"):
        name = what.removeprefix("Object missing required field `").rstrip("`")
        message = f"Missing required parameter: '{name}'."
        _add(found, "missing_required_parameter", number, message, name)
        return
    param = place.rstrip("`") or None
    _add(found, "invalid_request", number, f"Invalid {param or 'request'}: {what[:200]}.", param)


def _add(found: Read, code: str, line: int | None, message: str, param: str | None = None) -> None:
    found.errors.append({"code": code, "line": line, "message": message, "param": param})

"""Frames of AWS's event streams (`application/vnd.amazon.eventstream`): what Bedrock streams in.

    length of all   u32, big-endian
    length of head  u32
    checksum        u32, CRC-32 of the eight bytes before it
    head            for each: length of the name u8, name, type u8 (7: text), length u16, value
    payload
    checksum        u32, CRC-32 of all before it

Source: the Smithy specification, "Amazon Event Stream". Tests hold it to botocore's reader.
"""

import struct
from binascii import crc32
from collections.abc import Iterator
from typing import Final

CONTENT_TYPE: Final = b"application/vnd.amazon.eventstream"
_TEXT: Final = 7
_PRELUDE: Final = struct.Struct(">II")
_WORD: Final = struct.Struct(">I")
_BESIDE: Final = (
    _PRELUDE.size + 2 * _WORD.size
)  # bytes of a frame that are neither head nor payload


_LONGEST: Final = 16 << 20


class Damaged(Exception):
    """These bytes are no event stream."""


class Frames:
    """Events from bytes as they come: the text of their heads, and their payloads."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, str], bytes]]:
        """Raises Damaged: a checksum or a length is wrong."""
        self._rest += data
        while len(self._rest) >= _PRELUDE.size + _WORD.size:
            length, head_length = _PRELUDE.unpack_from(self._rest)
            (checksum,) = _WORD.unpack_from(self._rest, _PRELUDE.size)
            if checksum != crc32(self._rest[: _PRELUDE.size]):
                raise Damaged("the checksum of a frame's lengths is wrong")
            if not head_length + _BESIDE <= length <= _LONGEST:
                raise Damaged("a frame of an impossible length")
            if len(self._rest) < length:
                return
            frame, self._rest = self._rest[:length], self._rest[length:]
            if _WORD.unpack_from(frame, length - _WORD.size)[0] != crc32(frame[: -_WORD.size]):
                raise Damaged("the checksum of a frame is wrong")
            start = _PRELUDE.size + _WORD.size
            yield _head(frame[start : start + head_length]), frame[start + head_length : -4]


def _head(data: bytes) -> dict[str, str]:
    """Return the names and values of a frame's head. All that we need is text."""
    found, at = {}, 0
    try:
        while at < len(data):
            end = at + 1 + data[at]
            name, kind = data[at + 1 : end].decode(), data[end]
            if kind != _TEXT:
                raise Damaged(f"a header of type {kind}")
            (length,) = struct.unpack_from(">H", data, end + 1)
            found[name] = data[end + 3 : end + 3 + length].decode()
            at = end + 3 + length
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise Damaged("a head that cannot be read") from error
    return found


def event(name: str, payload: bytes) -> bytes:
    """Return one event, whose payload is JSON."""
    return _frame(_EVENT + _text(":event-type", name), payload)


def exception(name: str, payload: bytes) -> bytes:
    """Return what ends a stream that breaks."""
    return _frame(_EXCEPTION + _text(":exception-type", name), payload)


def _frame(head: bytes, payload: bytes) -> bytes:
    prelude = _PRELUDE.pack(len(head) + len(payload) + _BESIDE, len(head))
    start = prelude + _WORD.pack(crc32(prelude)) + head + payload
    return start + _WORD.pack(crc32(start))


def _text(name: str, value: str) -> bytes:
    return struct.pack(f">B{len(name)}sBH", len(name), name.encode(), _TEXT, len(value)) + (
        value.encode()
    )


_JSON: Final = _text(":content-type", "application/json")
_EVENT: Final = _text(":message-type", "event") + _JSON
_EXCEPTION: Final = _text(":message-type", "exception") + _JSON

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
from typing import Final

CONTENT_TYPE: Final = b"application/vnd.amazon.eventstream"
_TEXT: Final = 7
_PRELUDE: Final = struct.Struct(">II")
_WORD: Final = struct.Struct(">I")
_BESIDE: Final = (
    _PRELUDE.size + 2 * _WORD.size
)  # bytes of a frame that are neither head nor payload


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

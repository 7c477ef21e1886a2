"""Grey pictures as PNG files, written and read with nothing but zlib."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # rows of pixels, 0 is black
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_png(path: Path, picture: Picture) -> None:
    height, width = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    path.write_bytes(
        _SIGNATURE
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )


def read_png(path: Path) -> Picture:
    """Read what `write_png` wrote: eight bits of grey, rows without a filter, one piece."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    length = struct.unpack(">I", data[33:37])[0]
    rows = zlib.decompress(data[41 : 41 + length])
    return np.frombuffer(rows, np.uint8).reshape(height, width + 1)[:, 1:]


def _chunk(name: bytes, body: bytes) -> bytes:
    check = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

"""safetensors, the file of tensors that holds no code: its header, read strictly.

    length (8 bytes, little endian) | JSON: {name: {dtype, shape, data_offsets}, …} | data

The data must be covered by the tensors exactly, without a gap: what lies between them could be
anything. Source: the format's description in the safetensors project.
"""

import json
import math
import struct
from typing import Any, Final, Never

from sublet.core.errors import Invalid
from sublet.models.formats.source import Source

_LONGEST_HEADER: Final = 100_000_000  # as the format itself has it
_MOST_TENSORS: Final = 262_144
_MOST_DIMENSIONS: Final = 8
_MOST_PARAMETERS: Final = 1 << 46
_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "F4": 4,
}  # fmt: skip


def check(source: Source, *, name: str) -> dict[str, int]:
    """Return {tensor: how many parameters it has} of one file.

    Raises:
        Invalid: it is no sound safetensors file; says what is wrong, and where.
    """
    head = source.read(0, 8)
    if len(head) < 8:
        raise Invalid(f"{name} is cut off: it has {len(head)} bytes, and its header is longer")
    (length,) = struct.unpack("<Q", head)
    if not 2 <= length <= _LONGEST_HEADER:
        raise Invalid(f"{name} is no safetensors file: its header is said to have {length} bytes")
    raw = source.read(8, length)
    if len(raw) < length:
        raise Invalid(f"{name} is cut off: its header has {len(raw)} bytes of {length}")
    header = read_object(raw, name=f"the header of {name}")
    header.pop("__metadata__", None)
    if not 1 <= len(header) <= _MOST_TENSORS:
        raise Invalid(f"{name} has {len(header)} tensors; 1 to {_MOST_TENSORS} are read")
    found: dict[str, int] = {}
    spans: list[tuple[int, int, str]] = []
    for tensor, said in header.items():
        elements, begin, end = _tensor(tensor, said, name)
        found[tensor] = elements
        spans.append((begin, end, tensor))
    before = 0
    for begin, end, tensor in sorted(spans):
        if begin != before:
            raise Invalid(
                f"{name}: tensor {tensor[:100]!r} begins at byte {begin}, the one before ends at"
                f" {before}: there may be neither gaps nor overlaps"
            )
        before = end
    whole = 8 + length + before
    if source.size < whole:
        raise Invalid(f"{name} is cut off: it has {source.size} bytes of {whole}")
    if source.size > whole:
        raise Invalid(f"{name} has {source.size - whole} bytes after its last tensor")
    return found


def read_object(raw: bytes, *, name: str) -> dict[str, Any]:
    """Return a JSON object in which no key is there twice.

    Raises:
        Invalid: it is none.
    """
    try:
        found = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{name} is not JSON: {str(error)[:200] or 'nested too deep'}") from None
    if not isinstance(found, dict):
        raise Invalid(f"{name} is no JSON object")
    return found


def _tensor(tensor: str, said: object, name: str) -> tuple[int, int, int]:
    where = f"{name}: tensor {tensor[:100]!r}"
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise Invalid(f"{where} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise Invalid(f"{where} is of type {str(dtype)[:50]!r}, which is not known")
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_DIMENSIONS
        or not all(map(_is_count, shape))
    ):
        raise Invalid(f"{where} has an impossible shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise Invalid(f"{where} has impossible data_offsets")
    elements = math.prod(shape)
    if elements > _MOST_PARAMETERS:
        raise Invalid(f"{where} has an impossible shape")
    begin, end = offsets
    if (end - begin) * 8 != elements * _BITS[dtype]:
        raise Invalid(
            f"{where} is of shape {shape} and {dtype}, which are not the {end - begin} bytes that it"
            " has"
        )
    return elements, begin, end


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 50


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(text: str) -> Never:
    raise ValueError(f"{text} is no number")

"""GGUF, llama.cpp's file: its header, read strictly.

    "GGUF", version, tensors, keys | key, type, value … | name, shape, type, offset … | data

Nothing of the file is executed or loaded; every count and length in it is held to a bound
before it is believed, since whoever wrote the file may want us to fall over it.

Source: the GGUF specification in ggml's documentation; sizes of blocks as in ggml.
"""

import struct
from collections.abc import Mapping
from typing import Final

from sublet.core.errors import Invalid
from sublet.models.formats.source import Cursor, Facts, Source

MAGIC: Final = b"GGUF"
_LONGEST_HEADER: Final = 256 << 20
_MOST_KEYS: Final = 4_096
_MOST_TENSORS: Final = 65_536
_MOST_ITEMS: Final = 4 << 20  # of an array: a vocabulary has some hundred thousand
_LONGEST_KEY: Final = 1_024
_LONGEST_TEXT: Final = 4 << 20
_LONGEST_NAME: Final = 127  # of a tensor
_MOST_DIMENSIONS: Final = 4
_MOST_PARAMETERS: Final = 1 << 46

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Final[Mapping[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
# By the number of a tensor's type: weights in a block, and bytes of it.
_BLOCKS: Final[Mapping[int, tuple[int, int]]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

_Value = str | int | float | bool | None  # None: an array, of which only the length is known


def check(source: Source, *, name: str) -> Facts:
    """Return what a file says of itself.

    Args:
        source: the file.
        name: of it, for errors.

    Raises:
        Invalid: it is no sound GGUF file; says what is wrong, and where.
    """
    cursor = Cursor(source, name=name, limit=_LONGEST_HEADER)
    if cursor.take(4, "its magic") != MAGIC:
        raise Invalid(f"{name} is no GGUF file: it does not begin with GGUF")
    version = cursor.u32("its version")
    if version not in (2, 3):
        raise Invalid(f"{name} is GGUF of version {version}; 2 and 3 are read, in little endian")
    tensors = _bounded(cursor.u64("the count of tensors"), _MOST_TENSORS, name, "tensors")
    keys = _bounded(cursor.u64("the count of keys"), _MOST_KEYS, name, "keys")
    if not tensors:
        raise Invalid(f"{name} has no tensors: is it a vocabulary only?")
    values: dict[str, _Value] = {}
    for number in range(keys):
        key = _text(cursor, _LONGEST_KEY, f"key {number}")
        if key in values:
            raise Invalid(f"{name} has the key {key[:100]!r} twice")
        values[key] = _value(cursor, cursor.u32(f"the type of {key[:100]!r}"), key[:100])
    if isinstance(values.get("split.count"), int) and values["split.count"] != 1:
        raise Invalid(f"{name} is one part of several: merge them first, with llama-gguf-split")
    parameters, end = _tensors(cursor, tensors, _alignment(values, name))
    if source.size > end:
        raise Invalid(f"{name} has {source.size - end} bytes after its last tensor")
    return _facts(values, name, parameters=parameters, size=source.size)


def _facts(values: Mapping[str, _Value], name: str, *, parameters: int, size: int) -> Facts:
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise Invalid(f"{name} does not say its general.architecture")

    def number(key: str, otherwise: int | None = None) -> int:
        value = values.get(f"{architecture}.{key}", otherwise)
        if value is None and f"{architecture}.{key}" in values and otherwise is not None:
            return otherwise  # a list, one for each layer
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 31:
            raise Invalid(f"{name}: {architecture[:50]}.{key} must be a whole number above 0")
        return value

    layers = number("block_count")
    width = number("embedding_length")
    heads = number("attention.head_count", 1)
    kv_heads = number("attention.head_count_kv", heads)
    key_length = number("attention.key_length", max(1, width // heads))
    value_length = number("attention.value_length", key_length)
    return Facts(
        format="gguf",
        architecture=architecture[:100],
        parameters=parameters,
        weights_bytes=size,
        context_tokens=number("context_length"),
        layers=layers,
        cache_token_bytes=layers * kv_heads * (key_length + value_length) * 2,
        chat_template=isinstance(values.get("tokenizer.chat_template"), str),
    )


def _tensors(cursor: Cursor, count: int, alignment: int) -> tuple[int, int]:
    """Return how many parameters there are, and where the last tensor's padding ends."""
    name = cursor.name
    spans: list[tuple[int, int, str]] = []
    names: set[str] = set()
    parameters = 0
    for index in range(count):
        tensor = _text(cursor, _LONGEST_NAME, f"the name of tensor {index}")
        if tensor in names:
            raise Invalid(f"{name} has the tensor {tensor!r} twice")
        names.add(tensor)
        dimensions = cursor.u32(f"the dimensions of {tensor!r}")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise Invalid(f"{name}: tensor {tensor!r} has {dimensions} dimensions; 1 to 4 are read")
        shape = [cursor.u64(f"the shape of {tensor!r}") for _ in range(dimensions)]
        kind = cursor.u32(f"the type of {tensor!r}")
        offset = cursor.u64(f"the offset of {tensor!r}")
        if kind not in _BLOCKS:
            raise Invalid(f"{name}: tensor {tensor!r} is of type {kind}, which is not known")
        block, block_bytes = _BLOCKS[kind]
        if shape[0] % block:
            raise Invalid(f"{name}: rows of tensor {tensor!r} are no whole blocks of {block}")
        elements = 1
        for length in shape:
            elements *= length
            if not 0 < elements <= _MOST_PARAMETERS:
                raise Invalid(f"{name}: tensor {tensor!r} has an impossible shape {shape}")
        if offset % alignment:
            raise Invalid(f"{name}: tensor {tensor!r} is not aligned to {alignment} bytes")
        spans.append((offset, offset + elements // block * block_bytes, tensor))
        parameters += elements
    start = _padded(cursor.at, alignment)
    before = 0
    for begin, finish, tensor in sorted(spans):
        if begin < before:
            raise Invalid(f"{name}: tensor {tensor!r} lies over another one")
        if begin > _padded(before, alignment):
            raise Invalid(f"{name} has a gap before tensor {tensor!r}")
        before = finish
    end = start + before
    if end > cursor.size:
        raise Invalid(f"{name} is cut off: it has {cursor.size} bytes of {end}")
    return parameters, start + _padded(before, alignment)


def _value(cursor: Cursor, kind: int, key: str) -> _Value:
    if kind == _STRING:
        return _text(cursor, _LONGEST_TEXT, key)
    if kind == _ARRAY:
        item = cursor.u32(f"the type of {key!r}")
        count = _bounded(cursor.u64(f"the length of {key!r}"), _MOST_ITEMS, cursor.name, key)
        if item == _STRING:
            for _ in range(count):
                cursor.skip(_bounded(cursor.u64(key), _LONGEST_TEXT, cursor.name, key), key)
        elif item in _SCALARS:
            cursor.skip(count * struct.calcsize(_SCALARS[item]), key)
        else:
            raise Invalid(f"{cursor.name}: {key!r} is a list of type {item}, which is not read")
        return None
    if kind not in _SCALARS:
        raise Invalid(f"{cursor.name}: {key!r} is of type {kind}, which is not known")
    form = _SCALARS[kind]
    raw = cursor.take(struct.calcsize(form), key)
    if kind == _BOOL and raw not in (b"\0", b"\1"):
        raise Invalid(f"{cursor.name}: {key!r} is neither true nor false")
    value: int | float | bool = struct.unpack(form, raw)[0]
    return value


def _text(cursor: Cursor, longest: int, what: str) -> str:
    count = _bounded(cursor.u64(f"the length of {what}"), longest, cursor.name, what)
    try:
        return cursor.take(count, what).decode()
    except UnicodeDecodeError:
        raise Invalid(f"{cursor.name}: {what} is not UTF-8") from None


def _alignment(values: Mapping[str, _Value], name: str) -> int:
    value = values.get("general.alignment", 32)
    if value not in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        raise Invalid(f"{name}: general.alignment must be a power of two from 8 to 4096")
    assert isinstance(value, int)
    return value


def _bounded(count: int, most: int, name: str, what: str) -> int:
    if count > most:
        raise Invalid(
            f"{name}: {what!r} is said to be {count} long; {most} is the most there may be"
        )
    return count


def _padded(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment

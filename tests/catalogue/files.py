"""Small weights, made here: sound ones, to be broken by tests."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any


class Bytes:
    """A file in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, count: int) -> bytes:
        return self.content[offset : offset + count]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, 4, struct.pack("<I", value))


KEYS = (
    pair("general.architecture", 8, text("llama")),
    u32("llama.block_count", 2),
    u32("llama.embedding_length", 64),
    u32("llama.attention.head_count", 4),
    u32("llama.attention.head_count_kv", 2),
    u32("llama.context_length", 512),
    pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("b") + text("c")),
)


def gguf(
    keys: Sequence[bytes] = KEYS,
    tensors: Sequence[tuple[str, Sequence[int], int, int]] = (
        ("token_embd.weight", (64, 3), 0, 768),
        ("output.weight", (64, 4), 8, 272),
    ),
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
) -> bytes:
    """Return a file; a tensor is (name, shape, type, bytes), one after the other."""
    head = magic + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys)
    offset = 0
    for name, shape, kind, size in tensors:
        head += text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", length) for length in shape)
        head += struct.pack("<IQ", kind, offset)
        offset += -(-size // 32) * 32
    return head + bytes(-len(head) % 32) + bytes(offset)


TENSORS = {"a": ("F32", [2, 3]), "b": ("BF16", [4])}
WIDTHS = {"F32": 4, "BF16": 2}


def safetensors(tensors: Mapping[str, tuple[str, list[int]]] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in (TENSORS if tensors is None else tensors).items():
        size = WIDTHS[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(at)


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_size": 64, "max_position_embeddings": 512,
}  # fmt: skip


def hugging_face(**more: bytes | None) -> dict[str, Bytes]:
    """Return a model's files; `more` by name with __ for a dot, None to leave one out."""
    files: dict[str, bytes | None] = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors(),
    }
    files |= {name.replace("__", "."): content for name, content in more.items()}
    return {name: Bytes(content) for name, content in files.items() if content is not None}

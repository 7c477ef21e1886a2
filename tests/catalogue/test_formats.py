"""Weights are read strictly: what is cut off, lies or executes is refused with a clear error."""

import json
import pickle
import random
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.catalogue.files import (
    CONFIG,
    KEYS,
    Bytes,
    gguf,
    hugging_face,
    pair,
    safetensors,
    text,
    u32,
)

from sublet.core.errors import Invalid
from sublet.models.formats import layout

SOUND = gguf()
TENSORS = safetensors()


def read_gguf(content: bytes) -> None:
    layout.check({"model.gguf": Bytes(content)})


def test_a_sound_gguf_says_what_it_is() -> None:
    facts = layout.check({"model.gguf": Bytes(SOUND)})
    assert (facts.format, facts.architecture, facts.parameters) == (
        "gguf",
        "llama",
        64 * 3 + 64 * 4,
    )
    assert (facts.layers, facts.context_tokens, facts.weights_bytes) == (2, 512, len(SOUND))
    assert facts.cache_token_bytes == 2 * 2 * (16 + 16) * 2  # layers, heads, keys and values, bytes
    assert not facts.chat_template


def test_every_cut_of_a_file_is_told() -> None:
    for end in range(len(SOUND) - 16):  # the last bytes are padding
        with pytest.raises(Invalid, match=r"cut off|no GGUF|empty"):
            read_gguf(SOUND[:end])
    for end in range(1, len(TENSORS)):
        with pytest.raises(Invalid, match="cut off"):
            layout.check(hugging_face(model__safetensors=TENSORS[:end]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gguf(magic=b"FUGG"), "does not begin with GGUF"),
        (gguf(version=1), "version 1"),
        (gguf(version=0x03000000), "little endian"),
        (gguf(tensors=()), "no tensors"),
        (gguf((*KEYS, KEYS[1])), "twice"),
        (gguf(KEYS[1:]), "general.architecture"),
        (gguf((KEYS[0], *KEYS[2:])), "llama.block_count must be"),
        (gguf((*KEYS, u32("general.alignment", 3))), "power of two"),
        (gguf((*KEYS, u32("split.count", 2))), "merge them"),
        (gguf((*KEYS, pair("x", 77, b""))), "not known"),
        (gguf((*KEYS, pair("x", 7, b"\2"))), "neither true nor false"),
        (gguf((*KEYS, pair("x", 9, struct.pack("<IQ", 9, 1)))), "list of type 9"),
        (gguf((*KEYS, pair("x", 9, struct.pack("<IQ", 4, 2**62)))), "the most there may be"),
        (gguf((*KEYS, pair("x", 8, struct.pack("<Q", 2**63)))), "the most there may be"),
        (gguf((*KEYS, text("\u00e9")[:-1] + b"\xff" + struct.pack("<I", 4) + bytes(4))), "UTF-8"),
        (gguf(tensors=(("a", (64,), 0, 256), ("a", (64,), 0, 256))), "tensor 'a' twice"),
        (gguf(tensors=(("a", (33,), 8, 64),)), "whole blocks"),
        (gguf(tensors=(("a", (64,), 5, 256),)), "type 5"),
        (gguf(tensors=(("a", (2**40, 2**40), 0, 256),)), "impossible shape"),
        (gguf(tensors=(("a", (0,), 0, 256),)), "impossible shape"),
        (gguf(tensors=(("a", (1, 1, 1, 1, 1), 0, 32),)), "5 dimensions"),
        (gguf(tensors=(("a", (64,), 0, 32), ("b", (64,), 0, 256))), "lies over"),
        (gguf(tensors=(("a", (64,), 0, 512), ("b", (64,), 0, 256))), "gap"),
        (SOUND + bytes(40), "after its last tensor"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 7), "the most there may be"),
    ],
)  # fmt: skip
def test_a_gguf_that_lies_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        read_gguf(content)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"{]", "not JSON"),
        (b"[]", "no JSON object"),
        (b'{"a": 1}', "dtype, shape and data_offsets"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": {"dtype": "F32", "shape": [1]}, "a": {}}', "twice"),
        (b'{"a": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}}', "not known"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "impossible shape"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "are not the 4 bytes"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "gaps nor overlaps"),
        (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', "no number"),
        (b'{"a": {"dtype": "F32", "shape": [1e99], "data_offsets": [0, 4]}}', "impossible shape"),
        (b"{}", "0 tensors"),
    ],
)  # fmt: skip
def test_a_safetensors_header_that_lies_is_refused(header: bytes, says: str) -> None:
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    with pytest.raises(Invalid, match=says):
        layout.check(hugging_face(model__safetensors=content))


def test_hugging_faces_layout_is_read_as_a_whole() -> None:
    facts = layout.check(hugging_face())
    assert (facts.format, facts.architecture, facts.parameters) == (
        "safetensors", "LlamaForCausalLM", 10,
    )  # fmt: skip
    index = {"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
    told = {"model__safetensors__index__json": json.dumps(index).encode()}
    assert layout.check(hugging_face(**told)).parameters == 10
    index["weight_map"]["a"] = "other.safetensors"
    told = {"model__safetensors__index__json": json.dumps(index).encode()}
    with pytest.raises(Invalid, match="the index says"):
        layout.check(hugging_face(**told))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config__json": None}, "config.json is missing"),
        ({"tokenizer__json": None}, "tokenizer is missing"),
        ({"config__json": json.dumps(CONFIG | {"auto_map": {"x": "y"}}).encode()}, "code of its own"),
        ({"config__json": json.dumps(CONFIG | {"architectures": []}).encode()}, "one architecture"),
        ({"config__json": json.dumps(CONFIG | {"hidden_size": True}).encode()}, "hidden_size"),
        ({"more__safetensors": TENSORS}, "index.json"),
        ({"pytorch_model__bin": b"x"}, "may execute code"),
        ({"model__pt": b"x"}, "may execute code"),
        ({"model__ckpt": b"x"}, "may execute code"),
        ({"modeling__py": b"x"}, "may execute code"),
        ({"what__exe2": b"x"}, "nobody here reads"),
        ({"notes__json": pickle.dumps({"a": 1})}, "Python pickle"),
        ({"notes__json": b"PK\x03\x04"}, "torch.save"),
        ({"notes__json": b""}, "is empty"),
    ],
)  # fmt: skip
def test_what_makes_no_model_or_may_execute_is_refused(
    files: dict[str, bytes | None], says: str
) -> None:
    with pytest.raises(Invalid, match=says):
        layout.check(hugging_face(**files))


@pytest.mark.parametrize(
    "path", ["../a.gguf", "/a.gguf", "a/../b.gguf", "a//b.gguf", "", "a\0.gguf", "./a.gguf"]
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(Invalid):
        layout.check_path(path)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["gguf", "safetensors"]))
def test_broken_files_end_in_an_error_or_in_facts_and_in_little_memory(
    seed: int, kind: str
) -> None:
    dice = random.Random(seed)
    content = bytearray(SOUND if kind == "gguf" else TENSORS)
    for _ in range(dice.randint(1, 8)):
        match dice.randrange(4):
            case 0:  # a bit
                content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            case 1:  # a length or an offset, made enormous
                at = dice.randrange(max(1, len(content) - 8))
                content[at : at + 8] = struct.pack(
                    "<Q", dice.choice([0, 1, 2**31, 2**63, 2**64 - 1])
                )
            case 2:  # a piece that is missing
                at = dice.randrange(len(content))
                del content[at : at + dice.randint(1, 64)]
            case _:  # a piece too many
                at = dice.randrange(len(content) + 1)
                content[at:at] = dice.randbytes(dice.randint(1, 64))
        if not content:
            content = bytearray(b"\0")
    files = (
        {"model.gguf": Bytes(bytes(content))}
        if kind == "gguf"
        else hugging_face(model__safetensors=bytes(content))
    )
    tracemalloc.start()
    said, parameters = "it is sound", 1
    try:
        parameters = layout.check(files).parameters
    except Invalid as error:
        said = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert 10 < len(said) < 1000 and parameters > 0
    assert peak < 16 << 20

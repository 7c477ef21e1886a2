"""A model's files as a whole: which there may be, and whether they make one model.

Either one GGUF file, or Hugging Face's layout: config.json, a tokenizer, and *.safetensors, with
their index where there are several. Whatever may execute code when it is loaded is refused by its
name, and by how it begins, whatever its name.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from sublet.core.errors import Invalid
from sublet.models.formats import gguf, safetensors
from sublet.models.formats.safetensors import read_object
from sublet.models.formats.source import Facts, Source

MOST_FILES: Final = 1_000
_PATH: Final = re.compile(r"[A-Za-z0-9._-]{1,150}(/[A-Za-z0-9._-]{1,150}){0,3}")
# What loads by executing, or may: pickles and what is built of them, libraries, programs.
_EXECUTES: Final = frozenset({
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".keras",
    ".msgpack", ".tar", ".zip", ".mar", ".nemo", ".onnx", ".pb", ".so", ".dll", ".dylib", ".py",
    ".pyc", ".sh", ".exe", ".whl", ".llamafile",
})  # fmt: skip
_HARMLESS: Final = frozenset({
    ".safetensors", ".gguf", ".json", ".jinja", ".txt", ".model", ".md", ".tiktoken", ".yaml", "",
})  # fmt: skip
_BEGINNINGS: Final[Mapping[bytes, str]] = {
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"\x80\x02": "a Python pickle", b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle", b"\x80\x05": "a Python pickle",
    b"\x7fELF": "a program", b"MZ": "a program", b"#!": "a script",
    b"\x1f\x8b": "a gzip archive", b"\x89HDF": "an HDF5 file",
}  # fmt: skip
_LONGEST_CONFIG: Final = 4 << 20
_LONGEST_INDEX: Final = 64 << 20
_TOKENIZERS: Final = frozenset({"tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json"})
# Of a config: code of the model's own, which engines would load.
_CODE: Final = ("auto_map", "custom_pipelines", "trust_remote_code")


def check_path(path: str) -> str:
    """Return the path of a file in a model, if it can be one.

    Raises:
        Invalid: it cannot: it leads elsewhere, or names what executes code when it is loaded.
    """
    if not _PATH.fullmatch(path) or not all(part.strip(".") for part in path.split("/")):
        raise Invalid(f"{path[:150]!r} cannot be the path of a file: letters, digits, . _ - and /")
    kind = PurePosixPath(path).suffix.lower()
    if kind in _EXECUTES:
        raise Invalid(
            f"{path!r} is refused: files of type {kind} may execute code when they are loaded. Save"
            " the weights as safetensors or GGUF"
        )
    if kind not in _HARMLESS:
        raise Invalid(f"{path!r} is refused: nobody here reads files of type {kind}")
    return path


def find_format(paths: list[str]) -> str:
    """Return "gguf" or "safetensors", by the names of a model's files.

    Raises:
        Invalid: they make no model.
    """
    if not 1 <= len(paths) <= MOST_FILES:
        raise Invalid(f"a model has 1 to {MOST_FILES} files, not {len(paths)}")
    if len({check_path(path).lower() for path in paths}) != len(paths):
        raise Invalid("two of the files have one name")
    ggufs = [path for path in paths if path.lower().endswith(".gguf")]
    tensors = [path for path in paths if path.endswith(".safetensors")]
    if ggufs and not tensors:
        if len(ggufs) > 1:
            raise Invalid(
                "there are several GGUF files: a model is one of them; merge its parts first"
            )
        return "gguf"
    if not tensors or ggufs:
        raise Invalid("a model is one .gguf file, or .safetensors files with their config.json")
    if "config.json" not in paths:
        raise Invalid("config.json is missing: it must be in Hugging Face's layout")
    if not _TOKENIZERS & set(paths):
        raise Invalid(f"the tokenizer is missing: one of {', '.join(sorted(_TOKENIZERS))}")
    if len(tensors) > 1 and "model.safetensors.index.json" not in paths:
        raise Invalid("there are several .safetensors files and no model.safetensors.index.json")
    return "safetensors"


def check(files: Mapping[str, Source]) -> Facts:
    """Return what the headers of a model's files say, once all of them are there.

    Raises:
        Invalid: they are not sound; says which, what and where.
    """
    kind = find_format(list(files))
    for path, source in files.items():
        if not source.size:
            raise Invalid(f"{path} is empty")
        beginning = source.read(0, 4)
        for magic, what in _BEGINNINGS.items():
            if beginning.startswith(magic) and not path.endswith((".safetensors", ".md", ".txt")):
                raise Invalid(f"{path} is {what}, whatever its name says, and is refused")
    if kind == "gguf":
        (path,) = (path for path in files if path.lower().endswith(".gguf"))
        return gguf.check(files[path], name=path)
    return _check_hugging_face(files)


def _check_hugging_face(files: Mapping[str, Source]) -> Facts:
    config = _json(files, "config.json", _LONGEST_CONFIG)
    for path in files:
        if path.endswith("config.json"):
            settings = config if path == "config.json" else _json(files, path, _LONGEST_CONFIG)
            for key in _CODE:
                if settings.get(key):
                    raise Invalid(
                        f"{path} has {key!r}: a model that brings code of its own is refused"
                    )
    shards = {path: source for path, source in files.items() if path.endswith(".safetensors")}
    where: dict[str, str] = {}
    parameters = 0
    for path, source in shards.items():
        for tensor, elements in safetensors.check(source, name=path).items():
            if tensor in where:
                raise Invalid(f"tensor {tensor[:100]!r} is in {where[tensor]} and in {path}")
            where[tensor] = path
            parameters += elements
    if "model.safetensors.index.json" in files:
        _check_index(_json(files, "model.safetensors.index.json", _LONGEST_INDEX), where)
    architectures = config.get("architectures")
    if (
        not isinstance(architectures, list)
        or len(architectures) != 1
        or not isinstance(architectures[0], str)
    ):
        raise Invalid("config.json must name one architecture in 'architectures'")
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else config
    layers = _number(inner, "num_hidden_layers")
    heads = _number(inner, "num_attention_heads")
    width = _number(inner, "hidden_size")
    kv_heads = _number(inner, "num_key_value_heads", heads)
    head = _number(inner, "head_dim", max(1, width // heads))
    return Facts(
        format="safetensors",
        architecture=architectures[0][:100],
        parameters=parameters,
        weights_bytes=sum(source.size for source in shards.values()),
        context_tokens=_number(inner, "max_position_embeddings"),
        layers=layers,
        cache_token_bytes=layers * kv_heads * head * 2 * 2,
        chat_template="chat_template.jinja" in files
        or (
            "tokenizer_config.json" in files
            and bool(_json(files, "tokenizer_config.json", _LONGEST_CONFIG).get("chat_template"))
        ),
    )


def _check_index(index: dict[str, Any], where: Mapping[str, str]) -> None:
    said = index.get("weight_map")
    if not isinstance(said, dict) or not all(isinstance(path, str) for path in said.values()):
        raise Invalid("model.safetensors.index.json has no weight_map of names to files")
    for tensor, path in said.items():
        if where.get(tensor) != path:
            there = where.get(tensor) or "no file"
            raise Invalid(
                f"the index says that {tensor[:100]!r} is in {path[:150]}; it is in {there}"
            )
    if missing := set(where) - set(said):
        raise Invalid(f"tensor {min(missing)[:100]!r} is not in the index")


def _json(files: Mapping[str, Source], path: str, longest: int) -> dict[str, Any]:
    source = files[path]
    if source.size > longest:
        raise Invalid(f"{path} has {source.size} bytes; {longest} is the most it may have")
    return read_object(source.read(0, source.size), name=path)


def _number(config: Mapping[str, Any], key: str, otherwise: int | None = None) -> int:
    value = config.get(key)
    value = otherwise if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 31:
        raise Invalid(f"config.json: {key} must be a whole number above 0")
    return value

"""What was learnt, as llama.cpp reads it: a GGUF of pairs of low-rank matrices."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# transformers' names of the layers that are adapted, and llama.cpp's.
LAYERS: Final[Mapping[str, str]] = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
_NAME: Final = re.compile(r"\.layers\.(\d+)\.[a-z_]+\.([a-z_]+)\.lora_([AB])\.weight\Z")


def write(
    path: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    architecture: str,
    alpha: float,
    heads: int,
    kv_heads: int,
) -> None:
    """Write an adapter.

    Args:
        path: where to.
        tensors: by peft's names: of each layer A, of shape (rank, inputs), and B, (outputs, rank).
        architecture: of the base, as general.architecture has it.
        alpha: what is learnt counts alpha / rank times.
        heads: of queries.
        kv_heads: of keys and values.
    """
    import gguf  # noqa: PLC0415 - only where something is trained

    writer: Any = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, values in sorted(tensors.items()):
        found = _NAME.search(name)
        assert found is not None, name
        block, layer, half = found.groups()
        if half == "B" and architecture == "llama" and layer in ("q_proj", "k_proj"):
            values = interleaved(values, heads if layer == "q_proj" else kv_heads)  # noqa: PLW2901
        theirs = f"blk.{block}.{LAYERS[layer]}.weight.lora_{half.lower()}"
        writer.add_tensor(theirs, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows of each head in llama.cpp's order for this architecture.

    It turns pairs of neighbours; transformers turns a row with the one half a head further.

    Source: `LlamaModel.permute` of llama.cpp's converter.
    """
    rows, columns = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)

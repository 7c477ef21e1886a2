"""`python tests/tuning/adapter.py PATH SEED`: write an adapter of the tiny model, of dice alone."""

import sys
from pathlib import Path

import numpy as np
from tiny import HEADS, INNER, KV_HEADS, LAYERS, WIDTH

from sublet.models.trainer.adapter import write

RANK = 4


def main(path: Path, seed: int) -> None:
    dice = np.random.default_rng(seed)
    keys = KV_HEADS * WIDTH // HEADS
    shapes = {
        "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (keys, WIDTH),
        "self_attn.v_proj": (keys, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }  # fmt: skip
    tensors = {}
    for layer in range(LAYERS):
        for name, (outputs, inputs) in shapes.items():
            before = f"base_model.model.model.layers.{layer}.{name}"
            for half, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                values = dice.standard_normal(shape) * 0.3
                tensors[f"{before}.lora_{half}.weight"] = values.astype(np.float32)
    write(path, tensors, architecture="llama", alpha=4, heads=HEADS, kv_heads=KV_HEADS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

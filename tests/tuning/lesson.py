"""What tests of fine-tuning share: whether there is a trainer, and something to learn."""

import json
import os
from pathlib import Path
from typing import Final

import pytest

TRAINER: Final = Path(__file__).parents[2] / ".trainer"  # made by scripts/trainer
PYTHON: Final = TRAINER / "bin" / "python"
TINY: Final = Path(__file__).with_name("tiny.py")

needs_trainer = pytest.mark.skipif(
    not (TRAINER / "ready").exists() and os.environ.get("CI") != "1",
    reason="there is no trainer: run scripts/trainer",
)


def lines(*examples: tuple[str, str]) -> bytes:
    rows = [
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": other}]}
        for one, other in examples
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()

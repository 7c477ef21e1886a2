"""Prometheus' text format, read."""

import re
from typing import Final

SAMPLE: Final = re.compile(r'^([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)*)\})? ([0-9.e+-]+)$')


def samples(text: str) -> dict[str, float]:
    """Read Prometheus' text format; every line must be of it."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = SAMPLE.match(line)
        assert match is not None, line
        found[f"{match[1]}{{{match[2] or ''}}}"] = float(match[3])
    return found

"""Small plots in text, for a terminal of any width."""

from collections.abc import Sequence
from typing import Final

_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
_ACROSS: Final = " ▏▎▍▌▋▊▉█"
_IDLE: Final = "░"


def area(used: Sequence[float | None], total: Sequence[float | None], *, height: int) -> list[str]:
    """Draw what was used as a filled area, and what was idle above it as a shade.

    Args:
        used: one value a column; None where nothing is known.
        total: how high the shade goes in each column.
        height: rows of text.

    Returns:
        the rows, the highest first.
    """
    most = max((value for value in total if value is not None), default=0.0) or 1.0
    rows = []
    for row in reversed(range(height)):
        cells = []
        for part, whole in zip(used, total, strict=True):
            if part is None or whole is None:
                cells.append(" ")
                continue
            filled = part / most * height - row
            if filled >= 1:
                cells.append("█")
            elif filled > 1 / 8:
                cells.append(_EIGHTHS[int(filled * 8)])
            else:
                cells.append(_IDLE if whole / most * height - row > 0.5 else " ")
        rows.append("".join(cells))
    return rows


def bar(share: float, *, width: int) -> str:
    """Draw a share of 1 as a bar of at most `width` cells, to an eighth of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_ACROSS[rest] if rest else "")


def axis(labels: Sequence[str], *, width: int) -> str:
    """Spread labels over a line: the first at its left end, the last at its right."""
    if not labels:
        return ""
    line = [" "] * width
    for i, label in enumerate(labels):
        place = i * width // max(len(labels) - 1, 1) - len(label) // 2
        at = max(min(place, width - len(label)), 0)
        if all(cell == " " for cell in line[max(at - 1, 0) : at + len(label) + 1]):
            line[at : at + len(label)] = label[:width]
    return "".join(line)

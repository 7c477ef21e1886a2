"""How Slurm writes instants, amounts, reasons, exit codes and lists of nodes.

Slurm cuts instants down to whole seconds. We round all of them up: differences stay what
Slurm recorded, and nothing lies before its cause on a clock that knows fractions.
"""

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

NEVER: Final = frozenset({"", "N/A", "NONE", "None", "Unknown", "(null)", "0", "n/a"})


class Unknown(Exception):
    """The output is not of a form that we know."""


UP: Final = timedelta(seconds=1)


# Of tens of thousands of jobs most say the same things in the same words.
_remembered = lru_cache(maxsize=1 << 17)


@_remembered
def instant(text: str) -> datetime | None:
    if text in NEVER:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) + UP
    except ValueError:
        raise Unknown(f"{text[:40]!r} is no instant") from None


def less(instant: datetime | None, by: timedelta) -> datetime | None:
    return None if instant is None else instant - by


@_remembered
def whole(text: str) -> int:
    digits = re.match(r"\d+", text.strip())
    return int(digits[0]) if digits else 0


def reason_of(text: str) -> str:
    # "ReqNodeNotAvail, UnavailableNodes:n1" and "(Resources)" are both about.
    return (text.strip("() ").split(",")[0].split() or ["None"])[0]


@_remembered
def exit_code_of(text: str) -> int | None:
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    if found is None:
        return None
    code, signal = int(found[1]), int(found[2] or 0)
    if found[2] is None and code > 255:  # as wait(2) has it
        return 128 + (code & 0x7F) if code & 0x7F else code >> 8
    return 128 + signal if signal else code


@_remembered
def tres_of(text: str, name: str) -> int:
    found = re.search(rf"(?:^|,){re.escape(name)}=(\d+)", text)
    return int(found[1]) if found else 0


@_remembered
def gpus_of(
    tres: str, *, per_node: str, per_job: str, per_task: str, nodes: int, tasks: int
) -> tuple[int, str | None]:
    """Return (GPUs, their model or None) that a job has or asks for."""
    asked = {
        "job": gres_of(per_job.replace("gres:", "").replace("gres/", "")),
        "node": gres_of(per_node.replace("gres:", "").replace("gres/", "")),
        "task": gres_of(per_task.replace("gres:", "").replace("gres/", "")),
    }
    typed = re.search(r"gres/gpu:([^=,]+)=\d+", tres)
    models = [model for kinds in asked.values() for model, _ in kinds if model != "gpu"]
    model = typed[1] if typed else models[0] if models else None
    counted = tres_of(tres, "gres/gpu") or sum(
        int(count) for count in re.findall(r"gres/gpu:[^=,]+=(\d+)", tres)
    )
    if not counted:
        # Where AccountingStorageTRES does not name gres/gpu, the request itself says it.
        times = {"job": 1, "node": max(nodes, 1), "task": max(tasks, 1)}
        counted = max(sum(count for _, count in kinds) * times[per] for per, kinds in asked.items())
    return counted, model


def gres_of(text: str) -> list[tuple[str, int]]:
    """Read 'gpu:h200:8(S:0-1),gpu:a100:2' into [('h200', 8), ('a100', 2)]; untyped is 'gpu'."""
    found: dict[str, int] = {}
    bare = re.sub(r"\([^)]*\)", "", text)
    for model, count in re.findall(r"(?:^|,)gpu(?::([A-Za-z][^:,=]*))?(?:[:=](\d+))?(?=,|$)", bare):
        found[model or "gpu"] = found.get(model or "gpu", 0) + int(count or 1)
    return list(found.items())


@_remembered
def expand(hosts: str) -> tuple[str, ...]:
    """Return the nodes of 'n[1-3,07],m2': n1 n2 n3 n07 m2."""
    return tuple(_expanded(hosts))


def _expanded(hosts: str) -> Iterator[str]:
    if hosts in NEVER:
        return
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", hosts):
        pieces = re.split(r"\[([^\]]*)\]", part)
        choices = [list(_numbers(p)) if i % 2 else [p] for i, p in enumerate(pieces)]
        for chosen in itertools.product(*choices):
            yield "".join(chosen)


def _numbers(ranges: str) -> Iterator[str]:
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        if not last:
            yield first
        else:
            for number in range(int(first), int(last) + 1):
                yield str(number).zfill(len(first))

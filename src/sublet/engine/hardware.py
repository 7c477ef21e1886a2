"""What this machine has to lend: its GPUs, or its cores where there is none."""

import os
import re
import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pynvml

from sublet.engine.port import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver shows it."""

    uuid: str  # what CUDA_VISIBLE_DEVICES takes, also inside a sandbox that sees few of them
    model: str  # as `gpu_model` in a Node
    device: str  # such as /dev/nvidia0
    memory_bytes: int


def find_nodes(*, cpu_slots: int | None) -> list[Node]:
    """Return one node for each GPU model here, or one "cpu" node where there is no GPU.

    Args:
        cpu_slots: how many slots the cores make; None for one a core.
    """
    return group(
        find_gpus(),
        host=socket.gethostname(),
        cpu_slots=cpu_slots or len(usable_cores()) or 1,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def group(gpus: Sequence[Gpu], *, host: str, cpu_slots: int, memory_bytes: int) -> list[Node]:
    """Make nodes of GPUs by model; `memory_bytes` is the machine's, for want of GPUs' own."""
    if not gpus:
        return [Node(name=host, gpu_model="cpu", gpus=cpu_slots, memory_bytes=memory_bytes)]
    by_model: defaultdict[str, list[Gpu]] = defaultdict(list)
    for gpu in gpus:
        by_model[gpu.model].append(gpu)
    return [
        Node(
            name=host if len(by_model) == 1 else f"{host}-{model}",
            gpu_model=model,
            gpus=len(alike),
            memory_bytes=sum(gpu.memory_bytes for gpu in alike),
        )
        for model, alike in sorted(by_model.items())
    ]


def find_gpus() -> list[Gpu]:
    """Return NVIDIA's GPUs in the driver's order; none is normal, so is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        model=model_name(pynvml.nvmlDeviceGetName(handle)),
        device=f"/dev/nvidia{pynvml.nvmlDeviceGetMinorNumber(handle)}",
        memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    )


def model_name(name: str) -> str:
    """Turn a driver's name into one for command lines: "NVIDIA H100 80GB HBM3" → h100-80gb-hbm3.

    The memory stays in: an 80 GB card is not for sale as a 40 GB one.
    """
    words = re.findall(r"[a-z0-9.]+", name.lower())
    return "-".join(word for word in words if word not in {"nvidia", "tesla", "graphics", "gpu"})


def usable_cores() -> list[int]:
    """Return the cores that this process may use, in order; macOS does not say which."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))

import pytest

from sublet.engine.hardware import Gpu, find_nodes, group, model_name
from sublet.engine.port import Node

GIB = 1 << 30


def gpu(index: int, model: str, gib: int) -> Gpu:
    return Gpu(
        uuid=f"GPU-{index}", model=model, device=f"/dev/nvidia{index}", memory_bytes=gib * GIB
    )


def test_like_gpus_make_one_node() -> None:
    nodes = group([gpu(i, "h200", 141) for i in range(8)], host="a", cpu_slots=4, memory_bytes=1)
    assert nodes == [Node(name="a", gpu_model="h200", gpus=8, memory_bytes=8 * 141 * GIB)]


def test_each_model_is_a_node_of_its_own() -> None:
    mixed = [gpu(0, "l4", 24), gpu(1, "h200", 141), gpu(2, "l4", 24)]
    assert group(mixed, host="a", cpu_slots=4, memory_bytes=1) == [
        Node(name="a-h200", gpu_model="h200", gpus=1, memory_bytes=141 * GIB),
        Node(name="a-l4", gpu_model="l4", gpus=2, memory_bytes=48 * GIB),
    ]


def test_without_gpus_the_cores_are_the_slots() -> None:
    assert group([], host="a", cpu_slots=4, memory_bytes=GIB) == [
        Node(name="a", gpu_model="cpu", gpus=4, memory_bytes=GIB)
    ]


@pytest.mark.parametrize(
    ("driver", "ours"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm4-40gb"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
    ],
)
def test_a_model_has_a_name_for_command_lines(driver: str, ours: str) -> None:
    assert model_name(driver) == ours


def test_this_machine_has_something_to_lend() -> None:
    nodes = find_nodes(cpu_slots=3)
    assert nodes
    assert all(node.gpus > 0 and node.memory_bytes > 0 for node in nodes)
    assert nodes[0].gpu_model != "cpu" or nodes[0].gpus == 3

"""Where a pool's GPUs are: nodes, and the blocks in which nodes are connected.

A block is what a job that spans nodes wants to stay inside of: a rack, an NVLink domain, the
nodes of one leaf switch. Which one a node is in, the engine says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from sublet.engine.port import Node


class Shape(IntEnum):
    """What comes free when somebody leaves, what a large job has most of first."""

    BLOCKS = 0  # whole blocks
    NODES = 1  # whole nodes
    FRAGMENT = 2  # less than a node, or parts of several


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The nodes of one pool."""

    gpus: Mapping[str, int] = field(default_factory=dict)  # of each node
    block_of: Mapping[str, str] = field(default_factory=dict)  # of nodes whose block is known
    node_gpus: int = 1  # of the largest node
    block_gpus: Mapping[str, int] = field(default_factory=dict)  # of each block

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Self:
        """Build it from nodes of one pool."""
        block_gpus: dict[str, int] = {}
        for node in nodes:
            if node.block is not None:
                block_gpus[node.block] = block_gpus.get(node.block, 0) + node.gpus
        return cls(
            gpus={node.name: node.gpus for node in nodes},
            block_of={node.name: node.block for node in nodes if node.block is not None},
            node_gpus=max((node.gpus for node in nodes), default=1) or 1,
            block_gpus=block_gpus,
        )

    def shape(self, gpus: int, on: Sequence[str]) -> Shape:
        """Return what comes free when `gpus` GPUs on these nodes do.

        Where it is not known on which nodes they are, how many there are decides.
        """
        there = sum(self.gpus.get(name, 0) for name in on)
        if not there:
            return Shape.FRAGMENT if gpus % self.node_gpus else Shape.NODES
        if gpus < there:
            return Shape.FRAGMENT
        blocks = {self.block_of.get(name) for name in on}
        in_blocks = sum(self.block_gpus.get(name, 0) for name in blocks if name is not None)
        return Shape.BLOCKS if None not in blocks and gpus >= in_blocks else Shape.NODES

    def block(self, on: Sequence[str]) -> str | None:
        """Return the block that all these nodes are in; None where there is no one such."""
        blocks = {self.block_of.get(name) for name in on}
        return blocks.pop() if len(blocks) == 1 else None


def topologies(nodes: Sequence[Node]) -> dict[str, Topology]:
    """Return {pool: where its GPUs are} of what the engine reports."""
    by_pool: dict[str, list[Node]] = {}
    for node in nodes:
        by_pool.setdefault(node.gpu_model, []).append(node)
    return {pool: Topology.of(those) for pool, those in by_pool.items()}

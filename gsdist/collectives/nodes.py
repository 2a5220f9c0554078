"""Say which ranks share a node, and open process groups inside nodes and between them."""

import socket
from dataclasses import dataclass

import torch.distributed as dist

from gsdist.collectives import deadline
from gsdist.collectives.agreement import gather_json
from gsdist.collectives.ranks import rank_of
from gsdist.errors import ConfigError

__all__ = ["NodeGroups", "Nodes", "find_nodes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """Divide the ranks of a job, in order, among nodes; the first rank of a node leads it."""

    sizes: tuple[int, ...]
    """Number of ranks of each node."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        if not self.sizes or min(self.sizes) < 1:
            raise ConfigError(
                f"node sizes are {self.sizes}; expected at least one, each at least 1"
            )

    @classmethod
    def of_equal_size(cls, size: int, world_size: int) -> "Nodes":
        """Divide `world_size` ranks among nodes of `size`.

        Raises:
            ConfigError: they cannot be divided so.
        """
        if size < 1 or world_size % size:
            raise ConfigError(
                f"{world_size} workers cannot be divided among nodes of {size}; expected a size that divides "
                f"{world_size}, or give every node's size"
            )
        return cls(sizes=(size,) * (world_size // size))

    @property
    def world_size(self) -> int:
        """Return the number of ranks of all nodes."""
        return sum(self.sizes)

    @property
    def leaders(self) -> list[int]:
        """Return the first rank of every node."""
        return [sum(self.sizes[:node]) for node in range(len(self.sizes))]

    def ranks_beside(self, rank: int) -> list[int]:
        """Return the ranks of the node that a rank belongs to, its leader first."""
        leader = max(leader for leader in self.leaders if leader <= rank)
        return list(range(leader, leader + self.sizes[self.leaders.index(leader)]))


def find_nodes(local_rank: int, group: dist.ProcessGroup | None = None) -> Nodes:
    """Find out from the launcher's local ranks which ranks of a group share a node.

    All ranks must call it, with the position that the launcher gave them among their node's processes.

    Raises:
        ConfigError: on every rank alike, when a node's ranks do not follow one another.

    Collectives: two all-gathers.
    """
    places = gather_json([local_rank, socket.gethostname()], group)
    starts = [rank for rank, (local, _) in enumerate(places) if local == 0]
    for rank, (local, host) in enumerate(places):
        leader = max((start for start in starts if start <= rank), default=None)
        if leader is None or local != rank - leader or host != places[leader][1]:
            found = ", ".join(f"{local} on {host}" for local, host in places)
            raise ConfigError(
                f"rank {rank_of(group)}/{len(places)}: the local ranks are {found}; expected the ranks of "
                "each node to follow one another, counted from 0. Let the launcher fill node after node"
            )
    return Nodes(
        sizes=tuple(
            stop - start for start, stop in zip(starts, [*starts[1:], len(places)], strict=True)
        )
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeGroups:
    """Hold this rank's process groups."""

    nodes: Nodes
    within: dist.ProcessGroup
    """The ranks of this node; its leader is rank 0."""
    leaders: dist.ProcessGroup | None
    """The leaders of all nodes; None on ranks that lead none."""

    @classmethod
    def open(cls, nodes: Nodes, group: dist.ProcessGroup) -> "NodeGroups":
        """Open both; all ranks of `group`, to which `nodes` refers, must call it.

        Collectives: creates two process groups on every rank.
        """
        everyone = dist.get_process_group_ranks(group)

        def open_group(ranks: list[int]) -> dist.ProcessGroup:
            return deadline.open_group([everyone[rank] for rank in ranks], parent=group)

        beside = nodes.ranks_beside(rank_of(group))
        position = rank_of(group) - beside[0]
        within = open_group(beside)
        # torch names groups by how many this rank has made, so every rank makes as many: those that lead
        # nothing open one with their like in the other nodes, and leave it unused.
        like = open_group(
            [
                leader + position
                for leader, size in zip(nodes.leaders, nodes.sizes, strict=True)
                if position < size
            ]
        )
        return cls(nodes=nodes, within=within, leaders=like if position == 0 else None)

"""Collect what torch.distributed lacks."""

from gsdist.collectives.agreement import gather_json, require_agreement, share_faults
from gsdist.collectives.all_gather import all_gather_equal
from gsdist.collectives.all_reduce import all_reduce_sum, start_all_reduce_sum
from gsdist.collectives.deadline import deadline_of, open_group, set_deadline
from gsdist.collectives.flight_recorder import FLIGHT_RECORDER
from gsdist.collectives.guard import guarded, transport_failures
from gsdist.collectives.local_group import LocalGroup, run_together
from gsdist.collectives.nodes import NodeGroups, Nodes, find_nodes
from gsdist.collectives.point_to_point import (
    all_to_all,
    broadcast_from,
    gather_to,
    receive_from,
    send_to,
)
from gsdist.collectives.probe import probe_link
from gsdist.collectives.ranks import rank_of, wait_for_device
from gsdist.collectives.tree import tree_all_reduce_sum

__all__ = [
    "FLIGHT_RECORDER",
    "LocalGroup",
    "NodeGroups",
    "Nodes",
    "all_gather_equal",
    "all_reduce_sum",
    "all_to_all",
    "broadcast_from",
    "deadline_of",
    "find_nodes",
    "gather_json",
    "gather_to",
    "guarded",
    "open_group",
    "probe_link",
    "rank_of",
    "receive_from",
    "require_agreement",
    "run_together",
    "send_to",
    "set_deadline",
    "share_faults",
    "start_all_reduce_sum",
    "transport_failures",
    "tree_all_reduce_sum",
    "wait_for_device",
]

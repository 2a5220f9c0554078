"""Make networks physically smaller: follow channels, count, cut, verify and export."""

from gsdist.compaction.counts import Counts, count
from gsdist.compaction.graph import ChannelGraph, Layer
from gsdist.compaction.groups import ChannelGroup, Coupling, Role, Slice
from gsdist.compaction.plan import Layout, Plan, check_layout, coupling_of, plan_from_zeros
from gsdist.compaction.surgery import CompactModel, cut_channels
from gsdist.compaction.trace import trace_channels
from gsdist.compaction.verification import TOLERANCE, max_abs_difference, verify

__all__ = [
    "TOLERANCE",
    "ChannelGraph",
    "ChannelGroup",
    "CompactModel",
    "Counts",
    "Coupling",
    "Layer",
    "Layout",
    "Plan",
    "Role",
    "Slice",
    "check_layout",
    "count",
    "coupling_of",
    "cut_channels",
    "max_abs_difference",
    "plan_from_zeros",
    "trace_channels",
    "verify",
]

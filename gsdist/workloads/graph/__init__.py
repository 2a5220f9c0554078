"""Offer the workloads on heterogeneous graphs; they need torch-geometric (the extra `graph`)."""

from gsdist.workloads.graph.config import GraphConfig
from gsdist.workloads.graph.link_prediction import LinkWorkload
from gsdist.workloads.graph.node_classification import NodeConfig, NodeWorkload
from gsdist.workloads.graph.presets import preset

__all__ = ["GraphConfig", "LinkWorkload", "NodeConfig", "NodeWorkload", "preset"]

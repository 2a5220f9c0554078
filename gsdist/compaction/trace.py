"""Trace a network by torch.fx and note what every layer does with its channels."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from gsdist.compaction.graph import CONSTANT, ChannelGraph, Layer
from gsdist.compaction.groups import Role
from gsdist.errors import UnsupportedSetup
from gsdist.models.layers import ChannelPadding

__all__ = ["trace_channels"]

_ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Dropout,
    nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
_ELEMENTWISE: frozenset[Any] = frozenset(
    [F.relu, F.relu6, F.leaky_relu, F.silu, F.gelu, F.hardswish, F.dropout, F.max_pool2d, F.avg_pool2d,
     F.adaptive_avg_pool2d, torch.relu, "relu", "relu_", "contiguous", "mean", torch.mean]
)  # fmt: skip
"""All of them turn zero into zero and mix no channels. Their names are torch's own."""
_SUMS: frozenset[Any] = frozenset([operator.add, operator.iadd, torch.add, "add", "add_"])
_FLATTENING: frozenset[Any] = frozenset([torch.flatten, "flatten"])


def trace_channels(model: nn.Module, example: tuple[Any, ...]) -> ChannelGraph:
    """Trace a network and note what every layer does with its channels.

    Args:
        model: made of convolutions, batch normalisation, pooling, activations that map zero to zero,
            sums, concatenations and linear layers. Left in the mode it came in.
        example: arguments of a call, on the model's device.

    Raises:
        UnsupportedSetup: torch.fx cannot follow the network, or a part of it mixes channels in a way
            that is not understood (names it).
    """
    was_training = model.training
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
        traced.eval()
        with torch.no_grad():
            ShapeProp(traced).propagate(*example)
    except Exception as error:  # whatever the network's own code does with a proxy
        raise UnsupportedSetup(
            f"torch.fx cannot follow {type(model).__name__}: {str(error).splitlines()[0]}; its channels "
            "cannot be removed, choose another model"
        ) from error
    finally:
        model.train(was_training)
    walk = _Walk(traced)
    for node in traced.graph.nodes:
        walk.visit(node)
    return walk.graph


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, ChannelPadding) or super().is_leaf_module(
            module, module_qualified_name
        )


class _Walk:
    """Visit the nodes of a traced network in order."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.graph = ChannelGraph()
        self._modules = dict(traced.named_modules())
        self._atoms: dict[fx.Node, Tensor] = {}

    def visit(self, node: fx.Node) -> None:
        """Give the node's tensor its atoms, and note what its layer saw."""
        if node.op == "output":
            self._visit_output(node)
            return
        shape = _shape(node)
        if shape is None:
            if any(argument in self._atoms for argument in node.all_input_nodes):
                self._require_harmless(node)
            return
        if node.op == "placeholder":
            width = shape[1] if len(shape) > 1 else 1
            self._atoms[node] = torch.full((width,), CONSTANT)
        elif node.op == "call_module":
            self._atoms[node] = self._visit_module(node, self._modules[str(node.target)])
        elif node.op in ("call_function", "call_method"):
            self._atoms[node] = self._visit_call(node)
        else:
            raise _unsupported(node, "reads a parameter that belongs to no layer")

    def _require_harmless(self, node: fx.Node) -> None:
        """Refuse what turns a tensor into several; sizes and checks tell nothing of channels."""
        if isinstance(node.meta.get("tensor_meta"), tuple | list):
            raise _unsupported(node, "splits a tensor")

    def _visit_output(self, node: fx.Node) -> None:
        for value in node.all_input_nodes:
            if value in self._atoms:
                self.graph.outputs.append(self._atoms[value])

    def _visit_module(self, node: fx.Node, module: nn.Module) -> Tensor:
        name, atoms = str(node.target), self._input(node)
        if isinstance(module, _ELEMENTWISE_MODULES):
            return atoms
        if isinstance(module, nn.Flatten):
            return self._flatten(node, atoms)
        if name in self.graph.layers:
            raise _unsupported(node, "uses the same layer twice")
        if isinstance(module, nn.Conv2d):
            return self._visit_convolution(node, name, module, atoms)
        if isinstance(module, nn.Linear):
            return self._visit_linear(node, name, module, atoms)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            if not module.affine:
                raise _unsupported(node, "normalises without scale and shift")
            self._add_layer(node, name, "norm", atoms, 1, 1, True)
            return atoms
        if isinstance(module, ChannelPadding):
            before, after = self.graph.fresh(module.before), self.graph.fresh(module.after)
            padded = torch.cat([before, atoms, after])
            self.graph.seen.append((name, "padding", padded))
            return padded
        raise _unsupported(node, f"is a {type(module).__name__}, whose statistics or order of channels "
                           "change when some are removed")  # fmt: skip

    def _visit_convolution(
        self, node: fx.Node, name: str, module: nn.Conv2d, atoms: Tensor
    ) -> Tensor:
        kernel = module.kernel_size[0] * module.kernel_size[1]
        bias = module.bias is not None
        if module.groups == module.in_channels == module.out_channels > 1:
            self._add_layer(node, name, "depthwise", atoms, 1, kernel, bias)
            return atoms
        if module.groups != 1:
            raise _unsupported(node, f"is a convolution of {module.groups} groups")
        self.graph.seen.append((name, "in", atoms))
        made = self.graph.made[name] = self.graph.fresh(module.out_channels)
        self._add_layer(node, name, "out", made, module.in_channels, kernel, bias)
        followers = list(node.users)
        if len(followers) == 1 and followers[0].op == "call_module":
            target = str(followers[0].target)
            if isinstance(self._modules[target], nn.BatchNorm2d):
                self.graph.sole_norm[name] = target
        return made

    def _visit_linear(self, node: fx.Node, name: str, module: nn.Linear, atoms: Tensor) -> Tensor:
        shape = _shape(node)
        if shape is None or len(shape) != 2:
            raise _unsupported(node, "is a linear layer on more than a matrix")
        self.graph.seen.append((name, "in", atoms))
        # Never pruned: what a linear layer makes belongs to no group.
        made = torch.full((module.out_features,), CONSTANT)
        self._add_layer(node, name, "out", made, module.in_features, 1, module.bias is not None)
        return made

    def _add_layer(
        self,
        node: fx.Node,
        name: str,
        role: Role,
        atoms: Tensor,
        inputs: int,
        kernel: int,
        bias: bool,
    ) -> None:
        shape = _shape(node)
        assert shape is not None
        self.graph.layers[name] = Layer(
            name=name,
            role=role,
            out_channels=len(atoms),
            in_channels=inputs,
            positions=int(torch.Size(shape[2:]).numel()),
            kernel=kernel,
            bias=bias,
        )
        if role != "out":
            self.graph.seen.append((name, role, atoms))

    def _visit_call(self, node: fx.Node) -> Tensor:
        target = node.target
        if target in _FLATTENING or target in ("view", "reshape"):
            return self._flatten(node, self._input(node))
        if target in _ELEMENTWISE:
            if target in ("mean", torch.mean):
                self._require_mean_over_positions(node)
            return self._input(node)
        operands = [self._atoms[value] for value in node.all_input_nodes if value in self._atoms]
        if target in _SUMS and len(operands) == 2 and len(operands[0]) == len(operands[1]):
            total = self.graph.fresh(len(operands[0]))
            self.graph.sums += [(operand, total) for operand in operands]
            return total
        if target in (torch.cat, torch.concat) and _dimension(node) == 1:
            joined: Any = node.args[0]
            return torch.cat([self._atoms[value] for value in joined])
        if target is operator.getitem and _keeps_channels(node.args[1]):
            return self._input(node)
        raise _unsupported(node, "is no operation whose effect on channels is known")

    def _flatten(self, node: fx.Node, atoms: Tensor) -> Tensor:
        source, shape = node.all_input_nodes[0], _shape(node)
        before = _shape(source)
        if before is None or shape is None or len(shape) != 2 or shape[0] != before[0]:
            raise _unsupported(node, "reorders a tensor")
        return atoms.repeat_interleave(torch.Size(before[2:]).numel())

    def _require_mean_over_positions(self, node: fx.Node) -> None:
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if tuple(given if isinstance(given, tuple | list) else ()) not in ((2, 3), (-2, -1)):
            raise _unsupported(node, "is a mean over other dimensions than the positions")

    def _input(self, node: fx.Node) -> Tensor:
        for value in node.all_input_nodes:
            if value in self._atoms:
                return self._atoms[value]
        raise _unsupported(node, "reads no tensor that was followed")


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return None if shape is None else tuple(shape)


def _dimension(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def _keeps_channels(index: Any) -> bool:
    return isinstance(index, tuple) and len(index) > 1 and index[:2] == (slice(None), slice(None))


def _unsupported(node: fx.Node, reason: str) -> UnsupportedSetup:
    target: str | Callable[..., Any] = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return UnsupportedSetup(
        f"node {node.name!r} ({name}) {reason}; networks with it cannot be pruned by channels, choose "
        "another model"
    )

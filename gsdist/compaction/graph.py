"""Follow every channel of a network from the convolution that makes it to the layers that read it.

torch.fx gives the graph, one run with an example gives the shapes. Each tensor carries one number per
channel, its atom: a convolution makes fresh atoms; normalisation, activation, pooling and depthwise
convolutions hand them on; a concatenation joins lists; a sum makes fresh atoms and remembers which were
added. From what each layer saw, `channel_groups` puts together what belongs to one channel.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from gsdist.compaction.groups import ChannelGroup, Coupling, Role, Slice
from gsdist.errors import UnsupportedSetup
from gsdist.models.layers import ChannelPadding

__all__ = ["ChannelGraph", "Layer", "trace_channels"]

_CONSTANT = -1
"""The atom of a channel that can never be removed: of the input."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Hold what a layer costs, per output channel and input channel where it has both."""

    name: str
    role: Role
    """"out" for what makes channels: convolution and linear layer."""
    out_channels: int
    in_channels: int
    """Per group of a grouped convolution."""
    positions: int
    """Height times width of the output."""
    kernel: int
    """Elements of the kernel per pair of channels."""
    bias: bool


@dataclass(slots=True, kw_only=True)
class ChannelGraph:
    """Hold the atoms that every layer saw. Made by `trace_channels`."""

    layers: dict[str, Layer] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)
    """Atoms by the name of the convolution that made them."""
    seen: list[tuple[str, Role, Tensor]] = field(default_factory=list)
    """Module, role and the atoms along that axis; all but the roles of `made`."""
    sums: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Pairs of atoms: an operand's and that of the sum."""
    outputs: list[Tensor] = field(default_factory=list)
    """Atoms of what the network returns."""
    sole_norm: dict[str, str] = field(default_factory=dict)
    """The normalisation behind a convolution that nothing else reads."""
    atoms: int = 0

    def fresh(self, count: int) -> Tensor:
        """Return so many new atoms."""
        self.atoms += count
        return torch.arange(self.atoms - count, self.atoms)

    def channel_groups(self, coupling: Coupling = "layer") -> list[ChannelGroup]:
        """Put the channels of every convolution together with all that belongs to them.

        Channels that the network returns, and with coupling "stage" those added to its input, belong
        to no group: they cannot be removed.
        """
        labels = self._merged_atoms() if coupling == "stage" else torch.arange(self.atoms)
        fixed = torch.zeros(self.atoms, dtype=torch.bool)
        for atoms in self._fixed_atoms(coupling):
            fixed[labels[atoms[atoms >= 0]]] = True
        summed = torch.zeros(self.atoms, dtype=torch.bool)
        if coupling == "layer" and self.sums:
            summed[torch.cat([operand[operand >= 0] for operand, _ in self.sums])] = True
        components = list(self._components(labels, fixed))
        residual = [bool(summed[members].any()) for members in components]
        slices = self._slices(labels, components)
        groups = []
        for members, parts, ends_in_sum in zip(components, slices, residual, strict=True):
            name = next(part.module for part in parts if part.role == "out")
            groups.append(
                ChannelGroup(
                    name=name,
                    size=len(members),
                    slices=tuple(p for p in parts if not (ends_in_sum and p.role == "in")),
                    residual=ends_in_sum,
                    expands_at=self.sole_norm.get(name, name) if ends_in_sum else None,
                )
            )
        return groups

    def widths(self) -> dict[tuple[str, Role], int]:
        """Return the number of channels by module and role."""
        return {(name, role): len(atoms) for name, role, atoms in self._everywhere()}

    def _everywhere(self) -> Iterator[tuple[str, Role, Tensor]]:
        for name, atoms in self.made.items():
            yield name, "out", atoms
        yield from self.seen

    def _slices(self, labels: Tensor, components: list[Tensor]) -> list[list[Slice]]:
        """Find, for each component of labels, where its channels lie in all layers."""
        # _CONSTANT, used as an index, finds the last entry, which is that of no group.
        padded = torch.cat([labels, torch.tensor([self.atoms])])
        group_of = torch.full((self.atoms + 1,), -1)
        channel_of = torch.full((self.atoms + 1,), -1)
        for number, members in enumerate(components):
            group_of[members] = number
            channel_of[members] = torch.arange(len(members))
        found: list[list[Slice]] = [[] for _ in components]
        for name, role, atoms in self._everywhere():
            labelled = padded[atoms]
            owners = group_of[labelled]
            for number in sorted(set(owners.tolist())):
                if number >= 0:
                    positions = (owners == number).nonzero()[:, 0]
                    channels = channel_of[labelled[positions]]
                    found[number].append(
                        Slice(module=name, role=role, channels=channels, positions=positions)
                    )
        return found

    def _components(self, labels: Tensor, fixed: Tensor) -> Iterator[Tensor]:
        """Yield the labels of the channels of each group: of all convolutions that share some."""
        owner: dict[int, int] = {}
        merged: list[set[int]] = []
        for atoms in self.made.values():
            own = set(labels[atoms].tolist())
            touching = sorted({owner[label] for label in own if label in owner})
            for other in touching:
                own |= merged[other]
                merged[other] = set()
            place = touching[0] if touching else len(merged)
            if place == len(merged):
                merged.append(own)
            else:
                merged[place] = own
            owner.update(dict.fromkeys(own, place))
        for component in merged:
            members = torch.tensor(sorted(component), dtype=torch.int64)
            members = members[~fixed[members]]
            if len(members):
                yield members

    def _fixed_atoms(self, coupling: Coupling) -> Iterator[Tensor]:
        yield from self.outputs
        if coupling == "stage":
            for operand, total in self.sums:
                yield total[operand == _CONSTANT]

    def _merged_atoms(self) -> Tensor:
        """Label every atom with the smallest of those it is added to, over all sums."""
        labels = torch.arange(self.atoms)
        for operand, total in reversed(self.sums):
            real = operand >= 0
            first, second = operand[real], total[real]
            while True:
                low = torch.minimum(labels[first], labels[second])
                before = labels.clone()
                labels.scatter_reduce_(0, labels[first].clone(), low, "amin")
                labels.scatter_reduce_(0, labels[second].clone(), low, "amin")
                labels = labels[labels]
                if torch.equal(labels, before):
                    break
        while not torch.equal(labels, labels[labels]):
            labels = labels[labels]
        return labels


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
            self._atoms[node] = torch.full((width,), _CONSTANT)
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
        made = torch.full((module.out_features,), _CONSTANT)
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

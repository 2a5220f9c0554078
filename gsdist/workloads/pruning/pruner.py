"""Prune a network while it is trained, alike on every rank.

After each epoch every candidate is scored, the lowest ones are multiplied by the step's softness, and the
hard ones among them are zeroed and kept still until the next decision. Rank 0 decides; the others get its
decision and make sure that they hold the same.

In a training loop of your own:

    pruner = Pruner(model, example, PRESETS["ghfp"], total_events=epochs)
    pruner.on_train_begin()
    for epoch in range(epochs):
        for ...:
            loss.backward()
            pruner.before_reduce()  # before gradients are exchanged: DDP users take gsdist.attach's set_mask
            optimizer.step()
        pruner.on_epoch_end(epoch, optimizer)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from gsdist.compaction import (
    CompactModel,
    Counts,
    Plan,
    count,
    cut_channels,
    trace_channels,
    verify,
)
from gsdist.errors import ConfigError, ConfigMismatch
from gsdist.workloads.pruning.config import PruningConfig
from gsdist.workloads.pruning.criterion import scores_of
from gsdist.workloads.pruning.pfgdf import parse_intervals
from gsdist.workloads.pruning.schedule import Step, step_at
from gsdist.workloads.pruning.scope import choose, number_pruned, strength_for, tally
from gsdist.workloads.pruning.units import Unit, total_size, units_of

__all__ = ["Pruner", "clear_masked_state"]

KEPT, SOFT, HARD = 0, 1, 2
"""What a decision says of a candidate."""


class Pruner:
    """Score, decide, mask; knows nothing of data, loss and exchange.

    Args:
        model: the network, not its DDP wrapper; changed in place.
        example: arguments of a call of it.
        config: what is pruned, when and how.
        total_events: epochs of the run.

    Raises:
        UnsupportedSetup: the network cannot be followed or has nothing to prune.
        ConfigError: the settings hold an interval of a layer that cannot be pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        example: tuple[Any, ...],
        config: PruningConfig,
        *,
        total_events: int,
    ) -> None:
        self.config = config
        self._model = model
        self._example = example
        self._total = total_events
        self._graph = trace_channels(model, example)
        self._units = units_of(model, self._graph, config)
        self._sizes = [unit.size for unit in self._units]
        self._require_known(parse_intervals(config.intervals or ()))
        self._decision = torch.zeros(total_size(self._units), dtype=torch.uint8)
        self._step = Step(rate=0.0, softness=1.0, hard_share=0.0)
        self._mask: dict[str, Tensor] | None = None
        self._compacted = False
        self._dense = count(self._graph, [])

    def _require_known(self, layers: Iterable[str]) -> None:
        unknown = set(layers) - set(self.layers)
        if unknown:
            raise ConfigError(
                f"intervals names {', '.join(sorted(unknown))}; the layers of this network that can be "
                f"pruned are {', '.join(self.layers)}"
            )

    @property
    def layers(self) -> list[str]:
        """Return the names of what is pruned apart, from input to output."""
        return [unit.name for unit in self._units]

    # ---- when ---------------------------------------------------------------------------------------

    def on_train_begin(self) -> None:
        """Prune before the first epoch if the settings say so. Collectives: as `on_epoch_end`."""
        if self.config.select_once:
            if self.config.mask_at_begin and self.config.select_at == 0:
                self._prune(self._total - 1)
        elif self.config.mask_at_begin:
            self._prune(0)

    def on_epoch_end(self, event: int, optimizer: Optimizer | None = None) -> None:
        """Prune after epoch `event`, counted from 0; clear the optimizer's state of hard candidates.

        Call it with equal buffers (running statistics) on all ranks, between the optimizer's step and the
        next forward pass.

        Raises:
            ConfigMismatch: ranks hold different decisions; on every rank.

        Collectives: one broadcast and two all-reduces of a few bytes.
        """
        if self._compacted:
            return
        if not self.config.select_once:
            self._prune(event)
        elif event == self._selection_event and not self._decision.any():
            self._prune(self._total - 1)
        if optimizer is not None:
            clear_masked_state(optimizer, dict(self._model.named_parameters()), self._mask)

    @property
    def _selection_event(self) -> int:
        return min(self._total, max(1, math.ceil(self.config.select_at * self._total))) - 1

    @property
    def compaction_event(self) -> int | None:
        """Return the epoch after which the network is made smaller, if ever."""
        if self.config.compact_at is None:
            return None
        return max(self._selection_event, math.ceil(self.config.compact_at * self._total) - 1)

    def before_reduce(self) -> None:
        """Zero the gradients of hard candidates, before they are exchanged."""
        parameters = dict(self._model.named_parameters())
        for name, trained in (self._mask or {}).items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.mul_(trained)

    def _prune(self, event: int) -> None:
        # Every rank decides, so that all find the same faults; rounding might tell their results apart.
        decision, step = self._decide(event)
        if _several_ranks():
            dist.broadcast(decision, 0)
        self._adopt(decision, step)
        self._require_agreement()
        factors = torch.tensor([1.0, step.softness, 0.0], dtype=torch.float64)
        parameters = dict(self._model.named_parameters())
        for unit, states in zip(self._units, torch.split(decision, self._sizes), strict=True):
            unit.scale(parameters, factors[states.long()])

    # ---- what ---------------------------------------------------------------------------------------

    def _decide(self, event: int) -> tuple[Tensor, Step]:
        """Return a state per candidate, uint8, and the step."""
        step = step_at(self.config, event, self._total)
        decision = torch.zeros_like(self._decision)
        scores = scores_of(self._model, self._graph, self._units, self.config)
        strength = strength_for(self._graph, self._units, scores, self.config)
        share = strength * step.rate / self.config.rate
        chosen = choose(self._units, scores, share, self.config)
        for unit, pruned, states in zip(
            self._units, chosen, torch.split(decision, self._sizes), strict=True
        ):
            states[pruned] = SOFT
            states[pruned[: self._number_hard(unit, pruned, share, step)]] = HARD
        return decision, step

    def _number_hard(self, unit: Unit, pruned: Tensor, share: float, step: Step) -> int:
        if self.config.scope == "local":
            return number_pruned(unit.size, share * step.hard_share)
        return number_pruned(len(pruned), step.hard_share)

    def _adopt(self, decision: Tensor, step: Step) -> None:
        self._step = step
        if self._mask is not None and torch.equal(decision == HARD, self._decision == HARD):
            self._decision = decision
            return
        self._decision = decision
        hard = decision == HARD
        self._mask = self._trained(torch.split(hard, self._sizes)) if hard.any() else None

    def _trained(self, hard: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return bool tensors in the parameters' shapes, False where a candidate is hard."""
        parameters = dict(self._model.named_parameters())
        masks: dict[str, Tensor] = {}
        for unit, chosen in zip(self._units, hard, strict=True):
            for part in unit.parts if chosen.any() else ():
                if part.parameter not in masks:
                    parameter = parameters[part.parameter]
                    masks[part.parameter] = torch.ones_like(parameter, dtype=torch.bool)
                rows = part.rows[chosen[part.candidates]]
                part.view(masks[part.parameter])[rows] = False
        return masks

    def _require_agreement(self) -> None:
        """Compare the masks of all ranks by a hash. Collectives: two all-reduces."""
        if not _several_ranks():
            return
        own = torch.tensor([self.fingerprint()])
        lowest, highest = own.clone(), own.clone()
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        if int(lowest) != int(highest):
            raise ConfigMismatch(
                f"rank {dist.get_rank()}: the masks of the ranks differ (this one's hash is {int(own)}, "
                f"those of all lie between {int(lowest)} and {int(highest)}); the broadcast was damaged, or "
                "the ranks run different models"
            )

    # ---- what others read ---------------------------------------------------------------------------

    @property
    def coordinate_mask(self) -> Mapping[str, Tensor] | None:
        """Return which coordinates are trained, as of `gsdist.workloads.Workload.coordinate_mask`."""
        return self._mask

    @property
    def finished(self) -> bool:
        """Tell whether what is pruned now is pruned for good: zero, and as much as was asked for."""
        step = self._step
        return step.softness == 0 and math.isclose(step.rate, self.config.rate)

    def fingerprint(self) -> int:
        """Return a hash of the present decision."""
        return crc32(self._decision.numpy().tobytes())

    def kept(self) -> dict[str, Tensor]:
        """Return, by unit, a bool tensor `(size,)`: True where nothing is pruned, soft or hard."""
        parts = torch.split((self._decision == KEPT), self._sizes)
        return {unit.name: part for unit, part in zip(self._units, parts, strict=True)}

    def sparsity_loss(self, event: int) -> Tensor | None:
        """Return the weighted sum of absolute scales of all normalisations until the selection, or None."""
        if self.config.sparsity == 0 or event > self._selection_event:
            return None
        scales = [
            module.weight.abs().sum()
            for module in self._model.modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
        return self.config.sparsity * torch.stack(scales).sum() if scales else None

    def counts(self) -> tuple[Counts, Counts]:
        """Return what the dense network costs and what is left when all that is pruned is removed."""
        if self.config.granularity == "weight":
            pruned = int((self._decision != KEPT).sum())
            dense = self._dense
            return dense, Counts(
                macs=dense.macs,
                macs_with_norm=dense.macs_with_norm,
                parameters=dense.parameters - pruned,
            )
        chosen = [(~keep).nonzero()[:, 0] for keep in self.kept().values()]
        return self._dense, tally(self._graph, self._units, chosen, self.config)

    def counts_if_pruned(self) -> Counts:
        """Return what would be left if the network were pruned now as at the end; changes nothing."""
        decision, _ = self._decide(self._total - 1)
        chosen = [states.nonzero()[:, 0] for states in torch.split(decision, self._sizes)]
        return tally(self._graph, self._units, chosen, self.config)

    def measures(self) -> dict[str, float]:
        """Return step, ratios and the number of coordinates that still get a gradient, for records.

        Hard filters get none, nor do the weights that read them.
        """
        dense, left = self.counts()
        return {
            "pruning_rate": self._step.rate,
            "softness": self._step.softness,
            "hard_share": self._step.hard_share,
            "macs_ratio": left.macs / dense.macs,
            "params_ratio": left.parameters / dense.parameters,
            "effective_dimension": float(self._effective_dimension()),
        }

    def outcome(self) -> dict[str, Any]:
        """Return, as JSON knows it, the plan, the size of each unit, and whether the network is cut."""
        dense, left = self.counts()
        return {
            "plan": self._plan().to_mapping(),
            "sizes": {unit.name: unit.size for unit in self._units},
            "compacted": self._compacted,
            "granularity": self.config.granularity,
            "dense": asdict(dense),
            "left": asdict(left),
        }

    def _plan(self) -> Plan:
        kept = {
            name: tuple(keep.nonzero()[:, 0].tolist())
            for name, keep in self.kept().items()
            if not keep.all()
        }
        return Plan(layout=self.config.layout, kept=kept)

    def _effective_dimension(self) -> int:
        hard = self._decision == HARD
        if self.config.granularity == "weight":
            return self._dense.parameters - int(hard.sum())
        parts = [part.nonzero()[:, 0] for part in torch.split(hard, self._sizes)]
        return tally(self._graph, self._units, parts, self.config).parameters

    # ---- state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return decision and step; equal on all ranks."""
        step = self._step
        return {
            "decision": self._decision.clone(),
            "rate": step.rate,
            "softness": step.softness,
            "hard_share": step.hard_share,
            "compacted": self._compacted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; changes no parameter, and no network that is still whole.

        Raises:
            ConfigError: the state is of another network or other settings.
        """
        if state["decision"].shape != self._decision.shape:
            raise ConfigError(
                f"the saved masks cover {state['decision'].numel()} candidates, this network has "
                f"{self._decision.numel()}; resume with the network and layout of the run that saved them"
            )
        names = ("rate", "softness", "hard_share")
        self._mask, self._compacted = None, state["compacted"]
        self._adopt(state["decision"].clone(), Step(**{name: state[name] for name in names}))

    def compact(self) -> CompactModel:
        """Cut out all that is pruned for good and make sure that the answers stay the same.

        Raises:
            ConfigError: some of it is not zero yet, or single weights are pruned.
            UnsupportedSetup: the answers would change.
        """
        if self.config.granularity == "weight" or not self.finished:
            raise ConfigError(
                f"nothing can be removed: granularity={self.config.granularity!r}, softness "
                f"{self._step.softness:.3g}; only filters that are zero can, after the last epoch"
            )
        compact = cut_channels(self._model, self._graph, self._plan())
        if not self._compacted:
            verify(self._model, compact.model, self._example)
        return compact

    def continue_with(self, compact: CompactModel) -> None:
        """Go on with the smaller network; nothing more is pruned."""
        self._model, self._mask, self._compacted = compact.model, None, True


def clear_masked_state(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None
) -> None:
    """Zero the optimizer's momentum and the like where the mask is False."""
    for name, trained in (mask or {}).items():
        for value in optimizer.state.get(parameters[name], {}).values():
            if isinstance(value, Tensor) and value.shape == trained.shape:
                value.mul_(trained)


def _several_ranks() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1

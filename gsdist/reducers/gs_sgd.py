"""Exchange gradients by gs-SGD: find the sum's heavy directions in merged sketches, sum exactly along them.

A refresh is the two rounds of gs-SGD with directions of each layer's matrix in the place of coordinates: the
workers' sketches are summed, all find the same heavy directions in the merged sketch, a second sum brings the
exact values along them. Gradients keep their directions for many steps, so the steps between two refreshes
need no search: all workers know the same basis and the energy that each coefficient has had in it, choose the
same coefficients, and one sum brings their exact values. What a worker has not sent stays in its residual. No
decision rests on one worker's gradient alone, so the result does not depend on how the data is split.

Sources: the two rounds are those of gs-SGD (arXiv 2108.06004, known by its abstract; `gs_sgd_paper` stays
close to it), the exact projection on a range is PowerSGD's (arXiv 1905.13727), and the basis, eigenvectors of
decayed second moments of rows and columns, is that of Shampoo (arXiv 1802.09568). See docs/gs-sgd.md.

======  ============================================================================
symbol  here
======  ============================================================================
M_i     corrected gradient of one parameter of worker i as an (n, m) matrix
S       (n, rank): merged Count-Sketch, the sum of M_i times `sketch_columns`
Q       (n, rank): orthonormal basis of S
U, V    (n, a), (m, b): directions of rows and columns known to all workers; a side can be whole
C       (a, b): coefficients of the sum of all M_i, U^T M V
q       energy: mean square of what a coefficient gains per step
t       age: steps since a coefficient was sent
O       (a, b): coefficients sent since the last refresh that `_residual` still contains
======  ============================================================================

Collectives: in a refresh an all-reduce of S, dense set and agreement lanes, then one of Q^T M and lanes; in
all other steps one all-reduce of the chosen coefficients of C, dense set and lanes. A half-precision sum that
overflows is repeated in float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gsdist.errors import ConfigError
from gsdist.reducers.compressed import Update
from gsdist.reducers.draw_seed import draw_seed
from gsdist.reducers.factors import FactorReducer, split_like
from gsdist.reducers.gs_sgd_config import (
    ByteBudget,
    GsSgdConfig,
    steps_to_next_refresh,
)
from gsdist.reducers.layout import Segment
from gsdist.reducers.matrix_basis import (
    MatrixBasis,
    Refreshed,
    orthonormal,
    sketch_columns,
)
from gsdist.sketch.on_device import top_k

__all__ = ["GsSgdReducer"]

_ENERGY_DECAY = 0.9
"""Weight of what was known of a coefficient's energy when it is seen again."""
_IN_FACTORS = torch.empty(0)
"""Stands for sums that are only written out, by `_write_average`, where they are wanted."""


class GsSgdReducer(FactorReducer[GsSgdConfig]):
    """Average the gradient in its heaviest directions, keep the rest for later steps."""

    def _allocate(self) -> None:
        super()._allocate()
        config, layout = self._config, self._layout
        self._budget = ByteBudget.of(config, layout)
        self._bases = {
            s.name: MatrixBasis.unknown(
                s.matrix_shape, config.directions_of(s.matrix_shape), self._device
            )
            for s in layout.compressed
        }
        self._shapes = [basis.shape for basis in self._bases.values()]
        count = sum(shape.numel() for shape in self._shapes)
        self._own = self._zeros(count)
        self._own_sketches: dict[str, Tensor] = {}
        self._coefficients = self._zeros(count)
        self._energy, self._age = self._zeros(count), self._zeros(count).fill_(1.0)
        self._owed = self._zeros(count)
        self._own_of, self._owed_of = self._split(self._own), self._split(self._owed)
        self._coefficients_of = self._split(self._coefficients)
        self._next_refresh = config.warmup_steps
        self._last_refresh: int | None = None
        self._applied: dict[str, tuple[Tensor, Tensor]] = {}
        self._refreshed: dict[str, tuple[Tensor, Tensor]] = {}
        self._chosen: tuple[Tensor | slice, Tensor] | None = None
        self._bases_sum: Tensor | None = None

    def _begin_step(self) -> None:
        self._applied, self._refreshed, self._chosen = {}, {}, None

    @property
    def _refreshes(self) -> bool:
        return self._step == self._next_refresh

    def _absorbed(self, segment: Segment) -> None:
        if self._warming_up:
            return
        if self._refreshes:
            self._sketch(segment)
        else:
            self._project(segment)

    def _exchange(self) -> Update | None:
        return self._refresh() if self._refreshes else self._sum_coefficients()

    # ---- between refreshes --------------------------------------------------------------------------

    def _project(self, segment: Segment) -> None:
        """Work out this worker's coefficients of one parameter."""
        with self._recorder.phase("project"):
            matrix = segment.matrix_view(self._corrected)
            self._bases[segment.name].project(matrix, self._own_of[segment.name])

    def _sum_coefficients(self) -> Update | None:
        with self._recorder.phase("select"):
            chosen = self._choose()
            own = self._own[chosen] - self._owed[chosen]
        agreed = self._basis_fingerprint()
        if isinstance(chosen, Tensor):
            agreed = torch.cat([chosen, agreed])
        reduced = self._sum("values", [own, self._dense], agreed)
        if reduced is None:
            return None
        (sums, dense_sums), (sent, _) = reduced
        with self._recorder.phase("decode"):
            self._coefficients.zero_()[chosen] = sums
            for name, coefficients in self._coefficients_of.items():
                self._applied[name] = self._bases[name].expand(coefficients)
        self._chosen = (chosen, sent)
        return Update(sums=_IN_FACTORS, indices=None, sent=None, dense_sums=dense_sums)

    def _choose(self) -> Tensor | slice:
        """Return which coefficients are sent; all of them, where the bytes allow it, as a slice."""
        if self._budget.coefficients == self._energy.numel():
            return slice(None)
        return top_k(self._energy * self._age, self._budget.coefficients)

    def _note_coefficients(self, chosen: Tensor | slice, sent: Tensor) -> None:
        """Take note of the coefficients of a step that is applied."""
        self._owed[chosen] += sent
        seen = self._coefficients[chosen].square().div_(self._age[chosen])
        self._energy[chosen] = _ENERGY_DECAY * self._energy[chosen] + (1 - _ENERGY_DECAY) * seen
        self._age += 1.0
        self._age[chosen] = 1.0
        for name, coefficients in self._coefficients_of.items():
            self._bases[name].follow(coefficients, self._config.direction_decay)

    def _take_out_owed(self, segment: Segment, vector: Tensor) -> None:
        """Take out of one parameter's part of a vector what has been sent since the last refresh.

        One product per refresh instead of one per step: sums along the same directions add up.
        """
        left, right = self._bases[segment.name].expand(self._owed_of[segment.name])
        segment.matrix_view(vector).addmm_(left, right, alpha=-1.0)

    # ---- refresh ------------------------------------------------------------------------------------

    def _sketch(self, segment: Segment) -> None:
        """Sketch this worker's corrected gradient of one parameter."""
        with self._recorder.phase("encode"):
            self._take_out_owed(segment, self._corrected)
            matrix = segment.matrix_view(self._corrected)
            self._own_sketches[segment.name] = matrix @ self._sketch_columns(segment)

    def _refresh(self) -> Update | None:
        sketches = [self._own_sketches[segment.name] for segment in self._layout.compressed]
        reduced = self._sum("sketch", [*sketches, self._dense], self._basis_fingerprint())
        if reduced is None:
            return None
        merged, dense_sums = reduced[0][:-1], reduced[0][-1]
        with self._recorder.phase("select"):
            ranges = [orthonormal(sketch) for sketch in merged]
        with self._recorder.phase("encode"):
            factors = [
                q.mT @ segment.matrix_view(self._corrected)
                for q, segment in zip(ranges, self._layout.compressed, strict=True)
            ]
        reduced = self._sum("factors", factors, None)
        if reduced is None:
            return None
        with self._recorder.phase("decode"):
            for segment, q, factor, own in zip(
                self._layout.compressed, ranges, *reduced, strict=True
            ):
                self._applied[segment.name] = (q, factor)
                self._refreshed[segment.name] = (q, own)
        return Update(sums=_IN_FACTORS, indices=None, sent=None, dense_sums=dense_sums)

    def _sketch_columns(self, segment: Segment) -> Tensor:
        seed = draw_seed(self._config.seed, self._step, segment.offset)
        rank = self._budget.ranks[segment.name]
        return sketch_columns(segment.matrix_shape[1], rank, seed, self._device)

    def _turn_bases(self) -> None:
        """Turn every basis towards what an applied refresh found, and carry the energies over."""
        first = self._last_refresh is None
        elapsed = 1 if self._last_refresh is None else self._step - self._last_refresh
        energies, ages = self._split(self._energy), self._split(self._age)
        for name, basis in self._bases.items():
            energy, age = energies[name], ages[name]
            q, factor = self._applied[name]
            found = Refreshed(range_basis=q, factor=factor)
            before = basis.coefficients_of(found).square_()
            turns = basis.absorb(found, self._config.direction_decay)
            after = basis.coefficients_of(found).square_()
            if first:
                energy.copy_(_spread(after))
                continue
            unknown = (after - _turned(before, turns)).clamp_min_(0.0).div_(elapsed)
            known = torch.lerp(before.div_(age), energy, _ENERGY_DECAY)
            energy.copy_(_turned(known, turns)).add_(unknown, alpha=1 - _ENERGY_DECAY)
        self._bases_sum = None
        self._age.fill_(1.0)
        self._last_refresh = self._step
        since_warmup = self._step - self._config.warmup_steps
        self._next_refresh = self._step + steps_to_next_refresh(since_warmup, self._budget.interval)

    # ---- both ---------------------------------------------------------------------------------------

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        """View a vector of all coefficients as one (a, b) matrix per compressed parameter."""
        return dict(zip(self._bases, split_like(flat, self._shapes), strict=True))

    def _basis_fingerprint(self) -> Tensor:
        """Sum the bits of all bases, so that ranks which disagree about one stop; int64 `(1,)`."""
        if self._bases_sum is None:  # once for all steps in which the bases stay what they are
            sides = [side.vectors for b in self._bases.values() for side in (b.left, b.right)]
            sums = [vectors.view(torch.int32).sum() for vectors in sides if vectors is not None]
            self._bases_sum = torch.stack(sums).sum(dim=0, keepdim=True)
        return self._bases_sum

    def _write_average(
        self, segment: Segment, gradient: Tensor, update: Update, factor: float
    ) -> None:
        if self._applied:
            left, right = self._applied[segment.name]
            average = gradient.view(segment.matrix_shape)
            if average.dtype == torch.float32:
                torch.matmul(left * factor, right, out=average)
            else:
                average.copy_(left * factor @ right)
            if self._mask is not None:
                gradient.mul_(segment.flat_view(self._mask))
        else:
            super()._write_average(segment, gradient, update, factor)

    def _commit(self, update: Update) -> None:
        super()._commit(update)
        if self._chosen is not None:
            self._note_coefficients(*self._chosen)
            if self._mask is not None:  # directions reach under it
                self._settle()
        elif self._refreshed:
            self._owed.zero_()
            self._turn_bases()

    def _remove_sent(self, update: Update) -> None:
        if self._warming_up:
            super()._remove_sent(update)
            return
        for segment in self._layout.compressed:
            if segment.name in self._refreshed:
                left, right = self._refreshed[segment.name]
                segment.matrix_view(self._residual).addmm_(left, right, alpha=-1.0)
        if self._mask is not None:
            self._residual.mul_(self._mask)

    def _settle(self) -> None:
        """Make `_residual` what this worker has kept."""
        self._residual = self._kept()
        self._owed.zero_()

    def _kept(self) -> Tensor:
        kept = self._residual.clone()
        for segment in self._layout.compressed:
            self._take_out_owed(segment, kept)
        return kept if self._mask is None else kept.mul_(self._mask)

    def _numbers_of(self, update: Update) -> dict[str, int]:
        numbers = super()._numbers_of(update)
        for name, factors in self._refreshed.items():
            numbers[name] = sum(factor.numel() for factor in factors)
        if self._chosen is not None:
            taken = torch.zeros_like(self._age)
            taken[self._chosen[0]] = 1.0
            parts = self._split(taken)
            counts = torch.stack([part.sum() for part in parts.values()]).tolist()
            numbers |= {name: int(count) for name, count in zip(parts, counts, strict=True)}
        return numbers

    def set_mask(self, mask: Mapping[str, Tensor] | None) -> None:
        """Zero masked coordinates of residual and momentum now and of gradients from now on."""
        self._settle()
        super().set_mask(mask)

    # ---- state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Add bases, energies and when to refresh next, alike on all ranks, and what is owed.

        The saved residual still contains, along the bases, the coefficients saved as "owed".
        """
        return {
            **super().state_dict(),
            "bases": {name: basis.state_dict() for name, basis in self._bases.items()},
            "energy": self._energy.clone(),
            "age": self._age.clone(),
            "owed": self._owed.clone(),
            "refreshes": [self._last_refresh, self._next_refresh],
        }

    def inherited_state(
        self, first: Mapping[str, Any], states: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the first rank's state with the sums of what the others have kept back and still owe."""
        inherited = super().inherited_state(first, states)
        if "owed" in first:
            inherited["owed"] = sum(
                (one["owed"] for one in states), torch.zeros_like(first["owed"])
            )
        return inherited

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on this rank; after a change of layout refresh at once.

        Raises:
            ConfigError: the state is of another model, or of another max_directions.
        """
        if "energy" not in state:
            super().load_state_dict(state)
            self._next_refresh = max(self._step, self._config.warmup_steps)
            return
        if state["energy"].shape != self._energy.shape:
            raise ConfigError(
                f"the saved state holds {state['energy'].numel()} coefficients, this model with "
                f"max_directions={self._config.max_directions} has {self._energy.numel()}; resume with the "
                "model and max_directions of the run that saved it"
            )
        super().load_state_dict(state)
        for name, basis in self._bases.items():
            basis.load_state_dict(state["bases"][name])
        self._bases_sum = None
        self._energy.copy_(state["energy"])
        self._age.copy_(state["age"])
        self._owed.copy_(state["owed"])
        self._last_refresh, self._next_refresh = state["refreshes"]


def _spread(energies: Tensor) -> Tensor:
    """Guess all energies (a, b) from the totals of rows and columns.

    A first refresh sees only a diagonal: its own directions are those of the basis it makes.
    """
    total = energies.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.outer(energies.sum(dim=1), energies.sum(dim=0)).div_(total)


def _turned(energies: Tensor, turns: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Carry energies (a, b) over to directions whose inner products with the old ones are `turns`."""
    left, right = turns
    if left is not None:
        energies = left.square() @ energies
    return energies if right is None else energies @ right.square().mT

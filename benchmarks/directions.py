"""Run ``python -m benchmarks.directions``: where the energy of a gradient is.

A network is trained densely. Each method may keep so many numbers of each matrix's gradient; the share of the
squared norm that it keeps is averaged over steps and weighted by matrix size. "chosen now" selects with the
gradient in view, which costs indices or a search; "chosen before" uses only gradients of earlier steps, which
all workers know alike and which costs no bytes. The basis is that of gs-SGD, eigenvectors of decayed second
moments of rows and columns, here recomputed every ten steps from whole gradients.
"""

import argparse
from collections import defaultdict

import torch
from torch import Tensor

from benchmarks.convergence.gradients import Objective
from benchmarks.convergence.workloads import PRESETS, Training, open_workload, training_batches
from benchmarks.output import begin, write_report

_DECAY = 0.95
_REFRESH = 10
_SETTLED = 40
_SAMPLE_EVERY = 4
_SHARES = (0.01, 0.03, 0.1)

METHODS = (
    "coordinates, chosen now",
    "coordinates, chosen before",
    "low rank, chosen now",
    "rows of the basis, chosen before",
    "coefficients in the basis, chosen now",
    "coefficients in the basis, chosen before",
)


class History:
    """Follow one matrix's gradients."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = torch.zeros(rows, rows), torch.zeros(columns, columns)
        self.squares = torch.zeros(rows, columns)
        self.left, self.right = torch.eye(rows), torch.eye(columns)
        self.coefficients = torch.zeros(rows, columns)

    def kept(self, gradient: Tensor, share: float) -> dict[str, float]:
        """Return the share of the energy that each method keeps with this share of the numbers."""
        rows, columns = gradient.shape
        count = max(1, int(share * rows * columns))
        energy, rotated = gradient.square(), (self.left.T @ gradient @ self.right).square()
        values = torch.linalg.svdvals(gradient).square()
        before = self.squares.flatten().topk(count).indices
        before_rotated = self.coefficients.flatten().topk(count).indices
        found = (
            energy.flatten().topk(count).values.sum(),
            energy.flatten()[before].sum(),
            _leading(values, count / (rows + columns)),
            _leading(rotated.sum(dim=1), count / columns),
            rotated.flatten().topk(count).values.sum(),
            rotated.flatten()[before_rotated].sum(),
        )
        return {name: float(one / energy.sum()) for name, one in zip(METHODS, found, strict=True)}

    def follow(self, gradient: Tensor, *, turn: bool) -> None:
        """Take note of a gradient; recompute the basis when asked."""
        self.rows.mul_(_DECAY).addmm_(gradient, gradient.T)
        self.columns.mul_(_DECAY).addmm_(gradient.T, gradient)
        self.squares.mul_(_DECAY).add_(gradient.square())
        if turn:
            self.left = torch.linalg.eigh(self.rows).eigenvectors.flip(1)
            self.right = torch.linalg.eigh(self.columns).eigenvectors.flip(1)
            self.coefficients.zero_()
        self.coefficients.mul_(_DECAY).add_((self.left.T @ gradient @ self.right).square())


def _leading(energies: Tensor, count: float) -> Tensor:
    """Sum the first `count` energies, the last of them in part."""
    whole = int(count)
    part = (count - whole) * energies[whole] if whole < len(energies) else 0.0
    return energies[:whole].sum() + part


def measure(workload_name: str, steps: int) -> dict[float, dict[str, float]]:
    """Train and return, by share of the numbers and method, the share of the energy kept."""
    training = Training(
        workload=workload_name,
        steps=steps,
        global_batch=PRESETS[workload_name].global_batch,
        learning_rate=PRESETS[workload_name].learning_rate,
    )
    workload = open_workload(training)
    torch.manual_seed(0)
    model = workload.build_model()
    objective = Objective(workload, model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    histories = [History(p.shape[0], p[0].numel()) for p in matrices]
    optimizer = torch.optim.SGD(model.parameters(), lr=training.learning_rate, momentum=0.9)
    sums: dict[float, dict[str, float]] = {share: defaultdict(float) for share in _SHARES}
    weight = 0.0
    for step, batch in zip(range(steps), training_batches(training, workload, 0), strict=False):
        optimizer.zero_grad()
        objective(*batch).backward()
        samples = step >= _SETTLED and step % _SAMPLE_EVERY == 0
        for parameter, history in zip(matrices, histories, strict=True):
            assert parameter.grad is not None
            gradient = parameter.grad.flatten(1)
            if samples:
                weight += gradient.numel()
                for share in _SHARES:
                    for name, kept in history.kept(gradient, share).items():
                        sums[share][name] += gradient.numel() * kept
            history.follow(gradient, turn=step % _REFRESH == _REFRESH - 1)
        optimizer.step()
    return {s: {n: total / weight for n, total in sums[s].items()} for s in _SHARES}


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.directions", description=__doc__)
    parser.add_argument("--workload", choices=PRESETS, default="resnet8")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    described, out = begin(arguments.json, threads=1)
    kept = measure(arguments.workload, arguments.steps)
    print(f"{'share of the numbers':<42}" + "".join(f"{s:>8.0%}" for s in _SHARES), file=out)
    for name in METHODS:
        print(f"{name:<42}" + "".join(f"{kept[s][name]:>8.3f}" for s in _SHARES), file=out)
    report = {
        "benchmark": "directions",
        "schema": 1,
        "environment": described,
        "workload": arguments.workload,
        "steps": arguments.steps,
        "energy_kept": {f"{share:g}": kept[share] for share in _SHARES},
    }
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()

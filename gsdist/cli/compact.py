"""Make trained networks smaller: `gsdist compact INPUT OUTPUT`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsdist.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from gsdist.compaction import ChannelGraph, Counts, Plan

__all__ = ["main"]

_DESCRIPTION = """\
Cut what was pruned out of the network of a run, make sure that its answers
stay the same, and write it.

INPUT is the run directory of `gsdist train ... --prune METHOD --save-model
FILE`; OUTPUT is a folder for model.safetensors, manifest.json, and layers.svg,
what is kept of each layer. With --strip, INPUT is a file of weights that a
distillation run saved, and OUTPUT the file of the network alone.
"""


def main(arguments: Sequence[str]) -> int:
    """Write the network without what only its training needed."""
    parser = argparse.ArgumentParser(
        prog="gsdist compact",
        description=_DESCRIPTION,
        epilog="examples:\n"
        "  gsdist compact runs/latest runs/compact --onnx\n"
        "  gsdist compact --strip student.pt student-alone.pt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--strip",
        action="store_true",
        help="drop branches, and all but one of networks that learnt together; the answers stay the same",
    )
    parser.add_argument(
        "--peer", type=int, default=1, help="which of several networks to keep (default: 1)"
    )
    parser.add_argument(
        "--layout",
        choices=("internal", "scatter", "stage"),
        help="convolutions whose outputs are added up: leave them, restore the sum's width behind each, or "
        "cut channels that are zero in all (default: as it was pruned)",
    )
    parser.add_argument(
        "--sensitivity",
        type=float,
        metavar="SHARE",
        help="measure what the metric loses when this share of each layer alone is pruned, and draw it",
    )
    parser.add_argument("--onnx", action="store_true", help="write model.onnx, too")
    parser.add_argument("--program", action="store_true", help="write model.pt2 by torch.export")
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    options = parser.parse_args(arguments)
    if options.strip:
        _strip(options.input, options.output, options.peer)
    else:
        _compact(options)
    return 0


def _strip(source: Path, target: Path, peer: int) -> None:
    import torch

    from gsdist.models.branches import strip
    from gsdist.workloads.weights import read_weights

    state = read_weights(source)
    kept = strip(state, peer=peer)
    torch.save(kept, target)
    before, after = (sum(value.numel() for value in part.values()) for part in (state, kept))
    print(f"{target}: {after:,} of {before:,} numbers")


def _compact(options: argparse.Namespace) -> None:
    from gsdist.compaction import count, coupling_of, trace_channels
    from gsdist.compaction.export import export_onnx, export_program, save_compact
    from gsdist.training.pruning import example_arguments
    from gsdist.training.pruning_plot import draw_layers

    run, workload, outcome = _open_run(options.input)
    whole = workload.build_model()
    example = example_arguments(workload, whole)
    graph = trace_channels(whole, example)
    plan, compact, answers = _cut(whole, graph, example, outcome, run, options.layout)
    groups = graph.channel_groups(coupling_of(plan.layout))
    architecture = {**run.tables()["workload"], "example": [list(v.shape) for v in example]}
    save_compact(options.output, compact, plan, architecture=architecture)
    lost = (
        _sensitivity(options.sensitivity, run, workload, example) if options.sensitivity else None
    )
    drawing = draw_layers({group.name: group.size for group in groups}, plan.kept, lost)
    (options.output / "layers.svg").write_text(drawing)
    if options.program:
        export_program(compact, example, options.output / "model.pt2")
    if options.onnx:
        export_onnx(compact, example, options.output / "model.onnx")
    left = count(graph, groups, plan.masks(groups), shrink_residual=plan.layout != "internal")
    print(f"layout {plan.layout}; {answers}")
    print(_comparison(count(graph, groups), left))
    print(f"written to {options.output}")


def _sensitivity(
    share: float, run: Any, workload: Any, example: tuple[Any, ...]
) -> dict[str, float]:
    """Return, by layer of the network as it was trained, points of the workload's metric lost."""
    from torch.utils.data import DataLoader

    from gsdist.workloads.pruning import PruningConfig
    from gsdist.workloads.pruning.sensitivity import sensitivity
    from gsdist.workloads.weights import load_weights

    model = workload.build_model()
    load_weights(model, run.train.save_model)
    loader = DataLoader(workload.evaluation_dataset(), batch_size=run.train.batch_size)

    def measure(network: "nn.Module") -> float:
        batches = (workload.prepare_batch(batch, training=False) for batch in loader)
        total, number = workload.evaluate(network, batches)[workload.primary_metric]
        return 100.0 * float(total) / float(number)

    return sensitivity(model, example, PruningConfig(rate=share), measure)


def _open_run(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Return settings and workload of a run, and what it pruned."""
    from gsdist.cli.train import open_workload, read_run
    from gsdist.training.pruning import PRUNING_FILE

    try:
        outcome: dict[str, Any] = json.loads((folder / PRUNING_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not the directory of a finished run that pruned: {error}; name one of "
            "`gsdist train ... --prune METHOD --save-model FILE`"
        ) from error
    run = read_run(folder)
    if outcome["granularity"] != "filter":
        raise ConfigError(f"the run in {folder} pruned single weights; no channel can be removed")
    return run, open_workload(run), outcome


def _cut(
    whole: "nn.Module",
    graph: "ChannelGraph",
    example: tuple[Any, ...],
    outcome: dict[str, Any],
    run: Any,
    layout: Any,
) -> tuple["Plan", "nn.Module", str]:
    """Return plan and compact network, and in words how its answers compare."""
    from gsdist.compaction import Plan, cut_channels, plan_from_zeros, verify
    from gsdist.workloads.weights import load_weights

    if outcome["compacted"]:  # it was verified when it was cut, in training
        plan = Plan.from_mapping(outcome["plan"])
        if layout not in (None, plan.layout):
            raise ConfigError(f"the network was cut in layout {plan.layout}, while it was trained")
        compact = cut_channels(whole, graph, plan).model
        load_weights(compact, run.train.save_model)
        return plan, compact, "cut while it was trained"
    load_weights(whole, run.train.save_model)
    plan = plan_from_zeros(whole, graph, layout or outcome["plan"]["layout"])
    compact = cut_channels(whole, graph, plan).model
    difference = verify(whole, compact, example)
    return plan, compact, f"answers differ by at most {difference:.1e} in float64"


def _comparison(dense: "Counts", left: "Counts") -> str:
    rows = [
        ("multiply-accumulates", dense.macs, left.macs),
        ("with 2 per element of a norm", dense.macs_with_norm, left.macs_with_norm),
        ("parameters", dense.parameters, left.parameters),
        ("bytes of float32 parameters", 4 * dense.parameters, 4 * left.parameters),
    ]
    return "\n".join(
        f"{name:30}{before:>16,} ->{after:>16,}  ({after / before:.1%})"
        for name, before, after in rows
    )

"""Find how far each layer can be pruned by PFGDF: `gsdist pfgdf RUN OUTPUT`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["main"]

_DESCRIPTION = """\
Find, layer by layer, the smallest interval around the mean norm of a trained
network's filters that keeps its accuracy: prune what lies outside, let the
network recover, measure. Reconstructed from the paper's abstract.

RUN is the run directory of `gsdist train ... --save-model FILE`. OUTPUT is a
folder for model.pt, the network as it was found, and config.toml, with which
`gsdist train WORKLOAD --config` trains it to the end. Under torchrun all
workers need to see both.
"""


def main(arguments: Sequence[str]) -> int:
    """Search, print what was found and write the settings of a last training."""
    parser = argparse.ArgumentParser(
        prog="gsdist pfgdf",
        description=_DESCRIPTION,
        epilog="examples:\n"
        "  gsdist pfgdf runs/latest runs/pfgdf --loss 1.0\n"
        "  gsdist train classification --config runs/pfgdf/config.toml --epochs 40\n"
        "  gsdist compact runs/pfgdf/run runs/compact",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--loss",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="of the metric, in percent, that may be lost while searching (default: 1)",
    )
    parser.add_argument(
        "--epochs", type=int, default=1, help="of recovery after each trial (default: 1)"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=0.01, help="of recovery (default: 0.01)"
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    _search(parser.parse_args(arguments))
    return 0


def _search(options: argparse.Namespace) -> None:
    from dataclasses import replace
    from datetime import timedelta

    from gsdist.cli.train import open_workload, read_run
    from gsdist.training import detect_launch, process_group, training_device
    from gsdist.training.interval_search import IntervalSearch
    from gsdist.training.run_config import CONFIG_FILE
    from gsdist.training.summary import read_summaries

    run = read_run(options.run)
    reached = read_summaries(options.run)[0].primary
    least = reached - options.loss / 100
    launch = detect_launch()
    output: Path = options.output
    workload = open_workload(run)

    def tell(intervals: Mapping[str, float], metric: float) -> None:
        layer, interval = list(intervals.items())[-1]
        if launch.rank == 0:
            verdict = "kept" if metric >= least else "too narrow"
            print(
                f"{layer} {interval:g}: {100 * metric:.2f} %, {verdict}",
                file=sys.stderr,
                flush=True,
            )

    device = training_device(
        run.train.device,
        local_rank=launch.local_rank,
        shared=run.train.backend in ("gloo", "mpi4py"),
        deterministic=run.train.deterministic,
    )
    timeout = timedelta(seconds=run.train.init_timeout)
    with process_group(launch, timeout, run.train.backend, on_gpu=device.type == "cuda"):
        search = IntervalSearch(
            run,
            workload,
            output,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            on_trial=tell,
            device=device,
        )
        pruning = search.search(least)
    if launch.rank:
        return
    train = replace(run.train, run_dir=output / "run", save_model=output / "run" / "model.pt")
    (output / CONFIG_FILE).write_text(replace(run, train=train, pruning=pruning).to_toml())
    print("\n".join(pruning.intervals or ()))
    print(f"written to {output}: model.pt, and config.toml for `gsdist train {run.workload_name}`")

"""Make a file of weights smaller: `gsdist compact --strip INPUT OUTPUT`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Write the network of a distilled model without what only its training needed."""
    parser = argparse.ArgumentParser(
        prog="gsdist compact",
        description="Make the weights that `gsdist train ... --save-model` wrote smaller.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--strip",
        action="store_true",
        required=True,
        help="drop branches, and all but one of networks that learnt together; the answers stay the same",
    )
    parser.add_argument(
        "--peer", type=int, default=1, help="which of several networks to keep (default: 1)"
    )
    parser.add_argument("input", type=Path, help="file of weights")
    parser.add_argument("output", type=Path, help="file to write, of the network alone")
    options = parser.parse_args(arguments)

    import torch

    from gsdist.models.branches import strip
    from gsdist.workloads.distillation.weights import read_weights

    state = read_weights(options.input)
    kept = strip(state, peer=options.peer)
    torch.save(kept, options.output)
    before, after = (sum(value.numel() for value in part.values()) for part in (state, kept))
    print(f"{options.output}: {after:,} of {before:,} numbers")
    return 0

"""Kill a deterministic run at random steps, resume it, and compare every loss with an uninterrupted run's.

`python -m tests.fault.kill_and_resume --repetitions 50 --seed 1`: 3 workers, one of them killed by SIGKILL at
a random step and place, all started again with --resume. Leaves with 1 when a bit differs.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from tests.fault.injection import Fault
from tests.fault.job import Job, training

RANKS = 3
STEPS = 24
PLACES = ("forward", "after step", "allreduce_values", "allreduce")


def losses(folder: Path) -> dict[int, float]:
    """Return the loss of every step on record."""
    records = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return {one["step"]: one["loss"] for one in records if one["kind"] == "train"}


def run(folder: Path, fault: Fault | None = None) -> list[int | None]:
    """Run or resume the job in a folder; return exit codes."""
    options = ("--deterministic", "--checkpoint-every", "4", "--resume")
    arguments = training(folder, *options, steps=STEPS, timeout=60)
    with Job.start(folder, arguments, ranks=RANKS, fault=fault) as job:
        return job.join()


def check(repetitions: int, seed: int) -> list[str]:
    """Return what went wrong."""
    choices, wrong = random.Random(seed), []
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        if run(whole) != [0] * RANKS:
            return ["the uninterrupted run failed"]
        expected = losses(whole)
        for repetition in range(repetitions):
            folder = Path(scratch) / str(repetition)
            fault = Fault(
                rank=choices.randrange(RANKS),
                step=choices.randrange(STEPS - 1),
                action="kill",
                place=choices.choice(PLACES),
            )
            killed, resumed = run(folder, fault), run(folder)
            equal = losses(folder) == expected
            print(repetition, fault.to_json(), killed, resumed, "equal" if equal else "DIFFERENT")
            sys.stdout.flush()
            if killed[fault.rank] != -9 or 0 in killed or resumed != [0] * RANKS or not equal:
                wrong.append(f"{fault.to_json()}: {killed}, {resumed}, equal: {equal}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    wrong = check(options.repetitions, options.seed)
    print(
        f"{options.repetitions} repetitions, seed {options.seed}: {len(wrong)} went wrong",
        *wrong,
        sep="\n",
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

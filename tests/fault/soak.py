"""Let jobs fail in random ways for some minutes, and see whether all ranks always end alike and in time.

`python -m tests.fault.soak --minutes 20 --seed 1`. Prints one line of JSON per job and a summary; leaves
with 1 when something did not hold. The seed is in every line, and repeats the sequence of faults.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fault.injection import Fault
from tests.fault.job import DEADLINE, Job, training

RANKS = 3
STEPS = 45
GRACE = 5.0
ALLOWED: dict[str, set[int | None]] = {
    "none": {0},
    "sleep": {0},
    "kill": {-9, 66, 67},
    "segfault": {-11, 66, 67},
    "exit": {7, 66, 67},
    "raise": {1, 66, 67},
    "out of memory": {1, 66, 67},
    "hold gil": {66, 67},
    "stop": {66, 67, None},
    "terminate": {143},
    "flip": {64},
    "nan": {68},
}
"""Exit codes that a fault may lead to; None: the stopped rank itself is still there."""
PLACES = ("forward", "after step", "allreduce_sketch", "allreduce_factors", "allreduce_values")
REDUCERS = ("gs-sgd", "gs-sgd-paper", "power-sgd", "top-k")


def random_fault(choices: random.Random) -> Fault | None:
    """Draw a fault; None: nothing happens."""
    action = choices.choice(sorted(ALLOWED))
    if action == "none":
        return None
    free = action not in ("flip", "nan", "terminate")
    return Fault(
        rank=choices.randrange(RANKS),
        step=choices.randrange(1, STEPS - 25),
        action=action,
        place=choices.choice(PLACES) if free else "forward",
        seconds={"sleep": 0.5, "hold gil": DEADLINE + 3}.get(action, 0.0),
    )


def wait_for_end(job: Job, stopped: int | None) -> tuple[dict[int, float], set[int]]:
    """Wait until all ranks have ended; the stopped one need not once another has failed.

    Returns when each rank ended, and the ranks that are still there after 4 minutes.
    """
    ended: dict[int, float] = {}
    missing = set(range(RANKS))
    limit = time.monotonic() + 240
    while missing and time.monotonic() < limit:
        time.sleep(0.02)
        for rank, process in enumerate(job.processes):
            if process.exitcode is not None:
                ended.setdefault(rank, time.monotonic())
        failed = any(job.processes[rank].exitcode != 0 for rank in ended)
        missing = set(range(RANKS)) - set(ended) - ({stopped} if failed else set())
    return ended, missing


def run_job(folder: Path, fault: Fault | None, reducer: str) -> dict[str, Any]:
    """Run one job; return what happened and what did not hold."""
    options = ("--compare-every", "5", "--checkpoint-every", "10")
    arguments = training(folder, *options, reducer=reducer, steps=STEPS)
    action = fault.action if fault else "none"
    stopped = fault.rank if fault is not None and fault.action == "stop" else None
    with Job.start(folder, arguments, ranks=RANKS, fault=fault) as job:
        ended, missing = wait_for_end(job, stopped)
        codes = [process.exitcode for process in job.processes]
        outputs = [job.output(rank)[-500:] for rank in range(RANKS)]
    last = max(ended.values(), default=0.0) - min(ended.values(), default=0.0)
    # A place that the method never comes to leaves the run whole.
    fine = all(code == 0 for code in codes)
    untouched = fine and (fault is None or fault.place.startswith("allreduce") or action == "sleep")
    wrong = []
    if not untouched and not set(codes) <= ALLOWED[action]:
        wrong.append("exit codes")
    if not fine and 0 in codes:
        wrong.append("SILENT: one rank ended well, another did not")
    if missing:
        wrong.append("a rank is still there")
    if last > DEADLINE + GRACE + (fault.seconds if fault else 0.0):
        wrong.append("late")
    return {
        "action": action, "place": fault and fault.place, "rank": fault and fault.rank,
        "step": fault and fault.step, "reducer": reducer, "codes": codes,
        "seconds_first_to_last": round(last, 2), "wrong": wrong,
        **({"outputs": outputs} if wrong else {}),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    choices = random.Random(seed)
    counts: Counter[str] = Counter()
    failures, longest = 0, 0.0
    limit = time.monotonic() + 60 * options.minutes
    while time.monotonic() < limit:
        fault, reducer = random_fault(choices), choices.choice(REDUCERS)
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_job(Path(folder), fault, reducer)
        print(json.dumps({"seed": seed, "job": counts.total(), **outcome}), flush=True)
        counts[outcome["action"]] += 1
        failures += bool(outcome["wrong"])
        longest = max(longest, outcome["seconds_first_to_last"])
    print(
        f"{counts.total()} jobs, seed {seed}: {failures} did not hold; longest from the first rank's end to "
        f"the last's {longest:.1f} s (deadline {DEADLINE:g} s); {dict(counts)}"
    )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Run every example on two processes as its first lines say: it learns, and sends less than dense."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SLOW = ("compiled", "with_accelerate", "with_lightning", "with_transformers")
"""Examples that compile, or that import a training library."""
RUNS = [
    *([name] for name in ("ddp_script", "hybrid_shard", "outer_step")),
    ["mixed_precision", "float16"],
    pytest.param(["mixed_precision", "bfloat16"], marks=pytest.mark.slow),
    *(pytest.param([name], marks=pytest.mark.slow) for name in SLOW),
]


def torchrun(world_size: int, script: Path, *arguments: str) -> str:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(world_size), str(script), *arguments),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(output: str) -> None:
    losses = [float(loss) for loss in re.findall(r"^epoch .*  loss (\d+\.\d+)$", output, re.M)]
    assert len(losses) >= 10, output  # of one process, not of each
    assert sum(losses[-3:]) / 3 < losses[0] / 2  # each of one batch
    (compression,) = re.findall(r"^(\d+\.\d)x fewer bytes than dense$", output, re.M)
    assert float(compression) > 4


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_loss_falls_and_bytes_are_saved(run: list[str]) -> None:
    if run[0].startswith("with_"):
        pytest.importorskip(run[0].removeprefix("with_"))
    name, *arguments = run
    check(torchrun(2, EXAMPLES / f"{name}.py", *arguments))


@pytest.mark.slow
def test_hybrid_sharding_on_two_nodes_of_two() -> None:
    check(torchrun(4, EXAMPLES / "hybrid_shard.py"))


@pytest.mark.slow
def test_three_lines_put_gs_sgd_into_a_script(tmp_path: Path) -> None:
    plain = (Path(__file__).with_name("plain_ddp.py")).read_text()
    lines = plain.splitlines()
    added = {
        "import torchvision": "import gsdist",
        "    optimizer = ": "    state = gsdist.attach(model, gsdist.GsSgdConfig(), optimizer=optimizer)",
        '            print(f"epoch {epoch} accuracy': "            print(state.stats())",
    }
    for place, line in added.items():
        (position,) = (number for number, one in enumerate(lines) if one.startswith(place))
        lines.insert(position + 1, line)
    script = tmp_path / "train.py"
    script.write_text("\n".join(lines) + "\n")
    output = torchrun(2, script, "--output-dir", str(tmp_path))
    (compression,) = re.findall(r"^10 steps, .* MB dense \((\d+\.\d)x\)", output, re.M)
    assert float(compression) > 10
    assert (tmp_path / "checkpoint.pth").exists()


@pytest.mark.slow
def test_replicas_under_torchft() -> None:
    coordination = pytest.importorskip("torchft.coordination")
    lighthouse = coordination.LighthouseServer(
        bind="127.0.0.1:0", min_replicas=2, join_timeout_ms=30_000
    )
    address = f"http://127.0.0.1:{lighthouse.address().rpartition(':')[2]}"
    replicas = [
        subprocess.Popen(
            [sys.executable, "examples/with_torchft.py", str(number)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHFT_LIGHTHOUSE": address},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        for replica in replicas:
            check(replica.communicate(timeout=110)[0])
    finally:
        for replica in replicas:
            replica.kill()
        lighthouse.shutdown()


def test_every_example_is_run() -> None:
    helper, trainer = "digits", "train_digits"  # the latter's command line is tested as such
    run = {re.sub(r"\W.*", "", str(getattr(one, "values", [one])[0][0])) for one in RUNS}
    assert run | {helper, trainer, "with_torchft"} == {
        path.stem for path in (ROOT / "examples").glob("*.py")
    }

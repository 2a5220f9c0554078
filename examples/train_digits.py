"""Train a small network with gs-SGD through gsdist's trainer.

    python examples/train_digits.py
    torchrun --nproc-per-node 2 examples/train_digits.py

The digits come with scikit-learn; nothing is downloaded. `gsdist train classification` does the same from
the command line.
"""

from datetime import timedelta
from pathlib import Path

from gsdist import GsSgdConfig
from gsdist.training import RunConfig, TrainConfig, Trainer, detect_launch, process_group
from gsdist.workloads import ClassificationConfig, ClassificationWorkload


def main() -> None:
    """Train and print how much was sent."""
    settings = ClassificationConfig(data="digits", model="resnet8")
    run = RunConfig(
        train=TrainConfig(
            epochs=10, batch_size=32, learning_rate=0.05, run_dir=Path("runs/digits")
        ),
        reducer=GsSgdConfig(compression=20),
        workload_name="classification",
        workload=settings,
    )
    launch = detect_launch()
    with process_group(launch, timedelta(minutes=5)):
        summary = Trainer(run, ClassificationWorkload(settings)).run()
    if launch.rank == 0:
        print(f"accuracy {summary.primary:.3f}, {summary.compression:.1f}x fewer bytes than dense")


if __name__ == "__main__":
    main()

"""Say how a model is trained, whatever the workload and the exchange method."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from gsdist.errors import ConfigError
from gsdist.integrations.outer_step import OuterStepConfig
from gsdist.training.device import Device
from gsdist.training.launch import Backend

__all__ = ["ResidualPolicy", "TrainConfig"]

ResidualPolicy = Literal["redistribute", "reset", "refuse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Configure the training loop. Equal on all ranks; every count is per run unless it says otherwise."""

    epochs: int = 10
    """Passes over the training data."""
    steps: int | None = None
    """Optimizer steps; when given, it ends the run instead of epochs."""
    batch_size: int = 128
    """Examples per worker and forward pass."""
    accumulation: int = 1
    """Forward passes per optimizer step; the gradient is exchanged once per step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """What steps: SGD, or AdamW, which language models want (with learning rates near 0.001)."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    """Course of the learning rate after its warm-up."""
    lr_warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """multistep: fractions of the run after which the learning rate falls."""
    milestone_factor: float = 0.1
    """multistep: what the learning rate is then multiplied by."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov's momentum in SGD."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's averages of the gradient and of its square."""
    weight_decay: float = 1e-4
    """SGD: L2 penalty on all parameters. AdamW: decoupled decay of all parameters."""
    clip_norm: float | None = None
    """Clip the averaged gradient to this norm; with momentum before compression, each worker's own gradient,
    before that."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Automatic mixed precision; fp16 scales the loss."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    seeds: tuple[int, ...] | None = None
    """Train once for each of these seeds and report means and spread; unset: once, with `seed`."""
    deterministic: bool = False
    """Make a resumed run give the same bits as an uninterrupted one, at some cost in speed."""
    node_size: int | Literal["launcher"] | None = None
    """Average inside nodes of so many consecutive workers and let one of each node exchange; launcher: as
    many as it started on each machine; unset: all workers exchange."""
    outer_interval: int | None = None
    """Local SGD: steps of each worker on its own from one exchange to the next; unset: every step."""
    outer_learning_rate: float = 1.0
    """Learning rate of the outer optimizer; 1 without momentum takes over the workers' mean."""
    outer_momentum: float = 0.0
    """Nesterov's momentum of the outer optimizer; 0.7 and 0.9 are DiLoCo's, for many outer steps."""
    outer_fragments: int = 1
    """Parts of the model that are exchanged at different steps of an interval."""
    find_unused_parameters: bool = False
    """Passed to DistributedDataParallel: the model may leave parameters without gradient."""
    bucket_cap_mb: float = 25.0
    """Passed to DistributedDataParallel: size of a gradient bucket in MiB."""
    device: Device = "auto"
    """What each worker trains on; auto: the GPU of its local rank where torch finds one."""
    backend: Backend = "auto"
    """What carries collectives; auto: NCCL between GPUs (and gloo beside it), else mpi4py under mpirun where
    it is installed, else gloo."""
    init_timeout: float = 600.0
    """Seconds until all workers must have arrived, and the deadline of collectives before the first step."""
    timeout: float = 120.0
    """Deadline of every collective, in seconds, from the second step on."""
    compare_every: int = 1000
    """Steps between checks that all workers hold the same parameters; 0: none."""
    data_workers: int = 0
    """Processes per worker that load data; 0 loads in the training process."""
    evaluate_every: int | None = None
    """Steps between evaluations; unset: once per epoch. There is always one at the end."""
    log_every: int = 10
    """Steps between records in metrics.jsonl."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes none. Otherwise there is always one at the end."""
    checkpoint_dir: Path | None = None
    """Where checkpoints go; unset: checkpoints/ in run_dir."""
    keep: int = 2
    """Newest checkpoints to keep."""
    checkpoint_async: bool = False
    """Write checkpoints beside training; a failure shows at the next one or at the end."""
    resume: bool = False
    """Continue from the newest complete checkpoint; start afresh when there is none."""
    residual: ResidualPolicy = "redistribute"
    """On a resume: with another number of workers, let those there are take over the residuals of those that
    are gone, or refuse to; reset: begin without residuals, which also gets over damaged ones."""
    run_dir: Path = Path("runs/latest")
    """Where config.toml, metrics.jsonl and summary.json go; those of an earlier run are replaced."""
    save_model: Path | None = None
    """File that the trained model's parameters and buffers are written to at the end; unset: none."""
    wandb_project: str | None = None
    """Also log to this project of Weights & Biases, which must be installed; unset: do not."""
    progress: bool = True
    """Show progress on rank 0: a bar in a terminal, plain lines elsewhere."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("epochs", "batch_size", "accumulation", "log_every", "keep"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("steps", "evaluate_every"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1, or unset")
        node_size = self.node_size
        _require(
            node_size in (None, "launcher") or (isinstance(node_size, int) and node_size >= 1),
            "node_size", node_size, 'at least 1, "launcher", or unset',
        )  # fmt: skip
        _require(
            self.outer_interval is None or node_size is None,
            "node_size", node_size, "unset with outer_interval",
        )  # fmt: skip
        self.outer_step()
        for name in (
            "lr_warmup_steps",
            "data_workers",
            "checkpoint_every",
            "weight_decay",
            "compare_every",
        ):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in (
            "learning_rate",
            "milestone_factor",
            "bucket_cap_mb",
            "timeout",
            "init_timeout",
        ):
            _require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        for seed in (self.seed, *(self.seeds or ())):
            _require(0 <= seed < 2**32, "seed", seed, "in 0..2**32-1")
        _require(self.seeds != (), "seeds", self.seeds, "at least one, or unset")
        _require(
            len(self.seeds or ()) < 2 or self.save_model is None,
            "save_model", self.save_model, "unset with several seeds",
        )  # fmt: skip
        _require(
            self.wandb_project is None or find_spec("wandb") is not None,
            "wandb_project", self.wandb_project, "unset while wandb is not installed (pip install wandb)",
        )  # fmt: skip
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(
            self.momentum > 0 or not self.nesterov,
            "nesterov", self.nesterov, "false when momentum is 0",
        )  # fmt: skip
        _require(
            self.optimizer == "sgd" or not self.nesterov,
            "nesterov", self.nesterov, "false with the optimizer adamw",
        )  # fmt: skip
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two in [0, 1)")
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            "clip_norm", self.clip_norm, "positive, or unset",
        )  # fmt: skip
        _require(
            all(0 < mark < 1 for mark in self.milestones)
            and list(self.milestones) == sorted(set(self.milestones)),
            "milestones", self.milestones, "rising fractions of the run, each in (0, 1)",
        )  # fmt: skip
        for name, allowed in _CHOICES.items():
            _require(getattr(self, name) in allowed, name, getattr(self, name), f"one of {allowed}")

    def outer_step(self) -> OuterStepConfig | None:
        """Return the settings of the outer step; None: gradients are exchanged in every step."""
        if self.outer_interval is None:
            return None
        return OuterStepConfig(
            interval=self.outer_interval,
            learning_rate=self.outer_learning_rate,
            momentum=self.outer_momentum,
            fragments=self.outer_fragments,
        )

    @property
    def checkpoints(self) -> Path:
        """Return the directory of the run's checkpoints."""
        return self.checkpoint_dir or self.run_dir / "checkpoints"


_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "multistep", "constant"),
    "amp": ("off", "bf16", "fp16"),
    "device": get_args(Device),
    "backend": get_args(Backend),
    "residual": get_args(ResidualPolicy),
}


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={value!r}; expected {expected}")

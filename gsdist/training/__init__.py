"""Train workloads: launch detection, the training loop, checkpoints, records and reports."""

from gsdist.training.auto import choose_reducer
from gsdist.training.config import TrainConfig
from gsdist.training.device import training_device
from gsdist.training.launch import Launch, Launcher, detect_launch, process_group
from gsdist.training.run_config import AutoConfig, RunConfig
from gsdist.training.summary import RunSummary
from gsdist.training.trainer import Trainer

__all__ = [
    "AutoConfig",
    "Launch",
    "Launcher",
    "RunConfig",
    "RunSummary",
    "TrainConfig",
    "Trainer",
    "choose_reducer",
    "detect_launch",
    "process_group",
    "training_device",
]

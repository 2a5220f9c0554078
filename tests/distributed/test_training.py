"""The trainer on real processes, against a plain loop in one process and against what a workload asks for."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from gsdist.errors import ConfigMismatch
from gsdist.reducers import DenseConfig, GsSgdPaperConfig, ReducerConfig
from gsdist.training import RunConfig, TrainConfig, Trainer
from gsdist.training.sampling import TrainingBatches
from gsdist.training.schedule import learning_rate_factor
from gsdist.workloads import LayoutChange, LossParts, Workload
from tests.distributed.harness import run_ranks

WORLD_SIZE = 2
EXAMPLES = 64
DECAY = 0.05


@dataclass(frozen=True)
class ToyConfig:
    """Say which of the contract's optional parts the toy workload uses."""

    masked: bool = False
    replicated: bool = False
    shrink_at: int = 0


def toy_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(EXAMPLES, 8, generator=generator)
    return TensorDataset(inputs, inputs[:, :2].prod(1, keepdim=True))


def toy_model(hidden: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, hidden), nn.Tanh(), nn.Linear(hidden, 1))


def shrink(model: nn.Module) -> LayoutChange:
    """Keep every other hidden unit."""
    kept = torch.arange(0, 16, 2)
    indices: dict[str, tuple[Tensor | None, ...]] = {
        "0.weight": (kept, None),
        "0.bias": (kept,),
        "2.weight": (None, kept),
        "2.bias": (None,),
    }
    smaller = toy_model(8)
    old = model.state_dict()
    smaller.load_state_dict(
        {
            "0.weight": old["0.weight"][kept],
            "0.bias": old["0.bias"][kept],
            "2.weight": old["2.weight"][:, kept],
            "2.bias": old["2.bias"],
        }
    )
    return LayoutChange(model=smaller, kept=indices)


class Toy(Workload):
    """Fit the product of two inputs."""

    name = "toy"
    primary_metric = "score"

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.steps_seen: list[int] = []
        self._mask = {"0.weight": torch.arange(16 * 8).view(16, 8) % 3 > 0}

    def build_model(self) -> nn.Module:
        return toy_model()

    def training_dataset(self) -> TensorDataset:
        return toy_data()

    def evaluation_dataset(self) -> TensorDataset:
        return toy_data()

    def prepare_batch(
        self, batch: Any, *, training: bool, generator: torch.Generator | None = None
    ) -> Any:
        return batch

    def loss(self, model: nn.Module, batch: Any) -> LossParts:
        inputs, targets = batch
        error = (model(inputs) - targets).square().mean()
        return LossParts({"half": 0.5 * error, "rest": 0.5 * error})

    def evaluate(
        self, model: nn.Module, batches: Iterable[Any]
    ) -> Mapping[str, tuple[float, float]]:
        seen = [len(inputs) for inputs, _ in batches]
        return {"score": (float(sum(seen)), 1.0 / WORLD_SIZE)}

    def replicated_loss(self, model: nn.Module) -> Tensor | None:
        if not self.config.replicated:
            return None
        return 0.5 * DECAY * sum((p.square().sum() for p in model.parameters()), torch.zeros(()))

    def coordinate_mask(self, model: nn.Module) -> Mapping[str, Tensor] | None:
        return self._mask if self.config.masked else None

    def layout_change(self, model: nn.Module, step: int) -> LayoutChange | None:
        return shrink(model) if step == self.config.shrink_at else None

    def after_step(self, model: nn.Module, step: int) -> None:
        self.steps_seen.append(step)


def train(
    folder: str, config: TrainConfig, reducer: ReducerConfig, toy: ToyConfig
) -> tuple[dict[str, Tensor], Toy, Trainer]:
    config = replace(config, run_dir=Path(folder), progress=False, log_every=1)
    workload = Toy(toy)
    run = RunConfig(train=config, reducer=reducer, workload_name="toy", workload=toy)
    trainer = Trainer(run, workload)
    summary = trainer.run()
    assert summary.metrics["score"] == EXAMPLES, "an example was evaluated twice or not at all"
    state = {name: value.clone() for name, value in trainer._learner.model.state_dict().items()}
    return state, workload, trainer


BASE = TrainConfig(epochs=2, batch_size=4, learning_rate=0.05, weight_decay=0.01)
WHOLE = GsSgdPaperConfig(
    density=1.0,
    warmup_steps=0,
    min_numel=16,
    momentum="local",
    masking=False,
    candidate_factor=1.0,
    wire_dtype="float32",
)
SPARSE = replace(WHOLE, density=0.1, masking=True, candidate_factor=4.0)
ADAMW = replace(BASE, optimizer="adamw", learning_rate=0.01, betas=(0.8, 0.9))
AS_A_PLAIN_LOOP: dict[str, tuple[TrainConfig, ReducerConfig, ToyConfig]] = {
    "dense": (BASE, DenseConfig(), ToyConfig()),
    "nesterov": (replace(BASE, nesterov=True, schedule="multistep"), WHOLE, ToyConfig()),
    "accumulation": (replace(BASE, accumulation=3), DenseConfig(), ToyConfig()),
    "accumulation with gs-sgd": (replace(BASE, accumulation=2), WHOLE, ToyConfig()),
    "adamw": (ADAMW, DenseConfig(), ToyConfig()),
    "adamw with gs-sgd": (ADAMW, replace(WHOLE, momentum="post"), ToyConfig()),
    "clipping": (replace(BASE, clip_norm=0.1), DenseConfig(), ToyConfig()),
    "clipping with gs-sgd": (
        replace(BASE, clip_norm=0.1),
        replace(WHOLE, momentum="post"),
        ToyConfig(),
    ),
    "replicated loss": (BASE, DenseConfig(), ToyConfig(replicated=True)),
    "replicated loss with gs-sgd": (BASE, WHOLE, ToyConfig(replicated=True)),
    "layout change": (BASE, DenseConfig(), ToyConfig(shrink_at=5)),
    "layout change with gs-sgd": (BASE, WHOLE, ToyConfig(shrink_at=5)),
}


def plain_loop(config: TrainConfig, toy: ToyConfig) -> dict[str, Tensor]:
    """Train in one process on the batches of all workers with nothing but torch."""
    torch.manual_seed(config.seed)
    model: nn.Module = toy_model()
    data = toy_data().tensors
    decay = config.weight_decay + (DECAY if toy.replicated else 0.0)
    options = {"momentum": config.momentum, "nesterov": config.nesterov, "weight_decay": decay}
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1.0, **options)
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1.0, betas=config.betas, weight_decay=decay
        )
    per_epoch = EXAMPLES // (WORLD_SIZE * config.batch_size) // config.accumulation
    for step in range(config.epochs * per_epoch):
        epoch, within = divmod(step, per_epoch)
        indices: list[int] = []
        for rank in range(WORLD_SIZE):
            sampler = TrainingBatches(
                EXAMPLES,
                batch_size=config.batch_size,
                rank=rank,
                world_size=WORLD_SIZE,
                seed=config.seed,
            )
            sampler.epoch, sampler.first_batch = epoch, within * config.accumulation
            batches = list(sampler)[: config.accumulation]
            indices += [index for batch in batches for index in batch]
        (model(data[0][indices]) - data[1][indices]).square().mean().backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        factor = learning_rate_factor(step, config=config, total_steps=config.epochs * per_epoch)
        optimizer.param_groups[0]["lr"] = config.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == toy.shrink_at:
            model, optimizer = _shrunk_by_hand(model, optimizer, options)
    return model.state_dict()


def _shrunk_by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, options: dict[str, Any]
) -> tuple[nn.Module, torch.optim.Optimizer]:
    momentum = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    momentum = [momentum[0][::2], momentum[1][::2], momentum[2][:, ::2], momentum[3]]
    smaller = shrink(model).model
    fresh = torch.optim.SGD(smaller.parameters(), lr=1.0, **options)
    for parameter, buffer in zip(smaller.parameters(), momentum, strict=True):
        fresh.state[parameter]["momentum_buffer"] = buffer.clone()
    return smaller, fresh


def _train_like_plain_loops(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    return {name: train(f"{folder}/{name}", *case)[0] for name, case in AS_A_PLAIN_LOOP.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return run_ranks(_train_like_plain_loops, WORLD_SIZE, str(tmp_path_factory.mktemp("runs")))


@pytest.mark.parametrize("name", AS_A_PLAIN_LOOP)
def test_training_equals_a_plain_loop(
    name: str, trained: list[dict[str, dict[str, Tensor]]]
) -> None:
    config, _, toy = AS_A_PLAIN_LOOP[name]
    expected = plain_loop(config, toy)
    for rank in range(WORLD_SIZE):
        torch.testing.assert_close(trained[rank][name], expected, rtol=1e-4, atol=1e-6)


def _fingerprint(state: Mapping[str, Tensor]) -> str:
    joined = torch.cat([value.reshape(-1).view(torch.uint8) for value in state.values()])
    return hashlib.sha256(joined.numpy().tobytes()).hexdigest()


def _use_the_contract(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    torch.manual_seed(BASE.seed)
    start = toy_model().state_dict()["0.weight"]
    found: dict[str, Any] = {"disagreement": "none"}
    try:
        train(f"{folder}/never", replace(BASE, seed=rank), DenseConfig(), ToyConfig())
    except ConfigMismatch as error:
        found["disagreement"] = str(error)
    assert not Path(f"{folder}/never").exists()
    undecayed = replace(BASE, weight_decay=0.0)
    for name, config, reducer in (
        ("dense", undecayed, DenseConfig()),
        ("gs-sgd", BASE, SPARSE),
    ):
        toy = ToyConfig(masked=True, replicated=reducer is SPARSE)
        state, workload, _ = train(f"{folder}/{name}", config, reducer, toy)
        trained_coordinates = workload.coordinate_mask(nn.Identity())["0.weight"]
        moved = state["0.weight"] != start
        found[name] = {
            "masked moved": int(moved[~trained_coordinates].sum()),
            "trained moved": float(moved[trained_coordinates].float().mean()),
            "steps": workload.steps_seen,
            "bits": _fingerprint(state),
        }
    toy = ToyConfig(shrink_at=5)
    short = replace(BASE, steps=5)
    before = train(f"{folder}/kept", short, SPARSE, ToyConfig())[2]._learner.own_state()
    state, _, trainer = train(f"{folder}/cut", short, SPARSE, toy)
    after = trainer._learner.own_state()
    found["layout"] = {
        "residual": torch.equal(after["residual"]["0.weight"], before["residual"]["0.weight"][::2]),
        "momentum": torch.equal(after["momentum"]["0.weight"], before["momentum"]["0.weight"][::2]),
        "nonzero": int(after["residual"]["0.weight"].count_nonzero()),
        "bits": _fingerprint(train(f"{folder}/on", BASE, SPARSE, toy)[0]),
    }
    for amp in ("bf16", "fp16"):
        state = train(f"{folder}/{amp}", replace(BASE, amp=amp), SPARSE, ToyConfig())[0]
        found[amp] = {
            "finite": all(bool(value.isfinite().all()) for value in state.values()),
            "bits": _fingerprint(state),
        }
    return found


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(_use_the_contract, WORLD_SIZE, str(tmp_path_factory.mktemp("runs")))


@pytest.mark.parametrize("reducer", ["dense", "gs-sgd"])
def test_masked_coordinates_never_move(reducer: str, contract: list[dict[str, Any]]) -> None:
    for found in contract:
        assert found[reducer]["masked moved"] == 0
        assert found[reducer]["trained moved"] == 1.0


def test_after_step_sees_every_step(contract: list[dict[str, Any]]) -> None:
    assert contract[0]["dense"]["steps"] == list(range(1, 17))


def test_layout_change_cuts_residual_and_momentum(contract: list[dict[str, Any]]) -> None:
    for found in contract:
        assert found["layout"]["residual"] and found["layout"]["momentum"]
        assert found["layout"]["nonzero"] > 0


@pytest.mark.parametrize("part", ["dense", "gs-sgd", "layout", "bf16", "fp16"])
def test_all_ranks_end_with_the_same_bits(part: str, contract: list[dict[str, Any]]) -> None:
    assert contract[0][part]["bits"] == contract[1][part]["bits"]
    assert contract[0][part].get("finite", True)


def test_ranks_that_differ_in_settings_all_refuse(contract: list[dict[str, Any]]) -> None:
    for found in contract:
        assert "train.seed" in found["disagreement"]

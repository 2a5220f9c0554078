"""gsdist under DDP: what DDP, AMP and optimizers do around the exchange must not matter."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import gsdist
from gsdist.errors import (
    ConfigError,
    ConfigMismatch,
    GsdistError,
    NonFiniteGradient,
    UnsupportedSetup,
)
from gsdist.reducers import DenseConfig, GsSgdConfig, GsSgdPaperConfig
from tests.distributed.harness import run_ranks

SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
ALL = {
    "density": 1.0,
    "warmup_steps": 0,
    "min_numel": 100,
    "momentum": "local",
    "masking": False,
    "candidate_factor": 1.0,
    "wire_dtype": "float32",
}
SPARSE = {**ALL, "density": 0.05, "masking": True, "candidate_factor": 4.0, "preselect_factor": 0.0}


class Net(nn.Module):
    """A small convolutional net with a channels-last weight, biases and normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.GroupNorm(4, 16)
        self.hidden = nn.Linear(16 * 16, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.norm(self.conv(x)).relu().flatten(1)).relu())


def make_net(**ddp_options: Any) -> DistributedDataParallel:
    torch.manual_seed(7)
    return DistributedDataParallel(Net(), **ddp_options)


def batch(rank: int, step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    images = torch.randn(size, 3, 4, 4, generator=generator)
    return images, torch.randint(0, 10, (size,), generator=generator)


def train(
    model: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    rank: int,
    steps: int = 8,
    accumulate: int = 1,
) -> list[Tensor]:
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            images, labels = batch(rank, step * accumulate + part)
            with model.no_sync() if part < accumulate - 1 else nullcontext():
                (nn.functional.cross_entropy(model(images), labels) / accumulate).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.module.parameters()]


def trained(
    rank: int, config: dict[str, Any] | None, *, accumulate: int = 1, **ddp_options: Any
) -> list[Tensor]:
    """Train the net; `config=None` is plain DDP with torch's SGD, the independent reference."""
    model = make_net(**ddp_options)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    if config is not None:
        gsdist.attach(model, GsSgdPaperConfig(**config), optimizer=optimizer)
    return train(model, optimizer, rank, accumulate=accumulate)


def plain_sgd() -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    model = make_net()
    return model, torch.optim.SGD(model.parameters(), **SGD)


def trained_in_directions(rank: int) -> list[Tensor]:
    """Send everything by gs-SGD: full ranks and all coefficients, in half precision."""
    model = make_net(bucket_cap_mb=0.01, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    config = GsSgdConfig(
        compression=1.0, min_numel=100, max_directions=256, momentum="local", warmup_steps=1
    )
    gsdist.attach(model, config, optimizer=optimizer)
    return train(model, optimizer, rank, steps=12)


def dense_trained(rank: int, **options: Any) -> list[Tensor]:
    model = make_net(bucket_cap_mb=0.01)
    gsdist.attach(model, DenseConfig(**options))
    return train(model, torch.optim.SGD(model.parameters(), **SGD), rank)


def per_group_decay(rank: int, attach: bool) -> list[Tensor]:
    model = make_net()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, **SGD)
    if attach:
        gsdist.attach(model, GsSgdPaperConfig(**ALL), optimizer=optimizer)
    return train(model, optimizer, rank)


def with_replicated_loss(rank: int, momentum: str | None) -> list[Tensor]:
    """Add 0.1 * sum(w^2): through gsdist, or (None) inside each worker's own loss."""
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)

    def penalty() -> Tensor:
        return 0.1 * model.module.hidden.weight.square().sum()

    if momentum:
        config = GsSgdPaperConfig(**{**ALL, "momentum": momentum})
        state = gsdist.attach(model, config, optimizer=optimizer)
        state.set_replicated_loss(penalty)
    for step in range(6):
        optimizer.zero_grad()
        images, labels = batch(rank, step)
        loss = nn.functional.cross_entropy(model(images), labels)
        (loss if momentum else loss + penalty()).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.module.parameters()]


def masked(rank: int) -> dict[str, Any]:
    """Train with half of the hidden weights masked after two steps."""
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    state = gsdist.attach(model, GsSgdPaperConfig(**SPARSE), optimizer=optimizer)
    train(model, optimizer, rank, steps=2)
    kept = torch.zeros(64, 256, dtype=torch.bool)
    kept[::2] = True
    kept_bias = torch.arange(10) < 5
    state.set_mask({"hidden.weight": kept, "out.bias": kept_bias})
    before = model.module.hidden.weight.detach().clone()
    bias_before = model.module.out.bias.detach().clone()
    train(model, optimizer, rank, steps=4)
    moved = model.module.hidden.weight.detach() != before
    bias_moved = model.module.out.bias.detach() != bias_before
    saved = state.state_dict()
    return {
        "masked moved": bool(moved[~kept].any()),
        "kept moved": bool(moved[kept].any()),
        "bias moved": bias_moved.tolist(),
        "masked state": max(
            float(saved[kind]["hidden.weight"][~kept].abs().max())
            for kind in ("residual", "momentum")
        ),
    }


class SumInBackward(torch.autograd.Function):
    """Do what SyncBatchNorm does: a collective inside the backward pass.

    It has a group of its own: DDP itself sums which parameters were used, on the default group.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total / dist.get_world_size(), None


class Branching(nn.Module):
    """Rank-dependent unused parameters, and a collective in the backward of what every rank uses.

    On rank 0 all parameters are ready before that collective, elsewhere the stem's are ready after it: an
    exchange that blocked backward would wait for the other ranks, and they for the collective.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 64)
        self.left, self.right, self.never = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.use_left = rank == 0
        self.group = dist.new_group()

    def forward(self, x: Tensor) -> Tensor:
        middle = SumInBackward.apply(x if self.use_left else self.stem(x), self.group)
        return (self.left if self.use_left else self.right)(middle)


def unused_parameters_and_collectives(rank: int) -> dict[str, Any]:
    torch.manual_seed(1)
    model = DistributedDataParallel(
        Branching(rank), find_unused_parameters=True, bucket_cap_mb=0.005
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = gsdist.attach(model, GsSgdPaperConfig(**SPARSE), optimizer=optimizer)
    before = model.module.never.weight.detach().clone()
    for step in range(4):
        generator = torch.Generator().manual_seed(10 * step + rank)
        optimizer.zero_grad()
        gathered = torch.distributed.nn.functional.all_gather(
            model(torch.randn(4, 64, generator=generator).requires_grad_())
        )
        torch.cat(list(gathered)).square().mean().backward()
        optimizer.step()
    return {
        "parameters": [p.detach().clone() for p in model.module.parameters()],
        "never moved": not torch.equal(before, model.module.never.weight),
        "never residual": float(state.state_dict()["residual"]["never.weight"].abs().max()),
    }


def mixed_precision(rank: int, poisoned: bool) -> dict[str, Any]:
    """Scale the loss; at steps 3 and 9 one rank overflows (at growth, and after back-off)."""
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    state = gsdist.attach(
        model, GsSgdPaperConfig(**SPARSE), optimizer=optimizer, grad_scaler=scaler
    )
    scales, kept = [], True
    for step in range(12):
        optimizer.zero_grad()
        images, labels = batch(rank, step)
        loss = nn.functional.cross_entropy(model(images), labels)
        bad = poisoned and step in (3, 9, 10)
        before = state.state_dict()["residual"]
        scaler.scale(loss * float("inf") if bad and rank == 1 else loss).backward()
        after = state.state_dict()["residual"]
        kept &= not bad or all(torch.equal(before[name], after[name]) for name in before)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return {
        "scales": scales,
        "kept": kept,
        "skipped": state.stats().skipped_steps,
        "parameters": [p.detach().clone() for p in model.module.parameters()],
    }


def non_finite_then_on(rank: int) -> dict[str, Any]:
    """Catch the error and go on training: DDP must be usable afterwards."""
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    gsdist.attach(model, GsSgdPaperConfig(**SPARSE), optimizer=optimizer)
    images, labels = batch(rank, 0)
    if rank == 1:
        images[0] = float("nan")
    try:
        nn.functional.cross_entropy(model(images), labels).backward()
        message = ""
    except NonFiniteGradient as error:
        message = str(error)
    return {"message": message, "parameters": train(model, optimizer, rank, steps=3)}


def restored(rank: int, static_graph: bool) -> bool:
    """Stop after 4 steps, build everything anew from saved state, compare with going on."""
    config = GsSgdPaperConfig(**SPARSE, deterministic=True)

    def build() -> tuple[DistributedDataParallel, torch.optim.Optimizer, gsdist.ReducerState]:
        model = make_net(bucket_cap_mb=0.01, static_graph=static_graph)
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        return model, optimizer, gsdist.attach(model, config, optimizer=optimizer)

    model, optimizer, state = build()
    train(model, optimizer, rank, steps=4)
    saved = (model.module.state_dict(), optimizer.state_dict(), state.state_dict())
    saved_model = {name: value.clone() for name, value in saved[0].items()}
    expected = train(model, optimizer, rank, steps=4)
    model, optimizer, state = build()
    model.module.load_state_dict(saved_model)
    optimizer.load_state_dict(saved[1])
    state.load_state_dict(saved[2])
    return all(
        torch.equal(a, b) for a, b in zip(expected, train(model, optimizer, rank, 4), strict=True)
    )


def experiments(rank: int, world_size: int) -> dict[str, Any]:
    small = {"bucket_cap_mb": 0.01}
    return {
        "torch": trained(rank, None),
        "everything": trained(rank, ALL),
        "torch long": train(*plain_sgd(), rank, steps=12),
        "directions": trained_in_directions(rank),
        "sparse": trained(rank, SPARSE),
        "sparse small buckets": trained(rank, SPARSE, **small),
        "sparse static": trained(rank, SPARSE, static_graph=True, **small),
        "sparse views": trained(rank, SPARSE, gradient_as_bucket_view=True, **small),
        "torch accumulated": trained(rank, None, accumulate=2),
        "accumulated": trained(rank, ALL, accumulate=2, gradient_as_bucket_view=True),
        "dense": dense_trained(rank),
        "dense deterministic": dense_trained(rank, deterministic=True),
        "dense bfloat16": dense_trained(rank, wire_dtype="bfloat16"),
        "dense float16": dense_trained(rank, wire_dtype="float16"),
        "torch groups": per_group_decay(rank, attach=False),
        "groups": per_group_decay(rank, attach=True),
        "torch penalty": with_replicated_loss(rank, None),
        "penalty local": with_replicated_loss(rank, "local"),
        "penalty post": with_replicated_loss(rank, "post"),
        "masked": masked(rank),
        "branching": unused_parameters_and_collectives(rank) if world_size > 1 else None,
        "amp": mixed_precision(rank, poisoned=False),
        "amp poisoned": mixed_precision(rank, poisoned=True) if world_size > 1 else None,
        "non finite": non_finite_then_on(rank) if world_size > 1 else None,
        "restored": restored(rank, static_graph=False),
        "restored static": restored(rank, static_graph=True),
    }


@pytest.fixture(scope="module", params=[1, 2, 3])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(experiments, request.param, timeout=110)


def test_everything_in_directions_is_torch_to_half_precision(
    results: list[dict[str, list[Tensor]]],
) -> None:
    torch.manual_seed(7)
    start = [p.detach() for p in Net().parameters()]
    for result in results:
        for got, expected, first in zip(
            result["directions"], result["torch long"], start, strict=True
        ):
            assert float((got - expected).norm()) < 0.01 * float((expected - first).norm())


def assert_close(got: list[Tensor], expected: list[Tensor], rtol: float = 1e-5) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ("everything", "torch"),
        ("accumulated", "torch accumulated"),
        ("dense", "torch"),
        ("dense deterministic", "torch"),
        ("groups", "torch groups"),
        ("penalty local", "torch penalty"),
        ("penalty post", "torch penalty"),
    ],
)
def test_sending_everything_equals_torch_sgd(
    results: list[dict[str, Any]], got: str, expected: str
) -> None:
    """k = d, no masking, Nesterov and weight decay: all of gsdist's momentum against torch's own."""
    for result in results:
        assert_close(result[got], result[expected])


def test_half_precision_dense_is_near_torch_but_not_equal(results: list[dict[str, Any]]) -> None:
    for result in results:
        for name, unit in (("dense bfloat16", 2**-8), ("dense float16", 2**-11)):
            error = max(
                float((a - b).norm() / b.norm())
                for a, b in zip(result[name], result["torch"], strict=True)
                if b.ndim > 1
            )
            assert 0 < error < 4 * unit


@pytest.mark.parametrize(
    "name", ["everything", "sparse", "dense", "dense bfloat16", "penalty local"]
)
def test_ranks_end_with_equal_parameters(results: list[dict[str, Any]], name: str) -> None:
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result[name], results[0][name], strict=True))


@pytest.mark.parametrize("variant", ["sparse small buckets", "sparse static", "sparse views"])
def test_buckets_do_not_matter(results: list[dict[str, Any]], variant: str) -> None:
    """Rebuilt, static or aliased buckets: only the order of additions into the table may differ."""
    for result in results:
        assert_close(result[variant], result["sparse"], rtol=1e-4)


def test_sparse_training_differs_from_dense(results: list[dict[str, Any]]) -> None:
    """Guard the guard: were nothing compressed, the tests above would prove nothing."""
    for result in results:
        assert any(
            not torch.allclose(a, b, rtol=1e-3, atol=1e-4)
            for a, b in zip(result["sparse"], result["torch"], strict=True)
        )


def test_masked_coordinates_stay_and_leave_no_state(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["masked"] == {
            "masked moved": False,
            "kept moved": True,
            "bias moved": [True] * 5 + [False] * 5,
            "masked state": 0.0,
        }


def test_unused_parameters_and_collectives_in_backward(results: list[dict[str, Any]]) -> None:
    if len(results) == 1:
        return
    for result in results:
        found = result["branching"]
        assert not found["never moved"]
        assert found["never residual"] == 0.0
        for a, b in zip(found["parameters"], results[0]["branching"]["parameters"], strict=True):
            assert torch.equal(a, b)


def test_loss_scaling_does_not_change_training(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["amp"]["scales"][-1] == 1024.0 * 2**4
        assert result["amp"]["skipped"] == 0


def test_overflow_on_one_rank_is_skipped_by_all(results: list[dict[str, Any]]) -> None:
    if len(results) == 1:
        return
    expected_scales = [1024, 1024, 2048, 1024, 1024, 1024, 2048, 2048, 2048, 1024, 512, 512]
    for result in results:
        found = result["amp poisoned"]
        assert found["scales"] == expected_scales
        assert found["kept"]
        assert found["skipped"] == 3
        for a, b in zip(found["parameters"], results[0]["amp poisoned"]["parameters"], strict=True):
            assert torch.equal(a, b) and bool(torch.isfinite(a).all())


def test_training_goes_on_after_a_non_finite_gradient(results: list[dict[str, Any]]) -> None:
    if len(results) == 1:
        return
    for rank, result in enumerate(results):
        assert f"rank {rank}/{len(results)} step 0" in result["non finite"]["message"]
        assert all(bool(torch.isfinite(p).all()) for p in result["non finite"]["parameters"])


@pytest.mark.parametrize("name", ["restored", "restored static"])
def test_restart_is_bit_identical(results: list[dict[str, Any]], name: str) -> None:
    assert all(result[name] for result in results)


# ---- refusals ------------------------------------------------------------------------------------------


def attempt(call: Any) -> tuple[str, str]:
    try:
        call()
    except GsdistError as error:
        return type(error).__name__, str(error)
    return "", ""


def refusals(rank: int, world_size: int) -> dict[str, tuple[str, str]]:
    def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), **{**SGD, **options})

    model = make_net()
    local = GsSgdPaperConfig(**SPARSE)
    post = GsSgdPaperConfig(**{**SPARSE, "momentum": "post"})
    odd_one = GsSgdPaperConfig(**{**SPARSE, "momentum": "post", "seed": rank})
    frozen = DistributedDataParallel(
        nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(2, 2))
    )
    frozen.module[1].requires_grad_(False)
    sparse = DistributedDataParallel(nn.Embedding(10, 4, sparse=True))
    tiny = DistributedDataParallel(nn.Linear(4, 4))
    hooked = make_net()
    hooked.register_comm_hook(None, allreduce_hook)
    complex_model = DistributedDataParallel(nn.Linear(4, 4, dtype=torch.complex64))
    one_frozen = make_net()
    if rank == 1:
        one_frozen.module.out.requires_grad_(False)

    found = {
        "config differs": attempt(lambda: gsdist.attach(model, odd_one)),
        "method differs": attempt(
            lambda: gsdist.attach(model, DenseConfig() if rank == 0 else post)
        ),
        "model differs": attempt(lambda: gsdist.attach(one_frozen, post)),
        "not DDP": attempt(lambda: gsdist.attach(Net(), post)),
        "frozen": attempt(lambda: gsdist.attach(frozen, post)),
        "sparse": attempt(lambda: gsdist.attach(sparse, post)),
        "complex": attempt(lambda: gsdist.attach(complex_model, DenseConfig())),
        "all small": attempt(lambda: gsdist.attach(tiny, post)),
        "hooked": attempt(lambda: gsdist.attach(hooked, post)),
        "no optimizer": attempt(lambda: gsdist.attach(model, local)),
        "adam": attempt(
            lambda: gsdist.attach(model, local, optimizer=torch.optim.Adam(model.parameters()))
        ),
        "one rank's optimizer": attempt(
            lambda: gsdist.attach(
                model,
                local,
                optimizer=sgd(model, momentum=0.0, nesterov=False) if rank == 0 else sgd(model),
            )
        ),
        "momentum differs": attempt(
            lambda: gsdist.attach(model, local, optimizer=sgd(model, momentum=0.5 + rank / 10))
        ),
        "wrong config type": attempt(lambda: gsdist.attach(model, {"density": 0.1})),  # type: ignore[arg-type]
    }
    state = gsdist.attach(model, post)
    found["bad mask"] = attempt(lambda: state.set_mask({"hidden.weight": torch.ones(2, 2)}))
    found["no optimizer for loss"] = attempt(lambda: state.set_replicated_loss(lambda: None))
    # after all refusals the same model must still train
    found["still trains"] = attempt(lambda: train(model, sgd(model), rank, steps=2))
    return found


@pytest.fixture(scope="module")
def refused() -> list[dict[str, tuple[str, str]]]:
    return run_ranks(refusals, 2, timeout=60)


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("config differs", ConfigMismatch, "seed: rank 0 has 0, rank 1 has 1"),
        (
            "method differs",
            ConfigMismatch,
            "reducer: rank 0 has 'DenseConfig', rank 1 has 'GsSgdPaperConfig'",
        ),
        ("model differs", ConfigMismatch, "model: rank 0 has"),
        ("not DDP", UnsupportedSetup, "wrap it first"),
        ("frozen", ConfigError, "no trainable parameters"),
        ("sparse", UnsupportedSetup, "sparse=False"),
        ("complex", UnsupportedSetup, "view_as_real"),
        ("all small", ConfigError, "lower min_numel"),
        ("hooked", UnsupportedSetup, "already has a communication hook"),
        ("no optimizer", ConfigError, "pass optimizer="),
        ("adam", UnsupportedSetup, 'momentum="post"'),
        ("momentum differs", ConfigMismatch, "momentum correction: rank 0 has"),
        ("wrong config type", GsdistError, "must be one of DenseConfig, GsSgdConfig"),
        ("bad mask", ConfigError, "torch.bool of shape (64, 256)"),
        ("no optimizer for loss", ConfigError, "pass optimizer="),
    ],
)
def test_bad_set_ups_are_refused_on_every_rank(
    refused: list[dict[str, tuple[str, str]]], case: str, kind: type, words: str
) -> None:
    for found in refused:
        name, message = found[case]
        assert issubclass(getattr(gsdist.errors, name), kind), (name, message)
        assert words in message


def test_a_fault_on_one_rank_stops_the_others_too(
    refused: list[dict[str, tuple[str, str]]],
) -> None:
    assert "momentum=0" in refused[0]["one rank's optimizer"][1]
    assert "another rank refused" in refused[1]["one rank's optimizer"][1]


def test_a_refused_model_still_trains(refused: list[dict[str, tuple[str, str]]]) -> None:
    assert all(found["still trains"] == ("", "") for found in refused)

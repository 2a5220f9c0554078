"""TrainConfig and RunConfig: what is refused, and when two runs count as the same."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gsdist.errors import ConfigError
from gsdist.reducers import DenseConfig, GsSgdConfig, GsSgdPaperConfig
from gsdist.training import RunConfig, TrainConfig
from gsdist.workloads import ClassificationConfig


def run_config(reducer: Any = None, **train: Any) -> RunConfig:
    return RunConfig(
        train=TrainConfig(**train),
        reducer=reducer or DenseConfig(),
        workload_name="classification",
        workload=ClassificationConfig(data="digits", model="mlp"),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("steps", 0),
        ("batch_size", 0),
        ("accumulation", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("optimizer", "lamb"),
        ("betas", (0.9, 1.0)),
        ("schedule", "linear"),
        ("lr_warmup_steps", -1),
        ("milestones", (0.5, 0.5)),
        ("milestones", (0.5, 1.0)),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("seed", -1),
        ("seed", 2**32),
        ("clip_norm", 0.0),
        ("amp", "fp8"),
        ("evaluate_every", 0),
        ("checkpoint_every", -1),
        ("keep", 0),
        ("timeout", 0.0),
    ],
)
def test_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}=") as caught:
        TrainConfig(**{field: value})
    assert repr(value) in str(caught.value)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigError, match="nesterov"):
        TrainConfig(momentum=0.0, nesterov=True)


def test_deterministic_reaches_the_reducer() -> None:
    for reducer in (DenseConfig(), GsSgdPaperConfig()):
        assert not run_config(reducer).exchange().deterministic
        assert run_config(reducer, deterministic=True).exchange().deterministic


def test_clip_norm_reaches_only_an_exchange_with_momentum_before_compression() -> None:
    local = GsSgdPaperConfig(momentum="local")
    exchange = run_config(local, clip_norm=2.0).exchange()
    assert isinstance(exchange, GsSgdPaperConfig) and exchange.clip_norm == 2.0
    for untouched in (DenseConfig(), GsSgdPaperConfig(), GsSgdConfig()):
        assert run_config(untouched, clip_norm=2.0).exchange() == untouched
    assert run_config(local, clip_norm=2.0, outer_interval=4).exchange() == local
    of_pseudo_gradients = GsSgdPaperConfig(clip_norm=1.0)
    outer = run_config(of_pseudo_gradients, clip_norm=2.0, outer_interval=4)
    assert outer.exchange() == of_pseudo_gradients
    with pytest.raises(ConfigError, match="clip_norm"):
        run_config(GsSgdPaperConfig(clip_norm=1.0), clip_norm=2.0).exchange()


def test_toml_holds_every_setting() -> None:
    run = run_config(
        GsSgdPaperConfig(density_ladder=(0.06, 0.02), density_ladder_steps=3),
        milestones=(0.25, 0.5),
        run_dir=Path('odd "name"'),
    )
    tables = tomllib.loads(run.to_toml())
    assert tables["reducer"].pop("name") == "gs-sgd-paper"
    assert tables["workload"].pop("name") == "classification"
    for table, settings in (
        ("reducer", run.reducer),
        ("train", run.train),
        ("workload", run.workload),
    ):
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if value is None:
                assert field.name not in tables[table]
            elif isinstance(value, tuple):
                assert tuple(tables[table][field.name]) == value
            else:
                assert tables[table][field.name] == (
                    str(value) if isinstance(value, Path) else value
                )


def test_fingerprint_ignores_bookkeeping_only() -> None:
    plain = run_config()
    same = run_config(resume=True, run_dir=Path("elsewhere"), log_every=1, keep=5, evaluate_every=7)
    assert same.fingerprint() == plain.fingerprint()
    for change in ({"seed": 1}, {"learning_rate": 0.2}, {"steps": 5}, {"deterministic": True}):
        assert run_config(**change).fingerprint() != plain.fingerprint()
    assert run_config(DenseConfig(wire_dtype="float16")).fingerprint() != plain.fingerprint()


def test_a_constant_schedule_may_be_made_longer() -> None:
    short, long = (run_config(schedule="constant", steps=steps) for steps in (5, 50))
    assert short.fingerprint() == long.fingerprint()


def test_each_seed_gets_a_run_and_folders_of_its_own() -> None:
    train = TrainConfig(seeds=(3, 5), run_dir=Path("a"), checkpoint_dir=Path("b"))
    run = RunConfig(
        train=train, reducer=DenseConfig(), workload_name="w", workload=ClassificationConfig()
    )
    runs = run.per_seed()
    assert [(one.train.seed, one.train.seeds) for one in runs] == [(3, None), (5, None)]
    assert [one.train.run_dir for one in runs] == [Path("a/seed-3"), Path("a/seed-5")]
    assert [one.train.checkpoint_dir for one in runs] == [Path("b/seed-3"), Path("b/seed-5")]
    assert runs[0].per_seed() == [runs[0]]


@pytest.mark.parametrize(
    "settings",
    [{"seeds": ()}, {"seeds": (-1,)}, {"seeds": (0, 1), "save_model": Path("one.pt")}],
)
def test_seeds_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="seed|save_model"):
        TrainConfig(**settings)  # type: ignore[arg-type]

import pytest

from gsdist.errors import ConfigError
from gsdist.reducers import DenseConfig, GsSgdPaperConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("density", 0.0),
        ("density", 1.01),
        ("density", float("nan")),
        ("density_ladder", (0.1, 2.0)),
        ("density_ladder_steps", 3),
        ("rows", 4),
        ("rows", 17),
        ("column_factor", 0.0),
        ("preselect_factor", 0.5),
        ("candidate_factor", 0.9),
        ("wire_dtype", "int8"),
        ("seed", -1),
        ("momentum", "nesterov"),
        ("warmup_steps", -1),
        ("clip_norm", 0.0),
        ("non_finite", "ignore"),
    ],
)
def test_bad_values_are_named_with_what_was_expected(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        GsSgdPaperConfig(**{field: value})
    assert "must be" in str(caught.value)


def test_dense_wire_dtype_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"wire_dtype is 'fp16'"):
        DenseConfig(wire_dtype="fp16")  # type: ignore[arg-type]


def test_density_goes_over_the_ladder_to_its_value_after_warm_up() -> None:
    config = GsSgdPaperConfig(
        warmup_steps=2, density=0.01, density_ladder=(0.25, 0.0625), density_ladder_steps=2
    )
    assert [config.density_at(step) for step in range(8)] == [
        0.25, 0.25, 0.25, 0.25, 0.0625, 0.0625, 0.01, 0.01
    ]  # fmt: skip

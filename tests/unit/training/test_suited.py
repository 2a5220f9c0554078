"""Settings that follow from the optimizer, whoever chose the method: the user or the planner."""

from gsdist.reducers import DenseConfig, GsSgdConfig, TopKConfig
from gsdist.training import TrainConfig
from gsdist.training.suited import suited_to

ADAMW = TrainConfig(optimizer="adamw")


def test_momentum_is_taken_over_where_there_is_any() -> None:
    assert suited_to(TrainConfig(), TopKConfig()) == TopKConfig(momentum="local")
    for train in (TrainConfig(momentum=0.0), ADAMW):
        assert suited_to(train, TopKConfig()) == TopKConfig()


def test_adamw_begins_with_whole_gradients_and_gets_more_directions_of_gs_sgd() -> None:
    assert suited_to(ADAMW, GsSgdConfig(compression=40)) == GsSgdConfig(
        compression=40, warmup_steps=20, max_directions=512
    )
    assert suited_to(TrainConfig(), GsSgdConfig()) == GsSgdConfig()
    assert suited_to(ADAMW, DenseConfig()) == DenseConfig()

"""Two-level exchange on four gloo processes, against whole sums and against two workers that are nodes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import gsdist
from gsdist.collectives import LocalGroup, NodeGroups, Nodes, find_nodes, run_together
from gsdist.errors import ConfigError, ConfigMismatch, NonFiniteGradient
from gsdist.reducers import (
    DenseConfig,
    MomentumCorrection,
    Reducer,
    ReducerConfig,
    TopKConfig,
    build_hierarchical_reducer,
)
from tests.distributed.harness import run_ranks
from tests.distributed.reducer_driver import (
    PARAMETERS,
    SHAPES,
    exchange,
    flatten,
    integer_gradients,
    make_layout,
    make_reducer,
    normal_gradients,
)

WORLD_SIZE = 4
STEPS = 4
EVEN, UNEVEN = Nodes(sizes=(2, 2)), Nodes(sizes=(3, 1))
SPARSE = TopKConfig(density=0.01, warmup_steps=1, min_numel=600, momentum="local")
MOMENTUM = MomentumCorrection(factor=0.5, nesterov=False)  # a power of two: integers stay exact


def hierarchical(config: ReducerConfig, nodes: Nodes) -> Reducer:
    assert dist.group.WORLD is not None
    groups = NodeGroups.open(nodes, dist.group.WORLD)
    momentum = MOMENTUM if config == SPARSE else None
    return build_hierarchical_reducer(config, PARAMETERS, groups, momentum=momentum)[1]


def run_dense(rank: int, nodes: Nodes) -> list[dict[str, Tensor]]:
    reducer = hierarchical(DenseConfig(), nodes)
    layout = make_layout(DenseConfig())
    return [
        exchange(reducer, integer_gradients(10 * step + rank), layout=layout)
        for step in range(STEPS)
    ]


def run_sparse(rank: int) -> list[dict[str, Any]]:
    reducer, history = hierarchical(SPARSE, EVEN), []
    for step in range(STEPS):
        averages = exchange(
            reducer, integer_gradients(10 * step + rank), layout=make_layout(SPARSE)
        )
        statistics = reducer.statistics()
        history.append(
            {
                "averages": averages,
                "between": reducer.state_dict().get("between"),
                "payload": statistics.payload_bytes_last_step,
                "steps": statistics.steps,
            }
        )
    return history


def run_bad_gradient(rank: int) -> tuple[bool, bool]:
    """Tell whether a NaN on a rank that leads nothing raises here, and leaves no trace."""
    reducers = [hierarchical(SPARSE, EVEN) for _ in range(2)]
    layout, bad = make_layout(SPARSE), normal_gradients(rank)
    if rank == 3:
        bad["second"][3, 3] = float("nan")
    raised = False
    try:
        exchange(reducers[0], bad, layout=layout)
    except NonFiniteGradient:
        raised = True
    results = [exchange(r, normal_gradients(7 + rank), layout=layout) for r in reducers]
    return raised, all(torch.equal(results[0][name], results[1][name]) for name in SHAPES)


def run_restored(rank: int) -> tuple[bool, str]:
    """Tell whether saved state goes on with the same bits, and what other nodes say to it."""
    first, second, other = (hierarchical(SPARSE, n) for n in (EVEN, EVEN, UNEVEN))
    layout = make_layout(SPARSE)
    for step in range(2):
        exchange(first, normal_gradients(10 * step + rank), layout=layout)
    second.load_state_dict(first.state_dict())
    results = [exchange(r, normal_gradients(50 + rank), layout=layout) for r in (first, second)]
    try:
        other.load_state_dict(first.state_dict())
        refusal = ""
    except ConfigError as error:
        refusal = str(error)
    return all(torch.equal(results[0][name], results[1][name]) for name in SHAPES), refusal


def run_attached(rank: int) -> dict[str, Any]:
    """Train one linear layer in float64-exact steps, flat and in nodes; also try what is refused."""
    found: dict[str, Any] = {}
    for name, nodes in (("flat", None), ("nodes", EVEN)):
        torch.manual_seed(0)
        model = DistributedDataParallel(torch.nn.Linear(8, 4, bias=False))
        gsdist.attach(model, DenseConfig(), nodes=nodes)
        for step in range(3):
            inputs = integer_gradients(10 * step + rank, largest=8)["first"][:16, :8]
            model(inputs).square().mean().backward()
            with torch.no_grad():
                model.module.weight -= 0.001 * model.module.weight.grad
            model.zero_grad()
        found[name] = model.module.weight.detach().clone()
    for name, nodes, kind in (
        ("too few", Nodes(sizes=(2, 1)), ConfigError),
        ("at odds", EVEN if rank else UNEVEN, ConfigMismatch),
    ):
        try:
            gsdist.attach(
                DistributedDataParallel(torch.nn.Linear(8, 4)), DenseConfig(), nodes=nodes
            )
        except kind as error:
            found[name] = str(error)
    return found


def experiments(rank: int, world_size: int) -> dict[str, Any]:
    return {
        "dense even": run_dense(rank, EVEN),
        "dense uneven": run_dense(rank, UNEVEN),
        "sparse": run_sparse(rank),
        "bad": run_bad_gradient(rank),
        "restored": run_restored(rank),
        "attached": run_attached(rank),
    }


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_ranks(experiments, WORLD_SIZE, timeout=100)


@pytest.mark.parametrize("nodes", ["even", "uneven"])
def test_with_dense_between_nodes_it_is_the_mean_over_all_ranks(
    results: list[dict[str, Any]], nodes: str
) -> None:
    for step in range(STEPS):
        drawn = [integer_gradients(10 * step + rank) for rank in range(WORLD_SIZE)]
        for name in SHAPES:
            mean = torch.stack([one[name] for one in drawn]).sum(0) / WORLD_SIZE
            assert all(torch.equal(r[f"dense {nodes}"][step][name], mean) for r in results)


def two_workers(group: LocalGroup) -> list[tuple[Mapping[str, Tensor], Mapping[str, Any], int]]:
    """Be one of two workers whose gradients are the means of two nodes."""
    reducer, history = make_reducer(SPARSE, group, momentum=MOMENTUM), []
    for step in range(STEPS):
        members = [integer_gradients(10 * step + 2 * group.rank() + local) for local in range(2)]
        means = {name: (members[0][name] + members[1][name]) / 2 for name in SHAPES}
        averages = exchange(reducer, means, layout=make_layout(SPARSE))
        payload = reducer.statistics().payload_bytes_last_step
        history.append((averages, reducer.state_dict(), payload))
    return history


def test_two_nodes_do_what_two_workers_do_with_the_nodes_means(
    results: list[dict[str, Any]],
) -> None:
    expected = run_together(LocalGroup.create(2, timeout=30), two_workers)
    for rank, result in enumerate(results):
        node = expected[rank // 2]
        for step in range(STEPS):
            averages, state, payload = node[step]
            got = result["sparse"][step]
            assert all(torch.equal(got["averages"][name], averages[name]) for name in SHAPES)
            assert got["steps"] == step + 1
            if rank % 2:  # residual and bytes lie with the leaders
                assert got["between"] is None and got["payload"] == 0
                continue
            assert got["payload"] == payload
            for part in ("residual", "momentum"):
                for name, tensor in state[part].items():
                    assert torch.equal(got["between"][part][name], tensor)
    assert flatten(expected[0][-1][1]["residual"]).any()


def test_a_bad_gradient_of_any_rank_raises_on_all_and_changes_nothing(
    results: list[dict[str, Any]],
) -> None:
    assert all(result["bad"] == (True, True) for result in results)


def test_state_goes_on_with_the_same_bits_on_the_same_nodes_only(
    results: list[dict[str, Any]],
) -> None:
    for result in results:
        same, refusal = result["restored"]
        assert same
        assert "nodes of [2, 2]" in refusal and "[3, 1]" in refusal


def test_attached_to_ddp_it_trains_as_without_nodes(results: list[dict[str, Any]]) -> None:
    for result in results:
        found = result["attached"]
        torch.testing.assert_close(found["nodes"], found["flat"], rtol=1e-5, atol=1e-6)
        assert torch.equal(found["nodes"], results[0]["attached"]["nodes"])


def test_nodes_that_do_not_fit_are_refused_on_every_rank(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert (
            "hold 3" in result["attached"]["too few"] and "has 4" in result["attached"]["too few"]
        )
        assert "rank 0 has [3, 1]" in result["attached"]["at odds"]


@pytest.mark.parametrize(
    ("local_ranks", "sizes"),
    [([0], (1,)), ([0, 1, 2], (3,)), ([0, 1, 0, 1], (2, 2)), ([0, 0, 1, 0], (1, 2, 1))],
)
def test_nodes_follow_from_the_launchers_local_ranks(
    local_ranks: list[int], sizes: tuple[int, ...]
) -> None:
    groups = LocalGroup.create(len(local_ranks), timeout=30)
    found = run_together(groups, lambda g: find_nodes(local_ranks[g.rank()], g))
    assert found == [Nodes(sizes=sizes)] * len(groups)


@pytest.mark.parametrize("local_ranks", [[1, 0], [0, 0, 1, 1], [0, 2], [0, 1, 1]])
def test_ranks_that_do_not_follow_one_another_are_refused(local_ranks: list[int]) -> None:
    groups = LocalGroup.create(len(local_ranks), timeout=30)
    with pytest.raises(ConfigError, match=r"node after node"):
        run_together(groups, lambda g: find_nodes(local_ranks[g.rank()], g))


def test_sizes_and_leaders() -> None:
    nodes = Nodes.of_equal_size(3, 6)
    assert (nodes.sizes, nodes.leaders, nodes.world_size) == ((3, 3), [0, 3], 6)
    assert [nodes.ranks_beside(rank) for rank in (0, 2, 4)] == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    for size in (0, 4, 7):
        with pytest.raises(ConfigError, match=f"nodes of {size}"):
            Nodes.of_equal_size(size, 6)
    with pytest.raises(ConfigError):
        Nodes(sizes=())

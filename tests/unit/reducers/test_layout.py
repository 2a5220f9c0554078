import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gsdist.errors import ConfigError, UnsupportedSetup
from gsdist.reducers import FlatLayout
from gsdist.sketch import BLOCK

shapes = st.lists(
    st.lists(st.integers(1, 9), min_size=0, max_size=4).map(tuple), min_size=1, max_size=6
)


def layout_of(tensors: list[torch.Tensor], dense_every: int = 3) -> FlatLayout:
    named = [(f"p{i}", nn.Parameter(t)) for i, t in enumerate(tensors)]
    return FlatLayout.from_parameters(named, lambda name, _: int(name[1:]) % dense_every == 0)


@given(shapes)
def test_ordinals_count_compressed_elements_without_padding(sizes: list[tuple[int, ...]]) -> None:
    layout = layout_of([torch.zeros(size) for size in sizes])
    expected = [c for s in layout.compressed for c in range(s.offset, s.stop)]
    assert layout.coordinates(torch.arange(len(expected))).tolist() == expected


@given(shapes, st.data())
def test_ranges_sort_coordinates_by_parameter(
    sizes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    layout = layout_of([torch.zeros(size) for size in sizes])
    everything = range(layout.compressed_size)
    chosen = sorted(data.draw(st.sets(st.sampled_from(everything)))) if everything else []
    ranges = layout.ranges_of(torch.tensor(chosen, dtype=torch.int64))
    for segment in layout.compressed:
        inside = [c for c in chosen if segment.offset <= c < segment.stop]
        assert chosen[ranges[segment.name]] == inside


@given(shapes)
def test_every_element_has_its_own_place_and_comes_back(sizes: list[tuple[int, ...]]) -> None:
    tensors = [torch.randn(size) for size in sizes]
    layout = layout_of(tensors)
    compressed, dense = torch.zeros(layout.compressed_size), torch.zeros(layout.dense_size)
    named = {f"p{i}": t for i, t in enumerate(tensors)}
    layout.flatten_into(named, compressed=compressed, dense=dense, subject="test")
    back = layout.unflatten(compressed=compressed, dense=dense)
    assert all(torch.equal(back[name], named[name]) for name in named)
    assert layout.numel == sum(t.numel() for t in tensors)
    assert all(s.offset % BLOCK == 0 for s in layout.compressed)
    assert layout.compressed_size % BLOCK == 0
    total = float(sum(t.double().sum() for t in tensors))
    assert float(compressed.double().sum() + dense.double().sum()) == pytest.approx(total, abs=1e-4)


def test_channels_last_parameters_are_flat_in_memory_order() -> None:
    weight = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last)
    layout = FlatLayout.from_parameters([("w", nn.Parameter(weight))], lambda *_: False)
    vector = torch.zeros(layout.compressed_size)
    layout.flatten_into({"w": weight}, compressed=vector, dense=None, subject="test")
    memory_order = weight.permute(0, 2, 3, 1).flatten()
    assert torch.equal(layout.segments[0].flat_view(vector), memory_order)
    assert torch.equal(layout.segments[0].shaped_view(vector), weight)


def test_frozen_parameters_have_no_place() -> None:
    frozen, trained = (
        nn.Parameter(torch.zeros(5), requires_grad=False),
        nn.Parameter(torch.zeros(4)),
    )
    layout = FlatLayout.from_parameters([("a", frozen), ("b", trained)], lambda *_: False)
    assert [s.name for s in layout] == ["b"]


def test_layouts_differ_in_fingerprint_when_anything_differs() -> None:
    def fingerprint(name: str = "w", shape: tuple[int, ...] = (4, 6), dense: bool = False) -> str:
        parameter = nn.Parameter(torch.zeros(shape))
        return FlatLayout.from_parameters([(name, parameter)], lambda *_: dense).fingerprint()

    assert fingerprint() == fingerprint()
    assert (
        len({fingerprint(), fingerprint("v"), fingerprint(shape=(6, 4)), fingerprint(dense=True)})
        == 4
    )


@pytest.mark.parametrize("parameters", [[], [("w", nn.Parameter(torch.zeros(0)))]])
def test_empty_models_are_refused(parameters: list[tuple[str, nn.Parameter]]) -> None:
    with pytest.raises(ConfigError, match="no trainable parameters"):
        FlatLayout.from_parameters(parameters, lambda *_: False)


def test_complex_parameters_are_refused_by_name() -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(UnsupportedSetup, match="'phase' has dtype torch.complex64"):
        FlatLayout.from_parameters([("phase", parameter)], lambda *_: False)


def test_state_of_another_model_is_refused() -> None:
    layout = layout_of([torch.zeros(3), torch.zeros(4)])
    vectors = {
        "compressed": torch.zeros(layout.compressed_size),
        "dense": torch.zeros(layout.dense_size),
    }
    with pytest.raises(ConfigError, match="not 'p1'"):
        layout.flatten_into({"p0": torch.zeros(3)}, **vectors, subject="saved residual")
    with pytest.raises(ConfigError, match=r"'p1' has shape \(5,\)"):
        layout.flatten_into(
            {"p0": torch.zeros(3), "p1": torch.zeros(5)}, **vectors, subject="saved residual"
        )

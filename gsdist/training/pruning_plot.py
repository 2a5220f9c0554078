"""Draw what pruning left of each layer, and what each layer would cost in accuracy."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from gsdist.training.plots import colours, draw_svg

__all__ = ["draw_layers"]


def draw_layers(
    sizes: Mapping[str, int],
    kept: Mapping[str, Sequence[int]],
    loss: Mapping[str, float] | None = None,
) -> str:
    """Draw a bar per layer, filled as far as channels are kept; return the SVG element.

    Args:
        sizes: channels of each layer, in the order of the network.
        kept: channels kept; a layer that is not named keeps all.
        loss: by layer, points of accuracy lost when it alone is pruned; drawn against a second axis.
    """
    places = range(len(sizes))
    left = [len(kept[name]) if name in kept else size for name, size in sizes.items()]

    def draw(axes: Axes) -> None:
        whole, filled = colours(2)
        axes.bar(places, list(sizes.values()), color=whole, alpha=0.25, label="channels")
        axes.bar(places, left, color=whole, label="kept")
        axes.set_xlabel("layer")
        axes.set_ylabel("channels")
        if loss is not None:
            axes.plot([], [], color=filled, marker="o", markersize=3, label="points lost")
            second = axes.twinx()
            second.plot(
                places,
                [loss.get(name, float("nan")) for name in sizes],
                color=filled,
                marker="o",
                markersize=3,
                linestyle="none",
            )
            second.set_ylabel("points lost when pruned alone")
            second.grid(visible=False)
        axes.legend(loc="upper left")

    return draw_svg(draw, name="layers")

"""Make tables and plots of each kind of benchmark result. Losing cells stay in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from benchmarks.report.convergence import convergence_section
from benchmarks.report.graph import graph_section
from benchmarks.report.parts import Figure, Section, Table
from benchmarks.report.planner import plan_section, what_if_section
from benchmarks.report.pruning import pruning_section
from benchmarks.report.training import (
    guards_section,
    hierarchical_section,
    outer_step_section,
    simulated_link_section,
)
from gsdist.training.plots import colours, draw_svg

__all__ = ["section_of"]

_BASELINE = "dense-fp32"


def _kernels(result: Mapping[str, Any]) -> Section:
    if "gpu" in result:
        return _device_kernels(result)
    named = {
        "encode over reading the vector": "encode_over_read",
        "select over reading the vector": "select_over_read",
        "encode, times faster than per-coordinate hashing": "encode_vs_per_coordinate",
        "encode, times faster than the vectorised loop": "encode_vs_vectorised_loop",
        "encode, times faster than torch scatter": "encode_vs_torch_scatter",
        "top-k, times faster than torch.topk": "top_k_vs_torch",
    }
    rows = [[label, f"{result[key]:.2f}"] for label, key in named.items() if key in result]
    point = ", ".join(f"{k} {v:,}" for k, v in result.get("headline_point", {}).items())
    return Section(
        title="Sketch kernels", text=point, tables=[Table(title="", head=["", "ratio"], rows=rows)]
    )


def _device_kernels(result: Mapping[str, Any]) -> Section:
    """Show every figure of every point, as they were printed."""
    points = result["results"]
    sizes = ("dimension", "rows", "columns", "k")
    names = [name for name in points[0] if name not in sizes]
    table = Table(
        title="",
        head=["", *(", ".join(f"{size} {point[size]:,}" for size in sizes) for point in points)],
        rows=[
            [name.replace("_", " "), *(f"{point[name]:.3g}" for point in points)] for name in names
        ],
    )
    return Section(
        title=f"Sketch kernels on {result['gpu']}",
        text="Roofline: reading the vector or random reductions of 128 bytes, whichever takes longer, at "
        "rates measured in the same run.",
        tables=[table],
    )


def _directions(result: Mapping[str, Any]) -> Section:
    kept = result["energy_kept"]
    methods = list(next(iter(kept.values())))
    table = Table(
        title="",
        head=["share of the numbers", *(f"{float(share):.0%}" for share in kept)],
        rows=[[method, *(f"{kept[s][method]:.3f}" for s in kept)] for method in methods],
    )
    run = f"{result['workload']}, {result['steps']} steps"
    text = f"Share of the gradient's squared norm that is kept; {run}."
    return Section(title="Where the energy of a gradient is", text=text, tables=[table])


def _distillation(result: Mapping[str, Any]) -> Section:
    if "median_seconds" in result:
        return _distillation_step(result)
    table = Table(
        title="",
        head=["student", "mean %", "sd", "seeds above baseline", "compression"],
        rows=[
            [
                name,
                f"{m['mean']:.2f}",
                "" if m["sd"] is None else f"{m['sd']:.2f}",
                str(m["wins"]),
                f"{m['compression']:.1f}",
            ]
            for name, m in result["methods"].items()
        ],
    )
    setting = ", ".join(f"{name} {value}" for name, value in result["setting"].items())
    text = f"Accuracy of students; the teacher reaches {result['teacher']:.2f} %. {setting}."
    title = f"Distillation on {result['setting']['data']}"
    return Section(title=title, text=text, tables=[table])


def _distillation_step(result: Mapping[str, Any]) -> Section:
    rows = [[name, f"{1000 * seconds:.1f}"] for name, seconds in result["median_seconds"].items()]
    text = (
        f"Step of an HSAKD student, {result['networks']}, batches of {result['batch_size']}: ratio "
        f"{result['ratio']:.3f}, at most {result['bound']} wanted; medians of {result['rounds']} rounds in "
        "turns."
    )
    table = Table(title="", head=["who steps", "ms"], rows=rows)
    return Section(title="Cost of distilling", text=text, tables=[table])


_Groups = dict[str, list[Mapping[str, Any]]]


def _by_setting(cells: Sequence[Mapping[str, Any]]) -> _Groups:
    groups: _Groups = {}
    for cell in cells:
        title = f"{cell['model']}, {cell['ranks']} workers, {cell['rate']}"
        groups.setdefault(title, []).append(cell)
    return groups


def _step(result: Mapping[str, Any]) -> Section:
    return Section(
        title="Time per training step",
        text="Medians over steps of the slowest worker. Exposed is what a step takes longer than the same "
        "step without communication.",
        tables=[_step_table(t, cells) for t, cells in _by_setting(result["cells"]).items()],
    )


def _step_table(title: str, cells: Sequence[Mapping[str, Any]]) -> Table:
    times = ("seconds_median", "exposed_seconds", "forward_seconds", "backward_seconds")
    rows = []
    for cell in cells:
        if not cell["correct"]:
            rows.append([cell["method"], str(cell["fault"]), *[""] * 6])
            continue
        rows.append(
            [
                cell["method"],
                *(f"{1e3 * cell[name]:.1f}" for name in times),
                f"{1e3 * cell['cpu_seconds']:.0f}",
                f"{cell['peak_bytes'] / 1e6:.1f}",
                f"{cell['interface_bytes'] / 1e3:.1f}",
            ]
        )
    head = ["method", "ms", "exposed", "forward", "backward", "CPU ms per rank", "peak MB", "kB"]
    return Table(title=title, head=head, rows=rows)


def _exchange(result: Mapping[str, Any]) -> Section:
    tables, figures = [], []
    for title, cells in _by_setting(result["cells"]).items():
        tables.append(_exchange_table(title, cells))
        figures.append(_exchange_figure(title, cells))
    return Section(
        title="Time per exchange of captured gradients",
        text="Medians over repetitions of the slowest worker; bytes at the interface of the busiest worker; "
        "predictions by the alpha-beta model from the collectives that were issued.",
        tables=tables,
        figures=figures,
    )


def _exchange_table(title: str, cells: Sequence[Mapping[str, Any]]) -> Table:
    dense = next((c["seconds_median"] for c in cells if c["method"] == _BASELINE), None)
    rows = []
    for cell in cells:
        if not cell["correct"]:
            rows.append([cell["method"], str(cell["fault"]), *[""] * 6])
            continue
        seconds = cell["seconds_median"]
        rows.append(
            [
                cell["method"],
                f"{1e3 * seconds:.1f}",
                f"{dense / seconds:.2f}" if dense else "",
                f"{1e3 * cell['wire_seconds']:.1f}",
                f"{1e3 * cell['local_seconds']:.1f}",
                f"{cell['interface_bytes'] / 1e3:.1f}",
                f"{cell['predicted_bytes'] / 1e3:.1f}",
                f"{1e3 * cell['predicted_seconds']:.1f}",
            ]
        )
    head = ["method", "ms", "x dense", "wire ms", "local ms", "kB", "predicted kB", "predicted ms"]
    return Table(title=title, head=head, rows=rows)


def _exchange_figure(title: str, cells: Sequence[Mapping[str, Any]]) -> Figure:
    shown = [cell for cell in cells if cell["correct"]]

    def draw(axes: Axes) -> None:
        names = [cell["method"] for cell in shown]
        wire = [1e3 * cell["wire_seconds"] for cell in shown]
        local = [1e3 * cell["local_seconds"] for cell in shown]
        first, second = colours(2)
        axes.barh(names, wire, label="wire", color=first)
        axes.barh(names, local, left=wire, label="local", color=second)
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds per exchange")
        axes.grid(axis="y", visible=False)
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1.0))

    return Figure(title=title, svg=draw_svg(draw, name=f"exchange {title}"))


def _collectives(result: Mapping[str, Any]) -> Section:
    cells = result["cells"]
    backends = list(dict.fromkeys(cell["backend"] for cell in cells))
    compared = list(dict.fromkeys(cell["backend"] for cell in cells if "over_bare" in cell))
    rows: dict[tuple[str, int, str, int], dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        links = cell["rate"] or "one machine"
        key = (cell["operation"], cell["ranks"], links, cell["bytes"])
        rows.setdefault(key, {})[cell["backend"]] = cell
    table = Table(
        title="median microseconds of the slowest rank",
        head=["operation", "ranks", "links", "bytes", *backends]
        + [f"{name} / bare (95 % interval)" for name in compared],
        rows=[
            [operation, str(ranks), links, f"{size:,}"]
            + [f"{row[name]['microseconds_median']:.1f}" for name in backends]
            + [_over_bare(row[name]) for name in compared]
            for (operation, ranks, links, size), row in rows.items()
        ],
    )
    return Section(title="Collectives", tables=[table])


def _over_bare(cell: Mapping[str, Any]) -> str:
    ratio, low, high = (cell[f"over_bare{end}"] for end in ("", "_low", "_high"))
    return f"{ratio:.2f} ({low:.2f} to {high:.2f})"


def _scaling(result: Mapping[str, Any]) -> Section:
    rows = result["rows"]
    workers = sorted({row["workers"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    at = {(row["method"], row["workers"]): row for row in rows}

    def draw(axes: Axes) -> None:
        for method, colour in zip(methods, colours(len(methods)), strict=True):
            kilobytes = [at[method, p]["predicted_bytes"] / 1e3 for p in workers]
            axes.loglog(workers, kilobytes, label=method, color=colour, marker="o", markersize=3)
        axes.set_xticks(workers, [str(p) for p in workers])
        axes.set_xlabel("workers")
        axes.set_ylabel("kB on the busiest link")
        axes.legend(fontsize=6, ncols=2)

    def cell(method: str, p: int) -> str:
        row = at[method, p]
        return f"{row['predicted_bytes'] / 1e3:.1f} ({row['predicted_messages']:.0f})"

    table = Table(
        title="kB on the busiest link (messages in sequence)",
        head=["method", *(f"P={p}" for p in workers)],
        rows=[[method, *(cell(method, p) for p in workers)] for method in methods],
    )
    model = f"{rows[0]['model']}, d = {rows[0]['dimension']:,}, density {result['density']:g}"
    figure = Figure(title="Bytes by number of workers", svg=draw_svg(draw, name="scaling"))
    return Section(
        title="Growth with the number of workers", text=model, tables=[table], figures=[figure]
    )


_SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], Section]] = {
    "collectives": _collectives,
    "convergence": convergence_section,
    "directions": _directions,
    "distillation": _distillation,
    "exchange": _exchange,
    "graph": graph_section,
    "guards": guards_section,
    "hierarchical": hierarchical_section,
    "kernels": _kernels,
    "outer_step": outer_step_section,
    "plan": plan_section,
    "pruning": pruning_section,
    "scaling": _scaling,
    "simulated_link": simulated_link_section,
    "step": _step,
    "what_if": what_if_section,
}
"""By the name that a benchmark gives in its result."""


def section_of(name: str, result: Mapping[str, Any]) -> Section:
    """Return the section of a result file, by the benchmark it names.

    Raises:
        ValueError: the file is no result this report knows.
    """
    benchmark = result.get("benchmark")
    if benchmark not in _SECTIONS:
        raise ValueError(
            f'{name} names the benchmark {benchmark!r}; expected a result with "benchmark" set to one of '
            f"{', '.join(_SECTIONS)}"
        )
    return _SECTIONS[benchmark](result)

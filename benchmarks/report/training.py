"""Make tables of exchanges other than once per step between all workers on shaped links."""

from collections.abc import Mapping
from typing import Any

from benchmarks.report.parts import Section, Table

__all__ = [
    "guards_section",
    "hierarchical_section",
    "outer_step_section",
    "simulated_link_section",
]


def guards_section(result: Mapping[str, Any]) -> Section:
    """Show what the guards cost of the processor's time."""
    rows = [
        [
            cell["model"],
            cell["method"],
            f"{1e3 * cell['cpu_seconds']:.2f}",
            f"{cell['overhead']:+.1%}",
            f"{cell['interval'][0]:+.1%} to {cell['interval'][1]:+.1%}",
        ]
        for cell in result["guard_cells"]
    ]
    head = ["gradients", "method", "CPU ms of both ranks", "guards", "95 % interval"]
    return Section(
        title="What it costs to be told of failures",
        text="Exchanges of two workers with all guards and with them taken out, block by block in turns."
        + (" A control: nothing was taken out." if result["control"] else ""),
        tables=[Table(title="", head=head, rows=rows)],
    )


def hierarchical_section(result: Mapping[str, Any]) -> Section:
    """Show times all at once and node by node beside the model's."""
    rows = [
        [
            cell["method"],
            cell["way"],
            *(
                f"{1e3 * cell[key]:.1f}"
                for key in ("seconds", "predicted_seconds", "local_seconds")
            ),
        ]
        for cell in result["hierarchical_cells"]
    ]
    head = ["method", "way", "ms", "predicted ms", "local ms"]
    return Section(
        title="Two nodes of two workers",
        text=f"{result['rate']} inside a node, {result['uplink_rate']} between the nodes.",
        tables=[Table(title="", head=head, rows=rows)],
    )


def outer_step_section(result: Mapping[str, Any]) -> Section:
    """Show loss and bytes of local SGD beside dense training."""
    rows = [
        [
            run["run"],
            f"{run['loss']:.4f}",
            f"{run['loss_over_dense']:+.2%}",
            f"{run['payload_bytes'] / 1e6:.2f}",
            f"{run['compression']:.1f}",
        ]
        for run in result["outer_runs"]
    ]
    head = ["run", "validation loss", "over dense", "MB of the whole run", "x fewer"]
    return Section(
        title="Outer steps",
        text=f"gpt-1m, {result['workers']} workers, {result['steps']} steps, seed {result['seed']}; an "
        "exchange every 16 steps but for dense.",
        tables=[Table(title="", head=head, rows=rows)],
    )


def simulated_link_section(result: Mapping[str, Any]) -> Section:
    """Show what is seen of a simulated link in the steps of one worker."""
    groups: dict[str, list[list[str]]] = {}
    for cell in result["simulated_cells"]:
        title = (
            f"{cell['model']}, {cell['ranks']} workers at {8e-6 * cell['bytes_per_second']:g} Mb/s, "
            f"{1e6 * cell['latency']:g} us per message"
        )
        groups.setdefault(title, []).append([cell["method"], *_simulated(cell)])
    head = ["method", "ms", "no wire", "no exchange", "exposed", "x", "95 % interval"]
    head += ["wire ms", "hidden", "kB"]
    return Section(
        title="Steps of one worker over a simulated link",
        text=f"On {result['environment']['device']}. The exchange waits at each collective as the cost "
        "model says; exposed and x are against the step without exchange, hidden is the share of the wire's "
        "time that does not show.",
        tables=[Table(title=title, head=head, rows=rows) for title, rows in groups.items()],
    )


def _simulated(cell: Mapping[str, Any]) -> list[str]:
    if not cell["correct"]:
        return [str(cell["fault"]), *[""] * 8]
    keys = ("seconds_median", "seconds_without_wire", "seconds_alone", "exposed_seconds")
    low, high = cell["over_alone_interval"]
    hidden = cell["hidden_share"]
    return [
        *(f"{1e3 * cell[key]:.2f}" for key in keys),
        f"{cell['over_alone']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{1e3 * cell['wire_seconds']:.2f}",
        "" if hidden is None else f"{hidden:.0%}",
        f"{1e-3 * cell['payload_bytes']:.1f}",
    ]

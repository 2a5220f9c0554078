"""Write one self-contained HTML page that compares runs: verdict, table and plots."""

import html
from collections.abc import Sequence
from pathlib import Path

from gsdist.training.page import html_figure, html_table, write_page
from gsdist.training.plots import draw_bars, draw_curves, draw_groups, phase_names, phase_seconds
from gsdist.training.summary import RunSummary, loss_by_compression

__all__ = ["comparison", "format_bytes", "label_runs", "phase_rows", "table_rows", "write_report"]

_CLOSE_POINTS = 3.0
"""Loss of accuracy, in percentage points, below which the page calls a result as good."""


def write_report(runs: Sequence[RunSummary], output: Path, *, title: str = "gsdist runs") -> None:
    """Write the page to `output`, in one step. The first dense run is what the others are compared with."""
    labelled = list(zip(label_runs(runs), runs, strict=True))
    body = "\n".join(
        [
            *_verdicts(labelled),
            "<h2>Results</h2>",
            html_table(["", *(label for label, _ in labelled)], table_rows(runs)),
            '<h2>Course of the runs</h2><div class="plots">',
            *_figures(labelled),
            "</div>",
            *_pictures(labelled),
            "<h2>Phases</h2>",
            html_table(
                ["milliseconds per step", *(label for label, _ in labelled)], phase_rows(runs)
            ),
            "<p>Phases of the exchange run in a thread of their own and are taken out of backward.</p>",
            *_settings(labelled),
            f"<footer>Written by gsdist {html.escape(runs[0].versions.get('gsdist', ''))}. Bytes are payload "
            "given to the collectives of the exchange by rank 0, warm-up included.</footer>",
        ]
    )
    write_page(output, title, body)


def label_runs(runs: Sequence[RunSummary]) -> list[str]:
    """Name each run by its reducer, numbered where that is not unique."""
    names = [run.reducer for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]


def comparison(run: RunSummary, baseline: RunSummary) -> tuple[bool, str]:
    """Say in a sentence how a run compares with the dense one, and whether it is about as accurate."""
    points = 100.0 * (run.primary - baseline.primary)
    fewer = baseline.payload_bytes_run / max(1, run.payload_bytes_run)
    close = points >= -_CLOSE_POINTS
    text = (
        f"{run.reducer} reaches {100 * run.primary:.1f} % {run.primary_metric} against "
        f"{100 * baseline.primary:.1f} % for dense ({points:+.1f} points) with {fewer:.1f} times fewer "
        "payload bytes over the whole run"
    )
    if not close:
        text += f"; it falls short of dense by more than {_CLOSE_POINTS:g} points"
    rate = run.steps_per_s / baseline.steps_per_s if baseline.steps_per_s else 0.0
    return (
        close,
        f"{text}. It ran at {rate:.2f} times the steps per second of dense on this machine.",
    )


def table_rows(runs: Sequence[RunSummary]) -> list[list[str]]:
    """Return the rows of the comparison: a name, then one value per run."""

    def row(name: str, *values: str) -> list[str]:
        return [name, *values]

    return [
        row("data", *(run.data for run in runs)),
        row("model", *(f"{run.model} ({run.num_parameters:,} parameters)" for run in runs)),
        row("workers", *(str(run.world_size) for run in runs)),
        row("steps", *(f"{run.steps:,}" for run in runs)),
        row(runs[0].primary_metric, *(f"{100 * run.primary:.1f} %" for run in runs)),
        row("steps/s", *(f"{run.steps_per_s:.2f}" for run in runs)),
        row("payload bytes, run", *(format_bytes(run.payload_bytes_run) for run in runs)),
        row("dense bytes, run", *(format_bytes(run.dense_bytes_run) for run in runs)),
        row("payload bytes, mean step",
            *(format_bytes(run.payload_bytes_run / max(1, run.steps)) for run in runs)),
        row("payload bytes, last step", *(format_bytes(run.payload_bytes_last_step) for run in runs)),
        row("dense bytes, step",
            *(format_bytes(run.dense_bytes_run / max(1, run.steps)) for run in runs)),
        row("compression, run", *(f"{run.compression:.1f}x" for run in runs)),
        row("link use while sending",
            *(f"{format_bytes(rate)}/s" if (rate := run.sending_rate) else "-" for run in runs)),
    ]  # fmt: skip


def phase_rows(runs: Sequence[RunSummary]) -> list[list[str]]:
    """Return milliseconds per step: a phase, then one value per run."""
    split = [phase_seconds(run) for run in runs]
    names = phase_names(split)
    return [
        [name]
        + [
            f"{1e3 * seconds[name] / max(1, run.steps):.2f}" if name in seconds else "-"
            for seconds, run in zip(split, runs, strict=True)
        ]
        for name in names
    ]


def format_bytes(count: float) -> str:
    """Write a number of bytes in binary units, three significant digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _verdicts(labelled: Sequence[tuple[str, RunSummary]]) -> list[str]:
    baseline = next((run for _, run in labelled if run.reducer == "dense"), None)
    sentences = [
        f'<p class="verdict short">{html.escape(text)}</p>'
        for _, run in labelled
        if (text := loss_by_compression(run))
    ]
    if baseline is None:
        return [
            *sentences,
            "<p>No run with the dense reducer among them: nothing to compare accuracy with.</p>",
        ]
    for _, run in labelled:
        if run is not baseline:
            close, text = comparison(run, baseline)
            kind = "verdict" if close else "verdict short"
            sentences.append(f'<p class="{kind}">{html.escape(text)}</p>')
    return sentences


def _figures(labelled: Sequence[tuple[str, RunSummary]]) -> list[str]:
    metric = labelled[0][1].primary_metric
    payload, seconds = "payload so far (MiB)", "seconds of training"
    plots = [
        ("Training loss by step", "train", "step", "loss", ("step", "loss")),
        ("Training loss by time", "train", "seconds", "loss", (seconds, "loss")),
        ("Training loss by bytes", "train", "payload_bytes", "loss", (payload, "loss")),
        (f"{metric} by step", "evaluation", "step", metric, ("step", metric)),
        (f"{metric} by time", "evaluation", "seconds", metric, (seconds, metric)),
        (f"{metric} by bytes", "evaluation", "payload_bytes", metric, (payload, metric)),
        ("Bytes sent", "train", "step", "payload_bytes", ("step", payload)),
        ("Residual norm", "train", "step", "residual_norm", ("step", "norm of the residual")),
    ]
    figures = [
        html_figure(title, draw_curves(labelled, kind=kind, x=x, y=y, axes_labels=axes_labels))
        for title, kind, x, y, axes_labels in plots
    ]
    return [*figures, html_figure("Time per step", draw_bars(labelled))]


def _pictures(labelled: Sequence[tuple[str, RunSummary]]) -> list[str]:
    figures = [
        html_figure(label, draw_groups(run.picture, name=label))
        for label, run in labelled
        if run.picture is not None
    ]
    if not figures:
        return []
    return [
        "<h2>What the models make of the data</h2><p>Test examples placed in the plane by t-SNE of their "
        'embeddings, one colour per class.</p><div class="plots">',
        *figures,
        "</div>",
    ]


def _settings(labelled: Sequence[tuple[str, RunSummary]]) -> list[str]:
    blocks = ["<h2>Settings</h2>"]
    for label, run in labelled:
        lines = [
            f"{table}.{name} = {value!r}"
            for table, values in run.config.items()
            for name, value in values.items()
        ]
        text = html.escape("\n".join(lines))
        blocks.append(
            f"<details><summary>{html.escape(label)} (hash {html.escape(run.config_hash)})</summary>"
            f"<pre>{text}</pre></details>"
        )
    return blocks

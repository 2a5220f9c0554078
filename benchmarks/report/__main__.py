"""Run ``python -m benchmarks.report benchmarks/results/*.json``; see ``--help``."""

import argparse
import html
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.parts import Section, Table
from benchmarks.report.sections import section_of
from gsdist.training.page import html_figure, html_table, write_page

_TITLE = "gsdist benchmarks"
_THREATS = """\
Workers are processes in network namespaces of one machine: links are shaped, processors are shared. With more
workers than cores, computing and merging of different workers take turns, which makes local times longer than
on machines of their own and favours methods that do little. The shaper is a token bucket: a message smaller
than its bucket (1 ms of the rate) crosses a quiet link unshaped. There is no added latency, no loss and no
other traffic. Workers emulated as threads (growth, accuracy) say nothing about time. Accuracies come from
small networks, short runs and few seeds. Times are comparable within one file only.
"""


def main(argv: list[str] | None = None) -> int:
    """Write the pages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of the benchmarks")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.html"), metavar="PATH")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="also write this page")
    options = parser.parse_args(argv)
    results = [(path.name, json.loads(path.read_text())) for path in options.results]
    try:
        sections = [section_of(name, result) for name, result in results]
    except ValueError as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    write_page(options.output, _TITLE, _html(sections, results))
    print(options.output)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(_markdown(sections, results))
        print(options.markdown)
    return 0


def _html(sections: Sequence[Section], results: Sequence[tuple[str, Any]]) -> str:
    parts = []
    for section, (name, result) in zip(sections, results, strict=True):
        parts.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>")
        figures = "".join(html_figure(figure.title, figure.svg) for figure in section.figures)
        parts.append(f'<div class="plots">{figures}</div>')
        for table in section.tables:
            parts.append(f"<h3>{html.escape(table.title)}</h3>{html_table(table.head, table.rows)}")
        parts.append(
            f"<details><summary>{html.escape(name)}: environment</summary>"
            f"<pre>{html.escape(json.dumps(result['environment'], indent=1))}</pre></details>"
        )
    parts.append(f"<h2>Threats to these numbers</h2><p>{html.escape(_THREATS)}</p>")
    return "\n".join(parts)


def _markdown(sections: Sequence[Section], results: Sequence[tuple[str, Any]]) -> str:
    parts = [f"# {_TITLE}"]
    for section, (name, result) in zip(sections, results, strict=True):
        parts += [f"## {section.title}", section.text]
        parts += [_markdown_table(table) for table in section.tables]
        parts.append(f"From `{name}`: {_provenance(result['environment'])}.")
    parts += ["## Threats to these numbers", _THREATS]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"### {table.title}\n\n{text}" if table.title else text


def _provenance(environment: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {environment[key]}"
        for key in ("commit", "date", "cpu", "torch")
        if key in environment
    )


if __name__ == "__main__":
    sys.exit(main())

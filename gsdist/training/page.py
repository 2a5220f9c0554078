"""Build self-contained HTML pages, readable on a phone and in dark mode."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["html_figure", "html_table", "write_page"]

_CSS = """
:root { color-scheme: light dark; --edge: #8885; --soft: #8882; --warn: #c05a1a; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 1.5rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0 0 .25rem; font-weight: 600; }
.verdict { border-left: .3rem solid var(--edge); padding: .3rem .8rem; background: var(--soft); }
.verdict.short { border-color: var(--warn); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--edge); text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { white-space: nowrap; }
.plots { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
details { margin: .5rem 0; } pre { overflow-x: auto; font-size: .8rem; }
footer { margin-top: 2rem; font-size: .85rem; opacity: .75; }
"""


def write_page(output: Path, title: str, body: str) -> None:
    """Write a page with a title and an HTML body to a file, in one step."""
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text(page)
    os.replace(partial, output)


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain text that scrolls sideways where it is too wide."""

    def cells(values: Sequence[str], tag: str) -> str:
        return (
            "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"
        )

    lines = [cells(row, "td") for row in rows]
    return (
        f'<div class="wide"><table><thead>{cells(head, "th")}</thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def html_figure(title: str, svg: str) -> str:
    """Return an SVG element under a heading."""
    return f"<figure><h3>{html.escape(title[0].upper() + title[1:])}</h3>{svg}</figure>"

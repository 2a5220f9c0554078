"""The report in a real browser, on a phone and on a screen, light and dark; skipped where there is none."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gsdist.training.report import write_report
from tests.unit.training.test_metrics import make_summary

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: the report was not looked at")

_MEASURE = """
<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect());
  const canvas = document.body.appendChild(document.createElement("i"));
  canvas.style.color = "Canvas";  // what a page is painted on that sets no background
  const found = {
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    plots: seen.filter(box => box.width > 100 && box.height > 50).length,
    all_plots: seen.length,
    outside: performance.getEntriesByType("resource").length,
    ink: getComputedStyle(document.querySelector("h1")).color,
    papers: [getComputedStyle(canvas).color,
             getComputedStyle(document.documentElement).backgroundColor,
             getComputedStyle(document.body).backgroundColor],
  };
  const out = document.createElement("pre");
  out.id = "measured";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>
"""


def looked_at(page: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """Return what the page's own script measures of it; the script is the test's, not the report's."""
    copy = page.with_name("measured.html")
    copy.write_text(page.read_text() + _MEASURE)
    command = [
        *(
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--window-size={width},900",
        ),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        *("--virtual-time-budget=2000", f"--user-data-dir={page.parent / 'profile'}"),
        *("--dump-dom", copy.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return dict(json.loads(html.unescape(found[1])))


def brightness(colour: str) -> float | None:
    """Return the mean of an opaque CSS colour's parts, 0 to 255; None: it is transparent."""
    parts = [float(number) for number in re.findall(r"[\d.]+", colour)]
    return None if len(parts) > 3 and parts[3] == 0 else sum(parts[:3]) / 3


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, False), (500, True)])
def test_it_fits_and_can_be_read(width: int, dark: bool, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report([make_summary(reducer="dense", payload_bytes_run=4000), make_summary()], page)
    seen = looked_at(page, width=width, dark=dark)
    assert seen["wider"] <= 0, "it has to be scrolled sideways"
    assert seen["plots"] == seen["all_plots"] > 0
    assert seen["outside"] == 0, "it fetches something"
    ink = brightness(seen["ink"])
    paper = [found for one in seen["papers"] if (found := brightness(one)) is not None][-1]
    assert ink is not None
    assert (ink - paper > 120) if dark else (paper - ink > 120)

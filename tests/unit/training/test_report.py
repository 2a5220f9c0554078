"""The report: self-contained, honest about a loss of accuracy, and safe against odd names."""

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

from gsdist.training.plots import phase_seconds
from gsdist.training.report import comparison, format_bytes, label_runs, table_rows, write_report
from gsdist.training.summary import loss_by_compression
from tests.unit.training.test_metrics import make_summary


class Page(HTMLParser):
    """Collect what a page refers to, and check that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.text = ""
        self.svg = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.svg += tag == "svg"
        assert tag not in ("script", "link", "img", "iframe")
        self.references += [
            value or "" for name, value in attributes if name in ("src", "href", "xlink:href")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    dense = make_summary(reducer="dense", payload_bytes_run=4000)
    output = tmp_path / "new" / "report.html"
    write_report([dense, make_summary(model="<b>&")], output)
    text = output.read_text()
    page = Page(text)
    assert page.references and all(target.startswith("#") for target in page.references)
    assert "url(http" not in text and "@import" not in text
    assert page.svg == 9
    assert "<b>&" in page.text and "<b>&" not in text
    for svg in text.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")


def test_link_use_is_what_was_sent_by_the_time_in_collectives() -> None:
    run = make_summary(
        payload_bytes_run=800,
        phase_seconds={"backward": 9.0, "exchange: encode": 1.0, "exchange: allreduce_values": 2.0},
    )
    rows = {name: values for name, *values in table_rows([run, make_summary()])}
    assert rows["link use while sending"] == ["400 B/s", "-"]


def test_ids_of_the_plots_do_not_clash(tmp_path: Path) -> None:
    write_report([make_summary()], tmp_path / "report.html")
    ids = [
        part.split('"')[0]
        for svg in (tmp_path / "report.html").read_text().split("<svg")[1:]
        for part in svg.split('<clipPath id="')[1:]
    ]
    assert ids and len(ids) == len(set(ids))


def test_comparison_admits_a_loss_of_more_than_three_points() -> None:
    dense = make_summary(reducer="dense", metrics={"accuracy": 0.80}, payload_bytes_run=8000)
    close, text = comparison(make_summary(metrics={"accuracy": 0.78}), dense)
    assert close and "-2.0 points" in text and "10.0 times fewer" in text and "short" not in text
    close, text = comparison(make_summary(metrics={"accuracy": 0.75}), dense)
    assert not close and "-5.0 points" in text and "falls short" in text


def test_a_run_that_compression_slowed_is_told_so(tmp_path: Path) -> None:
    """5 times fewer bytes in 0.1 s: the rest would have taken 0.4 s more, in 10 steps."""
    phases = {"forward": 9.0, "exchange: allreduce_values": 0.1, "exchange: encode": 0.3}
    assert loss_by_compression(make_summary(phase_seconds=phases)) is None
    slow = make_summary(phase_seconds={**phases, "exchange: encode": 0.5})
    text = loss_by_compression(slow)
    assert text and "gs-sgd computed 50 ms per step to save at most 40 ms" in text
    write_report([slow], tmp_path / "report.html")
    assert text in Page((tmp_path / "report.html").read_text()).text
    dense = make_summary(reducer="dense", phase_seconds={"exchange: cast": 1.0})
    assert loss_by_compression(dense) is None


def test_exchange_is_not_counted_in_backward_as_well() -> None:
    assert phase_seconds(make_summary()) == {"forward": 1.0, "backward": 2.0, "encode": 1.0}


def test_labels_are_unique_and_bytes_readable() -> None:
    runs = [make_summary(reducer=name) for name in ("dense", "gs-sgd", "gs-sgd")]
    assert label_runs(runs) == ["dense", "gs-sgd 1", "gs-sgd 2"]
    assert [format_bytes(n) for n in (999, 1024, 1536, 3 * 2**20)] == [
        "999 B",
        "1 KiB",
        "1.5 KiB",
        "3 MiB",
    ]

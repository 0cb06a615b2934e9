"""The report is well-formed, works offline and escapes hostile strings; metrics are plotted."""

import gzip
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from .. import artifacts
from ..plots import figures, plot_all, smooth
from ..report import format_summary, write_report

HOSTILE = "<script>alert('x')</script>&\"$\\frac{$</td>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close; keeps what a browser would load, run or show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.loads, self.text = [], [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run_dir(tmp_path):
    """A run whose every string is hostile, with a picture of its own kind."""
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 201):
            record = {
                "step": step,
                "loss": 2 + 1 / step,
                HOSTILE: step,
                "images_per_s": 40.0 + step % 3,
            }
            record |= {"heldout_loss": 2.5} if step % 50 == 0 else {"broken": None}
            file.write(json.dumps(record) + "\n")
    part = {"first_step": 0, "step": 200, "parts_s": {"step": 9.0, HOSTILE: 1.0}}
    (tmp_path / "attempts.jsonl").write_text(json.dumps(part))
    summary = {"steps": 200, "heldout_loss": 2.5, "sample": HOSTILE, HOSTILE: {"a": [1, HOSTILE]}}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"images_per_s": float("nan")}))
    facts = {"config": {"data.path": HOSTILE}, "provenance": {"template": HOSTILE, HOSTILE: None}}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    (tmp_path / "warnings.log").write_text("first\n" + f"{HOSTILE}\n" * 60)
    return tmp_path


def test_report_is_well_formed_offline_and_escaped(run_dir):
    plot_all(run_dir)
    (run_dir / "plots" / "posterior.png").write_bytes((run_dir / "plots" / "loss.png").read_bytes())
    html = write_report(run_dir).read_text()
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "http" not in html
    assert "@import" not in html
    # Loss with held-out loss, the hostile one, images per second; and the kind's own.
    assert page.tags.count("img") == len(list((run_dir / "plots").iterdir())) == 4
    assert html.index('alt="loss"') < html.index('alt="images_per_s"')
    for where in ("data.path", "Provenance", "held-out loss", "90.00%"):
        assert where in page.text
    assert page.text.count(HOSTILE) > 42
    assert "first\n" not in page.text  # a tail of the warnings only


def test_last_artifacts_and_sections_are_shown(run_dir):
    for step in range(1, 6):
        artifacts.write(run_dir, step, HOSTILE, f"text {step} {HOSTILE}")
        artifacts.write(run_dir, step, "page", np.full((2, 3, 3), step, np.uint8))
    before = Page(write_report(run_dir).read_text())
    sections = {HOSTILE: HOSTILE, "Table": {HOSTILE: HOSTILE, "a.b_s": 61, "none": None}}
    (run_dir / "sections.json").write_text(json.dumps(sections))
    page = Page(write_report(run_dir).read_text())
    shown = [step for step in range(1, 6) if f"text {step} {HOSTILE}" in page.text]
    assert shown == [3, 4, 5]
    assert page.text.index("text 4") < page.text.index("text 5")
    assert page.loads.count(page.loads[-1]) == 1
    assert page.tags.count("img") == 3 + 3  # curves, pages
    assert page.text.count(HOSTILE) == before.text.count(HOSTILE) + 4
    assert page.text.count("0:01:01") == 1  # with the unit of its name


def cards(page: Page) -> int:
    return page.tags.count("dl")


def test_the_cards_are_the_first_numbers_of_the_summary(run_dir):
    summary = {"steps": 200, "bits": {"gzip": 2.0}, "mfu": None, "tokens_per_s": 14_900.0}
    summary |= {f"n{i}": i for i in range(20)}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run_dir).read_text())
    assert cards(page) == 8
    first = page.text.partition("Curves")[0]
    assert "tokens per second14.9k" in first
    assert "tokens/s" not in page.text
    assert "n55" in first
    assert "n66" not in first
    assert "gzip" not in first


@pytest.mark.parametrize("summary", [None, {"steps": 100, "heldout_loss": 7.25}])
def test_a_run_without_its_summary_shows_its_newest_records(run_dir, summary):
    (run_dir / "summary.json").unlink()
    if summary:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    (run_dir / "sections.json").write_text(json.dumps({"Verdict": "of an earlier end"}))
    (run_dir / "config.json").write_text(
        json.dumps({"config": {"run.steps": 1500}, "means": ["loss"], "parameters": 1234567})
    )
    page = Page(write_report(run_dir).read_text())
    first, _, _ = page.text.partition("Curves")
    assert "Not finished: at step 200 of 1,500" in first
    for words in ("held-out loss2.5", "loss2.005", "images per second42", "parameters1,234,567"):
        assert words in first
    assert "wall time10.00 s" in first
    assert "7.25" not in page.text
    assert "Verdict" not in page.text
    (run_dir / "summary.json").write_text(json.dumps({"steps": 200}))
    page = Page(write_report(run_dir).read_text())
    assert "Not finished" not in page.text
    assert "Verdict" in page.text


def test_the_longest_operations_are_shown(run_dir):
    event = {"ph": "X", "pid": 1, "tid": 1, "ts": 0, "dur": 1500.0, "name": HOSTILE}
    trace = {"traceEvents": [event | {"args": {"hlo_op": "a"}}]}
    folder = run_dir / "profile" / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    (folder / "host.trace.json.gz").write_bytes(gzip.compress(json.dumps(trace).encode()))
    page = Page(write_report(run_dir).read_text())
    assert f"{HOSTILE}1.5 ms, 100.0%, calls: 1" in page.text


def test_report_of_an_empty_folder(tmp_path):
    page = Page(write_report(tmp_path).read_text())
    assert "h1" in page.tags
    assert "img" not in page.tags


def test_summary_is_one_aligned_line_a_figure():
    text = format_summary(
        {"steps": 1000, "wall_s": 3725.0, "bits": {"gzip_9": 2.5}, "sample": "a\nb"}
    )
    assert text.splitlines() == [
        "  steps         1,000",
        "  wall time     1:02:05",
        "  bits: gzip 9  2.5",
        "  sample        a",
        "                b",
    ]


def test_every_finite_metric_is_plotted_once(run_dir):
    paths = plot_all(run_dir)
    assert len(paths) == len({path.name for path in paths}) == 3
    assert paths[0].name == "loss.png"
    assert all(
        path.read_bytes().startswith(b"\x89PNG") and path.parent.name == "plots" for path in paths
    )


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 0, "x": 1.0}],
        [{"step": 1, "heldout_x": 1}],
        [{"step": 1, "x": None}, {"step": 2, "x": 3}],
    ],
)
def test_few_points_still_make_a_figure(records):
    assert list(figures(records)) == ["x"]


def test_the_loss_comes_first():
    records = [{"step": step, "accuracy": 0.5, "heldout_loss": 2.0} for step in range(9)]
    assert list(figures(records)) == ["loss", "accuracy"]


def test_steps_skipped_are_drawn_where_there_are_any():
    assert not figures([{"step": step, "skipped": 0.0} for step in range(9)])
    assert list(figures([{"step": step, "skipped": step // 5} for step in range(9)])) == ["skipped"]


def test_the_plot_tells_the_last_record_and_not_the_trend():
    rng = np.random.default_rng(0)
    records = [{"step": step, "loss": 3.0 + rng.normal()} for step in range(1, 400)]
    records.append({"step": 400, "loss": 9.125})
    (legend,) = figures(records)["loss"].axes[0].get_legend().get_texts()
    assert legend.get_text() == "last 9.125"


def test_smoothing_keeps_lines_and_ignores_what_is_not_finite():
    line = np.linspace(3.0, -2.0, 301)
    assert smooth(line)[20:-20] == pytest.approx(line[20:-20])
    holed = np.full(301, 5.0)
    holed[::7] = np.nan
    assert smooth(holed) == pytest.approx(np.full(301, 5.0))
    noise = np.random.default_rng(0).normal(size=3000)
    assert smooth(noise)[100:-100].std() < 0.2

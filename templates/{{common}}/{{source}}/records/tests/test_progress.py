"""Figures read as their names say; the bar and the plain lines carry them."""

import io

import pytest
from rich.console import Console

from .. import progress
from ..progress import ProgressBar, label, show


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("tokens_per_s", 18_300.4, "18.3k tokens/s"),
        ("ess_per_s", 3.14159, "3.14 ess/s"),
        ("images_per_s", 2_500_000, "2.5M images/s"),
        ("step_ms", 1234.56, "1,234.6 ms"),
        ("compile_s", 12.345, "12.35 s"),
        ("wall_s", 3725, "1:02:05"),
        ("state_bytes", 9_100_000, "9.1 MB"),
        ("state_bytes", 12, "12 B"),
        ("goodput", 0.924, "92.4%"),
        ("mfu", None, "-"),
        ("loss", 2.34567, "2.346"),
        ("loss", float("nan"), "-"),
        ("parameters", 1_312_000, "1,312,000"),
        ("tokens_seen", 49_152_000.0, "49,152,000"),
        ("finished", True, "True"),
        ("device", "TPU v5 lite", "TPU v5 lite"),
    ],
)
def test_values_take_the_unit_of_their_name(name, value, text):
    assert show(name, value) == text


def test_labels_lose_the_unit():
    assert label("heldout_bits_per_byte") == "held-out bits per byte"
    assert label("step_ms") == "step"
    assert label("spent.data_wait_s") == "spent: data wait"


def test_plain_lines_with_time_left(monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s[0])
    out = io.StringIO()
    bar = ProgressBar(50, Console(file=out, width=40))
    bar({"step": 10, "step_ms": 1.0, "loss": 2.5, "tokens_per_s": 18_300.0})
    now_s[0] += 20.0  # ten steps more took 20 s: 30 left are a minute
    bar({"step": 20, "accept_[rate]": 0.8, "heldout_loss": None})
    bar.close()
    assert out.getvalue() == (
        "step 10/50  loss 2.5  18.3k tokens/s\n"
        "step 20/50  accept [rate] 0.8  held-out loss -  ETA 0:01:00\n"
    )


def test_bar_keeps_the_last_heldout_figure_in_sight():
    out = io.StringIO()
    bar = ProgressBar(50, Console(file=out, width=120, force_terminal=True, color_system=None))
    bar({"step": 10, "loss": 2.5, "images_per_s": 12.0, "heldout_fid": 31.0})
    bar({"step": 20, "loss": 2.25, "images_per_s": 13.0})
    bar.close()
    last = out.getvalue().rpartition("20/50")[2]
    for text in ("loss 2.25", "13 images/s", "held-out fid 31", "ETA 0:00:0"):
        assert text in last
    assert "loss 2.5 " not in last

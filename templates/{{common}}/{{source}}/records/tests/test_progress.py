"""Values are shown with the unit in their name, in the bar and in plain lines."""

import io

import pytest
from rich.console import Console

from ..progress import ProgressBar, label, labelled, show


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("tokens_per_s", 18_300.4, "18.3k tokens/s"),
        ("ess_per_s", 3.14159, "3.14 ess/s"),
        ("images_per_s", 2_500_000, "2.5M images/s"),
        ("steps_per_s", 999.9, "1k steps/s"),
        ("steps_per_s", 0.01234, "0.0123 steps/s"),
        ("draws_per_s", -0.0, "-0 draws/s"),
        ("step_ms", 1234.56, "1,234.6 ms"),
        ("compile_s", 12.345, "12.35 s"),
        ("wall_s", 3725, "1:02:05"),
        ("state_bytes", 9_100_000, "9.1 MB"),
        ("state_bytes", 12, "12 B"),
        ("goodput", 0.924, "92.4%"),
        ("mfu", None, "-"),
        ("loss", 2.34567, "2.346"),
        ("loss", float("nan"), "-"),
        ("tokens_per_s", float("inf"), "inf"),
        ("parameters", 1_312_000, "1,312,000"),
        ("tokens_seen", 49_152_000.0, "49,152,000"),
        ("finished", True, "True"),
        ("device", "TPU v5 lite", "TPU v5 lite"),
    ],
)
def test_values_take_the_unit_of_their_name(name, value, text):
    assert show(name, value) == text


def test_labels_say_what_is_measured():
    assert label("heldout_bits_per_byte") == "held-out bits per byte"
    assert label("step_ms") == "step time"
    assert label("spent.data_wait_s") == "spent: data wait time"
    assert label("peak_memory_bytes") == "peak memory"


@pytest.mark.parametrize(
    ("name", "value", "pair"),
    [
        ("tokens_per_s", 14_900.0, ("tokens per second", "14.9k")),
        ("draws_per_s", None, ("draws per second", "-")),
        ("step_ms", 12.34, ("step time", "12.3 ms")),
        ("sample", "two words", ("sample", "two words")),
    ],
)
def test_the_unit_of_a_rate_stands_once(name, value, pair):
    assert labelled(name, value) == pair


def test_plain_lines_with_time_left():
    now_s = [100.0]
    out = io.StringIO()
    bar = ProgressBar(50, Console(file=out, width=40, get_time=lambda: now_s[0]))
    now_s[0] += 500.0  # the compilation is no part of the estimate
    bar({"step": 10, "step_ms": 1.0, "loss": 2.5, "tokens_per_s": 18_300.0})
    now_s[0] += 20.0  # ten steps more took 20 s: 30 left are a minute
    bar({"step": 20, "accept_[rate]": 0.8, "heldout_loss": None})
    now_s[0] += 3600.0  # an estimate over the whole run: 30 steps in 3630 s
    bar({"step": 40, "loss": 1.5})
    bar.close()
    assert out.getvalue() == (
        "step 10/50  loss 2.5  18.3k tokens/s\n"
        "step 20/50  accept [rate] 0.8  held-out loss -  ETA 0:01:00\n"
        "step 40/50  loss 1.5  ETA 0:20:07\n"
    )


def test_a_resumed_run_counts_only_its_own_steps():
    now_s, out = [0.0], io.StringIO()
    bar = ProgressBar(1000, Console(file=out, get_time=lambda: now_s[0]))
    bar({"step": 910, "loss": 1.0})
    now_s[0] += 10.0
    bar({"step": 920, "loss": 1.0})
    assert out.getvalue().endswith("step 920/1000  loss 1  ETA 0:01:20\n")


def test_bar_keeps_the_last_heldout_value_in_sight():
    now_s, out = [0.0], io.StringIO()
    console = Console(
        file=out, width=140, force_terminal=True, color_system=None, get_time=lambda: now_s[0]
    )
    bar = ProgressBar(50, console)
    now_s[0] = 60.0
    bar({"step": 10, "loss": 2.5, "images_per_s": 12.0, "heldout_f[id]": 31.0})
    now_s[0] = 80.0
    bar({"step": 20, "loss": 2.25, "images_per_s": 13.0})
    bar.close()
    last = out.getvalue().rpartition("20/50")[2]
    for text in ("loss 2.25", "13 images/s", "held-out f[id] 31", "ETA 0:01:00"):
        assert text in last
    assert "loss 2.5 " not in last


def test_bar_shows_what_the_workload_names():
    out = io.StringIO()
    bar = ProgressBar(
        50, Console(file=out, width=140), named=("rhat", "absent", "ess_per_s", "bad")
    )
    record = {"step": 10, "accept": 0.9, "bad": 2.0, "rhat": 1.02}
    bar(record | {"draws_per_s": 4100.0, "ess_per_s": 1234.0})
    bar.close()
    assert "step 10/50  rhat 1.02  1.23k ess/s  bad 2  4.1k draws/s\n" in out.getvalue()


def test_bar_fits_into_eighty_characters():
    out = io.StringIO()
    bar = ProgressBar(1500, Console(file=out, width=80, force_terminal=True, color_system=None))
    bar({"step": 1490, "loss": 5.123, "tokens_per_s": 18_321.0, "heldout_loss": 4.123})
    bar.close()
    last = out.getvalue().rpartition("1490/1500")[2]
    for text in ("loss 5.123  held-out loss 4.123  18.3k tokens/s", "ETA -:--:--"):
        assert text in last
    assert "…" not in last

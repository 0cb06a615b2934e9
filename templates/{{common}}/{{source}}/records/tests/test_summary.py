"""A person finds the figures of a run in the order in which they are looked for."""

import json

import numpy as np

from ..summary import figures, ranked


def test_what_a_person_looks_for_comes_first():
    found = {
        "steps": 9,
        "goodput": 0.5,
        "mfu": None,
        "wall_s": 60.0,
        "accuracy": np.float32(0.5),
        "tokens_per_s": 3.0,
        "parameters": 7,
        "loss": float("nan"),
        "heldout_fid": 2.0,
        "baselines": {"gzip": 1.9},
    }
    order = ["heldout_fid", "accuracy", "tokens_per_s", "parameters", "wall_s", "goodput"]
    order += ["steps", "baselines", "mfu", "loss"]
    assert list(ranked(found, ("loss", "accuracy"))) == order
    assert ranked(found, ())["accuracy"] == 0.5
    assert ranked(found, ())["loss"] is None


def test_a_summary_stands_for_its_own_step_alone(tmp_path):
    assert figures(tmp_path) == ({}, True)
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 2, "loss": 1.5}))
    assert figures(tmp_path) == ({"steps": 2, "loss": 1.5}, True)
    records = [{"step": 2, "loss": 1.5, "heldout_loss": 2.5}, {"step": 4, "loss": 1.25}]
    lines = [json.dumps(record) + "\n" for record in records]
    (tmp_path / "metrics.jsonl").write_text(lines[0])
    assert figures(tmp_path)[1]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "config.json").write_text("{")  # damaged: the rest is shown
    found, is_finished = figures(tmp_path)
    assert not is_finished
    assert (found["steps"], found["loss"], found["heldout_loss"]) == (4, 1.25, 2.5)
    assert "parameters" not in found

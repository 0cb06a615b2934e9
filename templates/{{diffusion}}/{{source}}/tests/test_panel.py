"""What is asked for the pictures and figures of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .. import panel
from ..trained import open_run


def test_the_table_of_pictures_has_a_row_for_each_guidance(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, asked = open_run(run_dir), []

    def make(learner: Any, mesh: Any, config: Any, *, keep: bool = False) -> Any:
        def draw(params: Any, labels: Any, seed: int, beat: Any, **options: Any) -> np.ndarray:
            asked.append((config.sampler_steps, labels, options))
            steps = np.arange(5.0)[None, :, None, None, None] / 5  # of a trajectory: its frame
            return np.zeros((len(labels), *[5] * keep, 8, 8, 1)) + (steps if keep else 0)

        return draw

    strips: list[np.ndarray] = []
    monkeypatch.setattr(panel, "make_generate", make)
    monkeypatch.setattr(panel, "strip", lambda frames: strips.append(frames) or frames[0, 0])
    made = panel.make_artifacts(opened.learner, opened.mesh, opened.split("train"), opened.manifest)
    state = {"params": None, "ema": {"decay-0.9": None}}
    assert "guidance-by-steps" in made(state, lambda: None)
    (frames,) = strips
    assert frames.shape == (5, 10, 8, 8, 1)  # a row for each time
    assert (np.diff(frames.reshape(5, -1), axis=0) > 0).all()
    table = asked[2:]
    assert [steps for steps, *_ in table] == list(panel.STEPS)
    for _, labels, options in table:
        for row, scale in enumerate(panel.GUIDANCES):
            part = slice(10 * row, 10 * row + 10)
            assert labels[part].tolist() == options["indices"][part].tolist() == list(range(10))
            assert (options["scale"][part] == scale).all()

"""The page of any run folder, and a refusal of another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ...errors import Exit, UserError
from ..report import report


def test_a_run_that_goes_on_is_drawn(tmp_path, capsys) -> None:
    lines = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert report(run_dir=str(tmp_path)) == Exit.DONE
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    assert "Not finished: at step 3" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "plots" / "loss.png").exists()
    assert not (tmp_path / "summary.json").exists()


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="folder of a run"):
            report(run_dir=str(folder))
    assert not any(tmp_path.iterdir())


def test_it_loads_no_jax() -> None:
    package = __package__.split(".")[0]
    script = f"import sys, {package}.records.report; sys.exit('jax' in sys.modules)"
    source = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": source})
    assert done.returncode == 0

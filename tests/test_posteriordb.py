"""The sampler of the kind bayes agrees with reference posteriors (posteriordb/README.md).

By default with three of them; `POSTERIORDB=all` proves all seven, in some five minutes.
"""

import json
import os
from pathlib import Path

import pytest
from growing import grow
from installed import uv
from link import ROOT

pytestmark = pytest.mark.slow
COVER = ["eight_schools-eight_schools_noncentered", "kidiq-kidscore_momhsiq", "arK-arK"]
PROOF = ROOT / "tests" / "posteriordb" / "proof.py"


def test_reference_posteriors(template: Path, tmp_path: Path) -> None:
    project = grow(template, tmp_path / "p", {"kind": "bayes"})
    uv(project, "sync")
    names = [] if os.environ.get("POSTERIORDB") == "all" else COVER
    output = uv(project, "run", "--no-sync", "python", str(PROOF), "acorn", *names)
    figures = json.loads(output[output.index("{\n") :])
    assert len(figures) == (len(names) or 7)
    for name, found in figures.items():
        assert found["largest_z"] < 4, name
        assert found["rms_z"] < 1.5, name
        assert found["ess"] >= 400, name
        assert found["rhat"] < 1.01, name

"""No preset moves unseen: the settings of each are those in `golden/presets.json`."""

import json
import os
from pathlib import Path

from ..config import PRESETS, Config, validate
from ..run_config import from_dict, to_dict

GOLDEN = Path(__file__).parent / "golden" / "presets.json"


def test_golden_presets() -> None:
    resolved = {name: to_dict(validate(preset())) for name, preset in PRESETS.items()}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(resolved, indent=2) + "\n")
    golden = json.loads(GOLDEN.read_text())
    # A preset or a setting that is not in the file yet is held from the next writing on.
    held = {name: {k: resolved.get(name, {}).get(k) for k in golden[name]} for name in golden}
    assert held == golden, (
        "A preset no longer resolves to what it did. If that is meant, write the values anew:\n"
        "    UPDATE_GOLDEN=1 uv run pytest -k golden\n"
        "and commit them with the change that moved them."
    )
    for name, plain in golden.items():
        assert from_dict(Config(), plain) == validate(PRESETS[name]())

"""What a resume changes since the checkpoint that it goes on from: settings, packages, code.

Refuses changed code that nobody accepted; lists the rest. Compares no identity and no arrays.
"""

import hashlib
from collections.abc import Container
from typing import Any

from ..errors import UserError
from ..records.provenance import origin
from ..run_config import option


def list_changes(
    manifest: dict[str, Any], about: dict[str, Any], step: int, *, accept_code: bool
) -> list[dict[str, Any]]:
    """A row for each change. `manifest` is the checkpoint's ({} for a new run), `about` is ours."""
    before, after = manifest.get("provenance", {}), about["provenance"]
    pairs = [
        (manifest.get("config", {}) | manifest.get("tunable", {}), about["tunable"]),
        (_versions(before), _versions(after)),
        _code(manifest, about, accept_code),
    ]
    return [
        {"step": step, "setting": name, "from": value, "to": ours[name]}
        for saved, ours in pairs
        for name, value in saved.items()
        if name in ours and ours[name] != value
    ]


def in_words(change: dict[str, Any], settings: Container[str]) -> str:
    """A row of `list_changes`; one of `settings` with the option that would undo it."""
    words = "from here on, {setting} is {to}, not {from}".format(**change)
    if change["setting"] in settings:
        words += f", which {option(change['setting'], change['from'])} keeps"
    return words


def changed_files(saved: dict[str, str], ours: dict[str, str]) -> list[str]:
    """The files of `provenance.sources` that differ; none where a release before it saved."""
    return sorted(f for f in saved | ours if saved.get(f) != ours.get(f)) if saved else []


def _versions(provenance: dict[str, Any]) -> dict[str, str]:
    packages = {f"package {n}": version for n, version in provenance.get("packages", {}).items()}
    return packages | ({"Python": provenance["python"]} if "python" in provenance else {})


def _code(
    manifest: dict[str, Any], about: dict[str, Any], accepted: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Changed code as one setting, with its values before and now; UserError if it is a mistake."""
    saved, ours = manifest.get("sources", {}), about["sources"]
    if not (files := changed_files(saved, ours)):
        return {}, {}
    before, template = manifest["provenance"], about["provenance"]["template"]
    updated = template != before["template"]  # `copier update` brought code too
    names = ", ".join(files)
    if not (updated or accepted):
        raise UserError(
            got=f"a resume at step {manifest['step']} with other code in {names}",
            expected=f"the code of that step, {origin(before)}",
            do="undo the change, start another run with --run-dir, or go on with the new code: "
            "--accept-changed-code. The report lists that",
        )
    why = f"template {template}" if updated else "--accept-changed-code"
    name = f"code of {names}"
    return {name: _digest(saved, files)}, {name: f"{_digest(ours, files)}, {why}"}


def _digest(hashes: dict[str, str], files: list[str]) -> str:
    return hashlib.sha256("".join(hashes.get(f, "-") for f in files).encode()).hexdigest()[:12]

"""What a resume changes since the checkpoint that it goes on from.

Refuses another identity, other arrays and changed code that nobody accepted; lists other settings,
packages and accepted code. Reads no file.
"""

import hashlib
from collections.abc import Container, Iterable
from pathlib import PurePath
from typing import Any

import jax

from ..errors import UserError
from ..records.provenance import origin
from ..run_config import RETIRED, option


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


def describe_tree(tree: Any) -> dict[str, str]:
    """Path -> dtype[shape] of every array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): f"{x.dtype}{list(x.shape)}" for p, x in leaves}


def check_identity(
    path: PurePath, manifest: dict[str, Any], about: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """UserError unless what defines the run is as the manifest at `path` has it.

    `defaults` has the values of fields that are newer than the manifest.
    """
    must_match = about["identity"]
    # A setting that was part of the identity once, and is none now, may differ.
    free = about["config"].keys() - must_match
    was = {n: v for n, v in manifest["identity"].items() if n not in free}
    ours, saved = RETIRED | must_match, defaults | was
    # A field that only the code has cannot be compared. A field that only the checkpoint has was
    # removed from the code; RETIRED lists those whose behaviour the code has kept.
    names = [n for n in saved if n not in ours or saved[n] != ours[n]]
    if names:
        begun_with = "the data and the code that it began with"
        if all(n in must_match and (n in defaults or "." in n) for n in names):
            begun_with = " ".join(option(n, saved[n]) for n in names)
        raise UserError(
            got=", ".join(f"{n}={ours.get(n, 'gone (run_config.py: RETIRED)')}" for n in names),
            expected=", ".join(f"{n}={saved[n]}" for n in names) + f", as in {path}",
            do=f"run with {begun_with}, or start another run with --run-dir",
        )


def check_tree(
    path: PurePath, saved: dict[str, str], abstract: dict[str, Any], settings: Iterable[str] = ()
) -> None:
    """UserError unless `saved`, of a manifest, has the arrays of `abstract` and no others.

    `settings`: those of the checkpoint that are others now.
    """
    ours = describe_tree(abstract)
    names = sorted(n for n in saved | ours if saved.get(n) != ours.get(n))
    if names:
        some = "; ".join(f"{n}: {ours.get(n, 'nothing')}" for n in names[:4])
        raise UserError(
            got=f"a state with {some} ({len(names)} arrays differ)",
            expected="; ".join(f"{n}: {saved.get(n, 'nothing')}" for n in names[:4])
            + f", as in {path}",
            do="the code that makes the state has changed, or a setting: undo that"
            + "".join(f" ({words} was it)" for words in settings)
            + ", or take another --run-dir",
        )


def other_settings(manifest: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """The options of a checkpoint's model, data and optimizer that are others now."""
    before, now = manifest["config"], about["config"]
    other = [n for n in before if n[:4] != "run." and now.get(n, before[n]) != before[n]]
    return [option(n, before[n]) for n in other]


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

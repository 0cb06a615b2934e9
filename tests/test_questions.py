"""The questionnaire: few questions, no need of trust, and no answer that breaks a file."""

import json
import keyword
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from growing import OTHER_TEXT, asked, grow, questionnaire
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from link import ROOT

NASTY = [
    "", " ", "a\nb: c", "x\ty", '"', "'", "\\", '"""', "'''", "{{ 7*7 }}", "{% raw %}", "{# x",
    "${{ secrets.X }}", "# not a comment", "- item", "key: value", "&anchor", "*alias",
    "!!python/object:os.system", "[table]", "a = 1", "yes", "null", "0x1F", "1e3", "~",
    "<script>", "&amp;", "🌱🔥", "👩\u200d🔬", "日本語", "\u202egnirts", "\ufeffbom", "\x00",
    "\x1b[31m", "\x7f", "\u2028", "\u0085", "\ud800", "-", "--help", "../../etc", "a/b",
    "C:\\x", "$(id)", "`id`", "%s", "%(x)s", "acorn", "jax", "test", "class", "CON", "9lives",
    "a" * 300,
]  # fmt: skip
HOSTILE = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=30),
    st.text(alphabet="\"'{}%#$:&*!|>-[]=\\ \n\t~`<aA0é🌱", max_size=20),
    st.lists(st.sampled_from(NASTY), max_size=3).map("".join),
)


def test_the_questionnaire_is_short_and_helpful() -> None:
    assert len(asked()) <= 12
    assert list(asked())[:3] == ["kind", "project_name", "description"]
    for name, question in asked().items():
        assert question["help"], name
        assert "default" in question, f"{name}: Enter must be an answer"
        has_choices = "choices" in question or question["type"] == "bool"
        assert "validator" in question or has_choices, f"{name} takes anything"
        assert has_choices != (name in OTHER_TEXT), (
            f"{name} needs another good answer in growing.py"
        )


def test_nothing_ever_needs_trust() -> None:
    settings_in_use = {name for name in questionnaire() if name.startswith("_")}
    assert settings_in_use == {
        "_min_copier_version",
        "_subdirectory",
        "_message_after_copy",
        "_message_after_update",
        "_exclude",
    }


@pytest.fixture(scope="session")
def bare(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template without its Python, which no answer can change: renders four times faster."""
    into = tmp_path_factory.mktemp("bare") / "template"
    return shutil.copytree(template, into, ignore=shutil.ignore_patterns("*.py"))


def renders_or_is_refused(template: Path, project: Path, answers: dict[str, str]) -> None:
    """Every emitted file parses and says what was typed, or the refusal names the answer."""
    try:
        grow(template, project, answers)
    except ValueError as error:
        refusal = re.match(r"Validation error for question '(\w+)': (.+)", str(error), re.DOTALL)
        question = refusal[1] if refusal else str(error)
    else:
        question = ""
    if question:
        assert question in answers, "a default was refused"
        return
    stored = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))
    meta = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    container = json.loads((project / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    for name, answer in answers.items():
        assert stored[name] == answer
    assert meta["description"] == stored["description"]
    assert meta["authors"][0]["name"] == stored["author_name"]
    assert meta["authors"][0].get("email", "") == stored["author_email"]
    assert meta.get("urls", {}).get("Repository", "") == stored["repository_url"]
    assert container["name"] == stored["project_name"]
    assert stored["package"].isidentifier()
    script = stored["package"].replace("_", "-")
    assert meta["scripts"] == {script: f"{stored['package']}.cli:main"}
    for file in (*project.rglob("*.yml"), *project.rglob("*.yaml")):
        yaml.safe_load(file.read_text("utf-8"))


@pytest.mark.parametrize(
    "names",
    [
        ("project_name",),
        ("description", "author_name"),
        ("package",),
        ("author_email", "repository_url"),
    ],
    ids="-".join,
)
def test_nasty_text_renders_or_is_refused(
    bare: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    for i, text in enumerate(NASTY):
        renders_or_is_refused(bare, tmp_path / str(i), dict.fromkeys(names, text))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(answers=st.dictionaries(st.sampled_from(list(OTHER_TEXT)), HOSTILE, min_size=1, max_size=2))
def test_any_text_renders_or_is_refused(
    bare: Path, tmp_path_factory: pytest.TempPathFactory, answers: dict[str, str]
) -> None:
    renders_or_is_refused(bare, tmp_path_factory.mktemp("hostile") / "p", answers)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("Acorn", "acorn"),
        ("My  Model-2!", "my_model_2"),
        ("2nd try", "model_2nd_try"),
        ("日本語", "my_model"),
        ("JAX", "jax_model"),
        ("Ünïcode Ätlas", "n_code_tlas"),
        ("x" * 60, "x" * 30),
    ],
)
def test_the_package_is_named_after_the_project(
    bare: Path, tmp_path: Path, name: str, package: str
) -> None:
    grow(bare, tmp_path / "p", {"project_name": name})
    assert (
        yaml.safe_load((tmp_path / "p" / ".copier-answers.yml").read_text("utf-8"))["package"]
        == package
    )


@pytest.mark.parametrize(
    "package",
    [
        "Acorn",
        "a-b",
        "a__b",
        "_a",
        "a_",
        "1a",
        "é",
        "class",
        "tokenize",
        "flax",
        "packaging",
        "google",
        "con",
        "a\n",
    ],
)
def test_a_package_name_that_would_not_work_is_refused(
    bare: Path, tmp_path: Path, package: str
) -> None:
    with pytest.raises(ValueError, match="package"):
        grow(bare, tmp_path / "p", {"package": package})


def test_reserved_names_hold_every_module_and_dependency(project: Path) -> None:
    reserved = set((ROOT / "hooks" / "reserved-names.txt").read_text("utf-8").split())
    modules = {*sys.stdlib_module_names, *keyword.kwlist, *keyword.softkwlist}
    config = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    lists = [
        config["project"]["dependencies"],
        *config["project"]["optional-dependencies"].values(),
    ]
    needed = [need for group in (*lists, config["dependency-groups"]["dev"]) for need in group]
    names = {re.match(r"[\w-]+", need)[0].lower().replace("-", "_") for need in needed}  # type: ignore[index]
    possible = {
        name for name in modules | names if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    }
    assert possible <= reserved

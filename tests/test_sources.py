"""The template's own promises about its sources: sizes, no twins, imports one way, one version."""

import ast
import hashlib
import re
import tomllib
from pathlib import Path

import pytest
from growing import layer_files
from link import ROOT, TEMPLATES

CORE = ["config", "cli", "data", "model", "sharding", "optim", "step", "loop", "checkpoint"]
LEAVES = ["trained", "sample", "export", "preflight", "bench", "report", "plots", "doctor"]
WITHOUT_JAX = ["cli", "commands", "config", "run_config", "optim_config", "errors"]
WITHOUT_JAX += ["corpus", "tokenizer", "shards", "prepare", "template_status"]
LONG_FUNCTIONS = {("loop", "run")}  # the one place where a run reads top to bottom
FILES = [
    file for layer in sorted(TEMPLATES.iterdir()) if layer.is_dir() for file in layer_files(layer)
]
MODULES = {f.stem: f for f in FILES if f.suffix == ".py" and f.parent.name == "{{source}}"}


def lines(file: Path) -> int:
    return len(file.read_text("utf-8").splitlines())


def imports(module: str) -> set[str]:
    """Modules that running `import module` imports: dotted names, `.name` for our own."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(MODULES[module].read_text("utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= (
                {f".{node.module}"} if node.module else {f".{alias.name}" for alias in node.names}
            )
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (later or typing_only):
            pending += ast.iter_child_nodes(node)
    return found


def reached(module: str) -> set[str]:
    """Everything that importing the module imports, through our own modules."""
    seen: set[str] = set()
    pending = {f".{module}"}
    while pending:
        name = pending.pop()
        seen.add(name)
        if name.startswith(".") and name[1:] in MODULES:
            pending |= imports(name[1:]) - seen
    return seen


def test_sizes() -> None:
    code = {name: lines(file) for name, file in MODULES.items()}
    assert sum(code.values()) <= 4900, sorted(code.items(), key=lambda item: -item[1])
    assert sum(code[name] for name in CORE if name in code) <= 1500
    for file in FILES:
        if file.suffix == ".py":
            assert lines(file) <= 300, f"{file.name}: {lines(file)} lines"


@pytest.mark.parametrize("name", CORE)
def test_the_core_path_is_there(name: str) -> None:
    assert name in MODULES


def test_functions_are_short() -> None:
    for file in FILES:
        if file.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and (file.stem, node.name) not in LONG_FUNCTIONS:
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{file.name}: {node.name} has {length} lines"


def test_every_module_says_its_job() -> None:
    for file in FILES:
        if file.suffix == ".py" and file.stem != "__init__":
            assert ast.get_docstring(ast.parse(file.read_text("utf-8"))), f"{file} has no docstring"


def test_no_two_files_are_equal_and_no_name_is_vague() -> None:
    seen: dict[str, Path] = {}
    for file in FILES:
        if content := file.read_bytes():
            twin = seen.setdefault(hashlib.sha256(content).hexdigest(), file)
            assert twin is file, f"{file} equals {twin}"
        assert not re.search(r"util|manager|helper|base", file.stem), file


def test_python_is_plain_and_pyproject_nearly() -> None:
    for file in FILES:
        assert not file.name.endswith(".py.jinja")
        assert '"' not in str(file.relative_to(ROOT)), "illegal in a Windows file name"
        assert not file.is_symlink(), "a checkout without symlinks would emit a one-line path file"
    pyproject = (TEMPLATES / "{{common}}" / "pyproject.toml.jinja").read_text("utf-8")
    assert len(re.findall(r"\{\{|\{%", pyproject)) <= 10


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_help_and_data_tools_start_without_jax(module: str) -> None:
    heavy = {name for name in reached(module) if re.match(r"(jax|flax|optax|orbax|grain)\b", name)}
    assert not heavy


def test_imports_run_one_way_and_the_core_knows_no_leaf() -> None:
    for module in MODULES:
        for imported in imports(module):
            name = imported.removeprefix(".")
            if imported.startswith(".") and name in MODULES:
                assert f".{module}" not in reached(name), f"{module} and {name} import each other"
    for module in set(CORE) & set(MODULES) - {"cli"}:
        leaves = {f".{leaf}" for leaf in LEAVES} & reached(module)
        assert not leaves, f"{module} imports {leaves}"


def test_one_version_and_one_tested_set() -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    version = ours["project"]["version"].removesuffix(".dev0")
    for file in (ROOT / "hooks" / "notes.md", ROOT / "CHANGELOG.md"):
        headings = re.findall(r"^## (\S+)", file.read_text("utf-8"), re.M)
        assert headings[0] == version, f"{file.name} has no section for {version} on top"
    emitted = (TEMPLATES / "{{common}}" / "pyproject.toml.jinja").read_text("utf-8")
    assert f'exclude-newer = "{ours["tool"]["uv"]["exclude-newer"]}"' in emitted


def test_one_lowest_uv() -> None:
    common = TEMPLATES / "{{common}}"
    places = [ROOT / "pyproject.toml", ROOT / "hooks" / "uv.sh", common / "pyproject.toml.jinja"]
    places += [TEMPLATES / "{{gitlab}}" / ".gitlab-ci.yml"]
    text = "".join(file.read_text("utf-8") for file in places)
    bounds = re.findall(r'(?:"uv|required-version = ")>=([0-9.]+)"', text)
    assert len(bounds) == 5
    assert len(set(bounds)) == 1, bounds


def test_the_template_lives_under_the_lint_rules_that_it_emits(project: Path) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]
    theirs = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]
    assert theirs["lint"] == ours["lint"]
    assert theirs["line-length"] == ours["line-length"]


def test_no_address_of_a_registry_or_machine_is_written_down() -> None:
    forbidden = re.compile(
        "pypi[.]org|pythonhosted[.]|registry[.]npmjs|" + "/(root|home/[a-z]+|work)/"
    )
    places = [ROOT / name for name in ("templates", "hooks", "docs", "benchmarks")]
    found = [file for place in places for file in place.rglob("*") if file.is_file()]
    found += [
        ROOT / name
        for name in ("README.md", "CHANGELOG.md", "Makefile", "copier.yml", "pyproject.toml")
    ]
    for file in found:
        if "__pycache__" not in file.parts and file.suffix != ".png":
            hit = forbidden.search(file.read_text("utf-8").replace("/home/app/", ""))
            assert not hit, f"{file}: {hit and hit[0]}"

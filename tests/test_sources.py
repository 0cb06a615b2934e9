"""The template's own promises about its sources: sizes, no twins, imports one way, one version."""

import ast
import graphlib
import hashlib
import io
import re
import tokenize
import tomllib
from pathlib import Path

import pytest
from growing import asked, choices, grow, layer_files, layers
from link import ROOT, TEMPLATES
from test_versions import CORE_TESTS

# How a newcomer reads from the command to the gradient, and to the disk.
READING = {
    "llm": ["commands.train", "step", "training.optim"],
    "diffusion": ["commands.train", "step", "training.optim"],
    "bayes": ["commands.fit", "nuts"],
    "tpu": ["commands.train", "workload", "training.optim"],
}
READ_BY_ALL = ["cli", "config", "workload", "runtime.loop", "runtime.checkpoint", "records.store"]
# What shows a run, which a core may do without; and what training loads only where it needs it.
SHOWN = {"records.plots", "records.report", "records.trace", "records.trackers"}
LEAVES = {"records.plots", "records.report", "records.trace"}
# By kind: the room of its data; code lines of its own, on the way of `train` without data, and of
# everything; settings.
DATA = {"llm": "text", "diffusion": "images", "bayes": "posterior"}  # tpu: none
DATA_OF_ALL = {"training.given", "training.prepared"}  # what those rooms have in common
IMPORTED_AS = {"scikit": "sklearn", "pillow": "PIL", "flatbuffers": "jax", "arviz": "arviz_stats"}
IMPORTED_AS |= {"h5netcdf": "xarray", "pyyaml": "yaml"}
LIMITS = {"llm": (1800, 5270, 7650, 65), "diffusion": (3450, 6290, 9400, 94)}
LIMITS |= {"bayes": (2640, 5210, 8050, 79), "tpu": (330, 4870, 8410, 56)}
LONG_FUNCTIONS = {("runtime.loop", "_run")}  # the one place where a run reads top to bottom
LAYERS = [layer for layer in sorted(TEMPLATES.iterdir()) if layer.is_dir()]
FILES = [file for layer in LAYERS for file in layer_files(layer)]
PYTHON = [file for file in FILES if file.suffix == ".py"]
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
NO_CODE |= {tokenize.ENDMARKER}


def dotted(file: Path) -> str:
    """Module name inside the package: "runtime.loop", and "runtime" for its `__init__.py`."""
    inside = file.relative_to(TEMPLATES).parts[2:]
    return ".".join((*inside[:-1], file.stem)).removesuffix("__init__").removesuffix(".")


def modules_of(kind: str) -> dict[str, Path]:
    """Name -> file of every module that a project of a kind gets, without tests."""
    answers = {name: choices(name)[0] for name in asked()} | {"kind": kind}
    return {
        dotted(file): file
        for layer in layers(answers)
        for file in layer_files(layer)
        if file.suffix == ".py"
        and "tests" not in file.relative_to(layer).parts
        and file.name != "conftest.py"
    }


BY_KIND = {kind: modules_of(kind) for kind in choices("kind")}
TREES = {file: ast.parse(file.read_text("utf-8")) for file in PYTHON}
MODULES: dict[str, Path] = {}  # of the kind of a test


@pytest.fixture(autouse=True, params=choices("kind"))
def kind(request: pytest.FixtureRequest) -> str:
    """The kind whose modules `MODULES` has."""
    MODULES.clear()
    MODULES.update(BY_KIND[request.param])
    return str(request.param)


def room(name: str) -> list[str]:
    """The modules of a room, found in its folder."""
    return [module for module in MODULES if module.startswith(f"{name}.")]


def lines(file: Path) -> int:
    return len(file.read_text("utf-8").splitlines())


def code_lines(source: str) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    strings = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = [(t.start[0], t.end[0]) for t in tokens if t.type not in NO_CODE]
    docstrings = [(s.lineno, s.end_lineno or s.lineno) for s in strings if type(s.value) is str]
    return len(spanned(code) - spanned(docstrings))


def spanned(ranges: list[tuple[int, int]]) -> set[int]:
    return {line for first, last in ranges for line in range(first, last + 1)}


def imports(module: str, later: bool = False) -> set[str]:
    """What a module imports when it is loaded, and with `later` in its functions too.

    Dotted names; a module of ours begins with a dot.
    """
    found: set[str] = set()
    pending: list[ast.AST] = [TREES[MODULES[module]]]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= ours(module, node)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (typing_only or (function and not later)):
            pending += ast.iter_child_nodes(node)
    return found


def ours(module: str, node: ast.ImportFrom) -> set[str]:
    """The modules of ours that a relative import loads, packages on the way included."""
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    parts = package[: len(package) - node.level + 1] + (node.module or "").split(".")
    start = [part for part in parts if part]
    found = {".".join(start[: i + 1]) for i in range(len(start))}
    found |= {".".join([*start, alias.name]) for alias in node.names}
    return {f".{name}" for name in found if name in MODULES}


def reached(*modules: str, later: bool = False) -> set[str]:
    """Everything that is loaded with the modules; `later`: with what their functions import."""
    seen: set[str] = set()
    pending = {f".{module}" for module in modules}
    if later:
        pending |= {name for module in modules for name in imports(module, later=True)}
    while pending:
        name = pending.pop()
        seen.add(name)
        if name.startswith("."):
            pending |= imports(name[1:]) - seen
    return seen


def of_ours(names: set[str]) -> set[str]:
    return {name[1:] for name in names if name.startswith(".")}


def weight(modules: set[str]) -> int:
    """Code lines of modules."""
    return sum(code_lines(MODULES[module].read_text("utf-8")) for module in modules)


def first_command() -> str:
    """The command that runs the loop: `commands.train`, or what a kind has for it."""
    return READING[next(kind for kind, modules in BY_KIND.items() if modules == MODULES)][0]


def has_training() -> bool:
    """Whether the kind has the layer `training`."""
    return "training.optim" in MODULES


def test_code_lines_are_those_that_run() -> None:
    source = '"""Job.\n\nMore.\n"""\n\nx = 1  # one\n# why\n\ndef f():\n    """Say."""\n'
    source += '    return (\n        """a\n        b""",\n    )\n'
    assert code_lines(source) == 1 + 1 + 4


def test_imports_are_found() -> None:
    first = first_command()
    assert {"config", "commands", "workload", "runtime", "runtime.loop"} <= of_ours(
        reached(first, later=True)
    )
    assert "runtime.loop" not in of_ours(reached(first))


def test_sizes(kind: str) -> None:
    of_kind, of_train, of_all, _ = LIMITS[kind]
    data = DATA.get(kind, "")
    train = of_ours(reached(first_command(), later=True)) - SHOWN - DATA_OF_ALL
    train -= {data, *room(data)}
    assert weight(train) <= of_train, sorted(train)
    own = {module for module, file in MODULES.items() if f"{{{{{kind}}}}}" in file.parts}
    assert own
    assert weight(own) <= of_kind
    assert weight(set(MODULES)) <= of_all
    for file in PYTHON:
        assert lines(file) <= 300, f"{file}: {lines(file)} lines"


def test_the_modules_that_these_tests_name_are_there(kind: str) -> None:
    assert {*READ_BY_ALL, *READING[kind], *LEAVES, *SHOWN} <= {*MODULES}
    assert not has_training() or "trained" in MODULES or kind == "tpu"


def fields_of(module: str) -> dict[str, list[str]]:
    """Class -> its fields that are no groups of others, in a module of settings."""
    return {
        node.name: [
            ast.unparse(line.target)
            for line in node.body
            if isinstance(line, ast.AnnAssign) and "default_factory" not in ast.unparse(line)
        ]
        for node in TREES[MODULES[module]].body
        if isinstance(node, ast.ClassDef)
    }


def test_our_settings_are_few_and_each_is_tried(kind: str) -> None:
    """The emitted tests let a user add any number, which they need not try."""
    modules = ["run_config", "config", *([f"{DATA[kind]}.settings"] if kind in DATA else [])]
    modules += ["training.optim_config"] * has_training()
    found = {name: names for module in modules for name, names in fields_of(module).items()}
    del found["Bounds"]  # a mark
    found.pop("DrawConfig", None)  # of commands, not of a run
    assert sum(map(len, found.values())) <= LIMITS[kind][3]
    if not has_training():
        return
    tried = {"ModelConfig": f"{{{{{kind}}}}}", "OptimConfig": "{{training}}"}
    left_out = {
        "ModelConfig": {"attention", "backbone", "multipliers"},  # of GPUs; tried apart
        "OptimConfig": {"micro_batches", "clip_norm"},
    }
    files = {"ModelConfig": "test_config.py", "OptimConfig": "test_optim.py"}
    for name, layer in tried.items():
        (test,) = (f for f in PYTHON if f.name == files[name] and layer in f.parts)
        text = test.read_text("utf-8")
        dicts = re.findall(r"^CHANGES\S* (?:.*? )?\|?= dict\((.*?)\)$", text, re.M | re.S)
        words = set(re.findall(r"(\w+)=", " ".join(dicts)))
        assert words == set(found[name]) - left_out[name]


def test_functions_are_short() -> None:
    for file in PYTHON:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                is_long = (dotted(file), node.name) in LONG_FUNCTIONS
                assert length <= 60 or is_long, f"{file}: {node.name} has {length} lines"


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


@pytest.mark.parametrize("module", ["cli", "__main__", *room("commands"), *room("text")])
def test_help_and_data_tools_start_without_jax(module: str) -> None:
    heavy = {name for name in reached(module) if re.match(r"(jax|flax|optax|orbax|grain)\b", name)}
    assert not heavy


def test_help_loads_every_setting(kind: str) -> None:
    """The test above holds for whatever `cli` loads: all settings of every layer among it."""
    settings = {name for name in MODULES if re.search(r"(config|settings|errors)$", name)}
    assert {"config", "run_config", "errors"} <= settings
    assert not has_training() or "training.optim_config" in settings
    assert kind not in DATA or f"{DATA[kind]}.settings" in settings
    assert settings <= of_ours(reached("cli"))


def test_imports_run_one_way_and_the_core_knows_no_leaf() -> None:
    graph = {module: of_ours(imports(module)) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises on a circle, and shows it
    core = of_ours(reached(first_command(), later=True)) - {"commands", first_command()}
    leaves = (LEAVES | {"trained"} | set(room("commands"))) & core
    assert not leaves, f"train loads {leaves}"


@pytest.fixture(scope="session")
def grown(
    template: Path, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A project of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    others = [kind for kind in choices("kind") if kind != "llm"]
    return {"llm": project} | {k: grow(template, folder / k, {"kind": k}) for k in others}


def test_each_layer_brings_its_own_dependencies(kind: str, grown: dict[str, Path]) -> None:
    names = {
        file.stem: re.findall(r'^    "([\w-]+)', file.read_text("utf-8"), re.M)
        for file in (ROOT / "hooks" / "dependencies").glob("*.toml")
    }
    assert set(names) == {"common", "training", "cluster", *choices("kind")}
    every = names["common"] + names["training"] * has_training()
    every += names["cluster"] * (kind == "tpu") + names[kind]
    assert len(every) == len(set(every))
    rendered = tomllib.loads((grown[kind] / "pyproject.toml").read_text("utf-8"))["project"]
    assert [re.match(r"[\w-]+", need)[0] for need in rendered["dependencies"]] == every  # type: ignore[index]


def test_the_core_tests_run_every_dependency(kind: str) -> None:
    """The lowest versions of all of them meet the code in these tests; of shared ones, with llm."""
    tested = {name.replace("/", ".").replace("test_", "") for name in CORE_TESTS[kind]}
    # A test that has the name of its room is of all its modules.
    modules = [
        m for name in tested for m in ([name] if name in MODULES else room(name.split(".")[0]))
    ]
    used = set().union(*(imports(module, later=True) for module in modules))
    used |= set().union(*(imports(name, later=True) for name in of_ours(used)))
    parts = {"llm": ("common", "training", "llm"), "tpu": ("cluster", "tpu")}.get(kind, (kind,))
    for part in parts:
        file = ROOT / "hooks" / "dependencies" / f"{part}.toml"
        for name in re.findall(r'^    "(\w+)', file.read_text("utf-8"), re.M):
            module = IMPORTED_AS.get(name, name)
            assert {top for top in used if re.match(rf"{module}\b", top)}, f"none imports {name}"


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

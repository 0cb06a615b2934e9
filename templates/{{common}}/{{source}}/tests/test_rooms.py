"""Imports run one way through the rooms, and no module is part of a circle."""

import ast
import graphlib
import re
from pathlib import Path

FOLDER = Path(__file__).parents[1]
MODULES = {
    path.relative_to(FOLDER).with_suffix("").as_posix(): path
    for path in FOLDER.rglob("*.py")
    if "tests" not in path.relative_to(FOLDER).parts and path.stem not in ("__init__", "conftest")
}
GROUND, COMMAND_LINE = {"contract", "errors", "run_config"}, {"cli", "console", "__main__"}
# From the top down: a room may import what stands below it. Every other room holds a kind's data.
ORDER = ["command line", "commands", "kind", "data", "cluster", "training"]
ORDER += ["runtime", "records", "ground"]


def room(module: str) -> str:
    """Where a module stands: "runtime/loop" -> "runtime"."""
    folder, _, name = module.rpartition("/")
    if folder:
        return folder if folder in ORDER else "data"
    return "ground" if name in GROUND else "command line" if name in COMMAND_LINE else "kind"


def imported(module: str, everywhere: bool) -> set[str]:
    """Modules of this package that a module imports: anywhere in it, or when it is loaded."""
    tree = ast.parse(MODULES[module].read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            start = [*module.split("/")[: -node.level], *(node.module or "").split(".")]
            base = "/".join(filter(None, start))
            names = {f"{base}/{alias.name}".lstrip("/") for alias in node.names}
            found |= {name for name in (base, *names) if name in MODULES}
    return found


def test_rooms_import_what_stands_below_them() -> None:
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imported(module, everywhere=True)
        if ORDER.index(room(module)) > ORDER.index(room(other))
    ]
    assert not wrong
    assert {"command line", "commands", "kind", "runtime", "records", "ground"} <= {
        *map(room, MODULES)
    }


FILE_CALLS = {
    *("write_text", "write_bytes", "read_text", "read_bytes", "open", "FileHandler", "touch"),
    *("mkdir", "makedirs", "rename", "unlink", "rmtree"),
    *("iterdir", "listdir", "glob", "rglob", "exists", "is_file", "is_dir", "stat", "lstat"),
}


def test_files_of_a_run_are_read_and_written_in_one_module() -> None:
    modules = {m for m in MODULES if room(m) in ("runtime", "records", "commands")}
    # These three read the machine and the project, not a run.
    modules -= {"runtime/start", "records/provenance", "commands/template_status"}
    wrong = []
    for module in modules - {"records/store"}:
        for node in ast.walk(ast.parse(MODULES[module].read_text())):
            if isinstance(node, ast.Call):
                owner, _, name = ast.unparse(node.func).rpartition(".")
                of_the_machine = owner.startswith("Path('/")  # such as Path('/dev')
                if name in FILE_CALLS and owner != "store" and not of_the_machine:
                    wrong.append(f"{module}: {owner}.{name}")
    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imported(module, everywhere=False) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises on a cycle, and shows it


def test_every_room_says_what_it_is_for() -> None:
    for folder in {path.parent for path in MODULES.values()} - {FOLDER}:
        says = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert says, f"{folder.name} has no docstring"
        assert re.search(r"\b(No|Nothing)\b", says), f"{folder.name} does not say what never enters"

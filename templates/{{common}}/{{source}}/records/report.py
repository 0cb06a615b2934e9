"""The self-contained HTML report of a run, and its summary as text. Reads files of DIR only.

Opens offline, in light and dark mode. Every string is escaped.
"""

import base64
import itertools
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from ..run_config import flatten
from . import artifacts, store
from .plots import plot_all
from .progress import label, labelled, show
from .provenance import origin
from .summary import facts, figures
from .telemetry import goodput
from .trace import top_operations

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #24292f; --soft: #667080;
  --line: #e3e6ea }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1e24; --ink: #dfe3e8;
  --soft: #939dab; --line: #2c323a } }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1120px; margin: auto; padding: 2rem 1.2rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 .7rem }
p, dt { color: var(--soft) } dt { font-size: .82rem } dd { margin: 0; font: 600 1.3rem system-ui }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)) }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)) }
.grid > * { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 0;
  padding: .8rem 1rem; min-width: 0 }
img { width: 100%; height: auto; display: block } .grid > .plot { background: #fff }
.bar { display: flex; height: 1.1rem; border-radius: 6px; overflow: hidden; margin-bottom: .6rem }
i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .5rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
td { border-bottom: 1px solid var(--line); padding: .28rem .6rem .28rem 0; vertical-align: top }
td + td { font-variant-numeric: tabular-nums } td, pre { white-space: pre-wrap; font-size: .86rem }
summary { cursor: pointer; font-weight: 600; margin: 1.4rem 0 .4rem }
"""
# Okabe and Ito's colours, for the parts of the time from the largest to the smallest.
COLOURS = ["#009e73", "#0072b2", "#e69f00", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#8c96a3"]
WARNING_LINES = 40  # the last ones
ARTIFACTS = 3  # of each name, the last ones
CARDS = 8


def write_report(run_dir: Path, *, traces: bool = True) -> Path:
    """Draw DIR/plots and write DIR/report.html from the files in DIR; a missing one is left out.

    traces: whether to list the operations of a profiler trace, which takes long to read.
    """
    (summary, is_finished), run_config = figures(run_dir), facts(run_dir / "config.json")
    provenance = run_config.get("provenance", {})
    about = ("template", "git_commit", "device_kind", "devices", "processes")
    line = " · ".join(f"{label(k)} {provenance[k]}" for k in about if provenance.get(k))
    name = escape(f"{str(__package__).partition('.')[0]} · {run_dir.resolve().name}")
    sections = facts(run_dir / "sections.json") if is_finished else {}
    attempts = store.read_lines(run_dir / "attempts.jsonl")
    body = (
        f"<h1>{name}</h1><p>{escape(line)}</p>",
        _section("Result" if is_finished else _so_far(summary, run_config), _cards(summary)),
        *(
            _section(heading, _preformatted(part) if isinstance(part, str) else _values(part), "")
            for heading, part in sections.items()
        ),
        _section("Curves", _plots(run_dir), "grid wide"),
        *(
            _section(heading, "".join(map(_artifact, paths[-ARTIFACTS:])))
            for heading, paths in artifacts.by_name(run_dir).items()
        ),
        _section("Changed on resume", _changes(run_config.get("changes", [])), ""),
        _section("Where the time went", _bar(goodput(attempts)["spent"]), ""),
        _section(
            "Longest operations of the profiler trace", _operations(run_dir) if traces else "", ""
        ),
        _section("Warnings", _preformatted(_warnings(run_dir)), ""),
        _details("Summary", _values(summary), "open"),
        _details("Configuration", _table(flatten(run_config.get("config", {})).items())),
        _details("Provenance", _table(flatten(provenance).items()) + _attempts(attempts)),
    )
    path = run_dir / "report.html"
    store.write(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n",
    )
    return path


def format_summary(summary: dict[str, Any]) -> str:
    """The run summary as aligned lines for the terminal."""
    rows = [labelled(name, value) for name, value in flatten(summary).items()]
    width = max((len(words) for words, _ in rows), default=0)
    indent = "\n" + " " * (width + 4)
    return "\n".join(
        f"  {words:<{width}}  {text.strip().replace('\n', indent)}" for words, text in rows
    )


def _so_far(summary: dict[str, Any], run_config: dict[str, Any]) -> str:
    steps = run_config.get("config", {}).get("run.steps", "?")
    return f"Not finished: at step {show('step', summary['steps'])} of {show('steps', steps)}"


def _cards(summary: dict[str, Any]) -> str:
    """The first eight numbers: a summary is in the order in which a person looks for its parts."""
    numbers = [labelled(k, v) for k, v in summary.items() if isinstance(v, (int, float))]
    words = (map(escape, pair) for pair in numbers[:CARDS])
    return "".join(f"<dl><dt>{name}</dt><dd>{value}</dd></dl>" for name, value in words)


def _bar(spent: dict[str, float]) -> str:
    bar, rows, total_s = "", "", sum(spent.values()) or 1.0
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    for (part, seconds), colour in zip(ranked, itertools.cycle(COLOURS), strict=False):
        paint, share = f'style="background:{colour};', f"{seconds / total_s:.2%}"
        bar += f'<div {paint}width:{share}"></div>'
        words = f'<i {paint}"></i>{escape(label(part.removesuffix("_s")))}'
        rows += f"<tr><td>{words}</td><td>{show(part, seconds)}, {share}</td></tr>"
    return f'<div class="bar">{bar}</div><table>{rows}</table>' if bar else ""


def _changes(changes: list[dict[str, Any]]) -> str:
    """A row for each setting that a resume changed."""
    return _table(
        (f"from step {c['step']} on", f"{c['setting']}: {c['from']} → {c['to']}") for c in changes
    )


def _attempts(attempts: list[dict[str, Any]]) -> str:
    """A row for each start of the command: its steps, its code, and what else was new."""
    rows: list[tuple[str, str]] = []
    before: dict[str, Any] = {}
    for row in attempts:
        found = flatten(row.get("provenance", {}))  # release 0.2.0 kept none
        told = [row.get("command", ""), origin(found) if found else ""]
        told += [f"{k} {v}" for k, v in found.items() if before and before.get(k) != v]
        rows.append((f"steps {row['first_step']} to {row['step']}", " · ".join(filter(None, told))))
        before = found
    return _table(rows)


def _operations(run_dir: Path) -> str:
    return _table(
        (op.name, f"{op.time_ms:,.1f} ms, {op.fraction:.1%}, calls: {op.calls:,}")
        for op in top_operations(run_dir / "profile")
    )


def _plots(run_dir: Path) -> str:
    """The plots of the metrics, then other files that the kind wrote to DIR/plots."""
    folder, paths = run_dir / "plots", plot_all(run_dir)
    paths += [folder / file for file in store.names(folder) if file.endswith(".png")]
    return "".join(f'<figure class="plot">{_image(path)}</figure>' for path in dict.fromkeys(paths))


def _artifact(path: Path) -> str:
    content = _image(path) if path.suffix == ".png" else _preformatted(_text(path))
    return f"<figure><p>step {artifacts.step_of(path)}</p>{content}</figure>"


def _image(path: Path) -> str:
    data = base64.b64encode(store.read(path)).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'


def _warnings(run_dir: Path) -> str:
    path = run_dir / "warnings.log"
    return "\n".join(_text(path).splitlines()[-WARNING_LINES:]) if store.exists(path) else ""


def _text(path: Path) -> str:
    return store.read(path).decode("utf-8", "replace")


def _preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text else ""


def _values(values: dict[str, Any]) -> str:
    """A table of values with the units that their names carry."""
    return _table(labelled(name, value) for name, value in flatten(values).items())


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    pairs = ((escape(str(key)), escape(str(value))) for key, value in rows)
    cells = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in pairs)
    return f"<table>{cells}</table>" if cells else ""


def _section(heading: str, content: str, layout: str = "grid") -> str:
    return f'<h2>{escape(heading)}</h2><div class="{layout}">{content}</div>' if content else ""


def _details(heading: str, content: str, state: str = "") -> str:
    return f"<details {state}><summary>{heading}</summary>{content}</details>" if content else ""

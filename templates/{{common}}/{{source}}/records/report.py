"""The self-contained HTML report of a run, and its summary as text. Reads files of DIR only.

Opens offline, in light and dark; every string is escaped, whoever wrote it.
"""

import base64
import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..run_config import flatten
from .plots import HELDOUT, INK, TRAIN, figures, file_name
from .progress import label, show
from .telemetry import goodput, read

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #24292f; --soft: #667080;
  --line: #e3e6ea; --run: #0072b2; --held: #d55e00 }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1e24; --ink: #dfe3e8;
  --soft: #939dab; --line: #2c323a; --run: #56b4e9; --held: #f0883e } }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1120px; margin: auto; padding: 2rem 1.2rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 .7rem }
p, dt { color: var(--soft) } dt { font-size: .82rem } dd { margin: 0; font: 600 1.3rem system-ui }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)) }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)) }
.grid > * { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 0;
  padding: .8rem 1rem; min-width: 0 }
svg, img { width: 100%; height: auto; display: block } svg text { font-family: inherit !important }
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


def write_report(run_dir: Path) -> Path:
    """DIR -> DIR/report.html; whatever file is missing is left out."""
    summary, facts = _json(run_dir / "summary.json"), _json(run_dir / "config.json")
    provenance = facts.get("provenance", {})
    about = ("template", "git_commit", "device_kind", "devices", "processes")
    line = " · ".join(f"{label(k)} {provenance[k]}" for k in about if provenance.get(k))
    drawn = figures(read(run_dir / "metrics.jsonl"))
    images = [_svg(name, figure) for name, figure in drawn.items()]
    ours = {file_name(name) for name in drawn}
    images += [_png(p) for p in sorted(run_dir.glob("plots/*.png")) if p.name not in ours]
    attempts, warnings = run_dir / "attempts.jsonl", run_dir / "warnings.log"
    lines = warnings.read_text("utf-8", "replace").splitlines() if warnings.is_file() else []
    tail = escape("\n".join(lines[-WARNING_LINES:]))
    name = escape(f"{str(__package__).partition('.')[0]} · {run_dir.resolve().name}")
    body = (
        f"<h1>{name}</h1><p>{escape(line)}</p>",
        _section("Result", _cards(summary)),
        _section("Curves", "".join(f"<figure>{image}</figure>" for image in images), "grid wide"),
        _section("Where the time went", _bar(goodput(read(attempts))["spent"]), ""),
        _section("Warnings", tail and f"<pre>{tail}</pre>", ""),
        _details("Summary", ((label(k), show(k, v)) for k, v in flatten(summary).items()), "open"),
        _details("Configuration", flatten(facts.get("config", {})).items()),
        _details("Provenance", flatten(provenance).items()),
    )
    path = run_dir / "report.html"
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n",
        "utf-8",
    )
    return path


def format_summary(summary: dict[str, Any]) -> str:
    """The run summary as aligned lines for the terminal."""
    rows = [(label(name), show(name, value)) for name, value in flatten(summary).items()]
    width = max((len(words) for words, _ in rows), default=0)
    indent = "\n" + " " * (width + 4)
    return "\n".join(
        f"  {words:<{width}}  {text.strip().replace('\n', indent)}" for words, text in rows
    )


def _cards(summary: dict[str, Any]) -> str:
    def rank(name: str) -> tuple[bool, ...]:
        # Held-out figures first, then the rate, then how well the machine was used.
        return (
            not name.startswith("heldout_"),
            "_per_s" not in name,
            name not in ("mfu", "goodput"),
        )

    numbers = sorted((k for k, v in summary.items() if isinstance(v, (int, float))), key=rank)
    words = ((escape(label(k)), escape(show(k, summary[k]))) for k in numbers[:8])
    return "".join(f"<dl><dt>{name}</dt><dd>{value}</dd></dl>" for name, value in words)


def _bar(spent: dict[str, float]) -> str:
    bar, rows, total_s = "", "", sum(spent.values()) or 1.0
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    for (part, seconds), colour in zip(ranked, itertools.cycle(COLOURS), strict=False):
        paint, share = f'style="background:{colour};', f"{seconds / total_s:.2%}"
        bar += f'<div {paint}width:{share}"></div>'
        words = f'<i {paint}"></i>{escape(label(part))}'
        rows += f"<tr><td>{words}</td><td>{show(part, seconds)}, {share}</td></tr>"
    return bar and f'<div class="bar">{bar}</div><table>{rows}</table>'


def _svg(name: str, figure: Figure) -> str:
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = "<svg" + file.getvalue().partition("<svg")[2]
    # Namespaces mean nothing inside HTML, and ids that count up would clash between figures.
    unwanted = r'<metadata>.*?</metadata>| xmlns(:\w+)?="[^"]*"| id="[\w.]+_\d+"'
    svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    for colour, variable in (
        (INK, "currentColor"),
        (TRAIN, "var(--run)"),
        (HELDOUT, "var(--held)"),
    ):
        svg = svg.replace(colour, variable)
    return svg


def _png(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'


def _section(heading: str, content: str, layout: str = "grid") -> str:
    return f'<h2>{heading}</h2><div class="{layout}">{content}</div>' if content else ""


def _details(heading: str, rows: Iterable[tuple[str, Any]], state: str = "") -> str:
    pairs = ((escape(str(key)), escape(str(value))) for key, value in rows)
    cells = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in pairs)
    table = f"<summary>{heading}</summary><table>{cells}</table>"
    return f"<details {state}>{table}</details>" if cells else ""


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(path.read_text("utf-8")))
    return {}

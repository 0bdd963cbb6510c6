# SPDX-License-Identifier: Apache-2.0
"""The report of the benchmarks: what they printed, plots of it, and where it was measured.

A benchmark prints Markdown tables. ``FIGURES`` says which columns of its first table are drawn, and
whom it compares with; a new benchmark gets a row there.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from _uv import ROOT

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
TIMES = re.compile(r"(\d+(?:\.\d+)?)x")  # a ratio beside its time, as in "12.3 1.5x"
MARKERS = "osD^vP*X<>"
FASTER = "(above 1: ours is faster)"


@dataclass(frozen=True)
class Drawing:
    """What of a benchmark's first table is drawn: rows by their labels, or lines along ``x``."""

    labels: tuple[str, ...]
    values: tuple[str, ...]  # none: every column but the labels and those left out
    axis: str
    peers: tuple[str, ...] = ()  # distributions, missing ones are named
    leave_out: tuple[str, ...] = ()
    x: str = ""
    log: bool = False


FIGURES = {
    "treeops/bench_instructions": Drawing(
        ("instructions per call",), ("now", "recorded"), "instructions per call"
    ),
    "treeops/bench_memory": Drawing(
        ("bytes per treespec of ResNet-152",), (), "bytes per treespec", ("optree",)
    ),
    "treeops/bench_trees": Drawing(
        ("tree (us)", "operation"),
        (),
        f"time of the other to time of treeops {FASTER}",
        ("optree", "jax", "torch", "dm-tree"),
        leave_out=("treeops",),
        log=True,
    ),
    "optcore/bench_optimizers": Drawing(
        ("optimizer",), ("digits: test %",), "test digits read, % (best of the learning rates)"
    ),
    "optcore/bench_steps": Drawing(
        ("optimizer", "size"),
        (),
        "CPU time of a step to that of the base (below 1: faster than the base)",
        ("torch", "torchopt", "optax", "jax"),
        leave_out=("base", "us"),
        log=True,
    ),
    "optcore-accel/bench_steps": Drawing(
        ("size", "t", "step"),
        ("x fused",),
        "time of torch's fused Adam to time of this step (above 1: faster than torch's)",
        ("torch", "torchopt"),
    ),
    "optcore-accel/bench_unrolled": Drawing(
        ("size", "loop"),
        ("x",),
        "time of plain operations to time of this loop (above 1: faster)",
        ("torch", "torchopt"),
    ),
    "optdiff/bench_unrolled": Drawing(
        ("size", "variant"),
        ("ratio",),
        "CPU time to that of the loop by hand (below 1: faster)",
        ("torch", "higher", "torchopt", "jax", "optax"),
    ),
    "optdiff/bench_implicit": Drawing(
        ("",),
        ("its ratio", "ratio"),
        "CPU time to that of optdiff: of the linear solve, of solver and all (above 1: slower)",
        ("jax", "jaxopt"),
    ),
    "optdiff/bench_modes": Drawing(
        ("mode",), ("CPU s",), "CPU seconds of one hypergradient", log=True
    ),
    "optdiff/bench_replay": Drawing(
        ("",),
        ("memory, copies of the carry",),
        "peak memory, copies of the carry",
        x="K",
        log=True,
    ),
    "optdiff/bench_smoothness": Drawing(
        ("training",),
        (),
        "agreement of the metagradient with differences (1: it tells what happens)",
        leave_out=("validation loss",),
    ),
    "optdiff/bench_unroll_memory": Drawing(
        ("variant",),
        ("parameter copies",),
        "peak memory, copies of the parameters",
        x="K",
        log=True,
    ),
    "optdist/bench_workers": Drawing(
        ("task", "way"),
        ("speed-up",),
        "wall time of one process to that of all workers (above 1: faster)",
        ("torch", "torchopt"),
    ),
    "optviz/bench_capture": Drawing(
        ("operations in a chain",),
        (),
        "CPU seconds",
        ("torchviz", "torchopt", "torchview", "torchlens"),
        log=True,
    ),
}


@dataclass(frozen=True)
class Run:
    """One benchmark that ran."""

    path: str
    options: list[str]
    output: str
    status: int
    seconds: float

    @property
    def name(self) -> str:
        """Package and benchmark, as in ``treeops/bench_trees``."""
        _, package, _, file = Path(self.path).parts
        return f"{package}/{Path(file).stem}"


@dataclass
class Table:
    """A Markdown table as text."""

    head: list[str]
    rows: list[list[str]] = field(default_factory=list)


def write_report(runs: list[Run], folder: Path) -> Path:
    """Write the report in Markdown, in HTML and as data; return the HTML's path."""
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    parts = [heading(runs)]
    tables = {}
    for run in runs:
        tables[run.name] = tables_of(run.output)
        drawing = FIGURES.get(run.name)
        picture = plots / f"{run.name.replace('/', '-')}.svg"
        drawn = bool(drawing and tables[run.name]) and draw(tables[run.name][0], drawing, picture)
        shown = f"![{run.name}: {drawing.axis}](plots/{picture.name})\n" if drawn else ""
        parts.append(section(run, drawing, shown))
    text = "\n".join(parts)
    (folder / "report.md").write_text(text)
    data = {name: [asdict(table) for table in found] for name, found in tables.items()}
    (folder / "tables.json").write_text(json.dumps(data, indent=1) + "\n")
    page = Template((Path(__file__).with_name("bench_report.html")).read_text())
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r"<h2>(\S+) (\S+)</h2>", r'<h2 id="\1-\2">\1 \2</h2>', body)  # as GitHub does
    # a wide table scrolls by itself
    body = body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    report = folder / "report.html"
    report.write_text(page.substitute(title="Benchmarks of optstack", body=body))
    return report


def heading(runs: list[Run]) -> str:
    """Return where, when and with what it was measured."""
    peers = sorted({peer for drawing in FIGURES.values() for peer in drawing.peers})
    found = {peer: version_of(peer) for peer in peers}
    commit = git("rev-parse", "--short=12", "HEAD") or "not in a git clone"
    changed = ", with changes that are not committed" if git("status", "--porcelain") else ""
    quick = any("--quick" in run.options for run in runs)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    rows = [
        ("date", datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ("commit", f"{commit}{changed}"),
        ("machine", f"{cpu_model()}, {os.cpu_count()} cores, {platform.system()} "
                    f"{platform.machine()}, load {load()}"),
        ("threads", f"as each benchmark says; OMP_NUM_THREADS {threads}"),
        ("Python", platform.python_version()),
        *((name, text) for name, text in found.items() if text),
        ("missing", ", ".join(name for name, text in found.items() if not text) or "nothing"),
        ("run", f"{len(runs)} benchmarks in {sum(run.seconds for run in runs):.0f} s"),
    ]  # fmt: skip
    lines = ["# Benchmarks of optstack", ""]
    if quick:
        lines += [
            "A quick run (`--quick`): few rounds, so figures scatter. `make bench` has more.",
            "",
        ]
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]
    lines += ["", "| benchmark | seconds | outcome |", "|---|---|---|"]
    for run in runs:
        outcome = "passed" if run.status == 0 else f"failed with exit status {run.status}"
        anchor = f"[{run.name}](#{run.name.replace('/', '-')})"
        lines.append(f"| {anchor} | {run.seconds:.0f} | {outcome} |")
    return "\n".join(lines) + "\n"


def section(run: Run, drawing: Drawing | None, shown: str) -> str:
    """Return what one benchmark printed, its plot, its command and who is missing."""
    missing = [peer for peer in (drawing.peers if drawing else ()) if not version_of(peer)]
    lines = [f"## {run.name.replace('/', ' ')}", ""]
    lines += [f"`python {' '.join([run.path, *run.options])}`, {run.seconds:.0f} s.", ""]
    if missing:
        lines += [f"**Missing here:** {', '.join(missing)}.", ""]
    if run.status:
        lines += [f"**It failed** with exit status {run.status}.", ""]
    lines += [spaced(run.output), "", shown]
    return "\n".join(lines)


def spaced(output: str) -> str:
    """Return the output with an empty line around every table, and no markup outside of them."""
    lines: list[str] = []
    for line in output.rstrip().splitlines():
        is_row = line.startswith("|")
        if lines and is_row != lines[-1].startswith("|"):
            lines.append("")
        lines.append(line if is_row else re.sub(r"([\\`*_\[\]<#])", r"\\\1", line.strip()) + "  ")
    return "\n".join(lines)


def tables_of(text: str) -> list[Table]:
    """Return the tables of a Markdown text."""
    found: list[Table] = []
    cells: list[str] = []
    for token in MarkdownIt("commonmark").enable("table").parse(spaced(text)):
        if token.type == "table_open":
            found.append(Table([]))
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline" and token.level >= 3:
            cells.append(" ".join(token.content.split()))
        elif token.type == "tr_close":
            if found[-1].head:
                found[-1].rows.append(cells)
            else:
                found[-1].head = cells
    return found


def number(text: str) -> float | None:
    """Return the ratio in a cell, else its first number, else None."""
    match = TIMES.search(text) or NUMBER.match(text)
    return float(match[match.lastindex or 0]) if match else None


def draw(table: Table, drawing: Drawing, path: Path) -> bool:
    """Draw a table's numbers; return whether there was anything to draw."""
    places = {name: place for place, name in enumerate(table.head)}
    skipped = {*drawing.labels, *drawing.leave_out, drawing.x}
    values = drawing.values or tuple(name for name in table.head if name not in skipped)
    rows = [
        (", ".join(row[places[name]] for name in drawing.labels), row)
        for row in table.rows
        if len(row) == len(table.head) and any(number(row[places[v]]) is not None for v in values)
    ]
    lines = along(rows, places, drawing, values) if drawing.x else down(rows, places, values)
    lines = {name: points for name, points in lines.items() if points}
    if len(rows) < 2 or not lines:  # one bar says less than its number
        return False
    if drawing.x:
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for marker, (name, points) in zip(MARKERS, lines.items(), strict=False):
            axes.plot(*zip(*points, strict=True), f"{marker}-", label=name)
        axes.set(xlabel=drawing.x, ylabel=drawing.axis, xscale="log", yscale="log")
    else:
        labels = [label for label, _ in rows]
        figure = Figure(figsize=(9, 1.7 + 0.26 * len(labels)), layout="constrained")
        axes = figure.subplots()
        for marker, (name, points) in zip(MARKERS, lines.items(), strict=False):
            found, heights = zip(*points, strict=True)
            if len(lines) == 1 and not drawing.log:
                axes.barh(heights, found, color="#4878a8")
            else:
                axes.plot(found, heights, marker, label=name, alpha=0.8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlabel(drawing.axis)
        if drawing.log:
            axes.set_xscale("log")
        if "(above 1" in drawing.axis or "(below 1" in drawing.axis:
            axes.axvline(1, color="black", linewidth=1)
    for axis in filter(lambda axis: axis.get_scale() == "log", (axes.xaxis, axes.yaxis)):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(plain)
        axis.set_tick_params(which="minor", labelsize=7)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    FigureCanvasSVG(figure)
    figure.savefig(path)
    return True


def plain(value: float, _: int) -> str:
    """Return the label of a tick of a logarithmic axis: 0.2, not 2 x 10^-1; few of the small ones.

    >>> plain(0.2, 0), plain(70.0, 0)
    ('0.2', '')
    """
    first = f"{value:.0e}"[0]
    return f"{value:g}" if first in "1235" else ""


def down(
    rows: list[tuple[str, list[str]]], places: dict[str, int], values: tuple[str, ...]
) -> dict[str, list[tuple[float, float]]]:
    """Return, by column, the values and the heights of their rows."""
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in values}
    for height, (_, row) in enumerate(rows):
        for name in values:
            if (found := number(row[places[name]])) is not None:
                lines[name].append((found, height))
    return lines


def along(
    rows: list[tuple[str, list[str]]],
    places: dict[str, int],
    drawing: Drawing,
    values: tuple[str, ...],
) -> dict[str, list[tuple[float, float]]]:
    """Return, by label, the points of the one column along x."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for label, row in rows:
        x, y = number(row[places[drawing.x]]), number(row[places[values[0]]])
        if x is not None and y is not None:
            lines.setdefault(label, []).append((x, y))
    return lines


def version_of(distribution: str) -> str:
    """Return the version of what is installed, or nothing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def cpu_model() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or "unknown processor"


def load() -> str:
    """Return how busy the machine is as the report is written."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def git(*words: str) -> str:
    """Return what git says, or nothing outside of a clone."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""

"""Generated pages of the book: how to re-run each table, every printed number, the API.

They are written to `book/_generated/` from `data/paper_values.toml`, `data/results/`, the notebooks' metadata
and the package's own files, and included by hand-written pages.
"""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from psmlib.book.formatting import NOTHING, fmt, markdown_table
from psmlib.book.notebooks import metadata
from psmlib.book.paper_values import exhibits, paper_values
from psmlib.book.record import STRENGTH, read
from psmlib.data.archives import registry
from psmlib.machine import paths
from psmlib.machine.files import read_text, write_atomic

PAPER_TITLES: dict[str, str] = {
    "psm": "Parallel score matching", "diffusion_time": "Diffusion times",
    "high_precision": "High-precision score models", "aligner": "Timestep aligner",
    "multistage": "Multistage diffusion",
}  # fmt: skip
ROOMS: tuple[str, ...] = (
    "psmlib", "process", "exact", "data", "nets", "bank", "training", "sampling", "kernels", "clustering",
    "diffusion_time", "evaluation", "benchmarks", "machine", "book",
)  # fmt: skip
"""The packages of the library in the order of the API page; "psmlib" stands for the modules outside of them."""

COUNTED = ("reproduced", "within noise", "differs", "computed", "scaled down", "needs data", "not run", "not yet")
"""The words that a status starts with, in the order in which they are counted."""

_IDENTITY = ("paper", "table", "row", "column", "metric")
_HEADING = re.compile(r"^# (\w+), Table (\w+): (.+)$", re.MULTILINE)


def write() -> list[str]:
    """Write all generated pages.

    Returns:
        Their file names below `book/_generated/`.
    """
    texts = {"rerun.md": rerun(), "counts.md": counts(), "cells.md": paper_cells(), "coverage.md": coverage()}
    texts["api.md"] = api()
    for name, text in texts.items():
        write_atomic(paths.GENERATED / name, text)
    return list(texts)


def descriptions() -> dict[tuple[str, str], str]:
    """Return what each paper table reports: the comment above its cells in `data/paper_values.toml`."""
    text = read_text(paths.PAPER_VALUES)
    return {(paper, table): what.strip() for paper, table, what in _HEADING.findall(text)}


def reproduced_by() -> dict[tuple[str, str], str]:
    """Return the notebook that reproduces each paper table or figure, from the notebooks' metadata."""
    found: dict[tuple[str, str], str] = {}
    for template in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        for entry in metadata(template).get("tables", []):
            paper, _, table = entry.partition(" ")
            found.setdefault((paper, table), template.stem)
    return found


def rerun() -> str:
    """Return the page that maps each paper table to one command, or to "not yet"."""
    what, made_by, printed = descriptions(), reproduced_by(), paper_values()
    tables = dict.fromkeys([*zip(printed["paper"], printed["table"], strict=True), *made_by])
    parts = []
    for paper, title in PAPER_TITLES.items():
        lines = []
        for table in (table for owner, table in tables if owner == paper):
            name = made_by.get((paper, table))
            line = {"Table": _label(table), "What it reports": what.get((paper, table), NOTHING)}
            line["Chapter"] = f"{{doc}}`/_executed/{name}`" if name else NOTHING
            command = f"`papermill notebooks/{name}.ipynb out.ipynb -p profile quick`"
            lines.append(line | {"Command": command if name else "not yet"})
        caption = f"Re-running {{cite}}`{paper}`"
        parts.append(f"## {title}\n\n" + _table(f"rerun-{paper}".replace("_", "-"), caption, lines, "psm-rerun"))
    return "\n".join(parts)


def counts() -> str:
    """Return the sentence that says how many of the printed numbers have which status."""
    found = Counter(_status(line) for lines in _compared_tables().values() for line in lines)
    *most, last = [f"{found[status]} *{status}*" for status in COUNTED if found[status]]
    said = f"{', '.join(most)} and {last}" if most else last
    return f"The five papers print {found.total()} numbers in their tables of results. Their status here: {said}.\n"


def paper_cells() -> str:
    """Return the page that shows every printed number beside ours, or the reason why there is none."""
    what, compared = descriptions(), _compared_tables()
    parts: list[str] = []
    for paper, title in PAPER_TITLES.items():
        parts.append(f"## {title}\n\nNumbers printed in {{cite}}`{paper}`.\n")
        for table, lines in ((key[1], lines) for key, lines in compared.items() if key[0] == paper):
            caption = f"{title}, {_label(table)}: {what.get((paper, table), 'printed numbers')}"
            parts.append(_table(f"cells-{paper}-{table}".replace("_", "-"), caption, lines, "psm-record"))
    return "\n".join(parts)


def coverage() -> str:
    """Return the page that says of each table and figure of the papers what there is of it here, or why nothing."""
    compared, what, made_by = _compared_tables(), descriptions() | exhibits(), reproduced_by()
    covered, parts = {paper for paper, _ in made_by}, []
    for paper, title in PAPER_TITLES.items():
        lines = []
        for key in sorted((key for key in what if key[0] == paper), key=lambda key: _order(key[1])):
            name = made_by.get(key)
            missing = "no chapter covers it" if paper in covered else "this paper has no chapter yet"
            line = {"": _label(key[1]), "Shows": what[key]}
            line["Chapter"] = f"{{doc}}`/_executed/{name}`" if name else f"not yet: {missing}"
            lines.append(line | _covered(compared.get(key, [])))
        caption = f"Coverage of {{cite}}`{paper}`"
        parts.append(f"## {title}\n\n" + _table(f"coverage-{paper}".replace("_", "-"), caption, lines, "psm-coverage"))
    return "\n".join(parts)


def _order(table: str) -> tuple[bool, int]:
    return table.startswith("fig"), int(re.search(r"\d+", table)[0])


def _covered(lines: list[dict[str, str]]) -> dict[str, str]:
    """Return how many numbers of a table have a value here, by status and budget, and why the others have none."""
    filled = [line for line in lines if line["Ours"] != NOTHING]
    empty = [line["Status"].partition(": ")[2] for line in lines if line["Ours"] == NOTHING]

    def counted(words: list[str]) -> str:
        return ", ".join(f"{n} {word}" for word, n in Counter(words).most_common())

    said = f"{len(filled)} of {len(lines)}" if lines else NOTHING
    if filled:
        budgets = [re.search(r"\((\w+), n = ", line["Ours"])[1] for line in filled]
        said += f": {counted([_status(line) for line in filled])}; {counted(budgets)}"
    reasons = "; ".join(f"{n} x {why}" for why, n in Counter(empty).most_common())
    return {"Numbers with a value": said, "Empty because": reasons or NOTHING}


def api() -> str:
    """Return the list of public modules by package, for autodoc; packages that `ROOMS` lacks come last."""
    package = paths.PACKAGE
    rooms = {"psmlib": sorted(package.glob("*.py"))}
    rooms |= {f.parent.name: sorted(f.parent.rglob("*.py")) for f in sorted(package.glob("*/__init__.py"))}
    parts = []
    for room in sorted(rooms, key=lambda room: ROOMS.index(room) if room in ROOMS else len(ROOMS)):
        folder = package if room == "psmlib" else package / room
        about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        parts.append(f"## {_module(folder)}\n\n{about.partition(chr(10))[0]}\n")
        for name in (_module(f.with_suffix("")) for f in rooms[room] if not f.name.startswith("_")):
            parts.append(f"### {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n")
    return "\n".join(parts)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(paths.PACKAGE.parent).parts)


def _ours() -> dict[tuple[str, ...], dict[str, Any]]:
    """Return our result for each cell, from the run with the largest budget that has a value.

    Results of a chapter that there is no longer are left out with a warning.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    names = {file.stem for profile in STRENGTH for file in (paths.RESULTS / profile).glob("*.json")}
    for name in sorted(names):
        if not (paths.NOTEBOOKS / f"{name}.ipynb").is_file():
            warnings.warn(f"results of {name} are on record, but there is no such chapter: delete them", stacklevel=2)
            continue
        for row in read(name).frame().to_dict("records"):
            key = tuple(row[field] for field in _IDENTITY)
            if key not in found or _rank(row) < _rank(found[key]):
                found[key] = row
    return found


def _rank(row: Mapping[str, Any]) -> tuple[bool, int]:
    return pd.isna(row["value"]), STRENGTH.index(row["profile"])


def _compared_tables() -> dict[tuple[str, str], list[dict[str, str]]]:
    """Return the lines of each printed table, by paper and table."""
    ours, made_by, printed = _ours(), reproduced_by(), paper_values()
    tables: dict[tuple[str, str], list[dict[str, str]]] = {}
    for cell in printed.to_dict("records"):
        key = (cell["paper"], cell["table"])
        tables.setdefault(key, []).append(_compared(cell, ours, made_by))
    return tables


def _compared(
    cell: Mapping[str, Any], ours: Mapping[tuple, Mapping], made_by: Mapping[tuple[str, str], str]
) -> dict[str, str]:
    """Return one line of the comparison; its status starts with one of `COUNTED`."""
    unit = "" if cell["unit"] == "1" else f" ({cell['unit']})"
    line = {"Row": cell["row"], "Column": cell["column"], "Metric": cell["metric"] + unit}
    line |= {"Paper": str(cell["printed"]), "Ours": NOTHING, "Exact": NOTHING}
    row = ours.get(tuple(cell[name] for name in _IDENTITY))
    if row is None:
        return line | {"Status": _why_missing(cell, ours, made_by)}
    if not pd.isna(row["value"]):
        line["Ours"] = f"{fmt(row['value'], row['stderr'])} ({row['profile']}, n = {row['n_seeds']})"
        line["Exact"] = fmt(row["exact"])
    return line | {"Status": row["status"].replace("_", " ") + (f": {row['note']}" if row["note"] else "")}


def _status(line: Mapping[str, str]) -> str:
    return line["Status"].partition(":")[0]


def _why_missing(cell: Mapping[str, Any], ours: Mapping[tuple, Mapping], made_by: Mapping[tuple[str, str], str]) -> str:
    """Return the status of a number that our results do not have, and the reason."""
    paper, table, metric = cell["paper"], cell["table"], cell["metric"]
    notebook = made_by.get((paper, table))
    if notebook is None:
        covered = paper in {owner for owner, _ in made_by}
        return f"not yet: {'no chapter covers this table' if covered else 'this paper has no chapter yet'}"
    chapter = f"{{doc}}`/_executed/{notebook}`"
    measured = {key[-1] for key in ours if key[:2] == (paper, table)}
    if not measured:
        return f"not run: {chapter} has no results at any budget yet"
    if metric not in measured:
        return f"not run: {chapter} does not measure it"
    if name := _kept_elsewhere(cell["dataset"]):
        return f"needs data: run {chapter} with `-p dataset {name}` and the files of {cell['dataset']} in `data/raw`"
    return f"not run: at no budget so far has {chapter} measured it"


def _kept_elsewhere(dataset: str) -> str | None:
    """Return psmlib's name of a data set whose files a reader has to get, from the name that a paper prints."""

    def letters(name: str) -> str:
        return re.sub("[^a-z]", "", name.lower())

    return next((n for n, e in registry().items() if "files" in e and letters(n) == letters(dataset.split()[0])), None)


def _label(table: str) -> str:
    return f"Figure {table[3:]}" if table.startswith("fig") else f"Table {table}"


def _table(name: str, caption: str, lines: list[dict[str, str]], kind: str) -> str:
    body = markdown_table(pd.DataFrame(lines))
    return f":::{{table}} {caption}\n:name: {name}\n:class: psm-table {kind}\n\n{body}\n:::\n"

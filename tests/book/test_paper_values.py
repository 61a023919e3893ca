"""The papers' printed numbers, compared with a second, independent transcription."""

import math
import pickle
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from psmlib.book.paper_values import Printed, paper_value, paper_values, status
from psmlib.machine.paths import PAPER_VALUES
from psmlib.standard_errors import Estimate

CELLS = tomllib.loads(PAPER_VALUES.read_text(encoding="utf-8"))["cell"]
ROWS = tomllib.loads((Path(__file__).parents[1] / "data" / "paper_row_sums.toml").read_text(encoding="utf-8"))["row"]

KEYS = {"paper", "table", "dataset", "row", "column", "metric", "value", "unit", "note"}
PAPERS = {"psm", "diffusion_time", "high_precision", "aligner", "multistage"}
UNITS = {"1", "%", "nats", "bits/dim", "seconds", "hours", "MB", "updates", "iterations", "GFLOPs", "PFLOPs"}
UNIT_OF = {
    "NLL": {"nats", "bits/dim"}, "BPD": {"bits/dim"}, "time_per_block": {"hours"}, "time": {"seconds"},
    "memory": {"MB"}, "updates_per_block": {"updates"}, "training_iterations": {"iterations"},
    "GFLOPs": {"GFLOPs"}, "PFLOPs": {"PFLOPs"}, "GFLOPs_relative": {"%"}, "PFLOPs_relative": {"%"},
    "training_iterations_relative": {"%"},
}  # fmt: skip

OURS = {
    "inference_time": ("time", ""),
    "NFE_ODE": ("NFE", "NFE (ODE)"),
    "NFE_SDE": ("NFE", "NFE (SDE)"),
    "GFLOPs_percent": ("GFLOPs_relative", ""),
    "training_PFLOPs": ("PFLOPs", ""),
    "training_PFLOPs_percent": ("PFLOPs_relative", ""),
    "training_iterations_percent": ("training_iterations_relative", ""),
}
"""Where the second transcription calls a metric by another name: ours, and how the column starts if that matters."""


def cells_of(paper: str, table: str, metric: str) -> list[dict]:
    """The cells that the second transcription means by a metric's name."""
    name, column = OURS.get(metric, (metric, ""))
    cells = [c for c in CELLS if (c["paper"], c["table"], c["metric"]) == (paper, table, name)]
    # one table prints one kind of NFE without saying which in its head
    split = column and any(c["column"].startswith(column) for c in cells)
    return [c for c in cells if not split or c["column"].startswith(column)]


GROUPS = sorted({(r["paper"], r["table"], r["metric"]) for r in ROWS})


def test_every_cell_is_complete_and_well_formed():
    assert len(CELLS) >= 350
    for cell in CELLS:
        assert set(cell) == KEYS, cell
        assert cell["paper"] in PAPERS and cell["unit"] in UNITS, cell
        assert isinstance(cell["value"], int | float) and math.isfinite(cell["value"]) and cell["value"] > 0, cell
        assert cell["unit"] in UNIT_OF.get(cell["metric"], {"1"}), cell
        for key in KEYS - {"value"}:
            assert isinstance(cell[key], str) and cell[key] == cell[key].strip() and "\n" not in cell[key], cell
            assert cell[key] or key in ("note", "dataset"), cell
    assert {c["paper"] for c in CELLS} == PAPERS


def test_no_cell_is_there_twice():
    seen = defaultdict(list)
    for c in CELLS:
        seen[c["paper"], c["table"], c["row"], c["column"], c["metric"]].append(c["value"])
    assert not {k: v for k, v in seen.items() if len(v) > 1}


def test_the_second_transcription_adds_up():
    for row in ROWS:
        assert math.fsum(row["values"]) == pytest.approx(row["sum"], abs=1e-9), row


def test_both_transcriptions_hold_the_same_tables_and_metrics():
    assert sum(len(r["values"]) for r in ROWS) == len(CELLS)
    claimed = defaultdict(int)
    for group in GROUPS:
        cells = cells_of(*group)
        assert cells, group
        for c in cells:
            claimed[c["paper"], c["table"], c["row"], c["column"], c["metric"]] += 1
    assert len(claimed) == len(CELLS) and set(claimed.values()) == {1}, "every cell is meant by exactly one name"
    assert set(OURS) == {r["metric"] for r in ROWS} & set(OURS), "no name is mapped for nothing"


@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_the_numbers_of_each_table_and_metric_agree(group):
    ours = sorted(c["value"] for c in cells_of(*group))
    rows = [r for r in ROWS if (r["paper"], r["table"], r["metric"]) == group]
    assert ours == sorted(v for r in rows for v in r["values"])
    assert math.fsum(ours) == pytest.approx(math.fsum(r["sum"] for r in rows), abs=1e-9)


@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_each_line_of_the_second_transcription_is_a_line_of_ours(group):
    """Not only the right numbers somewhere in the table: together in one row, column or data set of it."""
    lines = defaultdict(list)
    for c in cells_of(*group):
        ways = (("row",), ("column",), ("dataset",), ("row", "dataset"), ("column", "dataset"))
        for way in ways:
            lines[way, *(c[key] for key in way)].append(c["value"])
    found = {tuple(sorted(values)) for values in lines.values()}
    for row in ROWS:
        if (row["paper"], row["table"], row["metric"]) == group:
            assert tuple(sorted(row["values"])) in found, row


def aligner(table: str, dataset: str, row: str) -> dict:
    """The FID of one method in one of the two tables that print it."""
    cells = [
        c for c in CELLS
        if (c["paper"], c["table"], c["metric"], c["dataset"]) == ("aligner", table, "FID", dataset)
        and c["row"].startswith(row) and c["row"].removeprefix(row)[:2] in ("", " (")
    ]  # fmt: skip
    assert len(cells) == 1, (table, dataset, row)
    return cells[0]


@pytest.mark.parametrize("dataset", ["LSUN Bedroom 256x256", "FFHQ 256x256", "CelebA-HQ 256x256"])
@pytest.mark.parametrize("method, second", [("DDIM", "DDIM"), ("DDIM + Ours", "DDIM + Ours (sequential)")])
def test_where_the_aligner_paper_contradicts_itself_both_cells_say_so(dataset, method, second):
    one, two = aligner("1", dataset, method), aligner("2", dataset, second)
    if one["value"] == two["value"]:
        assert (dataset, method) == ("FFHQ 256x256", "DDIM + Ours"), "the only pair that agrees"
    else:
        assert one["note"].startswith("Table 2 ") and f"print {two['value']}" in one["note"].replace("prints", "print")
        assert two["note"].startswith(f"Table 1 prints {one['value']}")


def test_the_contradictions_are_the_ones_known():
    known = {
        ("LSUN Bedroom 256x256", "DDIM"): (9.46, 9.65), ("LSUN Bedroom 256x256", "DDIM + Ours"): (5.85, 6.07),
        ("FFHQ 256x256", "DDIM"): (23.58, 23.57), ("FFHQ 256x256", "DDIM + Ours"): (14.8, 14.8),
        ("CelebA-HQ 256x256", "DDIM"): (18.72, 21.81), ("CelebA-HQ 256x256", "DDIM + Ours"): (16.59, 17.75),
    }  # fmt: skip
    for (dataset, method), values in known.items():
        second = method + (" (sequential)" if "Ours" in method else "")
        assert (aligner("1", dataset, method)["value"], aligner("2", dataset, second)["value"]) == values


def test_paper_value_finds_each_cell_and_the_frame_is_a_copy():
    frame = paper_values()
    for cell in frame.sample(25, random_state=0).itertuples():
        assert paper_value(cell.paper, cell.table, cell.row, cell.column, cell.metric) == cell.value
    frame["value"] = -1.0
    assert paper_value("psm", "1", "HG", "TPSM-C", "NLL") == 1.03


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (("pms", "1", "TY", "SA-DPM", "NLL"), "toml has no paper 'pms': did you mean .*'psm'"),
        (("psm", "12", "TY", "SA-DPM", "NLL"), "psm has no table '12': did you mean .*'1'"),
        (("psm", 1, "TY", "SA-DPM", "NLL"), "psm has no table 1: did you mean '1'"),
        (("psm", "1", "TYY", "SA-DPM", "NLL"), "psm 1 has no row 'TYY': did you mean 'TY'?"),
        (("psm", "1", "TY", "TPSM-10", "NLL"), "psm 1 / TY has no column 'TPSM-10': did you mean 'TPSM-"),
        (
            ("psm", "1", "TY", "SA-DPM", "BPD"),
            "psm 1 / TY / SA-DPM has no metric 'BPD': did you mean .*'NLL'",
        ),
    ],
)
def test_an_unknown_cell_is_refused_with_the_nearest_ones(key, said):
    with pytest.raises(ValueError, match=re.escape(said).replace(r"\.\*", ".*")):
        paper_value(*key)


def test_printed_numbers_keep_their_text():
    values = paper_values()
    text = re.findall(r"^value = (.*)$", PAPER_VALUES.read_text(encoding="utf-8"), re.MULTILINE)
    assert [printed.text for printed in values["printed"]] == text
    assert list(values["value"]) == [float(each) for each in text]
    printed = paper_value("multistage", "4", "Timestep [20, 21]", "t_1", "t1")
    assert str(printed) == "0.330"
    assert printed == float(printed.text) and pickle.loads(pickle.dumps(printed)).text == printed.text


def test_the_status_knows_rounding_and_error():
    ours = Estimate(0.611, 0.01, 2)  # half of the 95 % interval is 0.043
    assert status(ours, "quick", Printed("0.61")) == "scaled_down" and status(ours, "paper", None) == "computed"
    assert status(ours, "paper", Printed("0.61")) == "reproduced"
    assert (
        status(ours, "paper", Printed("0.65")) == "within_noise" and status(ours, "paper", Printed("0.67")) == "differs"
    )
    assert (
        status(0.3344, "paper", Printed("0.334")) == "reproduced"
        and status(0.334, "paper", Printed("0.330")) == "differs"
    )

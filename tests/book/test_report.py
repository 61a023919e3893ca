"""Tables and sentences show the recorded figures, in Markdown that the book can render."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from psmlib.book import report
from psmlib.book.paper_values import paper_values
from psmlib.book.results import Results, load
from psmlib.machine import paths

NLL = dict(paper="psm", table="1", metric="NLL", unit="nats")


@pytest.fixture(autouse=True)
def generated(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "GENERATED", tmp_path / "generated")
    return tmp_path / "generated"


@pytest.fixture
def results() -> Results:
    found = Results("nb", "quick", {"dataset": "all"})
    for row, column, value, exact in (("TY", "SA-DPM", 0.8, 0.48), ("TY", "TPSM-B", 0.612, 0.48)):
        found.add(
            **NLL | dict(row=row, column=column, value=value, exact=exact, stderr=0.0041, n_seeds=3, dataset=row),
            status="scaled_down",
            budget={"updates": 8000, "blocks": 4},
        )
    found.add(**NLL, row="HG", column="TPSM-C", value=None, status="not_run", note="needs a week", dataset="HG")
    found.add(**NLL, row="HG", column="ours | new", value=1.0, stderr=0.02, status="differs", dataset="HG")
    return found


def parsed(text: str) -> list[list[str]]:
    """Rows of the Markdown table in a text, as an independent parser reads them."""
    rows, tokens = [], MarkdownIt("commonmark").enable("table").parse(text)
    for token, inner in zip(tokens, tokens[1:], strict=False):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(inner.content)
    return rows


def records(text: str) -> list[dict[str, str]]:
    head, *rows = parsed(text)
    return [dict(zip(head, row, strict=True)) for row in rows]


# --- tables ---


def test_a_table_is_numbered_named_and_readable_without_myst(capsys, generated):
    frame = pd.DataFrame({"method": ["a|b", "c\nd", ""], "NLL": [0.5, 12.0, None], "n": [1, 2, 3]})
    report.table(frame, "tab-x", "A caption\nin two lines.")
    shown = capsys.readouterr().out
    first, *_, last = shown.strip().split("\n")
    assert first == ":::{table} A caption in two lines." and last == ":::"
    assert ":name: tab-x\n:class: psm-table\n\n|" in shown
    assert parsed(shown.split("\n\n")[1]) == [
        ["method", "NLL", "n"],
        ["a|b", "0.500", "1"],
        ["c d", "12", "2"],
        ["–", "–", "3"],
    ]
    widths = {len(line) for line in shown.split("\n") if line.startswith("|")}
    assert len(widths) == 1, "a plain reader sees straight columns"
    # The copy to include has no label: Sphinx refuses one that stands twice.
    assert (generated / "tab-x.md").read_text() == shown.replace(":name: tab-x\n", "")


@pytest.mark.parametrize("name", ["Table 1", "a--b", "tab_x", "1a", ""])
def test_names_that_sphinx_would_change_are_refused(name):
    with pytest.raises(ValueError, match="cannot be cited: use lower-case"):
        report.table(pd.DataFrame({"x": [1]}), name, "caption")


def test_an_empty_table_is_refused_and_chosen_columns_are_shown(capsys):
    with pytest.raises(ValueError, match="'x' has no rows"):
        report.table([], "x", "caption")
    report.table([{"a": 1, "b": 2}], "x", "caption", columns=["b"])
    assert parsed(capsys.readouterr().out.split("\n\n")[1]) == [["b"], ["2"]]


def test_a_folder_that_cannot_be_written_does_not_stop_the_reader(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "GENERATED", tmp_path / "file" / "generated")
    report.table([{"a": 1}], "x", "caption")
    assert ":::{table} caption" in capsys.readouterr().out


def test_in_a_notebook_tables_are_markdown_output(monkeypatch, capsys):
    import IPython.display

    shown = []
    monkeypatch.setattr(report, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", shown.append)
    report.table([{"a": 1}], "x", "caption")
    assert shown[0].data.startswith(":::{table} caption\n:name: x\n") and capsys.readouterr().out == ""
    assert "text/markdown" in IPython.core.formatters.DisplayFormatter().format(shown[0])[0]


def test_compare_shows_every_cell_of_the_paper_and_then_ours(results, capsys, generated):
    report.compare(results, "psm", "1", metric="NLL", caption="Toys.", headings=("data", "method"))
    shown = capsys.readouterr().out
    lines = records(shown.split("\n\n")[1])
    table_1 = paper_values().query("paper == 'psm' and table == '1' and metric == 'NLL'")
    assert [(r["data"], r["method"]) for r in lines[:8]] == list(zip(table_1["row"], table_1["column"], strict=True))
    assert [float(r["paper"]) for r in lines[:8]] == list(table_1["value"])
    by = {(r["data"], r["method"]): r for r in lines}
    b = by["TY", "TPSM-B"]
    assert (b["ours ± s.e. (seeds)"], b["exact floor"]) == ("0.612 ± 0.004 (3)", "0.480")
    assert (b["excess over floor"], b["status"]) == ("0.132 ± 0.004", "scaled down")
    assert b["budget"] == "8,000 updates, 4 blocks"
    assert by["HG", "TPSM-C"]["status"] == "not run: needs a week"
    assert by["TY", "TPSM-A"]["status"] == "not run: no result in this run"
    assert by["TY", "TPSM-A"]["ours ± s.e. (seeds)"] == "–"
    assert lines[8]["method"] == "ours | new" and lines[8]["paper"] == "–" and len(lines) == 9
    assert re.search(r"\{table\} Toys\. NLL in nats, ± one standard error; profile quick on \S.*\.\n", shown)
    assert (generated / "tab-psm-1.md").is_file()


def test_compare_works_the_same_from_disk_and_from_a_frame(results, capsys):
    report.compare(results, "psm", "1", metric="NLL", name="t", caption="Toys.")
    live = capsys.readouterr().out
    results.save()
    report.compare(load("quick", "nb"), "psm", "1", metric="NLL", name="t", caption="Toys.")
    assert capsys.readouterr().out == live
    report.compare([results.frame()], "psm", "1", metric="NLL", name="t", caption="Toys.")
    assert records(capsys.readouterr().out.split("\n\n")[1]) == records(live.split("\n\n")[1])


def test_compare_takes_extra_rows_a_choice_and_a_reason(results, capsys):
    ours = Results("nb", "quick")
    ours.add(
        paper="ours",
        table="1",
        row="TY",
        column="B+",
        metric="NLL",
        unit="nats",
        value=0.55,
        status="differs",
    )
    choice = dict(extra=ours.frame(), rows=["TY"], columns=["TPSM-A", "B+"], reason="left out")
    report.compare(results, "psm", "1", metric="NLL", name="t", caption="Toys.", **choice)
    lines = records(capsys.readouterr().out.split("\n\n")[1])
    assert [(r["column"], r["paper"], r["status"]) for r in lines] == [
        ("TPSM-A", "0.69", "not run: left out"),
        ("B+", "–", "differs"),
    ]
    assert "exact floor" not in lines[0], "a column in which nothing stands is not shown"


def test_compare_names_the_data_used_where_it_is_not_the_papers(capsys):
    found = Results("nb", "quick", {"dataset": "digits"})
    cell = dict(paper="psm", table="3", row="SA-DPM", column="CIFAR-10", metric="BPD", unit="bits/dim")
    found.add(**cell, value=2.0, dataset="digits", status="scaled_down")
    report.compare(found, "psm", "3", metric="BPD", name="t", caption="Images.")
    lines = records(capsys.readouterr().out.split("\n\n")[1])
    assert lines[0]["data used"] == "digits" and lines[1]["data used"] == "–"
    assert lines[1]["status"] == "not run: this run is of digits alone"


@pytest.mark.parametrize(("table", "metric"), [("1", None), ("1", "FID"), ("99", "NLL"), ("99", None)])
def test_compare_refuses_a_metric_that_the_table_lacks(results, table, metric):
    known = "NLL, blocks, time_per_block" if table == "1" else "no such table"
    with pytest.raises(ValueError, match=rf"metric of psm {table} is .*: use one of its own \({known}\)"):
        report.compare(results, "psm", table, metric=metric, name="t", caption="c")


def test_side_by_side_is_a_pivot_with_the_floor_under_it(results, capsys):
    report.side_by_side(results, "1", "m", "c", rows="column", columns="dataset", metric="NLL")
    shown = capsys.readouterr().out
    assert ":name: tab-1\n" in shown
    assert parsed(shown.split("\n\n")[1]) == [
        ["m", "TY", "HG"],
        ["SA-DPM", "0.800 ± 0.004", "–"],
        ["TPSM-B", "0.612 ± 0.004", "–"],
        ["TPSM-C", "–", "not run"],
        ["ours | new", "–", "1.00 ± 0.02"],
        ["*exact floor*", "0.480", "–"],
    ]


def test_side_by_side_puts_floors_in_the_cells_where_they_differ(results, capsys):
    results.add(**NLL, row="TY", column="SA, late start", value=0.76, exact=0.586, status="differs", dataset="TY")
    report.side_by_side(results, "1", "m", "c", rows="column", columns=["dataset", "metric"], dataset="TY", name="t")
    lines = parsed(capsys.readouterr().out.split("\n\n")[1])
    assert lines[0] == ["m", "TY, NLL"] and lines[-1] == ["SA, late start", "0.760 (floor 0.586)"]


def test_side_by_side_refuses_two_results_in_one_cell_and_unknown_fields(results):
    results.add(**NLL | {"metric": "BPD"}, row="TY", column="SA-DPM", value=1, status="differs", dataset="TY")
    with pytest.raises(ValueError, match="SA-DPM / TY has more than one result: narrow the choice"):
        report.side_by_side(results, "1", "m", "c", rows="column", columns="dataset")
    with pytest.raises(ValueError, match="unknown field 'method' of results: use one of paper, table"):
        report.side_by_side(results, "1", "m", "c", rows="method")
    with pytest.raises(ValueError, match="has no rows"):
        report.side_by_side(results, "2", "m", "c")


# --- claims and prose ---


def test_verdicts_show_each_claim_with_its_evidence(results, capsys):
    results.claim("blocks help", "NLL", True, "0.6 < 0.8", paper="psm")
    report.verdicts(results, name="claims")
    assert parsed(capsys.readouterr().out.split("\n\n")[1]) == [
        ["claim", "test", "verdict", "evidence"],
        ["blocks help", "NLL", "**holds**", "0.6 < 0.8"],
    ]


@settings(deadline=None)
@given(a=st.floats(-5, 5), b=st.floats(-5, 5), sa=st.floats(0, 2), sb=st.floats(0, 2), z=st.floats(0.1, 4))
def test_a_claim_and_its_opposite_never_both_hold(a, b, sa, sb, z):
    pair = {report.verdict_less((a, sa), (b, sb), z), report.verdict_less((b, sb), (a, sa), z)}
    assert pair in ({"holds", "does not hold"}, {"undecided"}, {"does not hold"})
    if pair == {"does not hold"}:
        assert a == b and sa == sb == 0


def test_verdict_less_decides_at_z_standard_errors_and_errs_rarely():
    assert report.verdict_less((0.0, 3.0), (10.0, 4.0)) == "holds"  # 10 is 2 x hypot(3, 4)
    assert report.verdict_less((0.0, 3.0), (9.99, 4.0)) == "undecided"
    assert report.verdict_less((9.99, 3.0), (0.0, 4.0)) == "undecided"
    assert report.verdict_less((10.0, 3.0), (0.0, 4.0)) == "does not hold"
    draws = np.random.default_rng(0).normal(0.0, 1.0, (4000, 2))
    wrong = np.mean([report.verdict_less((a, 1.0), (b, 1.0)) != "undecided" for a, b in draws])
    expected = math.erfc(2 / math.sqrt(2))  # two equal methods are told apart in 4.6 % of the cases
    assert abs(wrong - expected) < 4 * math.sqrt(expected / 4000)
    with pytest.raises(ValueError, match="cannot judge with the error of b = nan"):
        report.verdict_less((1.0, 0.1), (2.0, float("nan")))
    with pytest.raises(ValueError, match="cannot judge with the error of a = None"):
        report.verdict_less((1.0, None), (2.0, 0.1))
    gap = SimpleNamespace(value=0.3, stderr=0.1)
    assert report.verdict_less(0, gap) == "holds" and report.verdict_less(gap, 0.2) == "undecided"


def test_a_sentence_takes_its_numbers_from_variables(capsys):
    report.sentence(
        "In Table 1 {who} gets {a}, {b:.1f} and {c}; $x_{{0}}$.",
        who="B",
        a=(0.61, 0.004),
        b=torch.tensor(-0.25),
        c=800,
    )
    assert capsys.readouterr().out == "In Table 1 B gets 0.610 ± 0.004, −0.2 and 800; $x_{0}$.\n"


@pytest.mark.parametrize(
    ("template", "numbers", "said"),
    [
        ("about 0.61 nats", {}, "types the number 0.61 itself"),
        ("about .61 nats, {x}", {"x": 1}, "types the number .61 itself"),
        ("{x} nats", {}, "disagree about x"),
        ("{x} nats", {"x": 1, "y": 2}, "disagree about y"),
    ],
)
def test_a_sentence_refuses_typed_and_mismatched_numbers(template, numbers, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        report.sentence(template, **numbers)

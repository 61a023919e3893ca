"""Tables and sentences show the recorded figures, in Markdown that the book can render."""

import re

import pandas as pd
import pytest
import torch
from markdown_it import MarkdownIt

from psmlib.book import report
from psmlib.book.paper_values import paper_values
from psmlib.book.record import Record
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


def test_compare_shows_every_cell_of_the_paper_and_ours_those_with_a_figure_first(results, capsys, generated):
    report.compare(results, "psm", "1", metric="NLL", caption="Toys.", headings=("data", "method"))
    shown = capsys.readouterr().out
    lines = records(shown.split("\n\n")[1])
    table_1 = paper_values().query("paper == 'psm' and table == '1' and metric == 'NLL'")
    printed = dict(zip(zip(table_1["row"], table_1["column"], strict=True), table_1["printed"], strict=True))
    cells = {(r["data"], r["method"]): r["paper"] for r in lines if r["method"] != "ours | new"}
    assert cells == {cell: str(figure) for cell, figure in printed.items()} and len(lines) == 9
    filled = [r["ours ± s.e. (seeds)"] != "–" for r in lines]
    assert filled == sorted(filled, reverse=True) and 0 < sum(filled) < 9
    by = {(r["data"], r["method"]): r for r in lines}
    b = by["TY", "TPSM-B"]
    assert (b["ours ± s.e. (seeds)"], b["exact"]) == ("0.612 ± 0.004 (3)", "0.480")
    assert (b["ours less exact"], b["status"]) == ("0.132 ± 0.004", "scaled down")
    assert b["budget"] == "8,000 updates, 4 blocks"
    assert by["HG", "TPSM-C"]["status"] == "not run: needs a week"
    assert by["TY", "TPSM-A"]["status"] == "not run: no result in this run"
    assert by["TY", "TPSM-A"]["ours ± s.e. (seeds)"] == "–"
    (new,) = (r for r in lines if r["method"] == "ours | new")
    assert new["paper"] == "–"
    assert re.search(r"\{table\} Toys\. NLL in nats, ± one standard error; profile quick on \S.*\.\n", shown)
    assert (generated / "tab-psm-1.md").is_file()


def test_compare_works_the_same_from_disk_and_from_a_frame(results, capsys):
    report.compare(results, "psm", "1", metric="NLL", name="t", caption="Toys.")
    live = capsys.readouterr().out
    results.save()
    report.compare(load("quick", "nb"), "psm", "1", metric="NLL", name="t", caption="Toys.")
    kept = capsys.readouterr().out
    assert records(kept.split("\n\n")[1]) == records(live.split("\n\n")[1])
    assert re.search(r"profile quick on .+, \d{4}-\d\d-\d\d, commit \w{7}\.", kept)
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
        ("B+", "–", "differs"),
        ("TPSM-A", "0.69", "not run: left out"),
    ]
    assert "exact" not in lines[0], "a column in which nothing stands is not shown"


def test_figures_below_the_exact_scores_are_no_contradiction_and_below_the_entropy_artefacts(capsys):
    found = Results("nb", "quick")
    cells = {"SA-DPM": 0.495, "TPSM-A": 0.485, "TPSM-B": 0.465, "TPSM-C": 0.46}
    for column, value in cells.items():
        figure = dict(value=value, stderr=0.004, exact=0.50, bound=0.475, dataset="TY", n_seeds=3)
        found.add(**NLL, row="TY", column=column, **figure)
    report.compare(found, "psm", "1", metric="NLL", caption="Toys.", rows=["TY"])
    lines = records(capsys.readouterr().out.split("\n\n")[1])
    assert [line["exact score, same protocol"] for line in lines] == ["0.500"] * 4
    assert [line["entropy"] for line in lines] == ["0.475"] * 4
    told = [line["status"].partition(": ")[2] for line in lines]
    possible = "below the exact score but not the entropy, so no contradiction"
    assert told == ["", possible, possible, "below the entropy, so an artefact of the solver"]
    report.side_by_side(found, "1", "toy", "c")
    shown = capsys.readouterr().out
    body = parsed(shown.split("\n\n")[1])
    assert body[1] == ["TY", "0.495 ± 0.004", "0.485 ± 0.004", "0.465 ± 0.004", "0.460 ± 0.004†"]
    assert [line[0] for line in body[2:]] == ["*exact score, same protocol*", "*entropy*"]
    assert "† below the entropy: an artefact of the solver" in shown


def test_printed_values_keep_their_digits(capsys):
    found = Results("nb", "quick")
    report.compare(found, "multistage", "4", metric="t1", name="t", caption="c")
    papers = [line["paper"] for line in records(capsys.readouterr().out.split("\n\n")[1])]
    assert "0.330" in papers and not any(set(p) <= set("0123456789.") and len(p.partition(".")[2]) < 3 for p in papers)


def test_a_table_without_errors_does_not_speak_of_them(capsys):
    found = Results("nb", "quick")
    found.add(table="t", row="a", column="b", value=61.0, stderr=0.0, metric="NFE", unit="1")
    report.side_by_side(found, "t", "m", "c")
    shown = capsys.readouterr().out
    assert "standard error" not in shown and parsed(shown.split("\n\n")[1])[1] == ["a", "61"]


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


def test_side_by_side_is_a_pivot_with_the_exact_values_under_it(results, capsys):
    report.side_by_side(results, "1", "m", "c", rows="column", columns="dataset", metric="NLL")
    shown = capsys.readouterr().out
    assert ":name: tab-1\n" in shown
    assert parsed(shown.split("\n\n")[1]) == [
        ["m", "TY", "HG"],
        ["SA-DPM", "0.800 ± 0.004", "–"],
        ["TPSM-B", "0.612 ± 0.004", "–"],
        ["TPSM-C", "–", "not run"],
        ["ours | new", "–", "1.00 ± 0.02"],
        ["*exact*", "0.480", "–"],
    ]


def test_side_by_side_puts_exact_values_in_the_cells_where_they_differ(results, capsys):
    results.add(**NLL, row="TY", column="SA, late start", value=0.76, exact=0.586, status="differs", dataset="TY")
    report.side_by_side(results, "1", "m", "c", rows="column", columns=["dataset", "metric"], dataset="TY", name="t")
    lines = parsed(capsys.readouterr().out.split("\n\n")[1])
    assert lines[0] == ["m", "TY, NLL"] and lines[-1] == ["SA, late start", "0.760 (exact 0.586)"]


def test_side_by_side_refuses_two_results_in_one_cell_and_unknown_fields(results):
    results.add(**NLL | {"metric": "BPD"}, row="TY", column="SA-DPM", value=1, status="differs", dataset="TY")
    with pytest.raises(ValueError, match="SA-DPM / TY has more than one result: narrow the choice"):
        report.side_by_side(results, "1", "m", "c", rows="column", columns="dataset")
    with pytest.raises(ValueError, match="unknown field 'method' of results: use one of paper, table"):
        report.side_by_side(results, "1", "m", "c", rows="method")
    with pytest.raises(ValueError, match="has no rows"):
        report.side_by_side(results, "2", "m", "c")


# --- claims and prose ---


def test_verdicts_show_the_papers_claims_apart_from_ours(results, capsys):
    results.claim("blocks help", "NLL", gain=(0.2, 0.01), paper="psm", section="Table 1", quote="may help", unit="nats")
    results.claim("so do waves", "ours", "undecided", "0.6 and 0.61")
    report.verdicts(results, name="claims", caption="Claims.")
    first, second = re.split(r"\n:::\n", capsys.readouterr().out)[:2]
    assert ":name: claims\n" in first and "Claims. What the paper claims. Verdicts by Student's t" in first
    assert parsed(first.split("\n\n")[1]) == [
        ["claim", "test", "gain [95 %]", "verdict"],
        ["blocks help (Table 1) *“may help”*", "NLL", "+0.200 [+0.180, +0.220] nats", "**holds**"],
    ]
    assert ":name: claims-ours\n" in second and "Claims. Our own questions.\n" in second
    assert parsed(second.split("\n\n")[1]) == [
        ["claim", "test", "verdict", "evidence"],
        ["so do waves", "ours", "**undecided**", "0.6 and 0.61"],
    ]


@pytest.mark.parametrize(("updates", "said"), [(8000, True), (50, False)])
def test_a_run_disagrees_with_the_record_only_at_the_same_budget(results, capsys, updates, said):
    mine = Results("nb", "smoke", {"dataset": "all"})
    budget = {"updates": updates, "blocks": 4}
    mine.add(**NLL, row="TY", column="TPSM-B", value=0.9, stderr=0.01, dataset="TY", budget=budget)
    report.this_run(mine, Record([results]), name="tab-run")
    assert ("1 of 1 cells disagree" in capsys.readouterr().out) is said


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


def test_a_cell_at_another_budget_is_not_said_to_disagree(capsys):
    weak, strong = Results("nb", "smoke", rows=NLL), Results("nb", "night", rows=NLL)
    for run, value, updates in ((weak, 0.9, 50), (strong, 0.6, 8000)):
        run.add(row="TY", column="SA-DPM", value=(value, 0.001), budget={"updates": updates})
    report.this_run(weak, Record([strong]), name="tab-run")
    said = capsys.readouterr().out
    assert "another budget" in said and "disagree" not in said

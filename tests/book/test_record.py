"""The record: the strongest run of each cell, claim and array, and what a run at hand is held against."""

import json

import numpy as np
import pytest
import torch

from psmlib.book import plots, record, report
from psmlib.book.record import DISAGREE, Record, beside
from psmlib.book.results import ARRAYS, Results, load
from psmlib.machine import paths

ROWS = dict(table="1", metric="NLL", unit="nats", dataset="TY")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in ("RESULTS", "GENERATED", "ROOT"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    return tmp_path / "results"


def run(profile, cells, claims=(), arrays=(), budget=None):
    results = Results("nb", profile, {"device": "cpu"}, rows=ROWS)
    for column, value in cells.items():
        fields = dict(status="not_run", note="why not") if value is None else {}
        results.add(row="TY", column=column, value=value, budget=budget or {"of": profile}, **fields)
    for claim, gain in claims:
        results.claim(claim, "test", gain=gain)
    for name, array in arrays:
        results.keep(name, array)
    results.save()
    return results


def test_the_strongest_run_with_a_value_speaks_for_each_cell():
    run("smoke", {"a": 1.0, "b": 2.0, "c": 3.0})
    run("quick", {"a": 10.0, "b": 20.0})
    run("night", {"a": 100.0, "b": None})
    frame = record.read("nb").frame().set_index("column")
    assert frame["value"].to_dict() == {"a": 100.0, "b": 20.0, "c": 3.0}
    assert frame["profile"].to_dict() == {"a": "night", "b": "quick", "c": "smoke"}
    assert set(frame["device"]) != {None} and all(len(date) == 10 for date in frame["date"])


@pytest.mark.parametrize("order", [("paper", "night", "gpu", "quick", "smoke")])
def test_profiles_in_the_order_of_their_strength(order):
    for weak in reversed(order):
        run(weak, {"a": float(len(weak))})
        assert record.read("nb").frame()["profile"].tolist() == [weak]


def test_claims_and_arrays_come_from_the_strongest_run_that_has_them():
    run("quick", {"a": 1.0}, [("x", (1.0, 0.1)), ("y", (1.0, 0.1))], [("p, 1", [1.0]), ("p, 2", [2.0]), ("q", [3.0])])
    run("night", {"a": 1.0}, [("x", (-1.0, 0.1))], [("p, 1", [10.0])])
    known = record.read("nb")
    assert [(v["claim"], v["verdict"], v["profile"]) for v in known.verdicts] == [
        ("x", "does not hold", "night"),
        ("y", "holds", "quick"),
    ]
    # all arrays of one picture are of one run
    assert {k: v.tolist() for k, v in known.arrays("p, ").items()} == {"1": [10.0]}
    assert known.arrays("q")[""].tolist() == [3.0] and "Profile quick on " in known.about("q")
    assert known.arrays("none") == {} and known.about("none") == ""


def test_values_are_read_with_their_errors_or_refused():
    run("quick", {"a": (1.0, 0.25), "b": None})
    known = record.read("nb")
    assert known.value("1", "TY", "a").stderr == 0.25
    with pytest.raises(KeyError, match="1 / TY / b has no value on record: why not"):
        known.value("1", "TY", "b")
    with pytest.raises(KeyError, match="0 cells on record are 1 / TY / c"):
        known.value("1", "TY", "c")


def test_arrays_are_stored_small_and_whole(folder):
    dense = torch.linspace(0, 1, 9, dtype=torch.float64)
    run("quick", {"a": 1.0}, arrays=[("x", dense), ("half", dense.half()), ("n", np.arange(3))])
    back = load("quick", "nb")
    assert {name: back.array(name).dtype.name for name in back.arrays} == {
        "x": "float32",
        "half": "float16",
        "n": "float32",
    }
    assert np.allclose(back.array("x"), dense, atol=1e-7) and (folder / "quick" / "nb.npz").stat().st_size < 2000
    results = Results("nb", "quick")
    results.keep("x", torch.rand(ARRAYS // 3))
    with pytest.raises(ValueError, match="the arrays of nb take .* bytes of 1,048,576: keep fewer .* being 'x'"):
        results.save()
    assert load("quick", "nb").arrays == back.arrays, "the older record stays"
    with pytest.raises(ValueError, match="there is an array 'x' already"):
        results.keep("x", [1.0])
    with pytest.raises(ValueError, match="array 'w' is of type <U1: give numbers"):
        results.keep("w", ["a"])


@pytest.mark.parametrize("damage", ["cut", "swapped", "gone", "version"])
def test_a_damaged_record_is_left_out_with_a_warning_and_the_weaker_speaks(folder, damage):
    run("quick", {"a": 1.0}, arrays=[("x", [1.0])])
    run("night", {"a": 2.0}, arrays=[("x", [2.0])])
    npz, file = folder / "night" / "nb.npz", folder / "night" / "nb.json"
    if damage == "cut":
        npz.write_bytes(npz.read_bytes()[:-30])
    elif damage == "swapped":
        npz.write_bytes((folder / "quick" / "nb.npz").read_bytes())
    elif damage == "gone":
        npz.unlink()
    else:
        document = json.loads(file.read_text())
        document["provenance"]["format"] = 99
        file.write_text(json.dumps(document))
    said = {"cut": "not as the run left it", "swapped": "not as the run left it", "gone": "cannot be read"}
    with pytest.warns(UserWarning, match=said.get(damage, "its format is 99, this psmlib reads 1")):
        known = record.read("nb")
    assert known.frame()["profile"].tolist() == ["quick"] and known.arrays("x")[""].tolist() == [1.0]


def test_a_run_is_held_against_stronger_and_equal_ones_alone():
    run("smoke", {"a": 1.0, "b": 1.0})
    run("night", {"a": (2.0, 0.1)})
    here = run("quick", {"a": (1.0, 0.1), "b": (1.0, 0.1), "c": (1.0, 0.1)})
    lines = beside(here, Record([load("night", "nb"), load("smoke", "nb")]))
    assert lines[["column", "recorded", "recorded_profile", "agreement"]].values.tolist() == [
        ["a", 2.0, "night", "another budget"]
    ]


@pytest.mark.parametrize(("gap", "agrees"), [(0.9, True), (1.1, False)])
def test_runs_at_one_budget_that_differ_by_more_than_their_errors_are_named(gap, agrees, capsys):
    error = 0.1
    known = Record([run("quick", {"a": (2.0, error)})])
    here = run("quick", {"a": (2.0 + gap * DISAGREE * error * 2**0.5, error)})
    (agreement,) = beside(here, known)["agreement"]
    assert (agreement == "yes") is agrees
    report.this_run(here, known, name="tab-run")
    assert ("1 of 1 cells disagree at the same budget" in capsys.readouterr().out) is not agrees


def test_without_a_record_tables_and_pictures_say_so(capsys):
    nothing = record.read("nb")
    report.side_by_side(nothing, "1", "toy", "c")
    report.verdicts(nothing, name="tab-v")
    report.compare(nothing, "psm", "1", metric="NLL", caption="c")
    said = capsys.readouterr().out
    assert said.count("Nothing is on record yet") == 1 and "not run: no result in this run" in said
    x, lines = nothing.curves("loss, ")
    assert "Nothing is on record" in plots.curves(x, lines).axes[0].texts[0].get_text()
    report.this_run(run("smoke", {"a": 1.0}), nothing, name="tab-run")
    assert "No stronger run is on record" in capsys.readouterr().out


def test_tables_name_the_run_of_each_figure(capsys):
    run("quick", {"SA-DPM": 0.9, "TPSM-A": 0.8}, [("x", (1.0, 0.1))])
    run("night", {"SA-DPM": 0.7}, [("y", (1.0, 0.1))])
    known = record.read("nb")
    report.side_by_side(known, "1", "toy", "NLL.", columns="column")
    shown = capsys.readouterr().out
    assert "0.800 *quick*" in shown and "0.700 *" not in shown
    assert "NLL. Profile night on " in shown and "; profile quick on " in shown
    report.verdicts(known, name="tab-v")
    assert "| night |" in " ".join(capsys.readouterr().out.split())


def saved(profile="night", unfinished=False, cells=(), claims=(), arrays=(), **parameters):
    results = Results("nb", profile, {"dataset": "all", "seeds": 0} | parameters, rows=ROWS)
    for column, (value, seeds) in dict(cells).items():
        results.add(row="TY", column=column, value=value, n_seeds=seeds, budget={"updates": 5})
    for claim in claims:
        results.claim(claim, "test", True)
    for name in arrays:
        results.keep(name, [float(len(results))])
    results._unfinished = [dict(job="x", done="1 of 2 updates", seconds_left=1.0)] if unfinished else []
    results.save()
    return load(profile, "nb")


@pytest.mark.parametrize("part", [dict(unfinished=True), dict(dataset="TY"), dict(seeds=1)])
def test_a_run_of_a_part_adds_to_the_record(part):
    saved(cells={"a": (1.0, 3), "b": (2.0, 1), "c": (3.0, 1)}, claims=["x", "y"], arrays=["p", "q"])
    found = saved(cells={"a": (10.0, 1), "b": (20.0, 1), "d": (40.0, 1)}, claims=["y", "z"], arrays=["p"], **part)
    values = found.frame().set_index("column")["value"].to_dict()
    assert values == {"a": 1.0, "b": 20.0, "c": 3.0, "d": 40.0}, "more seeds stay, what is new replaces, the rest stays"
    assert sorted(line["claim"] for line in found.verdicts) == ["x", "y", "z"] and set(found.arrays) == {"p", "q"}
    assert [run["parameters"]["dataset"] for run in found.provenance["earlier"]] == ["all"]


def test_a_whole_run_replaces_the_record():
    saved(cells={"a": (1.0, 3), "c": (3.0, 1)}, claims=["x"], arrays=["p"])
    found = saved(cells={"a": (10.0, 1)})
    assert found.frame()["value"].tolist() == [10.0] and not found.verdicts and not found.arrays
    assert found.provenance["earlier"] == []


@pytest.mark.parametrize("other", ["rk4, 100 points", "euler, 10 points"])
def test_captions_name_the_protocol_that_all_figures_of_a_run_share(other, capsys):
    results = Results("nb", "quick", rows=ROWS | dict(row="TY"))
    for column, note in (("a", "rk4, 100 points"), ("b", other)):
        results.add(column=column, value=1.0, note=note)
    results.add(column="c", value=None, status="not_run", note="why not")
    results.save()
    known = record.read("nb")
    report.side_by_side(known, "1", "toy", "NLL.")
    caption, _, _ = capsys.readouterr().out.partition("\n")
    assert caption.endswith(", rk4, 100 points.") is (other == "rk4, 100 points")
    assert report.ran(known, known.frame()) == caption.removeprefix(":::{table} NLL. ")

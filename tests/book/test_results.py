"""Results: what is stored, what is refused, and the provenance in the file."""

import hashlib
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psmlib import standard_errors
from psmlib.book import results as module
from psmlib.book.results import Results, load
from psmlib.book.rows import FIELDS, STATUSES
from psmlib.machine import paths

CELL = dict(paper="psm", table="1", row="TY", column="TPSM-B", metric="NLL", unit="nats", status="scaled_down")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def make(**changes) -> Results:
    results = Results("nb", "smoke", {"dataset": "TY", "seeds": 0}, seeds=range(3))
    results.add(**CELL | dict(value=0.61, stderr=0.01, n_seeds=3, dataset="TY", exact=0.48) | changes)
    return results


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), np.array(0.5), np.array([0.5]), torch.tensor(0.5), torch.tensor([[0.5]]).double()],
)
def test_whatever_holds_one_number_is_kept_as_a_python_float(value):
    row = make(value=value, stderr=value, exact=value)._rows.popitem()[1]
    assert [row[k] for k in ("value", "stderr", "exact")] == [0.5] * 3
    assert {type(row[k]) for k in ("value", "stderr", "exact")} == {float}


def test_a_tensor_that_needs_gradients_and_a_whole_number_are_figures_too():
    assert make(value=torch.tensor(2.0, requires_grad=True)).frame().loc[0, "value"] == 2.0
    assert make(value=8000).frame().loc[0, "value"] == 8000.0


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        (dict(value=float("nan")), "NLL / TY is nan: give a finite number"),
        (dict(value=torch.tensor(float("inf"))), "is inf"),
        (dict(value=None), "value of .* is missing"),
        (dict(value="0.61"), "of type str"),
        (dict(value=True), "of type bool"),
        (dict(value=torch.ones(2)), r"of shape \(2,\)"),
        (dict(stderr=float("nan")), "stderr of .* is nan"),
        (dict(stderr=-0.1), "never negative"),
        (dict(exact=float("inf")), "exact of .* is inf"),
        (dict(n_seeds=0), "at least 1"),
        (dict(n_seeds=2.5), "whole number"),
        (dict(status="ok"), "unknown status 'ok' of psm 1 / .*: use one of reproduced"),
        (dict(paper="PSM"), "unknown paper 'PSM' of .*: use one of psm"),
        (dict(table=1), "table of a result must be text, got 1"),
        (dict(unit=None), "unit of a result must be text, got None"),
        (dict(seeds=3), "unknown field 'seeds' of add: use one of paper, table"),
        (dict(unit=" "), "unit of a result must be text"),
        (dict(note=None), "note of a result must be text"),
        (dict(budget=[1]), "give a dict"),
        (dict(budget={"loss": float("nan")}), r"budget of .*\['loss'\] is nan, which JSON cannot hold"),
        (dict(budget={"net": object()}), "which JSON cannot hold"),
        (dict(status="not_run", note="a week of work"), "give value=None and the reason"),
        (dict(status="needs_data", value=None), "give value=None and the reason"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_in_one_sentence_that_names_it(changes, culprit):
    with pytest.raises(ValueError, match=culprit) as caught:
        make(**changes)
    assert "\n" not in str(caught.value) and ":" in str(caught.value)


@pytest.mark.parametrize("missing", [None, float("nan"), torch.tensor(float("nan"))])
@pytest.mark.parametrize("status", ["not_run", "needs_data"])
def test_a_cell_without_a_figure_keeps_its_reason(status, missing):
    row = make(value=missing, stderr=None, status=status, note="200 blocks take\na week").frame().iloc[0]
    assert np.isnan(row["value"]) and row["n_seeds"] == 0 and row["note"] == "200 blocks take a week"


def test_one_cell_takes_one_result_but_another_data_set_makes_another_cell():
    results = make()
    with pytest.raises(ValueError, match="TPSM-B / NLL / TY has a result already"):
        results.add(**CELL, value=0.7, dataset="TY")
    results.add(**CELL, value=0.7, dataset="HG")
    assert len(results) == 2


@pytest.mark.parametrize("name", ["../x", "a/b", "", None])
def test_names_that_would_leave_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="notebook must be a name"):
        Results(name, "smoke")
    with pytest.raises(ValueError, match="profile must be a name"):
        Results("nb", name)


def test_a_row_takes_what_it_does_not_say_from_its_part_then_from_the_chapter():
    results = Results("nb", "smoke", rows=dict(unit="nats", metric="NLL", note="of the chapter"))
    results.add("t", "r", "c", 1.0)
    part = results.part(table="p", status="reproduced", budget={"updates": 8})
    part.add(row="r", column="c", value=2.0)
    part.add("q", "r", "c", 3.0, note="its own", budget=None, paper="psm")
    plain, shared, own = results.frame().to_dict("records")
    assert (plain["paper"], plain["status"], plain["n_seeds"], plain["dataset"]) == ("ours", "scaled_down", 1, "")
    assert plain["note"] == shared["note"] == "of the chapter" and plain["budget"] == {}
    assert (shared["table"], shared["status"], shared["budget"]) == ("p", "reproduced", {"updates": 8})
    assert (own["table"], own["status"], own["note"], own["budget"]) == ("q", "reproduced", "its own", {})
    for make_part in (lambda: results.part(seeds=3), lambda: Results("nb", "smoke", rows=dict(seeds=3))):
        with pytest.raises(ValueError, match="unknown field 'seeds' of (part|rows): use one of"):
            make_part()


def test_a_pair_and_a_summary_fill_the_fields_that_they_know():
    results = Results("nb", "smoke", rows=dict(unit="nats", metric="NLL", n_seeds=9))
    summary = SimpleNamespace(value=0.6, stderr=0.01, seeds=3, exact=0.5, bound=0.4)
    results.add("t", "pair", "c", (0.6, 0.01))
    results.add("t", "pair of a single run", "c", (0.6, None))
    results.add("t", "summary", "c", summary)
    results.add("t", "summary overruled", "c", summary, exact=None, n_seeds=2)
    results.add("t", "estimate", "c", standard_errors.Estimate(0.6, 0.01, 2, seeds=3))
    results.add("t", "tensor", "c", torch.tensor(0.6))
    rows = [tuple(row[f] for f in ("stderr", "n_seeds", "exact", "bound")) for row in results._rows.values()]
    pairs, summaries = [(0.01, 9, None, None), (None, 9, None, None)], [(0.01, 3, 0.5, 0.4), (0.01, 2, None, 0.4)]
    assert rows == [*pairs, *summaries, (0.01, 3, None, None), (None, 9, None, None)]


@pytest.mark.parametrize(
    ("value", "stderr", "kept"),
    [(0.5, 4e-16, None), (0.5, 0.0, None), (0.0, 0.0, None), (0.5, 1e-11, 1e-11), (1e-14, 2e-16, 2e-16)],
)
def test_a_standard_error_that_is_mere_rounding_counts_as_none(value, stderr, kept):
    assert make(value=(value, stderr), stderr=stderr)._rows.popitem()[1]["stderr"] == kept


def test_the_frame_has_every_field_in_order_even_when_empty():
    assert list(Results("nb", "smoke").frame().columns) == list(FIELDS) == list(make().frame().columns)
    assert make(stderr=None).frame()["stderr"].dtype == float


def test_a_saved_file_reads_back_equal_and_is_stable_text(folder):
    results = make(budget={"updates": np.int64(8000), "edges": torch.tensor([0.0, 1.0])}, note="± é")
    path = results.save()
    assert path == folder / "smoke" / "nb.json"
    text = path.read_text(encoding="utf-8")
    document = json.loads(text)
    assert set(document) == {"provenance", "rows", "verdicts"} and text.endswith("}\n") and "± é" in text
    assert text == json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    again = load("smoke", "nb")
    assert again.frame().equals(results.frame())
    assert again.provenance == document["provenance"] == results.provenance
    assert again.parameters == {"dataset": "TY", "seeds": 0} and again.seeds == [0, 1, 2]


def test_claims_are_kept_in_order_with_what_is_known_of_them(folder):
    results = make()
    results.claim("blocks help", "NLL", "undecided", "0.6 < 0.8", paper="psm", gain=torch.tensor(0.25), n=1000)
    results.part(table="x").claim("cuts help", "NLL", np.bool_(True), "0.5")
    results.claim("noise helps", "NLL", False, "0.9")
    first = dict(claim="blocks help", test="NLL", verdict="undecided", evidence="0.6 < 0.8")
    assert results.verdicts[0] == first | dict(paper="psm", gain=0.25, n=1000)
    assert [line["verdict"] for line in results.verdicts] == ["undecided", "holds", "does not hold"]
    results.save()
    again = load("smoke", "nb")
    assert again.verdicts == results.verdicts
    with pytest.raises(ValueError, match="read from disk"):
        again.claim("more", "NLL", True, "1")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("c", "t", "yes", "e"), "verdict 'yes' of 'c': use one of holds, does not hold"),
        (("c", " ", True, "e"), "test of the claim 'c' must be text, got ' '"),
        (("c", "t"), "the claim 'c' has neither a verdict nor a gain: measure one of them"),
        ((None, "t", True, "e"), "claim of the claim None must be text"),
    ],
)
def test_a_claim_without_words_or_with_another_verdict_is_refused(line, said):
    with pytest.raises(ValueError, match=said):
        make().claim(*line)
    with pytest.raises(ValueError, match="unknown field 'proof' of claim: use one of paper, section"):
        make().claim("c", "t", True, "e", proof="x")


def test_effects_are_decided_by_students_t_and_holms_rule():
    results, few = make(), standard_errors.Estimate
    results.claim("a", "t", gain=few(0.30, 0.1, df=2, n=100, seeds=3))  # three standard errors: p = .095 by t
    results.claim("b", "t", gain=few(0.21, 0.1))  # p = .036 alone
    results.claim("c", "t", gain=few(-0.3, 0.1))  # p = .0027
    results.claim("d", "t", gain=few(0.2, None, 0))
    lines = results.verdicts
    assert [line["verdict"] for line in lines] == ["undecided", "undecided", "does not hold", "undecided"]
    assert (lines[0]["n"], lines[0]["n_seeds"]) == (100, 3)
    assert lines[0]["low"] == pytest.approx(0.3 - 0.1 * 4.302653) and lines[0]["p"] == pytest.approx(0.0955, abs=1e-4)
    assert lines[3]["low"] is None and lines[3]["p"] == 1.0
    results.claim("a paper's", "t", gain=few(0.21, 0.1), paper="psm")  # a table of its own: .036 is enough there
    assert results.verdicts[-1]["verdict"] == "holds"


def test_a_family_of_claims_without_effects_is_seldom_wrong():
    g, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        results = make()
        for line in g.normal(size=(6, 4)):
            results.claim("x", "t", gain=standard_errors.mean(line))
        wrong += any(line["verdict"] != "undecided" for line in results.verdicts)
    assert wrong <= 400 * 0.05 + 4 * (400 * 0.05 * 0.95) ** 0.5 and wrong > 0


def test_no_verdict_on_a_model_that_has_not_learned():
    results, gain = make(), (0.5, 0.01)
    for by in (0.29, 0.31):
        results.claim("cutting helps", "NLL", gain=gain, learned={"A over the best Gaussian": (by, 0.1)})
    results.claim("cutting helps", "NLL", False, "4.1", learned={"A over uniform": (-0.1, None), "B over it": (1, 0.1)})
    lines, words = results.verdicts, "not testable at this budget"
    assert [line["verdict"] for line in lines] == [words, "holds", words]
    assert lines[0]["evidence"] == "not learned: A over the best Gaussian" and lines[0]["p"] is None
    assert lines[2]["evidence"] == "4.1; not learned: A over uniform"


def test_a_file_from_before_verdicts_were_kept_reads_back(folder):
    path = make().save()
    document = json.loads(path.read_text())
    del document["verdicts"]
    path.write_text(json.dumps(document))
    again = load("smoke", "nb")
    assert again.verdicts == [] and len(again) == 1


@settings(deadline=None, max_examples=30)  # each example asks git
@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    stderr=st.none() | st.floats(0, 1e300),
    status=st.sampled_from(STATUSES[:3]),
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1),
)
def test_any_row_survives_the_file(value, stderr, status, text):
    results = make(value=value, stderr=stderr, status=status, row=f"r{text}", note=text)
    results.save()
    assert load("smoke", "nb").frame().equals(results.frame())


def test_rows_from_disk_cannot_be_given_a_new_birth_certificate():
    make().save()
    again = load("smoke", "nb")
    with pytest.raises(ValueError, match="read from disk"):
        again.add(**CELL, value=1.0)
    with pytest.raises(ValueError, match="read from disk"):
        again.save()


def test_files_that_are_missing_broken_or_incomplete_say_what_to_run(folder):
    again = "run python -m psmlib.run notebook nb --profile smoke"
    with pytest.raises(FileNotFoundError, match=f"data/results/smoke/nb.json is not there: {again}"):
        load("smoke", "nb")
    path = make().save()
    document = json.loads(path.read_text())
    for broken in ("{", "[]", json.dumps({"rows": []}), json.dumps(document).replace('"NLL"', "7")):
        path.write_text(broken)
        with pytest.raises(ValueError, match=f"nb.json cannot be read .*: {again}"):
            load("smoke", "nb")


def test_a_failed_write_leaves_the_old_file_and_no_scrap(folder, monkeypatch):
    path = make().save()
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        make(value=0.9).save()
    assert path.read_bytes() == before and [f.name for f in path.parent.iterdir()] == ["nb.json"]


def test_provenance_tells_how_the_figures_came_to_be():
    results = make()
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert results.data_hash("toy", data) == results.data_hash("copy", torch.from_numpy(data))
    assert results.data_hash("raw", b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert results.data_hash("other", data.reshape(3, 2)) != results.data_hash("toy", data)
    with pytest.raises(ValueError, match="takes bytes, an array or a tensor, got list"):
        results.data_hash("bad", [1])
    results.save()
    told = results.provenance
    assert told["parameters"] == {"dataset": "TY", "seeds": 0} and told["seeds"] == [0, 1, 2]
    assert set(told["versions"]) == {"python", "psmlib", "torch", "numpy", "scipy"}
    assert torch.__version__.startswith(told["versions"]["torch"]) and told["versions"]["numpy"] == np.__version__
    assert told["threads"] == torch.get_num_threads() and told["device"]
    assert 50 < told["peak_memory_mib"] < 1e6 and told["peak_gpu_memory_mib"] is None
    assert set(told["data_sha256"]) == {"toy", "copy", "raw", "other"}
    assert re.fullmatch("[0-9a-f]{64}", told["source_sha256"])


def test_wall_time_runs_from_the_making_of_the_results(monkeypatch):
    clock = iter([100.0, 0.0, 107.25])  # the second is asked for while the record is looked at
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    results = make()
    results.save()
    assert results.provenance["wall_seconds"] == 7.25


def test_no_folder_of_this_machine_gets_into_the_file():
    results = Results("nb", "smoke", {"weights": paths.ROOT / "data/w.st", "other": "/srv/someone/x.st"})
    note = f"read {paths.ROOT}/data/a.toml; '/var/tmp/b.bin' failed; a/b, 1 / 2, https://x.org/a/b stay"
    results.add(**CELL, value=1.0, note=note)
    text = results.save().read_text()
    assert str(paths.ROOT) not in text and "someone" not in text and "/var" not in text
    assert results.provenance["parameters"] == {"weights": "data/w.st", "other": "x.st"}
    kept = load("smoke", "nb").frame().loc[0, "note"]
    assert kept == "read data/a.toml; 'b.bin' failed; a/b, 1 / 2, https://x.org/a/b stay"

"""The command line of the benchmarks, and a small run of each."""

import csv
import types

import pytest
import torch

from psmlib import bench
from psmlib.benchmarks import likelihood, steps
from psmlib.benchmarks.timing import Row
from psmlib.machine import paths

ROW = Row("TY, a case", "psmlib", "rate", "1/s", 5, (90.0, 100.0, 110.0), (1.9, 2.0, 2.1), 0.5, 'a "note", with commas')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where this test's rows go."""
    monkeypatch.setattr(paths, "BENCH", tmp_path / "bench")
    return tmp_path / "bench"


def read(path):
    """The rows of a file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_file_with_other_columns_is_refused_before_anything_runs(folder, monkeypatch, capsys):
    folder.mkdir()
    (folder / "steps.csv").write_text("date,speed\n2020-01-01,3\n")
    monkeypatch.setattr(steps, "run", lambda settings: pytest.fail("it ran"))
    assert bench.main(["steps", "--scale", "smoke"]) == 1
    assert (
        "steps.csv cannot be read (it lacks the column 'commit', another version wrote it)" in capsys.readouterr().err
    )
    assert (folder / "steps.csv").read_text() == "date,speed\n2020-01-01,3\n"


def test_list_names_every_benchmark_and_runs_none(folder, capsys):
    assert bench.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in bench.BENCHMARKS) and not folder.exists()


def test_an_unknown_name_is_one_sentence(folder, capsys):
    assert bench.main(["speed"]) == 2
    assert capsys.readouterr().err == "unknown benchmark 'speed': use one of " + ", ".join(bench.BENCHMARKS) + "\n"


def test_every_benchmark_has_every_scale():
    for module in bench.BENCHMARKS.values():
        assert tuple(module.SCALES) == bench.SCALE_NAMES
    full = likelihood.SCALES["full"]
    assert (full.points, full.steps * full.rounds) == (30000, 1000)


def test_a_failure_keeps_its_rows_and_stops_no_other(folder, monkeypatch, capsys):
    def broken(_):
        yield ROW
        raise RuntimeError("the values differ")

    fakes = {"broken": broken, "sound": lambda _: iter([ROW])}
    modules = {name: types.SimpleNamespace(run=run, SCALES={"quick": None}) for name, run in fakes.items()}
    monkeypatch.setattr(bench, "BENCHMARKS", modules)
    assert bench.main([]) == 1
    assert len(read(folder / "broken.csv")) == len(read(folder / "sound.csv")) == 1
    assert "broken failed: the values differ" in capsys.readouterr().err


# The benchmarks themselves, small


def test_values_that_differ_fail_the_run_after_they_are_recorded(folder, monkeypatch, capsys):
    honest = likelihood.by_psmlib

    def wrong(*arguments):
        y, change = honest(*arguments)
        return y, change + 1e-3

    monkeypatch.setattr(likelihood, "by_psmlib", wrong)
    assert bench.main(["likelihood", "--scale", "smoke"]) == 1
    assert "log likelihoods of psmlib and torchdiffeq differ by" in capsys.readouterr().err
    assert float(read(folder / "likelihood.csv")[-1]["q50"]) > likelihood.TOLERANCE


@pytest.mark.parametrize("name", list(bench.BENCHMARKS))
def test_a_smoke_run_prints_and_records(name, folder, capsys):
    threads = torch.get_num_threads()
    assert bench.main([name, "--scale", "smoke"]) == 0
    assert torch.get_num_threads() == threads
    said, kept = capsys.readouterr().out, read(folder / f"{name}.csv")
    assert {row["threads"] for row in kept} == {"1"} and {row["scale"] for row in kept} == {"smoke"}
    assert all(row["case"] in said and row["method"] in said for row in kept)
    timed = [row for row in kept if row["warm_up_seconds"]]
    assert timed or name in ("steps", "clustering")
    for row in timed:
        assert 0 < float(row["q20"]) <= float(row["q50"]) <= float(row["q80"]) and float(row["warm_up_seconds"]) > 0
    assert all(row["q50"] or "not measured" in row["note"] or name == "steps" for row in kept)
    if name == "training":
        methods = ["plain loop", "direct sampling", "psmlib"]
        assert [row["method"] for row in kept] == methods * 2
        assert {row["ratio_q50"] for row in kept if row["method"] == "plain loop"} == {"1"}
    if name == "likelihood":
        assert [row["method"] for row in timed] == ["torchdiffeq", "psmlib"] * 2 + ["torch"] * 2
        assert float(kept[-1]["q50"]) <= 1e-4
    if name == "denoiser":
        assert len({row["case"] for row in kept}) == 7  # two noises of three data sets, and the check
        assert {row["ratio_q50"] for row in timed if row["measure"] == "queries a second"} > {"1"}
        assert float(kept[-1]["q50"]) <= 1e-4
    if name == "steps":
        found = [row for row in kept if row["measure"] == "fewest steps" and row["q50"]]
        assert found and all(int(row["q50"]) < 80 and float(row["ratio_q50"]) > 1 for row in found)
        means = [float(row["q50"]) for row in kept if row["measure"] == "difference of the mean NLL"]
        assert len(means) == len(found) and max(map(abs, means)) <= steps.TOLERANCE


def test_no_write_writes_nothing(folder, monkeypatch):
    monkeypatch.setattr(steps, "run", lambda settings: iter([ROW]))
    assert bench.main(["steps", "--scale", "smoke", "--no-write"]) == 0
    assert not folder.exists()

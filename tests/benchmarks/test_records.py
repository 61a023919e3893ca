"""Reading the benchmarks' files."""

from dataclasses import replace

import pytest

from psmlib import bench
from psmlib.benchmarks import records
from psmlib.benchmarks.timing import Row
from psmlib.machine import paths

ROW = Row("10 networks", "psmlib", "rate", "1/s", 5, (90.0, 100.0, 110.0), (1.9, 2.0, 2.1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BENCH", tmp_path)
    about = dict(bench.stamp("quick"), device="A", date="2026-01-01")
    for date, value in (("2026-01-01", 1.0), ("2026-01-02", 2.0)):
        rows = [ROW, replace(ROW, method="torch", values=(None, value, None), ratios=(None, None, None))]
        bench.append(bench.path_of("x"), [bench.record("x", row, {**about, "date": date}) for row in rows])
    smoke = {**about, "scale": "smoke", "device": "B"}
    bench.append(bench.path_of("x"), [bench.record("x", ROW, smoke)])
    return tmp_path


def test_what_was_written_is_read(folder):
    frame = records.load("x")
    assert len(frame) == 5 and frame["q50"].tolist()[:2] == [100.0, 1.0]
    assert frame["note"].tolist()[0] == "" and frame["ratio_q50"].isna().tolist()[1]
    assert records.load("never").empty
    assert len(records.load("x", folder)) == 5


def test_the_last_run_of_each_device_counts(folder):
    frame = records.latest(records.load("x"))
    assert set(frame["device"]) == {"A"} and set(frame["date"]) == {"2026-01-02"}
    assert set(records.latest(records.load("x"), ("smoke",))["device"]) == {"B"}
    assert records.latest(records.load("never")).empty


def test_one_figure(folder):
    frame = records.latest(records.load("x"))
    assert records.figure(frame, "psmlib", "rate") == (90.0, 100.0, 110.0)
    assert records.figure(frame, "torch", "rate", "10 net") == (2.0, 2.0, 2.0)
    assert records.figure(frame, "torch", "rate", "20 net") is None


def test_another_layout_is_refused(folder):
    (folder / "y.csv").write_text("date,commit\n1,2\n")
    with pytest.raises(ValueError, match="y.csv lacks the column 'dirty': another version wrote it"):
        records.load("y")

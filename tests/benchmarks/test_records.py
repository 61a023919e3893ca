"""Writing and reading the benchmarks' files."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from psmlib.benchmarks import records
from psmlib.benchmarks.timing import Row
from psmlib.machine import paths

ROW = Row("10 networks", "psmlib", "rate", "1/s", 5, (90.0, 100.0, 110.0), (1.9, 2.0, 2.1), 0.5)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Where this test's rows go."""
    monkeypatch.setattr(paths, "BENCH", tmp_path / "bench")
    return tmp_path / "bench"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BENCH", tmp_path)
    about = dict(records.stamp("quick"), device="A", date="2026-01-01")
    for date, value in (("2026-01-01", 1.0), ("2026-01-02", 2.0)):
        rows = [ROW, replace(ROW, method="torch", values=(None, value, None), ratios=(None, None, None))]
        records.append(records.path_of("x"), [records.record("x", row, {**about, "date": date}) for row in rows])
    smoke = {**about, "scale": "smoke", "device": "B"}
    records.append(records.path_of("x"), [records.record("x", ROW, smoke)])
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
    with pytest.raises(ValueError, match="y.csv .*it lacks the column 'dirty', another version wrote it"):
        records.load("y")


def test_rows_are_added_and_the_header_is_written_once(empty):
    path, about = records.path_of("training"), records.stamp("smoke")
    records.append(path, [records.record("training", ROW, about)])
    first = path.read_bytes()
    records.append(path, [records.record("training", replace(ROW, case=case), about) for case in ("HG", "XY")])
    assert path.read_bytes().startswith(first)
    assert records.load("training")["case"].tolist() == [ROW.case, "HG", "XY"]
    assert path.read_text().count("ratio_q50") == 1
    assert [p.name for p in empty.iterdir()] == ["training.csv"]


def test_a_row_says_what_was_measured_where_and_with_what():
    row = records.record("training", ROW, records.stamp("quick"))
    assert tuple(row) != () and set(row) == set(records.COLUMNS) and None not in row.values()
    assert [row[key] for key in ("q20", "q50", "q80")] == ["90", "100", "110"]
    assert [row[key] for key in ("ratio_q20", "ratio_q50", "ratio_q80")] == ["1.9", "2", "2.1"]
    assert (row["name"], row["runs"], row["warm_up_seconds"], row["scale"]) == ("training", "5", "0.5", "quick")
    assert row["torch"] == torch.__version__.split("+")[0] or row["torch"] == torch.__version__
    assert row["numpy"] == np.__version__ and row["dirty"] in ("yes", "no", "unknown") and row["device"]
    single = records.record("x", Row.single("c", "m", "steps", "1", 23, ratio=2.5), records.stamp("quick"))
    assert [single[key] for key in ("q20", "q50", "q80", "ratio_q50", "warm_up_seconds")] == ["", "23", "", "2.5", ""]


def test_commas_and_quotes_come_back_as_they_were(empty):
    row = replace(ROW, note='a "note", with commas')
    records.append(records.path_of("x"), [records.record("x", row, records.stamp("smoke"))])
    assert records.load("x")["note"].tolist() == [row.note]


def test_a_write_that_fails_leaves_the_file_as_it_was(empty, monkeypatch):
    record = records.record("x", ROW, records.stamp("smoke"))
    path = records.append(records.path_of("x"), [record])
    before = path.read_bytes()

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        records.append(path, [record])
    assert path.read_bytes() == before and len(list(empty.iterdir())) == 1


def test_two_writers_at_once_lose_no_row(empty):
    path, about = records.path_of("x"), records.stamp("smoke")
    rows = [records.record("x", replace(ROW, case=str(i)), about) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: records.append(path, [row]), rows))
    assert sorted(map(int, records.load("x")["case"])) == list(range(40))


def test_a_last_line_without_its_end_is_not_run_into(empty):
    path = records.append(records.path_of("x"), [records.record("x", ROW, records.stamp("smoke"))])
    path.write_text(path.read_text().rstrip("\n"))
    records.append(path, [records.record("x", ROW, records.stamp("smoke"))])
    assert records.load("x")["case"].tolist() == [ROW.case] * 2


def test_lines_of_a_table_need_every_measure(folder):
    frame = records.latest(records.load("x"))
    made = records.lines(frame, {"rate": "steps a second"}, "to torch", "{:.0%}")
    assert [(line["who"], line["steps a second"], line["to torch"]) for line in made] == [
        ("psmlib", 100.0, "200%"),
        ("torch", 2.0, None),
    ]
    assert records.lines(frame, {"rate": "a", "memory": "b"}) == []

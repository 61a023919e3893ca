"""The file of exact values: complete, nothing left over, and what its command computes."""

import json

import pytest

from psmlib.evaluation import exact_values
from psmlib.exact.cross_entropy import fingerprint
from psmlib.machine import paths


def rows():
    return json.loads(paths.EXACT_VALUES.read_text(encoding="utf-8"))["values"]


def test_the_file_holds_the_standard_values_and_no_others():
    found = rows()
    assert len(found) == len(exact_values.standard()) == 11
    for row, (mixture, process, t0) in zip(found, exact_values.standard(), strict=True):
        where = float(process.alpha(t0)), float(process.sigma(t0))
        assert (row["alpha"], row["sigma"]) == pytest.approx(where, rel=1e-9)
        assert (row["name"], row["mixture"]) == (mixture.name, fingerprint(mixture, where[0]))
        assert 0 <= row["error"] < 1e-6


def test_the_command_finds_the_cheap_values_again(monkeypatch, tmp_path, capsys):
    recorded, standard = rows(), exact_values.standard()
    cheap = [i for i, row in enumerate(recorded) if row["name"] != "TY" and row["protocol"] == "entropy"]
    monkeypatch.setattr(paths, "EXACT_VALUES", tmp_path / "new" / "values.json")
    monkeypatch.setattr(exact_values, "standard", lambda: [standard[i] for i in cheap])
    exact_values.main()
    assert "wrote" in capsys.readouterr().out and len(rows()) == 2
    for new, i in zip(rows(), cheap, strict=True):
        assert new["value"] == pytest.approx(recorded[i]["value"], abs=1e-11)
        assert all(new[key] == recorded[i][key] for key in ("name", "mixture", "protocol"))

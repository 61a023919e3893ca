"""Figures are drawn in the style of the book, off screen, and must be closed."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from psmlib.book import plots

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def look(monkeypatch):
    monkeypatch.delenv("PSMLIB_BATCH", raising=False)  # a reader's own run
    with matplotlib.rc_context():
        plots.style()
        yield
    assert matplotlib.pyplot.get_fignums() == [], "a figure left with pyplot is shown twice in a notebook"


@pytest.fixture
def frame() -> pd.DataFrame:
    """Figures of two data sets, one missing and one without an error."""
    rows = [
        ("TY", "SA-DPM", 0.8, 0.05, 0.48, 0.47, 0.76),
        ("TY", "TPSM-B", 0.6, 0.01, 0.48, 0.47, 0.64),
        ("TY", "TPSM-B, conditioned", 0.5, np.nan, 0.48, 0.47, np.nan),
        ("HG", "SA-DPM", 1.2, 0.02, 0.96, np.nan, 1.11),
        ("HG", "TPSM-B", np.nan, np.nan, 0.96, np.nan, 1.04),
    ]
    return pd.DataFrame(rows, columns=["dataset", "column", "value", "stderr", "exact", "bound", "printed"])

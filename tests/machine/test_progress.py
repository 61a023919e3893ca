"""Progress bars: all items pass, and nothing remains in a terminal, a file, a notebook or a batch run."""

import io
import sys
from types import SimpleNamespace

import IPython
import IPython.display
import pytest
from tqdm import tqdm

from psmlib.machine import progress
from psmlib.machine.progress import bar, training_bar


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Notebook:
    """Stands for IPython's display: remembers what the one updatable output showed."""

    def __init__(self):
        self.shown: list[str] = []

    def display(self, thing, display_id=False):
        assert display_id is True, "the output must be updatable"
        self.shown.append(thing.data)
        return SimpleNamespace(update=lambda new: self.shown.append(new.data))


@pytest.fixture
def notebook(monkeypatch) -> Notebook:
    """A notebook opened by a person."""
    fake = Notebook()
    monkeypatch.delenv("PSMLIB_BATCH", raising=False)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(IPython.display, "display", fake.display)
    return fake


def open_terminal(monkeypatch) -> Terminal:
    """Puts a terminal in the place of stderr; not a fixture, because pytest sets stderr anew for each test."""
    stream = Terminal()
    monkeypatch.delenv("PSMLIB_BATCH", raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def states(n: int, updates: int = 200):
    """What fit yields: 50 updates at a time, starting after a checkpoint at 50."""
    return (SimpleNamespace(update=50 * (i + 2), updates=updates) for i in range(n))


def bars():
    """Both bars over three items each, as (what went in, what came out)."""
    items = [object() for _ in range(3)]
    yield items, bar(items, every=0.0)
    items = list(states(3))
    yield items, training_bar(iter(items))


def test_items_pass_through_in_order_and_one_at_a_time():
    for items, out in bars():
        assert next(out) is items[0] and list(out) == items[1:]
    taken = []
    first = next(bar(taken.append(i) or i for i in range(5)))
    assert first == 0 and taken == [0], "a bar must not run ahead"
    assert list(bar([])) == list(training_bar([])) == []


def test_nothing_is_written_when_stderr_is_not_a_terminal(capsys, monkeypatch):
    monkeypatch.delenv("PSMLIB_BATCH", raising=False)
    for items, out in bars():
        assert list(out) == items
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_line_that_disappears(monkeypatch):
    terminal = open_terminal(monkeypatch)
    assert list(bar(range(3), label="steps", every=0.0)) == [0, 1, 2]
    text = terminal.getvalue()
    assert "steps" in text and "3/3" in text and "\n" not in text
    assert text.endswith("\r") and text.split("\r")[-2].strip() == "", "the last thing written blanks the line"


def test_training_counts_updates_from_where_it_stands(monkeypatch):
    open_terminal(monkeypatch)
    monkeypatch.setattr(progress, "tqdm", lambda items, **kw: made.append(kw) or Line())
    made: list[dict] = []

    class Line:
        def __init__(self):
            self.total, self.n, self.closed = None, 0, False
            lines.append(self)

        def update(self, by):
            self.n += by
            seen.append(self.n)

        def close(self):
            self.closed = True

    lines: list[Line] = []
    seen: list[int] = []
    assert len(list(training_bar(states(3)))) == 3
    assert seen == [100, 150, 200] and lines[0].total == 200 and lines[0].closed
    assert made[0]["unit"] == "update" and made[0]["disable"] is False


def test_batch_runs_are_silent_even_in_a_terminal_or_a_notebook(notebook, monkeypatch):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("PSMLIB_BATCH", "1")
    for items, out in bars():
        assert list(out) == items
    assert terminal.getvalue() == "" and notebook.shown == []


def test_a_notebook_gets_one_output_that_is_emptied_at_the_end(notebook, capsys, monkeypatch):
    monkeypatch.setattr(progress, "tqdm", lambda *a, **kw: tqdm(*a, **{**kw, "mininterval": 0.0}))
    assert list(bar(range(3), label="steps", every=0.0)) == [0, 1, 2]
    assert any("steps" in text and "3/3" in text for text in notebook.shown)
    assert notebook.shown[-1] == "" and all("\r" not in t and "\n" not in t for t in notebook.shown)
    notebook.shown.clear()
    assert len(list(training_bar(states(3)))) == 3
    assert any("training" in text and "100/200" in text for text in notebook.shown) and notebook.shown[-1] == ""
    assert capsys.readouterr() == ("", "")


def test_the_output_is_emptied_when_the_work_fails_or_is_left(notebook):
    def failing():
        yield from states(1)
        raise FloatingPointError("nan")

    for make in (bar, training_bar):
        with pytest.raises(FloatingPointError):
            list(make(failing()))
        assert len(notebook.shown) > 1 and notebook.shown[-1] == ""
        notebook.shown.clear()
        running = make(states(3))
        next(running)
        running.close()
        assert len(notebook.shown) > 1 and notebook.shown[-1] == ""
        notebook.shown.clear()


def test_an_ipython_terminal_is_no_notebook(monkeypatch, capsys):
    monkeypatch.delenv("PSMLIB_BATCH", raising=False)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace())
    assert list(bar(range(3))) == [0, 1, 2]
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert list(bar(range(3))) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")

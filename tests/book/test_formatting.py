"""Formatting of figures to the digits that the error supports, of budgets, and of Markdown tables."""

import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from psmlib.book.formatting import budget_words, fmt, markdown_table, plus_minus, value_and_error
from psmlib.book.paper_values import Printed


def parsed(text: str) -> list[list[str]]:
    """Rows of the Markdown table in a text, as an independent parser reads them."""
    rows, tokens = [], MarkdownIt("commonmark").enable("table").parse(text)
    for token, inner in zip(tokens, tokens[1:], strict=False):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(inner.content)
    return rows


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.61234, 0.0041), "0.612 ± 0.004"),
        ((0.61234, 0.00141), "0.6123 ± 0.0014"),
        ((0.61234, 0.00199), "0.612 ± 0.002"),
        ((0.6, 0.00097), "0.6000 ± 0.0010"),
        ((-0.0001, 0.002), "0.000 ± 0.002"),
        ((-1.25, 0.3), "−1.2 ± 0.3"),
        ((51234.5, 320), "51,200 ± 300"),
        ((51234.5, 1320), "51,200 ± 1,300"),
        ((0.25, 0.0), "0.250"),
        ((3.0, 0.0), "3"),
        ((0.0, 1e-5), "(0.0 ± 1.0)e-05"),
        ((-2e-5,), "−2e-05"),
        ((2.5e-7, 3e-8), "(2.5 ± 0.3)e-07"),
        ((0.5, 1e-9), "0.500000000 ± 1e-09"),
        ((0.58,), "0.580"),
        ((Printed("0.330"),), "0.330"),
        ((Printed("-1234.50"),), "−1,234.50"),
        ((Printed("8000"),), "8,000"),
        ((1.23456,), "1.235"),
        ((1234.56,), "1,235"),
        ((8000,), "8,000"),
        ((-8000.0,), "−8,000"),
        ((0.000123,), "0.000123"),
        ((0,), "0"),
        ((None,), "–"),
        ((float("nan"), 0.1), "–"),
        ((0.5, float("nan")), "0.500"),
        ((float("-inf"),), "−∞"),
        ((torch.tensor(0.5), torch.tensor(0.25)), "0.5 ± 0.2"),
    ],
)
def test_fmt_shows_the_digits_that_the_error_supports(arguments, text):
    assert fmt(*arguments) == text


@settings(deadline=None)
@given(value=st.floats(-1e6, 1e6), stderr=st.floats(1e-6, 1e4))
def test_fmt_rounds_by_no_more_than_a_fraction_of_the_error(value, stderr):
    assume(abs(value) > 1e-2)
    shown, error = (float(t.replace(",", "").replace("−", "-")) for t in fmt(value, stderr).split(" ± "))
    assert abs(shown - value) <= 0.27 * stderr
    assert abs(error - stderr) <= 0.27 * stderr


def test_budget_is_said_in_words_in_a_fixed_order():
    budget = {
        "width": 1500,
        "nfe": 1,
        "steps_per_block": 4,
        "ema": False,
        "batch_size": 512,
        "blocks": 2,
        "updates": 1,
    }
    words = "1 update, 2 blocks, batch size 512, 1 NFE, no ema, 4 steps per block, width 1,500"
    assert budget_words(budget) == words
    assert budget_words(dict(reversed(budget.items()))) == words
    assert budget_words({}) == ""
    assert budget_words({"solver": {"method": "rk4", "t0": 1e-4}}) == "solver (method rk4, t0 = 0.0001)"


@pytest.mark.parametrize(
    ("cells", "rule"),
    [
        ([0.5, None], "-"),
        (["0.612 ± 0.004 (3)", "–"], "-"),
        (["(2.5 ± 0.3)e-07"], "-"),
        (["0.61 ± 0.01 (exact 0.48)", "not run"], "-"),
        (["0.393 ± 0.002†", "0.475"], "-"),
        (["−8,000"], "-"),
        (["8,000 updates, 4 blocks"], ":"),
        (["3D", "1"], ":"),
        (["words"], ":"),
    ],
)
def test_numbers_go_right_and_words_left(cells, rule):
    line = markdown_table(pd.DataFrame({"x": cells})).split("\n")[1]
    assert line[1] == rule and line.endswith(":|" if rule == "-" else "-|")


def test_alignment_can_be_asked_for_and_is_checked():
    frame = pd.DataFrame({"a": [1], "b": [2], "c": [3]})
    assert markdown_table(frame, "lcr").split("\n")[1] == "|:----|:---:|----:|"
    with pytest.raises(ValueError, match="align is 'lx': give one of l, c, r for each of the 3 columns"):
        markdown_table(frame, "lx")


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=8), min_size=1))
def test_no_text_breaks_out_of_its_cell(texts):
    assume(not any("\\" in t or "`" in t for t in texts))
    rows = parsed(markdown_table(pd.DataFrame({"x": texts, "y": "end"})))
    assert rows[1:] == [[t or "–", "end"] for t in texts]


@pytest.mark.parametrize("row", [lambda f: next(f.itertuples()), lambda f: f.iloc[0], lambda f: (0.61, 0.02)])
def test_a_row_of_results_a_series_and_a_pair_carry_their_error(row):
    figure = row(pd.DataFrame({"row": ["TY"], "value": [0.61], "stderr": [0.02]}))
    assert value_and_error(figure) == (0.61, 0.02) and fmt(figure) == "0.61 ± 0.02"
    assert plus_minus(figure, sign=True) == "+0.610 ± 0.020"

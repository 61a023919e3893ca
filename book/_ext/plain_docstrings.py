"""Lets the library's docstrings be plain text with `code` in single backticks: the API page shows them so.

Docstrings speak of shapes such as (n, *shape) and of |x|^2; to Sphinx those are broken mark-up, and a warning
is an error here. Doctests, roles such as :math:`x`, double backticks and list items are left alone.
"""

import re
from typing import Any

_DOCTEST = re.compile(r"^[ \t]*>>> .*?(?=\n[ \t]*\n|\Z)", re.DOTALL | re.MULTILINE)
_VERBATIM = re.compile(r"(``.+?``|:[a-z:]+:`[^`]+`|`[^`]+`_+)", re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_ITEM = re.compile(r"(^[ \t]*)\\\*(?= )", re.MULTILINE)


def plain(text: str) -> str:
    """Turn a plain docstring into reStructuredText that shows the same characters.

    Args:
        text: The docstring.

    Returns:
        Its mark-up characters escaped, and single backticks doubled.
    """
    done, position = [], 0
    for doctest in _DOCTEST.finditer(text):
        done += [_escape(text[position : doctest.start()]), doctest.group()]
        position = doctest.end()
    return "".join([*done, _escape(text[position:])])


def _escape(text: str) -> str:
    pieces = _VERBATIM.split(text)
    for i in range(0, len(pieces), 2):  # the odd ones are verbatim
        inner = _CODE.split(pieces[i])
        inner[::2] = [_ITEM.sub(r"\1*", re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", t)) for t in inner[::2]]
        inner[1::2] = [f"``{t}``" for t in inner[1::2]]
        pieces[i] = "".join(inner)
    return "".join(pieces)


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = plain("\n".join(lines)).split("\n")


def setup(app: Any) -> dict[str, bool]:
    """Register the extension with Sphinx, ahead of napoleon."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}

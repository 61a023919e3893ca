"""Strict notebook parameters: an unknown name or a wrong type is an error before anything runs.

papermill itself only logs an unknown parameter and continues. Here the names and types come from the literals of the
notebook's `parameters` cell, and the choices from its comments, such as `# TY | HG | all`. The runner checks them
before it starts a kernel; a notebook calls `check` in its first cells, so that they are also checked when papermill is
called directly.
"""

import ast
import difflib
import io
import math
import re
import sys
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psmlib.machine import paths
from psmlib.machine.files import read_notebook, reading
from psmlib.machine.priority import step_back

PROFILES: tuple[str, ...] = ("record", "smoke", "quick", "gpu", "night", "paper")  # by the budget
COMPUTES = "# Compute:"  # how the cells begin that profile record leaves out


class ParameterError(ValueError):
    """A parameter that the notebook does not know, or a value of the wrong type or outside its choices."""


def template_of(name: str) -> Path:
    """The path of a notebook, from its name.

    Raises:
        ParameterError: If it is no plain name, such as a path.

    Example:
        >>> template_of("psm_toys").name
        'psm_toys.ipynb'
        >>> template_of("../psm_toys")
        Traceback (most recent call last):
        psmlib.book.parameters.ParameterError: '../psm_toys' is no name of a notebook: give one such as psm_toys.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ParameterError(f"{name!r} is no name of a notebook: give one such as psm_toys.")
    return paths.NOTEBOOKS / f"{name}.ipynb"


def declared(template: Path) -> dict[str, Any]:
    """Return the parameters a notebook declares, with their default values.

    Args:
        template: Path of a notebook with one cell tagged `parameters` that holds plain literals.

    Returns:
        Names and default values, in the order of the cell.

    Raises:
        ParameterError: If the notebook is missing or names no kernel, or declares anything but literals.
        FileError: If it is damaged.
    """
    if not template.is_file():
        known = ", ".join(sorted(p.stem for p in template.parent.glob("*.ipynb"))) or "none"
        raise ParameterError(f"There is no notebook {template.stem!r}: notebooks/ has {known}.")
    values = {}
    for name, node, _ in _assignments(template):
        try:
            values[name] = ast.literal_eval(node)
        except ValueError:
            text = f"{template.stem} sets {name} = {ast.unparse(node)} in its parameters cell: write a literal."
            raise ParameterError(text) from None
    return values


def convert(name: str, text: str, default: Any) -> Any:
    """Turn command-line text into a value of the default's type.

    Args:
        name: Name of the parameter, for the error message.
        text: The text from the command line.
        default: The default in the notebook; the value must have its type.

    Returns:
        The value.

    Raises:
        ParameterError: If the text is not a value of that type.

    Example:
        >>> convert("seeds", "3", 0), convert("rate", "1e-3", 0.1), convert("ema", "true", False)
        (3, 0.001, True)
        >>> convert("seeds", "many", 0)
        Traceback (most recent call last):
        psmlib.book.parameters.ParameterError: seeds must be of type int, like 0, not 'many'.
    """
    if isinstance(default, str):
        return text
    try:  # true and false may be written in lower case
        value = ast.literal_eval(text.capitalize() if isinstance(default, bool) else text)
    except (ValueError, SyntaxError, TypeError):
        value = text
    _check_type(name, value, default)
    return float(value) if isinstance(default, float) else value


def resolve(template: Path, given: Mapping[str, str]) -> dict[str, Any]:
    """Check the parameters of a command line against those that the notebook declares.

    Args:
        template: Path of the notebook.
        given: Names and texts from the command line.

    Returns:
        Every declared parameter with the value it will have.

    Raises:
        ParameterError: If a name is unknown or a value has the wrong type.
    """
    known = declared(template)
    _check_names(template.stem, given, known)
    values = known | {name: convert(name, text, known[name]) for name, text in given.items()}
    _check_values(values, comments(template))
    return values


def check(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Check, inside a running notebook, the parameters that papermill or the reader has set.

    At profile record the cells below that begin with `COMPUTES` are left out from here on; at profile night the kernel
    lets everything else on the machine go first.

    Args:
        notebook: Name of the notebook without its suffix, such as `"psm_toys"`.
        namespace: The notebook's `globals()`.

    Returns:
        The declared parameters with their present values.

    Raises:
        ParameterError: If papermill injected a name that the notebook does not declare, or a type is wrong.
    """
    template = template_of(notebook)
    known = declared(template)
    _check_names(notebook, _injected(namespace.get("In", ())), known)
    values = {name: namespace[name] for name in known}
    for name, value in values.items():
        _check_type(name, value, known[name])
    _check_values(values, comments(template))
    _compute(values.get("profile") != "record")
    if values.get("profile") == "night":
        step_back()
    return values


def leave_out(lines: list[str]) -> list[str]:
    """The lines of a cell, or none if it computes.

    Example:
        >>> leave_out(["# Compute: the runs", "x = 1"]), leave_out(["x"])
        ([], ['x'])
    """
    first = next((line for line in lines if line.strip()), "")
    return [] if first.startswith(COMPUTES) else lines


def _compute(wanted: bool) -> None:
    """Lets the kernel run the cells that compute, or leave them out."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        kept = [f for f in shell.input_transformers_cleanup if f is not leave_out]
        shell.input_transformers_cleanup[:] = kept if wanted else [*kept, leave_out]


def comments(template: Path) -> dict[str, str]:
    """What the parameters cell of a notebook says beside each parameter, by name; empty where it says nothing."""
    return {name: said for name, _, said in _assignments(template)}


def _assignments(template: Path) -> list[tuple[str, ast.expr, str]]:
    """Each name that the parameters cell sets, to what, and the comment beside it."""
    document = read_notebook(template)
    with reading(f"{template.parent.name}/{template.name}", "restore it from the repository"):
        kernel = document["metadata"].get("kernelspec", {}).get("name")
        cells = [c for c in document["cells"] if "parameters" in c["metadata"].get("tags", [])]
        source = "".join(cells[0]["source"]) if cells else ""
        body = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        beside = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        found = []
        for node in body:
            lines = range(node.lineno, node.end_lineno + 1)
            said = next((beside[line] for line in lines if line in beside), "")
            found += [(target.id, node.value, said) for target in node.targets if isinstance(target, ast.Name)]
    if not kernel:
        raise ParameterError(f"{template.stem} names no kernel: set its kernelspec to python3.")
    if not found:
        raise ParameterError(f"{template.stem} has no parameters: tag a cell of literals 'parameters'.")
    return found


def _injected(history: Any) -> list[str]:
    """Return the names set by the cell that papermill injects, which its first line in the history marks."""
    cells = [text for text in history if text.startswith("# Parameters\n")]
    statements = [node for text in cells[:1] for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    return [target.id for node in statements for target in node.targets if isinstance(target, ast.Name)]


def _check_names(notebook: str, given: Any, known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            takes = ", ".join(f"{key} ({type(value).__name__})" for key, value in known.items())
            raise ParameterError(f"{notebook} has no parameter {name!r}{hint}: it takes {takes}.")


def _check_type(name: str, value: Any, default: Any) -> None:
    wanted = type(default)
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise ParameterError(f"{name} must be of type {wanted.__name__}, like {default!r}, not {value!r}.")


def _check_values(values: Mapping[str, Any], said: Mapping[str, str]) -> None:
    """Refuses values outside their choices, negative counts, devices that are none, and paths of no file."""
    for name, value in values.items():
        choices = [word.strip() for word in re.split("[,;]", said.get(name, ""))[0].split("|")]
        if name == "profile" and value not in PROFILES:
            raise ParameterError(f"There is no profile {value!r}: take {', '.join(PROFILES)}.")
        if isinstance(value, str) and len(choices) > 1 and value not in choices:
            raise ParameterError(f"{name} = {value!r} is no choice: take {', '.join(choices)}.")
        if isinstance(value, int) and value < 0:
            raise ParameterError(f"{name} = {value} is negative: give 0 or more.")
        if name == "device":
            _check_device(value)
        if said.get(name, "").startswith("path of") and value and not Path(value).is_file():
            raise ParameterError(f"{name} = {value!r} names no file: give the {said[name]}.")


def _check_device(device: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ParameterError(f"device = {device!r} is none: take cpu, cuda, or one of several such as cuda:1.")
    if device != "cpu":
        import torch  # takes two seconds, and other devices do not need it

        if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise ParameterError(f"device = {device!r} is not there: torch sees {torch.cuda.device_count()} of CUDA.")

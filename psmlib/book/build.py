"""Build of the HTML book from executed notebooks, and a check that nothing is missing from it."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from docutils.nodes import make_id

from psmlib.book.notebooks import toc_pages
from psmlib.machine import paths
from psmlib.machine.files import FileError, read_notebook, read_text, reading, write_atomic

COPIED = ".psmlib-copied.json"  # in an output folder: what prepare has put there
WRITTEN = ("_executed", "_generated", "_build")  # folders of the book that runs and builds write
_NAME = re.compile(r"^\s*:name:\s*(\S+)\s*$", re.MULTILINE)
_INCLUDE = re.compile(r"\{include\}\s*(\S+)")


def prepare() -> None:
    """Copy the book's sources and the committed results to the output folder, if that is not the repository.

    What was copied is remembered there. Of that alone, outdated copies are replaced or removed: a file that a run or
    the reader has written, or changed, stays as it is.

    Raises:
        OutputError: If the folder has a book that was not copied there.
    """
    paths.check_output()
    if paths.OUTPUT == paths.ROOT:
        return
    copied = _copied()
    if not copied and paths.BOOK.is_dir() and {f.name for f in paths.BOOK.iterdir()} - {*WRITTEN}:
        raise paths.OutputError(f"{paths.BOOK} is not of this program's making: name another folder in PSMLIB_OUTPUT")
    book = paths.ROOT / "book"
    sources = [f for f in book.rglob("*") if f.relative_to(book).parts[0] not in WRITTEN]
    sources += (paths.DATA / "results").rglob("*")
    contents = {f.relative_to(paths.ROOT).as_posix(): f.read_bytes() for f in sources if f.is_file()}
    for name in copied.keys() - contents.keys():
        if _digest(paths.OUTPUT / name) == copied[name]:
            (paths.OUTPUT / name).unlink()
    now = {}
    for name, content in contents.items():
        if _digest(paths.OUTPUT / name) in (None, copied.get(name)):
            write_atomic(paths.OUTPUT / name, content)
            now[name] = hashlib.sha256(content).hexdigest()
    write_atomic(paths.OUTPUT / COPIED, json.dumps(now, indent=1) + "\n")


def _copied() -> dict[str, str]:
    """SHA-256 of what was copied to the output folder, by name."""
    try:
        with reading(paths.OUTPUT / COPIED, "name another folder in PSMLIB_OUTPUT"):
            found = json.loads(read_text(paths.OUTPUT / COPIED))
            for name, digest in found.items():
                if not isinstance(digest, str) or not (paths.OUTPUT / name).resolve().is_relative_to(paths.OUTPUT):
                    raise ValueError(f"it names {name}")
    except FileNotFoundError:
        return {}
    except FileError as error:
        raise paths.OutputError(str(error)) from None
    return found


def _digest(file: Path) -> str | None:
    """SHA-256 of a file, None where there is none, nothing where it cannot be read and so is none that was copied."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def build() -> str:
    """Run jupyter-book, with warnings as errors.

    Returns:
        Empty if the book was built, else the warnings and errors of jupyter-book.

    Raises:
        OutputError: If the folder of built pages was not made here.
    """
    old, log = paths.BUILD / "_build", paths.BUILD / "book.log"
    if paths.OUTPUT != paths.ROOT and old.exists() and not log.is_file():
        raise paths.OutputError(f"{old} is not of this program's making: name another folder in PSMLIB_OUTPUT")
    shutil.rmtree(old, ignore_errors=True)  # pages that are no longer in the book
    paths.BUILD.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).parent / "jupyter-book"
    command = [program if program.is_file() else "jupyter-book", "build", paths.BOOK, "--path-output", paths.BUILD]
    command += ["--config", paths.ROOT / "_config.yml", "--all", "-n", "-W", "--keep-going"]
    done = subprocess.run(command, cwd=paths.OUTPUT, capture_output=True, text=True, errors="replace")
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    write_atomic(log, output)
    if done.returncode == 0:
        return ""
    lines = [line for line in output.splitlines() if re.search(r"WARNING|ERROR|error:|Error:", line)]
    return "\n".join(lines or output.splitlines()[-12:])


@dataclass
class Expected:
    """What one page must show: the names of tables and figures, and the least number of each."""

    names: set[str]
    tables: int = 0
    images: int = 0


def expected(source: Path) -> Expected:
    """Read from the source of a page what its HTML must contain.

    Args:
        source: An executed notebook or a Markdown page.

    Returns:
        Names, number of captioned tables, and number of images.

    Raises:
        FileError: when it is damaged.
    """
    with reading(f"{source.parent.name}/{source.name}", "make it anew"):
        if source.suffix == ".md":
            text = read_text(source)
            included = [source.parent / name for name in _INCLUDE.findall(text)]
            texts = [text, *(read_text(f) for f in included if f.is_file())]
            return Expected({name for text in texts for name in _NAME.findall(text)})
        page = Expected(set())
        for cell in read_notebook(source, "run it again")["cells"]:
            tags = set(cell["metadata"].get("tags", []))
            if "remove-cell" in tags:
                continue
            if cell["cell_type"] == "markdown":
                page.names.update(_NAME.findall("".join(cell["source"])))
            elif "remove-output" not in tags:
                _add_outputs(page, cell)
    return page


def _add_outputs(page: Expected, cell: dict) -> None:
    if name := cell["metadata"].get("mystnb", {}).get("figure", {}).get("name"):
        page.names.add(str(name))
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            page.images += 1
        else:
            text = "".join(data.get("text/markdown", ""))
            page.names.update(_NAME.findall(text))
            page.tables += text.count("{table}")


def missing(pages: Iterable[str] | None = None) -> list[str]:
    """Compare the built book with its sources.

    Args:
        pages: Page names; by default all of the table of contents.

    Returns:
        One sentence for each page, table, figure or picture file that is missing.
    """
    found = []
    for page in toc_pages() if pages is None else pages:
        sources = [f for f in (paths.BOOK / f"{page}{end}" for end in (".ipynb", ".md")) if f.is_file()]
        html = paths.HTML / f"{page}.html"
        built = sources and html.is_file()
        absent = _missing_from(expected(sources[0]), html) if built else ["the page was not built."]
        found += [f"{page}: {what}" for what in absent]
    return found


def _missing_from(wanted: Expected, html: Path) -> list[str]:
    text = html.read_text(encoding="utf-8")
    body = text[text.find("<article") : text.rfind("</article>")]
    found = [f"no table or figure {n!r}." for n in sorted(wanted.names) if f'id="{make_id(n)}"' not in body]
    for what, number, tag in (("tables", wanted.tables, "<table"), ("figures", wanted.images, "<img")):
        if body.count(tag) < number:
            found.append(f"{body.count(tag)} {what} where its notebook has {number}.")
    local = [s for s in re.findall(r'<img[^>]*\ssrc="([^"]+)"', body) if not re.match(r"[a-z]+:", s)]
    return found + [f"picture {s} has no file." for s in local if not (html.parent / s).is_file()]

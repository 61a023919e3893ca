"""Data files that are not shipped with the book: how they are found, checked and downloaded.

The reader puts them under data/raw, or torchvision downloads them there. A file with a known checksum is verified
before it is opened. Nothing is unpacked under data/raw, which may be read-only.
"""

import hashlib
import tomllib
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path

from psmlib.machine import files, paths


@cache
def registry() -> dict[str, dict]:
    """The entries of registry.toml by name.

    Example:
        >>> registry()["digits"]["levels"]
        17
    """
    with files.reading("registry.toml", "install psmlib anew"):
        return tomllib.loads(files.read_text(Path(__file__).parent / "registry.toml"))


def size_in_words(size: int) -> str:
    """A number of bytes with its unit.

    Example:
        >>> size_in_words(6783426789), size_in_words(170498071), size_in_words(28881)
        ('6.8 GB', '170 MB', '29 kB')
    """
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if size >= one:
            return f"{size / one:.{int(size < 10 * one)}f} {unit}"
    return f"{size / 1e3:.0f} kB"


def raw() -> Path:
    """The folder for files that the reader provides."""
    return paths.DATA / "raw"


def shown_path(path: Path) -> str:
    """The path of a file in messages; under data/raw without the folders above."""
    return f"data/raw/{path.relative_to(raw()).as_posix()}" if path.is_relative_to(raw()) else path.name


def find(name: str, file: str) -> Path | None:
    """The path of a file of a data set: in its own folder, directly in data/raw, or of a package; None if in none."""
    entry = registry()[name]
    places = [raw() / entry["home"] / file, raw() / file]
    if "package" in entry:
        places.append(Path(entry["package"]["folder"]) / file)
    return next((path for path in places if path.is_file()), None)


def missing(name: str, files: list[dict]) -> FileNotFoundError:
    """The error for missing files: their names, sizes, source and folder, in one sentence."""
    entry = registry()[name]
    listed = ", ".join(f"{file['name']} ({size_in_words(file['bytes'])})" for file in files)
    where = (Path("data/raw") / entry["home"]).as_posix()
    ask = f", or install Debian's {entry['package']['name']}" if "package" in entry else ""
    ask += f', or call load("{name}", download=True)' if _downloadable(name, files[0]) else ""
    return FileNotFoundError(f"{name} needs {listed}: get from {entry['page']} and put in {where}{ask}")


def collect(name: str, download: bool = False) -> dict[str, Path]:
    """Finds and checks all files of a data set.

    Args:
        name: As in the registry.
        download: Let torchvision fetch files that are absent or damaged.

    Returns:
        Path of each file by its name.

    Raises:
        FileNotFoundError: when a file is absent, or cannot be downloaded.
        ValueError: when a file is truncated or altered.
    """
    files = registry()[name]["files"]
    if download:
        for file in files:
            path = find(name, file["name"])
            if path is None or not _whole(path, file):
                _download(name, file)
    found = {file["name"]: find(name, file["name"]) for file in files}
    if absent := [file for file in files if found[file["name"]] is None]:
        raise missing(name, absent)
    for file, path in zip(files, found.values(), strict=True):
        if not _whole(path, file):
            size, whole = path.stat().st_size, file["bytes"]
            fault = f"truncated ({size} of {whole} bytes)" if size < whole else "altered (wrong checksum)"
            again = f"delete it and get it again from {registry()[name]['page']}"
            raise ValueError(f"{shown_path(path)} is {fault}: {again}")
    return found


def _whole(path: Path, file: dict) -> bool:
    """Whether a file has its registered checksum, or that of the same content packed anew, if it has one."""
    with open(path, "rb") as stream:
        # some systems forbid md5 for security
        new = partial(hashlib.md5, usedforsecurity=False)
        known = {file["md5"], file.get("packed", file["md5"])}
        return not file["md5"] or hashlib.file_digest(stream, new).hexdigest() in known


def _downloadable(name: str, file: dict) -> bool:
    return "url" in registry()[name] or "drive" in file


def _download(name: str, file: dict) -> None:
    """Downloads one file by torchvision, which checks it."""
    if not _downloadable(name, file):
        raise missing(name, [file])
    from torchvision.datasets import utils

    entry, folder = registry()[name], raw() / registry()[name]["home"]
    try:
        if "drive" in file:
            utils.download_file_from_google_drive(file["drive"], folder, file["name"], file["md5"])
        else:
            utils.download_url(entry["url"] + file["name"], folder, file["name"], file["md5"])
    except Exception as error:  # a network has many ways to fail
        reason = " ".join(str(error).split()).rstrip(".")
        failed = f"{file['name']} ({size_in_words(file['bytes'])}) could not be downloaded ({reason})"
        put = f"get it from {entry['page']} and put it in {(Path('data/raw') / entry['home']).as_posix()}"
        raise FileNotFoundError(f"{failed}: {put}") from error


def reading(name: str, path: Path) -> AbstractContextManager[None]:
    """Turns any error while reading a file into one sentence about that file."""
    again = f"get it again from {registry()[name]['page']}"
    return files.reading(shown_path(path), again, f" as a file of {name}")

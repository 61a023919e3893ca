"""Results of a notebook: a row for each table cell, a verdict for each claim, arrays of pictures, and provenance."""

import copy
import datetime
import hashlib
import io
import json
import math
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch

from psmlib.book.rows import DEFAULTS, FIELDS, KEY, cell_of, checked, known, measured, plain, stays
from psmlib.machine import paths
from psmlib.machine.checks import check_choice
from psmlib.machine.deadline import Unfinished
from psmlib.machine.files import read_text, reading, write_atomic
from psmlib.machine.parallel import parallel_map
from psmlib.machine.provenance import device_name, git_state, peak_gpu_memory, peak_memory, source_hash, versions
from psmlib.standard_errors import Estimate, estimate, holm

FORMAT = 1
"""Version of the files, stored in each; raise it when files of an earlier version can no longer be read."""

VERDICTS = ("holds", "does not hold", "undecided", "not testable at this budget", "not testable here")
CLAIM = (
    "claim", "test", "verdict", "evidence", "paper", "section", "quote", "gain", "low", "high", "p", "unit", "n",
    "n_seeds",
)  # fmt: skip
ARRAYS = 2**20  # bytes that the arrays of a notebook may take on the disk
CHOICES = ("dataset", "only", "seeds")  # parameters that choose a part of what a notebook can run
LEARNED = 3.0  # by how many standard errors a model must beat the model-free baseline to be judged at all

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[\w.@+~-]+/)+")


class Results:
    """The results of one notebook at one profile.

    Args:
        notebook: The notebook's name without its ending, such as "psm_toys".
        profile: The budget it ran under: smoke, quick, gpu, night or paper.
        parameters: The notebook's parameters, as JSON can hold them.
        seeds: The seeds that were used. If None, the `seeds` parameter as it was given.
        rows: Defaults for the fields of :meth:`add`. Without them a row has paper "ours", status "scaled_down" and one
            seed.

    Attributes:

    Example:
        >>> results = Results("psm_toys", "smoke", {"dataset": "TY"}, rows=dict(metric="NLL", unit="nats"))
        >>> results.add("blocks", "four blocks", "TY", (0.75, 0.01), n_seeds=3, budget={"updates": 8000})
        >>> results.add("blocks", "one network", "TY", torch.tensor(0.8))
        >>> results.claim("blocks help", "paired test NLL", gain=(0.05, 0.01), unit="nats")
        >>> len(results), results.frame()["value"].tolist()[0], results.verdicts[0]["verdict"]
        (2, 0.75, 'holds')
        >>> results.add("blocks", "one network", "HG", float("nan"))
        Traceback (most recent call last):
        ...
        ValueError: value of ours blocks / one network / HG / NLL is nan: give a finite number, or use status "not_run"
    """

    def __init__(
        self, notebook: str, profile: str, parameters: Mapping | None = None, *,
        seeds: Sequence[int] | None = None, rows: Mapping | None = None,
    ):  # fmt: skip
        for name, text in (("notebook", notebook), ("profile", profile)):
            if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", text):
                raise ValueError(f"{name} must be a name of letters, digits, _ and -, got {text!r}")
        self.notebook = notebook
        self.profile = profile
        self.parameters = plain(dict(parameters or {}), "parameters")
        self.seeds = [int(s) for s in seeds] if seeds is not None else self.parameters.get("seeds")
        self.provenance: dict | None = None  # set once saved or loaded
        self._claims: list[dict] = []
        self._rows: dict[tuple[str, ...], dict] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._unfinished: list[dict] = []
        self._shared = DEFAULTS | known(rows or {}, FIELDS, "rows")
        self._data: dict[str, str] = {}
        self._start = time.perf_counter()
        self._loaded = False

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Results({self.notebook!r}, {self.profile!r}, {len(self)} rows)"

    def run(self, job: Callable, keys: Iterable[tuple], **settings) -> dict[tuple, object]:
        """Calls job(*key) for each key in parallel and returns the results by key.

        A job that a deadline ended (:mod:`psmlib.machine.deadline`) is left out, and named in the provenance.

        Args:
            job: A function; it may be defined in a notebook.
            keys: Tuples of arguments; put the longest job first.
            **settings: Of :func:`psmlib.machine.parallel.parallel_map`.

        Example:
            >>> Results("x", "smoke").run(pow, [(2, 3), (3, 2)], workers=1)
            {(2, 3): 8, (3, 2): 9}
        """
        keys = list(keys)
        found = dict(zip(keys, parallel_map(job, keys, **settings), strict=True))
        for key, value in found.items():
            if isinstance(value, Unfinished):
                name = " ".join(map(str, key))
                self._unfinished.append({"job": name, "done": str(value), "seconds_left": value.left})
        return {key: value for key, value in found.items() if not isinstance(value, Unfinished)}

    def keep(self, name: str, array) -> None:
        """Keeps an array for a picture: curves, an image of a density, points.

        It is stored in single precision at most, in data/results/<profile>/<notebook>.npz, which may have one MiB.

        Args:
            name: What :meth:`array` is asked for.
            array: Numbers, as an array, a tensor or nested lists.

        Raises:
            ValueError: when the name is taken, or the array holds no numbers.

        Example:
            >>> results = Results("x", "smoke")
            >>> results.keep("density, TY", torch.zeros(2, 2, dtype=torch.float64))
            >>> results.array("density, TY").dtype
            dtype('float32')
        """
        self._writable()
        held = np.array(array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array)
        if held.dtype.kind not in "fiub":
            raise ValueError(f"array {name!r} is of type {held.dtype}: give numbers")
        if name in self._arrays:
            raise ValueError(f"there is an array {name!r} already: name another, or drop one of the two")
        self._arrays[name] = held.astype(np.float32) if held.dtype.itemsize > 4 else held

    def array(self, name: str) -> np.ndarray:
        """An array that was kept.

        Raises:
            KeyError: when there is none of that name.
        """
        return self._arrays[name]

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the arrays that were kept."""
        return tuple(self._arrays)

    def part(self, **rows) -> Self:
        """The same results, with these fields as defaults for rows added through it.

        Example:
            >>> results = Results("psm_toys", "smoke", rows=dict(metric="NLL", unit="nats"))
            >>> exact = results.part(table="exact", status="computed")
            >>> exact.add(row="HG", column="t = 0.001", value=0.25)
            >>> len(results)
            1
        """
        part = copy.copy(self)  # shares the rows, the verdicts and the arrays
        part._shared = self._shared | known(rows, FIELDS, "part")
        return part

    def add(self, table: str | None = None, row: str | None = None, column: str | None = None, value=None, **fields):
        """Adds the record of one table cell.

        Args:
            table, row, column: The cell, named as in data/paper_values.toml.
            value: The figure: a number, a tensor or array of one element, a pair (value, stderr), or an object with
                `value` and perhaps `stderr`, `seeds`, `exact` and `bound`, which then fill the fields. None if there is
                none.
            **fields: Those below; the defaults come from `part` or `rows`.

        The fields:
            * paper: The paper whose cell it is, or "ours".
            * metric: What was measured.
            * unit: Unit of the value, "1" if it has none.
            * status: One of reproduced, within_noise, differs (a comparison with a printed or exact value was made),
              scaled_down (at a smaller budget than the printed one), computed (exactly, without a counterpart),
              needs_data, not_run.
            * stderr: Standard error of the value; one at the level of rounding counts as none.
            * n_seeds: Number of independent repetitions behind the value and its error.
            * dataset: The data set that was used, if row and column do not say so.
            * budget: What was spent: updates, blocks, nfe, samples, parameters, ...
            * exact: The closed-form value, or what the exact score is quoted under the same protocol, if there is one.
            * bound: The entropy, below which no normalised model can be on average, if it is known.
            * note: One sentence for the reader; for a cell without a value, the reason.

        Raises:
            ValueError: when a field is unknown, missing, of the wrong kind or not finite, or the cell is there already.
        """
        given = {k: v for k, v in (("table", table), ("row", row), ("column", column)) if v is not None}
        self._writable()
        named = given | known(fields, FIELDS, "add")
        record = checked(dict.fromkeys(FIELDS) | self._shared | measured(value) | named)
        key = tuple(record[field] for field in KEY)
        if key in self._rows:
            again = "name another row or column, or drop one of the two"
            raise ValueError(f"{cell_of(*key)} has a result already: {again}")
        self._rows[key] = record

    def claim(
        self, claim: str, test: str, verdict: str | bool | None = None, evidence: str = "", *, gain=None,
        learned: Mapping[str, tuple] | None = None, **where,
    ) -> None:  # fmt: skip
        """Adds a line to the verdict table.

        A claim about a measured effect gives it as an estimate, and the verdict follows from Student's t: it holds, or
        does not hold, if the effect is above, or below, zero after Holm's correction over the lines of its table
        (:attr:`verdicts`). No verdict is given on a model that does not beat a model without training.

        Args:
            claim: What is claimed, in a few words.
            test: What was measured to decide it.
            verdict: One of `VERDICTS`, for what is not decided by `gain`; True stands for "holds", False for "does not
                hold".
            evidence: The figures behind the verdict.
            gain: The effect, positive if the claim is true: a :class:`psmlib.standard_errors.Estimate` or a pair; with
                `verdict`, a number or None.
            learned: By how much each model that is compared beats the model-free baseline, an estimate by what to call
                the two, such as {"TPSM-A over the best Gaussian": ...}.
            **where: Any of paper ("ours" by default: our own question), section (where the paper claims it), quote
                (its own words, with its reservations), unit (of the gain), low, high (its 95 % interval), p, n and
                n_seeds.

        Raises:
            ValueError: when a field is unknown, empty or of the wrong kind, or neither verdict nor gain is given.
        """
        self._writable()
        line = {"paper": self._shared["paper"]} | known(where, CLAIM[4:], "claim")
        for name, text in (("claim", claim), ("test", test)):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{name} of the claim {claim!r} must be text, got {text!r}: write a few words")
        if verdict is None and gain is None:
            raise ValueError(f"the claim {claim!r} has neither a verdict nor a gain: measure one of them")
        if verdict is None:
            found = estimate(gain)
            low, high = found.interval()
            counts = {"n": found.n, "n_seeds": found.seeds}
            line = dict(gain=found.value, low=low, high=high, p=found.p_value()) | counts | line
        elif gain is not None:
            line["gain"] = gain
        verdict = verdict if verdict is None or isinstance(verdict, str) else VERDICTS[0 if verdict else 1]
        if verdict is not None:
            check_choice("verdict", verdict, VERDICTS, of=repr(claim))
        failed = [name for name, by in (learned or {}).items() if not _has_learned(estimate(by))]
        if failed:
            verdict, line["p"] = "not testable at this budget", None
            evidence = "; ".join([*([evidence] if evidence else []), f"not learned: {', '.join(failed)}"])
        line = dict(claim=claim, test=test, verdict=verdict, evidence=evidence) | line
        line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._claims.append(plain(line, f"claim {claim!r}"))

    @property
    def verdicts(self) -> list[dict]:
        """One dict for each claim, in order; those on effects are decided by Holm's rule, papers' apart from ours."""
        lines = [dict(line) for line in self._claims]
        for own in (True, False):
            family = [x for x in lines if x["verdict"] is None and (x["paper"] == "ours") is own]
            for line, decided in zip(family, holm([x["p"] for x in family]), strict=True):
                line["verdict"] = VERDICTS[0 if line["gain"] > 0 else 1] if decided else "undecided"
        return lines

    def _writable(self) -> None:
        if self._loaded:
            raise ValueError(f"results of {self.notebook} were read from disk: run the notebook, or make new Results")

    def data_hash(self, name: str, data) -> str:
        """Records the SHA-256 of a data set in the provenance, and returns it.

        Args:
            name: Name of the data set.
            data: Bytes, an array or a tensor; of the last two, type and shape count too.

        Example:
            >>> Results("x", "smoke").data_hash("digits", b"abc")[:8]
            'ba7816bf'
        """
        data = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else data
        if isinstance(data, np.ndarray):
            data = f"{data.dtype.str}{data.shape}".encode() + data.tobytes()
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError(f"data_hash of {name!r} takes bytes, an array or a tensor, got {type(data).__name__}")
        self._data[name] = hashlib.sha256(bytes(data)).hexdigest()
        return self._data[name]

    def frame(self) -> pd.DataFrame:
        """One line per result, in the order in which they were added; None becomes NaN in number columns."""
        frame = pd.DataFrame(list(self._rows.values()), columns=list(FIELDS))
        return frame.astype({name: float for name in ("value", "stderr", "exact", "bound")})

    def save(self) -> Path:
        """Writes data/results/<profile>/<notebook>.json, with the arrays beside it, and returns where it is.

        A run of a part, one that a deadline cut off or with another choice of data than the run on record, does not
        replace that run but adds to it: what it has not itself, and rows of more seeds at the same budget, stay.

        Raises:
            ValueError: when these results were read from disk, since they keep the provenance of their own run, or the
                arrays take too much room.
        """
        self._writable()
        earlier = self._join_with_record()
        arrays = _packed(self._arrays)
        if len(arrays) > ARRAYS:
            largest = max(self._arrays, key=lambda name: self._arrays[name].nbytes)
            raise ValueError(
                f"the arrays of {self.notebook} take {len(arrays):,} bytes of {ARRAYS:,}: keep fewer or coarser ones, "
                f"the largest being {largest!r}"
            )
        document = {
            "provenance": self._provenance() | {"earlier": earlier},
            "rows": list(self._rows.values()),
            "verdicts": self.verdicts,
        }
        document = _portable(document)
        self.provenance = document["provenance"]
        document["provenance"]["arrays_sha256"] = hashlib.sha256(arrays).hexdigest() if self._arrays else None
        text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        if self._arrays:
            write_atomic(_path(self.profile, self.notebook, "npz"), arrays)
        return write_atomic(_path(self.profile, self.notebook), text + "\n")

    def _join_with_record(self) -> list[dict]:
        """Takes over what the run on record has and this one, being of a part, has not; returns whose that is."""
        try:
            other = load(self.profile, self.notebook)
        except (FileNotFoundError, ValueError):  # what cannot be read is replaced
            return []
        both = [name for name in CHOICES if name in self.parameters and name in other.parameters]
        if not self._unfinished and all(self.parameters[name] == other.parameters[name] for name in both):
            return []
        self._rows |= {key: row for key, row in other._rows.items() if stays(row, self._rows.get(key))}
        own = {line["claim"] for line in self._claims}
        self._claims += [line for line in other.verdicts if line["claim"] not in own]
        self._arrays = {name: other.array(name) for name in other.arrays} | self._arrays
        about = {name: other.provenance.get(name) for name in ("parameters", "seeds", "commit", "date", "device")}
        return [*other.provenance.get("earlier", []), about][-20:]

    def _provenance(self) -> dict:
        device = str(self.parameters.get("device", "cpu"))
        return {
            "format": FORMAT, "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "notebook": self.notebook, "profile": self.profile, "parameters": self.parameters, "seeds": self.seeds,
            **git_state(), "device": device_name(device), "threads": torch.get_num_threads(), "versions": versions(),
            "wall_seconds": round(time.perf_counter() - self._start, 2),
            "peak_memory_mib": peak_memory(), "peak_gpu_memory_mib": peak_gpu_memory(device),
            "unfinished": self._unfinished, "data_sha256": self._data, "source_sha256": source_hash(self.notebook),
        }  # fmt: skip


def load(profile: str, notebook: str) -> Results:
    """Reads the saved results of a notebook; rows and verdicts are checked again, and nothing can be added.

    Raises:
        FileNotFoundError: when that notebook has no results at that profile.
        ValueError: when the file is not what `save` writes.
    """
    path = _path(profile, notebook)
    results = Results(notebook, profile)
    where = f"data/results/{profile}/{notebook}.json"
    with reading(where, f"run python -m psmlib.run notebook {notebook} --profile {profile}"):
        document = json.loads(read_text(path))
        version = document["provenance"].get("format", FORMAT)  # files of older runs have none
        if version != FORMAT:
            raise ValueError(f"its format is {version!r}, this psmlib reads {FORMAT}")
        for row in document["rows"]:
            results.add(**row | {"n_seeds": row["n_seeds"] or 1})
        for verdict in document.get("verdicts", []):  # files of older runs have none
            results.claim(**verdict)
        results.provenance = dict(document["provenance"])
        results.parameters = dict(results.provenance["parameters"])
        results.seeds = results.provenance["seeds"]
        results._arrays = _unpacked(profile, notebook, results.provenance.get("arrays_sha256"))
    results._loaded = True
    return results


def _path(profile: str, notebook: str, ending: str = "json") -> Path:
    return paths.RESULTS / profile / f"{notebook}.{ending}"


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as the content of a compressed npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _unpacked(profile: str, notebook: str, digest: str | None) -> dict[str, np.ndarray]:
    """The arrays of a run from their file, if it is as the run left it."""
    if digest is None:
        return {}
    path = _path(profile, notebook, "npz")
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{path.name} is not as the run left it")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from None


def _has_learned(by: Estimate) -> bool:
    return by.stderr is not None and by.value > LEARNED * by.stderr


def _portable(value):
    """The document without folders of this machine: a path becomes relative to ROOT, or else the bare name."""
    if isinstance(value, Mapping):
        return {k: _portable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_portable(v) for v in value]
    return _FOLDERS.sub("", value.replace(f"{paths.ROOT}/", "")) if isinstance(value, str) else value

"""Every kind of file that the library reads, damaged in many ways: read right, refused in a sentence, or made anew.

No damage may change what is read, with two exceptions. A text that people write or git keeps (kinds with ``free``) may
say another well-formed thing: git shows it, and a run's own record tells when its results or its notebook were changed
("output of a run"). And an archive is damaged below the checksum too, so that its reader is tried, not only the sum.

PSMLIB_FUZZ is the number of files of each kind and sort of damage; with ``-s`` what became of them is printed.
"""

import copy
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import struct
import tarfile
import traceback
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from psmlib.bank import checkpoint
from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks import costs, records
from psmlib.benchmarks.timing import Row
from psmlib.book import build, lease, night, notebooks, pages, paper_values, parameters, results
from psmlib.data import archives, cache, formats, images
from psmlib.data.toys import HG
from psmlib.diffusion_time import auxiliary, fit_glow
from psmlib.evaluation import digit_classifier, exact_values
from psmlib.exact import cross_entropy
from psmlib.machine import paths, provenance
from psmlib.nets import ronneberger
from psmlib.nets.mlp import Plain
from psmlib.partition import TPSM_A, Partition
from psmlib.process import VP
from psmlib.run import clock
from psmlib.training import fit, sharding, snapshots

NUMBER = int(os.environ.get("PSMLIB_FUZZ") or 3)
SMALL, VP10 = Plain(hidden=(4,)), VP(0.0, 10.0)
PIXELS = np.random.default_rng(0).integers(0, 17, (2, 3, 64, 64), dtype=np.uint8)
POINTS = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
PATCHES = POINTS.reshape(-1, 1, 2, 2)


def results_file(folder):
    made = results.Results("one", "smoke", {"seeds": 1}, rows=dict(metric="NLL", unit="nats"))
    made.add("blocks", "four", "TY", (0.75, 0.01), n_seeds=3, budget={"updates": 8000})
    made.add("blocks", "one", "TY", status="not_run", note="It takes a day.")
    made.claim("blocks help", "paired test NLL", gain=(0.05, 0.01), unit="nats")

    def read():
        found = results.load("smoke", "one")
        return [list(found._rows.values()), found.verdicts, found.provenance]

    return made.save(), read


def arrays_of_results(folder):
    made = results.Results("one", "smoke")
    made.keep("density", POINTS)
    made.save()
    return paths.RESULTS / "smoke" / "one.npz", lambda: results.load("smoke", "one").array("density").tolist()


def kept_turns(folder):
    def read():
        found = costs.compare({"a": lambda: None, "b": lambda: None}, repeats=2, path=folder / "turns.json")
        return [(name, cost.times.seconds, cost.peak_bytes) for name, cost in found.items()]

    read()
    return folder / "turns.json", read


def memory_of_a_lease(folder):
    step = lease.Step("a", 60.0, ("a.py",))
    lease._remember(step)
    return lease._memory(), lambda: lease._done(step) or "made anew"


def lock_of_a_night(folder):
    def read():
        with suppress(parameters.ParameterError), night._alone(folder / "lock.json"):
            return "made anew"
        return "refused"  # as it is for a sound one, whose process is alive

    me = psutil.Process()
    (folder / "lock.json").write_text(json.dumps({"process": me.pid, "began": me.create_time()}))
    return folder / "lock.json", read


def record(folder):
    (paths.EXECUTED / "one.ipynb").parent.mkdir(parents=True)
    (paths.EXECUTED / "one.ipynb").write_text("{}")
    notebooks.Run.of("one", "key", notebooks.Outcome(12.5)).save("one")

    def read():  # without a fresh record the notebook is run again
        found = notebooks.Run.load("one")
        return bool(found and clock(found.seconds) and found.fresh("one", "key")) or "made anew"

    return notebooks.Run.path("one"), read


def output_of_a_run(folder):
    return paths.EXECUTED / "one.ipynb", record(folder)[1]


def document(**more):
    source = 'dataset = "TY"\nseeds = 0  # how many\nrate = 0.1'
    metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "P"}}
    cells = [nbformat.v4.new_markdown_cell("# One"), nbformat.v4.new_code_cell("1", **more)]
    cells += [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})]
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata | {"psmlib": {"uses": ["x"], "tables": ["psm 1"]}})


def notebook(folder):
    path = paths.NOTEBOOKS / "one.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(nbformat.writes(document()))

    def read():
        notebooks.staleness_key(path, parameters.resolve(path, {}))
        about = [parameters.declared(path), parameters.comments(path), notebooks.metadata(path)]
        return [*about, pages.reproduced_by(), provenance.source_hash("one")]

    return path, read


def executed_notebook(folder):
    output = nbformat.v4.new_output("display_data", {"image/png": "aa"}, metadata={"caption": "B."})
    table = nbformat.v4.new_output("display_data", {"text/markdown": "{table} A\n:name: b\n"})
    executed = document(outputs=[output, table], metadata={"mystnb": {"figure": {"name": "a", "caption": "A."}}})
    executed.metadata["papermill"] = {}
    path = paths.EXECUTED / "one.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(nbformat.writes(executed))

    def read():
        page, reason = build.expected(path), notebooks._reason(path, path, -9)
        notebooks._prepare_for_the_book(path, path)
        return [sorted(page.names), page.tables, page.images, reason]

    return path, read


def table_of_contents(folder):
    path = folder / "_toc.yml"
    path.write_text("format: jb-book\nroot: index\nparts:\n- chapters:\n  - file: _executed/one\n  - file: two\n")
    return path, lambda: notebooks.toc_pages(path)


def list_of_copies(folder):
    for path in (paths.ROOT / "book" / "index.md", folder / "mine.md"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    build.prepare()

    def read():
        build.prepare()
        return [(paths.BOOK / "index.md").read_text(), (folder / "mine.md").read_text()]

    return paths.OUTPUT / build.COPIED, read


def printed_values(folder):
    whole = (Path(paths.PACKAGE).parent / "data" / "paper_values.toml").read_text()
    cells, shown = (whole.split(f"\n\n[[{what}]]")[1:3] for what in ("cell", "exhibit"))
    text = "\n\n[[cell]]".join(["count = 2\nexhibits = 1\n\n# psm, Table 1: test NLL", *cells])
    paths.PAPER_VALUES.parent.mkdir(parents=True)
    paths.PAPER_VALUES.write_text(text + "\n\n[[exhibit]]" + shown[0].split("\n\n")[0] + "\n")

    def read():
        forget()
        return [paper_values.exhibits(), paper_values.paper_values().astype(str).to_dict(), str(pages.descriptions())]

    return paths.PAPER_VALUES, read


def exact_file(folder):
    rows = [dict(name="a", mixture="12", alpha=1.0, sigma=s, value=s + 0.5, error=1e-16) for s in (0.0, 0.1)]
    exact_values.write(rows)

    def read():
        forget()
        return cross_entropy._known() or "made anew"

    return paths.EXACT_VALUES, read


def benchmark(folder):
    row = Row("10 networks", "psmlib", "rate", "1/s", 5, (90.0, 100.0, 110.0), (1.9, 2.0, 2.1), 0.5, 'a "note", so')
    about = records.stamp("quick")
    path = records.append(records.path_of("x"), [records.record("x", row, about)] * 2)

    def read():
        found = records.load("x")
        records.append(path, [records.record("x", row, about)])
        assert len(records.load("x")) == len(found) + 1
        return found.to_dict("list")

    return path, read


def held(bank, *more):
    about = [bank.first, bank.whole, bank.native, bank.seed, repr(bank), bank.settings]
    return [{name: (str(t.dtype), t.tolist()) for name, t in bank.tensors.items()}, *about, *more]


def networks(bank):
    def make(folder):
        bank.save(folder / "a.st", updates=50)
        return folder / "a.st", lambda: held(*type(bank).load(folder / "a.st"))

    return make


def snapshot(folder):
    def read():
        found = snapshots.train(Bank(SMALL, 2), HG(), VP10, TPSM_A, stops=[50], folder=folder / "s", batch_size=2)
        return held(found.banks[50], found.losses, sum(found.seconds.values()) > 0)

    read()
    return folder / "s" / "50.safetensors", read


def state_of_a_training(folder):
    how = dict(path=folder / "a.st", updates=100, batch_size=2, ema=0.9, save_every=50, resume=True)

    def states():
        return fit(Bank(SMALL, 2), HG(), VP10, TPSM_A, **how)

    def read():
        *_, state = states()
        return held(state.bank, held(state.average), state.update)

    next(states())
    return folder / "a.st", read


def state_of_a_flow(folder):
    how = dict(path=folder / "a.st", updates=51, batch_size=4, save_every=50, resume=True, levels=1, steps=1, hidden=2)

    def states():
        return fit_glow.fit_glow(PATCHES, VP(), 0.5, **how)

    def read():
        *_, state = states()
        return [state.update, state.auxiliary.log_prob(PATCHES[:2]).tolist()]

    next(states()).auxiliary.save(folder / "flow.st")
    return folder / "a.st", read


def fitted(make, x):
    def read(path):
        nu = auxiliary.load(path, VP(), 0.5)
        return [nu.log_prob(x).tolist(), repr(nu), nu.about, nu.active, nu.parameters]

    def made(folder):
        make(folder)
        return folder / "flow.st", lambda: read(folder / "flow.st")

    return made


def mixture(folder):
    auxiliary.fit_mixture(POINTS, VP(), 0.5, components=2).save(folder / "flow.st")


def classifier(folder):
    labels = {f"{split}_labels": np.arange(2) for split in images.SPLITS}
    data = images.Images("x", {s: PIXELS[:, :1, :8, :8] for s in images.SPLITS} | labels, levels=17)
    settings = digit_classifier.ClassifierSettings(epochs=1)

    def read():
        return digit_classifier.classifier(data, settings=settings)(data.test).tolist()

    read()
    return paths.OUTPUT / "data" / "cache" / "classifier" / "x_0.safetensors", read


def shards(name):
    def make(folder):
        how = {"updates": 1, "batch_size": 2}
        run = lambda only: Bank(SMALL, 2, only=only), HG(), VP10, Partition.equal(2)

        def read():
            budget = sharding.predicted(run[0], 1, *run[1:], **how)
            *_, state = sharding.fit_sharded(*run, folder=folder / "s", budget=budget, **how)
            return held(state.bank, held(sharding.joined(folder / "s")[0]))

        read()
        return folder / "s" / name, read

    return make


def cached_images(folder):
    def read():
        return cache.memory_mapped("a", PIXELS.shape, lambda: [PIXELS]).tolist()

    read()
    return cache.folder() / "a.npy", read


def bytes_of(write, *content, **how):
    stream = io.BytesIO()
    write(stream, *content, **how)
    return stream.getvalue()


def zip_of(members):
    def write(stream):
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return bytes_of(write)


def tar_of(members):
    def write(stream):
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    return bytes_of(write)


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)


MNIST = {f"{stem}-images-idx3-ubyte.gz": idx(PIXELS[:, 0, :28, :28].copy()) for stem in ("train", "t10k")}
MNIST |= {f"{stem}-labels-idx1-ubyte.gz": idx(np.arange(2, dtype=np.uint8)) for stem in ("train", "t10k")}
CIFAR = pickle.dumps({"data": PIXELS[:, :, :32, :32].reshape(2, -1).copy(), "labels": [0, 1]}, 3)
CIFAR = dict.fromkeys((*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"), CIFAR)
FACE = bytes_of(Image.fromarray(np.kron(PIXELS[0, 0], np.ones((4, 3), np.uint8))[:218, :178]).save, format="JPEG")
FACES = {f"img_align_celeba/{i}.jpg": FACE for i in range(3)}
TABLE = b"".join(b"%d.jpg %d\n" % (i, i) for i in range(3))
BATCH = bytes_of(np.savez_compressed, data=PIXELS.reshape(2, -1))
BATCHES = {f"train_data_batch_{i}.npz": BATCH for i in range(1, 11)}
OTHERS = {"Imagenet64_train_part2_npz.zip": zip_of({}), "Imagenet64_val_npz.zip": zip_of({"val_data.npz": BATCH})}
SETS = {  # reader, other files, the file that is damaged, what makes it of its members, and these
    "mnist": (formats.mnist, {k: gzip.compress(v) for k, v in MNIST.items()}, "train-images-idx3-ubyte.gz",
              lambda members: gzip.compress(members["train-images-idx3-ubyte.gz"]), MNIST),
    "cifar10": (formats.cifar10, {}, "cifar-10-python.tar.gz", tar_of, CIFAR),
    "celeba64": (formats.celeba64, {"list_eval_partition.txt": TABLE}, "img_align_celeba.zip", zip_of, FACES),
    "imagenet64": (formats.imagenet64, OTHERS, "Imagenet64_train_part1_npz.zip", zip_of, BATCHES),
}  # fmt: skip
REGISTRY = copy.deepcopy(archives.registry())


def data_set(name, known, member=None, file=None):
    """A data set with files whose checksums are known, or not, so that damage reaches the reader.

    A member is damaged within a sound archive; without its name the archive, or another file, is.
    """
    reader, others, archive, pack, members = SETS[name]

    def make(folder):
        entries = copy.deepcopy(REGISTRY)
        entries["imagenet64"]["counts"] = {"train": 20, "test": 2}
        archives.registry = lambda: entries
        archives.raw().mkdir(parents=True)
        files = others | {archive: pack(members)}
        for each, content in files.items():
            (archives.raw() / each).write_bytes(content)
        for entry in entries[name]["files"]:
            entry["md5"] = hashlib.md5(files[entry["name"]]).hexdigest() if known else ""
        path = archives.raw() / (file or archive)
        if member:
            path = folder / archive
            path.write_bytes(members[member])

        def read():
            if member and path.is_file():
                (archives.raw() / archive).write_bytes(pack(members | {member: path.read_bytes()}))
            elif member:
                (archives.raw() / archive).unlink()
            return {key: found.tolist() for key, found in reader().items()}

        return path, read

    return make


FACES_TABLE = data_set("celeba64", known=False, file="list_eval_partition.txt")
KINDS = {  # what makes it; what may change what is read: nothing, a text that is not "cut", or "all"; mended silently
    "results": (results_file, "text", False),
    "arrays of results": (arrays_of_results, "", False),
    "kept turns": (kept_turns, "text", False),
    "memory of a lease": (memory_of_a_lease, "", True),
    "lock of a night": (lock_of_a_night, "", False),
    "record of a run": (record, "", True),
    "output of a run": (output_of_a_run, "", True),
    "notebook": (notebook, "text", False),
    "executed notebook": (executed_notebook, "text", False),
    "table of contents": (table_of_contents, "all", False),
    "list of copies": (list_of_copies, "", False),
    "printed values": (printed_values, "text", False),
    "exact values": (exact_file, "", False),
    "benchmark": (benchmark, "all", False),
    "networks": (networks(Bank(SMALL, 2, seed=1)), "", False),
    "image networks": (networks(ImageBank(ronneberger.small(a=2), 2)), "", False),
    "snapshot": (snapshot, "", False),
    "state of a training": (state_of_a_training, "", False),
    "fitted mixture": (fitted(mixture, POINTS[:2]), "", False),
    "fitted flow": (fitted(state_of_a_flow, PATCHES[:2]), "", False),
    "state of a flow": (state_of_a_flow, "", False),
    "classifier": (classifier, "", True),
    "run of shards": (shards("run.json"), "", False),
    "shard": (shards("networks-1-1.safetensors"), "", False),
    "cached images": (cached_images, "", True),
    "celeba64, table": (FACES_TABLE, "all", False),
}
for name, (*_, members) in SETS.items():
    KINDS[name] = (data_set(name, known=name != "imagenet64"), "", False)  # that has no checksum but its own CRC-32
    if name != "imagenet64":
        KINDS[f"{name}, checksum unknown"] = (data_set(name, known=False), "all", False)
    KINDS[f"{name}, member"] = (data_set(name, known=False, member=next(iter(members))), "all", False)


# --- the damage ---


def spoilt_bytes(whole, sort, draw):
    """A file with a damage that any file may suffer."""
    a, b = sorted(draw.choices(range(len(whole) + 1), k=2))
    at = min(a, len(whole) - 1)
    middle = {"bit": bytes([whole[at] ^ 1 << draw.randrange(8)]), "byte": draw.randbytes(1), "utf": b"\xff"}.get(sort)
    if middle is not None:
        return whole[:at] + middle + whole[at + 1 :]
    return {
        "empty": b"", "cut": whole[:a], "insert": whole[:a] + draw.randbytes(3) + whole[a:],
        "delete": whole[:a] + whole[max(b, a + 1) :], "repeat": whole[:b] + whole[a:], "bom": b"\xef\xbb\xbf" + whole,
        "swap": whole[b:] + whole[:b], "crlf": whole.replace(b"\n", b"\r\n"),
        "line": b"\n".join(draw.sample(lines := whole.split(b"\n"), len(lines))),
    }[sort]  # fmt: skip


VALUES = [None, [], {}, [None], {"a": 1}, "", "x", True, -1, 0, 2.5, "\0", "../x", 10**400, math.nan, "@inf", "@deep"]


def spoil(document, draw, values):
    """Changes one value anywhere in a JSON document, its name, or its place."""
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(document)
    if not places:
        return
    node, key = draw.choice(places)
    how = draw.choice(["value"] * 4 + ["drop", "name", "twice"])
    if how == "value":
        node[key] = draw.choice(values)
    elif how == "twice" and isinstance(node, list):
        node.insert(0, node[key])
    elif how == "name" and isinstance(node, dict):
        node[f"{key}s"] = node.pop(key)
    else:
        del node[key]


def spoilt_json(text, draw, values=VALUES):
    document = json.loads(text)
    spoil(document, draw, values)
    return json.dumps(document).replace('"@inf"', "1e400").replace('"@deep"', "[" * 99999 + "]" * 99999)


def spoilt_tensors(path, sort, draw):
    """A checkpoint with other tensors or another description, and a digest that is right again."""
    with safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    name = draw.choice(sorted(tensors))
    t = tensors[name]
    if sort == "about":
        metadata["about"] = spoilt_json(metadata["about"], draw, VALUES[:10])  # a huge network is forged
    elif sort == "metadata":
        metadata |= {draw.choice(sorted(metadata)): draw.choice(["", "x", "[]", "null", "{}"])}
    elif (how := draw.choice(["drop", "more", "name", "empty", "flat", "row", "axis", "type", "nan", "inf"])) == "drop":
        del tensors[name]
    elif how == "more":
        tensors["more"] = t.clone()
    elif how == "name":
        tensors[name + "s"] = tensors.pop(name)
    elif how in ("nan", "inf"):
        tensors[name] = t.double().mul(float(how)).to(t.dtype)
    else:
        row = t[:1, :1] if t.dim() > 1 else t[None, None]
        other = {"empty": t.flatten()[:0], "flat": t.flatten()[:-1], "axis": t[None], "type": t.to(torch.int16)}
        tensors[name] = (other | {"row": row})[how]
    tensors = {key: t.contiguous() for key, t in tensors.items()}
    if sort != "metadata":
        metadata["sha256"] = checkpoint.digest(tensors, metadata["about"])
    save_file(tensors, path, metadata)


def damages(path, whole, draw):
    """Pairs of a sort of damage and what does it to the file."""
    text = path.suffix in (".json", ".ipynb", ".toml", ".yml", ".csv", ".txt")
    sorts = ["cut", "bit", "byte", "insert", "delete", "repeat", "swap"] + ["utf", "line"] * text
    for sort in ["empty"] + ["bom", "crlf"] * text + sorts * NUMBER:
        yield sort, lambda sort=sort: path.write_bytes(spoilt_bytes(whole, sort, draw))
    for _ in range(8 * NUMBER if path.suffix in (".json", ".ipynb") else 0):
        yield "value", lambda: path.write_text(spoilt_json(whole, draw))
    for sort in ("about", "metadata", "tensors", "tensors") * 2 * NUMBER if path.suffix.startswith(".s") else ():
        yield sort, lambda sort=sort: spoilt_tensors(path, sort, draw)
    yield "folder", lambda: (path.unlink(), path.mkdir())
    yield "loop", lambda: (path.unlink(), path.symlink_to(path))  # nobody, not even root, can open it
    yield "gone", path.unlink


def refusal(error, path):
    """Whether an error is a sentence of ours that names the file, or one beside it that does not fit to it."""
    last, text = traceback.extract_tb(error.__traceback__)[-1], str(error)
    ours = Path(last.filename).is_relative_to(paths.PACKAGE) and last.line.startswith("raise")
    names = {path.name, path.stem if path.suffix == ".ipynb" else path.name, str(path.parent)}
    names |= {file.name for file in path.parent.iterdir()}
    sentence = "\n" not in text and ": " in text and len(text) < 700 and any(name in text for name in names)
    return ours and sentence and isinstance(error, ValueError | OSError)


def forget():
    """Empties what keeps files in memory."""
    for cached in (paper_values._read, paper_values._read_values, cross_entropy._known):
        cached.cache_clear()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to which all paths are moved."""
    moved = {"ROOT": "root", "OUTPUT": "out", "NOTEBOOKS": "root/notebooks", "DATA": "root/data", "BOOK": "out/book"}
    moved |= {"PAPER_VALUES": "root/data/paper_values.toml", "EXACT_VALUES": "root/data/exact_values.json"}
    moved |= {"EXECUTED": "out/book/_executed", "RESULTS": "out/data/results", "BENCH": "out/data/bench"}
    for constant, where in moved.items():
        monkeypatch.setattr(paths, constant, tmp_path / "here" / where)
    monkeypatch.setattr(archives, "registry", archives.registry)
    forget()
    yield tmp_path / "here"
    forget()


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_right_refused_or_made_anew(name, place):
    make, free, made_anew = KINDS[name]
    place.mkdir()
    path, read = make(place)
    sound, whole, draw = place.with_name("sound"), path.read_bytes(), random.Random(name)
    shutil.copytree(place, sound)

    def restore():
        shutil.rmtree(place)
        shutil.copytree(sound, place)

    right = read()
    restore()
    assert read() == right, "a sound file is not read twice alike"
    became, faults = Counter(), Counter()
    for sort, damage in damages(path, whole, draw):
        restore()
        damage()
        harmed = path.is_file() and path.read_bytes()
        try:
            found = read()
        except Exception as error:
            became["refused"] += 1
            if made_anew or not refusal(error, path):
                frame = traceback.extract_tb(error.__traceback__)[-1]
                faults[f"{sort}: {frame.name} raises {type(error).__name__}: {str(error)[:300]!r}"] += 1
            continue
        if found == right or found == "made anew":
            became[
                "read right" if found == right and path.is_file() and path.read_bytes() == harmed else "made anew"
            ] += 1
        else:
            became["another text"] += 1
            if free != "all" and (free != "text" or sort == "cut") and sort != "about" or sort in ("bom", "crlf"):
                faults[f"{sort}: {str(found)[:300]} instead of {str(right)[:300]}"] += 1
    print(f"\n{name:<28}{became.total():>6}  " + ", ".join(f"{n} {what}" for what, n in sorted(became.items())), end="")
    assert not faults, "".join(f"\n{n} x {fault}" for fault, n in faults.most_common())

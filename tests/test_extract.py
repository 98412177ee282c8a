"Extraction with real processes that are killed, joined and starved, and with files that are broken in every way."
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pzsl_nb import extract
from pzsl_nb.core import PZSLError
from pzsl_nb.encoders import load_encoder
from pzsl_nb.extract import extract_features, image_key, in_order, open_picture, open_store
from pzsl_nb.shapes import render

DATA = Path(os.environ.get("PZSL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "images"
SHEET = {"truncated.jpg": "truncated", "zero.jpg": "empty", "page.png": "not a picture", "bomb.png": "bomb",
         "thread.png": "a thread", "gone.jpg": "no such file", "pipe.jpg": "not a file", "folder.jpg": "not a file",
         "program.jpg": "not a picture"}


@pytest.fixture(scope="module")
def encoder(): return load_encoder(device="cpu")


@pytest.fixture(scope="module")
def pictures(): return render(np.arange(7)[:, None] % [8, 4, 8], seed=3).repeat(100, axis=0) + np.arange(
    700, dtype=np.uint8)[:, None, None, None] % 50


@pytest.fixture(scope="module")
def reference(encoder, pictures): return extract_features(encoder, pictures, progress=False).features


@pytest.fixture
def sheet(tmp_path):
    "Good files at 0 and at the end, and one of each broken kind between them."
    folder = tmp_path / "Bilder, schöne"
    folder.mkdir()
    good = Image.fromarray(render([(0, 0, 3)], seed=0, size=64)[0])
    for name in ("first.jpg", "last.jpg"): good.save(folder / name)
    content = (folder / "first.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[:len(content) // 2])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "page.png").write_text("<html>404</html>")
    Image.new("1", (9500, 9500)).save(folder / "bomb.png")
    Image.new("1", (200_000, 1)).save(folder / "thread.png")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    good.save(folder / "program.jpg", "EPS")
    return [folder / name for name in ("first.jpg", *SHEET, "last.jpg")]


def run(script, *arguments, launcher=(), **environment):
    "A Python process of its own; its answer is the last line it prints."
    done = subprocess.run([sys.executable, *launcher, *(["-c"] if not launcher else []), script, *map(str, arguments)],
                          env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    return done


def answer(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def batches(n, batch_size=64):
    return sum(-(-len(shard) // batch_size) for shard in extract._shards(n))


# killed

LIVES = """
import json, os, random, signal, sys, time
import numpy as np, torch
from pzsl_nb import extract
from pzsl_nb.encoders import load_encoder
from pzsl_nb.extract import extract_features
cache, pictures, log = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]
encoder, chance, extract._ROWS = load_encoder(device="cpu"), random.Random(0), 32
encode = encoder.model.encode_image
def slow(pixels):
    with open(log, "a") as file: file.write("+")
    time.sleep(.02)
    return encode(pixels)
encoder.model.encode_image = slow
def life(cache, workers):
    child = os.fork()
    if not child:
        try: extract_features(encoder, pictures, cache, workers=workers, batch_size=16, progress=False)
        except BaseException as error: print(repr(error), file=sys.stderr); os._exit(1)
        os._exit(0)
    return child
ends = []
for turn in range(40):
    child = life(cache, turn % 3)
    if turn < 39: time.sleep(.03 + .3 * chance.random()); os.kill(child, signal.SIGKILL)
    ends.append(os.waitpid(child, 0)[1])
    if ends[-1] == 0: break
made = os.path.getsize(log); os.unlink(log)
both = [os.waitpid(child, 0)[1] for child in [life(cache + "-both", 0), life(cache + "-both", 1)]]
print(json.dumps([ends, made, both, os.path.getsize(log)]))
"""


@pytest.fixture(scope="module")
def lives(tmp_path_factory, pictures):
    "The folder and the story of runs that were killed, and of two that were started at once; shards have 32 rows."
    folder = tmp_path_factory.mktemp("lives")
    np.save(folder / "pictures.npy", pictures[:500])
    done = run(LIVES, folder / "cache", folder / "pictures.npy", folder / "log", OMP_NUM_THREADS="1")
    return folder, *answer(done), done.stderr


def test_killed_again_and_again(encoder, pictures, reference, lives):
    "With kill -9 at any moment; of the shard at hand at most its two batches are made twice."
    folder, ends, made, *_ = lives
    killed = ends.count(signal.SIGKILL)
    assert killed >= 3 and ends[-1] == 0 and killed + 1 == len(ends)
    assert 32 <= made <= 32 + 2 * killed
    store, = (folder / "cache").iterdir()
    assert {file.name for file in store.iterdir()} == {"features.npy", "store.json", "lock"}
    found = extract_features(encoder, pictures[:500], folder / "cache", progress=False)
    torch.testing.assert_close(found.features, reference[:500], rtol=0, atol=1e-3)


def test_two_runs_that_want_the_same(lives):
    "The second waits for the first and reads what it made."
    *_, both, made, complaints = lives
    assert both == [0, 0] and "waiting for it" in complaints and made == 32


@pytest.mark.parametrize("moment", ["_pieces", "write_json"])
def test_killed_while_joining(encoder, pictures, reference, tmp_path, monkeypatch, moment):
    "Before and after features.npy is there; store.json and the removal of the shards come last."
    encoded = count_batches(monkeypatch, encoder)

    def die(*arguments, **named):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extract, moment, die)
        extract_features(encoder, pictures, tmp_path, progress=False)
    assert len(encoded) == batches(700)
    assert torch.equal(extract_features(encoder, pictures, tmp_path, progress=False).features, reference)
    assert len(encoded) == batches(700), "nothing is encoded twice"


def count_batches(monkeypatch, encoder):
    "The list that grows by one with every batch."
    encoded, encode = [], encoder.model.encode_image
    monkeypatch.setattr(encoder.model, "encode_image", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    return encoded


# several processes

TOGETHER = """
import os, sys
import numpy as np, torch
from pzsl_nb.core import processes
from pzsl_nb.encoders import load_encoder
from pzsl_nb import extract
from pzsl_nb.extract import extract_features
from pathlib import Path
cache, pictures, files, log = sys.argv[1:]
encoder, save = load_encoder(device="cpu"), extract._save
def logged(path, *arguments):
    with open(f"{log}-{os.environ.get('RANK', 0)}", "a") as file: file.write(f"{int(path.stem[6:])}\\n")
    save(path, *arguments)
extract._save = logged
found = extract_features(encoder, np.load(pictures), cache, dtype=torch.float32, progress=False, workers=1)
print(f"{processes().count} {len(found.features)} {len(found.broken)};", end="", flush=True)
extract_features(encoder, Path(files).read_text().splitlines(), cache, progress=False, workers=1)
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory, pictures):
    "Its folder, and TOGETHER in two processes as a user would start it: on pictures, then on files, one broken."
    folder = tmp_path_factory.mktemp("together")
    np.save(folder / "pictures.npy", pictures[:400])
    files = [folder / f"{i}.png" for i in range(300)]
    for file, picture in zip(files, pictures): Image.fromarray(picture).save(file)
    files[290].write_bytes(b"nothing")
    (folder / "list.txt").write_text("\n".join(map(str, files)))
    (script := folder / "together.py").write_text(TOGETHER)
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                "--main_process_port", str(port))
    return folder, run(script, folder / "cache", folder / "pictures.npy", folder / "list.txt", folder / "log",
                       launcher=launcher, HF_HOME=str(folder), CUDA_VISIBLE_DEVICES="")


def test_two_processes_give_the_bits_of_one(encoder, pictures, launched):
    "They have one thread each, and this one has two; all 32 bits of every number."
    folder, done = launched
    assert done.stdout.count("2 400 0;") == 2, done.stderr[-3000:]
    made = [(folder / f"log-{rank}").read_text().split() for rank in (0, 1)]
    assert made[0][:2] == ["0", "0"] and made[1][:1] == ["256"]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    alone = extract_features(encoder, pictures[:400], dtype=torch.float32, progress=False).features
    torch.set_num_threads(before)
    together = extract_features(encoder, pictures[:400], folder / "cache", dtype=torch.float32, progress=False).features
    assert torch.equal(together, alone) and len(list((folder / "cache").glob("*/store.json"))) == 1


def test_a_broken_picture_ends_both_processes(launched):
    "With an error that names it, not with one of them waiting for the other."
    _, done = launched
    assert done.returncode != 0 and "image 290: " in done.stderr and "290.png: this is not a picture" in done.stderr


# broken pictures

@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [False, True])
def test_every_broken_picture_is_told_with_its_path(encoder, sheet, tmp_path, workers, cache):
    folder = tmp_path / "cache" if cache else None
    for row, (name, reason) in enumerate(SHEET.items(), 1):
        with pytest.raises(PZSLError, match=f"image 1: .*Bilder, schöne/{name}: .*{reason}.*on_error='skip'"):
            extract_features(encoder, [sheet[0], sheet[row]], folder, workers=workers, progress=False)
    with pytest.warns(UserWarning, match=f"{len(SHEET)} of {len(sheet)} pictures are broken .*truncated.jpg"):
        features, broken = extract_features(encoder, sheet, folder, on_error="skip", workers=workers, progress=False)
    assert [*broken] == [*range(1, len(sheet) - 1)]
    for row, (name, reason) in enumerate(SHEET.items(), 1):
        assert broken[row].startswith(str(sheet[row])) and reason in broken[row]
    length = features.float().norm(dim=1)
    assert (length[[0, -1]] > .99).all() and (features[1:-1] == 0).all()
    assert torch.equal(features[[0, -1]], extract_features(encoder, sheet[::len(sheet) - 1], progress=False).features)


def test_skipped_once_and_fatal_later(encoder, sheet, tmp_path):
    "One store serves both ways; pictures that are broken stay told."
    files = [sheet[0], sheet[1], sheet[-1]]
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 3 pictures"):
            assert [*extract_features(encoder, files, tmp_path / "c", on_error="skip", progress=False).broken] == [1]
        with pytest.raises(PZSLError, match="image 1: .*truncated.jpg"):
            extract_features(encoder, files, tmp_path / "c", progress=False)
    assert len([*(tmp_path / "c").iterdir()]) == 1


def test_fatal_goes_on_with_skip_from_where_it_stopped(encoder, pictures, sheet, tmp_path, monkeypatch):
    encoded = count_batches(monkeypatch, encoder)
    images = [Image.fromarray(p) for p in pictures[:300]]
    images[270] = Image.open(sheet[1])
    with pytest.raises(PZSLError, match="image 270: .*truncated"):
        extract_features(encoder, images, tmp_path / "c", progress=False)
    assert len(encoded) == 5
    with pytest.warns(UserWarning, match="1 of 300"):
        extract_features(encoder, images, tmp_path / "c", on_error="skip", progress=False)
    assert len(encoded) == 6


def test_short_batches_are_filled_up(encoder, pictures, monkeypatch):
    "A product with few rows would be split by the number of threads, and its sums with it."
    encoded = count_batches(monkeypatch, encoder)
    extract_features(encoder, pictures[:69], progress=False)
    assert encoded == [64, 16]


def test_a_mended_picture_is_seen(encoder, sheet, tmp_path):
    files = [sheet[0], sheet[1]]
    with pytest.warns(UserWarning):
        extract_features(encoder, files, tmp_path / "c", on_error="skip", progress=False)
    sheet[1].write_bytes(sheet[0].read_bytes())
    features, broken = extract_features(encoder, files, tmp_path / "c", progress=False)
    assert broken == {} and torch.equal(features[0], features[1])


def test_an_answer_that_is_not_finite(encoder, pictures, monkeypatch):
    encode = encoder.model.encode_image
    monkeypatch.setattr(encoder.model, "encode_image", lambda pixels: encode(pixels).index_fill(
        0, torch.tensor([3]), torch.nan))
    with pytest.raises(PZSLError, match="image 3: the encoder's answer is not finite"):
        extract_features(encoder, pictures[:9], progress=False)


FORMATS = {"PNG": "RGB", "JPEG": "RGB", "GIF": "P", "TIFF": "RGB", "BMP": "RGB", "WEBP": "RGB", "PPM": "L",
           "ICO": "RGBA"}


def saved(kind):
    file = io.BytesIO()
    Image.fromarray(render([(1, 2, 3)], seed=0)[0]).convert(FORMATS[kind]).save(file, kind)
    return file.getvalue()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from([*FORMATS]), st.lists(st.tuples(st.floats(0, .999), st.integers(0, 255)), max_size=6),
       st.floats(0, 1))
def test_damaged_bytes_are_a_picture_or_a_reason(encoder, tmp_path_factory, kind, changes, cut):
    content = bytearray(saved(kind))
    for at, value in changes: content[int(at**3 * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[:int(cut * len(content)) + 1] if cut < .8 else content)
    try: picture = open_picture(path)
    except PZSLError as error: assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else: assert picture.mode == "RGB" and encoder.preprocess(picture).isfinite().all()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_no_thread_stays_and_nobody_runs_ahead(workers):
    before, torch_threads, taken = threading.active_count(), torch.get_num_threads(), []
    made = in_order(lambda i: -i, (taken.append(i) or i for i in range(10**9)), workers, ahead=5)
    assert [next(made) for _ in range(20)] == [-i for i in range(20)]
    assert len(taken) <= 26
    made.close()
    assert (threading.active_count(), torch.get_num_threads()) == (before, torch_threads)


# keys

def test_files_are_known_by_size_and_time(encoder, sheet, tmp_path):
    "And only by these: the hole is as wide as the page says."
    files = [sheet[0], sheet[-1]]
    first = extract_features(encoder, files, tmp_path / "c", progress=False).features.clone()
    facts, key = os.stat(files[0]), image_key(encoder, files)
    files[0].write_bytes(bytes(facts.st_size))
    os.utime(files[0], ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert torch.equal(extract_features(encoder, files, tmp_path / "c", progress=False).features, first)
    os.utime(files[0], ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert image_key(encoder, files) != key
    os.utime(files[0], ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert image_key(encoder, files) == key
    os.truncate(files[0], facts.st_size - 1)
    os.utime(files[0], ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert image_key(encoder, files) != key


def test_where_files_are_counts_only_below_their_common_folder(encoder, sheet, tmp_path, monkeypatch):
    files = [sheet[0], sheet[-1]]
    key = image_key(encoder, files)
    assert key == image_key(encoder, [str(f) for f in files]) == image_key(encoder, np.array([str(f) for f in files]))
    monkeypatch.chdir(sheet[0].parent)
    assert key == image_key(encoder, ["first.jpg", "../Bilder, schöne/last.jpg"])
    assert key != image_key(encoder, files[::-1])
    moved = sheet[0].parent.rename(tmp_path / "elsewhere")
    assert key == image_key(encoder, [moved / "first.jpg", moved / "last.jpg"])
    (moved / "below").mkdir()
    (moved / "first.jpg").rename(moved / "below" / "first.jpg")
    assert key != image_key(encoder, [moved / "below" / "first.jpg", moved / "last.jpg"])


def test_a_lazy_sequence_with_a_fingerprint_is_not_touched_for_the_key(encoder, pictures, tmp_path):
    class Lazy(Sequence):
        def __init__(self, fingerprint): self.fingerprint, self.asked = fingerprint, []
        def __len__(self): return 5
        def __getitem__(self, i): self.asked.append(i); return Image.fromarray(pictures[i])
    one, two, other = Lazy("a"), Lazy("a"), Lazy("b")
    made = extract_features(encoder, one, tmp_path, progress=False).features
    assert torch.equal(extract_features(encoder, two, tmp_path, progress=False).features, made) and two.asked == []
    assert image_key(encoder, other) != image_key(encoder, one)


def test_a_lazy_sequence_whose_first_picture_is_broken(encoder, pictures):
    class Lazy(Sequence):
        def __len__(self): return 3
        def __getitem__(self, i): return Image.fromarray(pictures[i]) if i else Image.open(io.BytesIO(b"nothing"))
    with pytest.raises(PZSLError, match="image 0: cannot identify"):
        extract_features(encoder, Lazy(), progress=False)


def test_colours_of_a_palette_count(encoder):
    one, two = Image.new("P", (8, 8)), Image.new("P", (8, 8))
    one.putpalette([255, 0, 0]); two.putpalette([0, 255, 0])
    assert image_key(encoder, [one]) != image_key(encoder, [two])


# the store

def damage(kind, store):
    features, told = store / "features.npy", store / "store.json"
    if kind == "cut": os.truncate(features, features.stat().st_size - 1)
    if kind == "longer": features.write_bytes(features.read_bytes() + b"0")
    if kind == "bit":
        content = bytearray(features.read_bytes()); content[-1] ^= 1; features.write_bytes(content)
    if kind == "gone": features.unlink()
    if kind == "no json": told.write_text("{")
    if kind == "a list": told.write_text("[]")
    if kind == "no pieces": told.write_text(json.dumps({**json.loads(told.read_text()), "pieces": None}))
    if kind == "broken rows": told.write_text(json.dumps({**json.loads(told.read_text()), "broken": {"x": 1}}))


@pytest.mark.parametrize("kind", ["cut", "longer", "bit", "gone", "no json", "a list", "no pieces", "broken rows"])
def test_a_damaged_store_is_made_again(encoder, pictures, reference, tmp_path, kind):
    few = pictures[:300]
    extract_features(encoder, few, tmp_path, progress=False)
    store, = tmp_path.iterdir()
    damage(kind, store)
    with pytest.warns(UserWarning, match="store of features is damaged"):
        again = extract_features(encoder, few, tmp_path, progress=False).features
    torch.testing.assert_close(again, reference[:300], rtol=0, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract_features(encoder, few, tmp_path, progress=False)


@pytest.mark.parametrize("size", [0, 9, 400])
def test_a_damaged_shard_is_made_again(encoder, pictures, reference, tmp_path, monkeypatch, size):
    encode, left = encoder.model.encode_image, [9]

    def stops(pixels):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
        return encode(pixels)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoder.model, "encode_image", stops)
        extract_features(encoder, pictures, tmp_path, progress=False)
    store, = tmp_path.iterdir()
    assert len([*store.glob("shard-*")]) == 2
    os.truncate(store / "shard-000000000.safetensors", size)
    encoded = count_batches(monkeypatch, encoder)
    with pytest.warns(UserWarning, match="shard-000000000.safetensors: this cache file is damaged"):
        again = extract_features(encoder, pictures, tmp_path, progress=False).features
    assert torch.equal(again, reference) and len(encoded) == batches(700) - 4


def test_a_finished_store_is_opened_by_itself(encoder, pictures, reference, tmp_path, monkeypatch):
    extract_features(encoder, pictures, tmp_path, progress=False)
    store, load, modes = tmp_path / image_key(encoder, pictures), np.load, []
    for refused in ((), ("c",)):
        def strict(path, mmap_mode, **named):
            modes.append(mmap_mode)
            if mmap_mode in refused: raise OSError(12, "Cannot allocate memory")
            return load(path, mmap_mode=mmap_mode, **named)
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("error")
            patch.setattr(np, "load", strict)
            features, broken = open_store(store)
        assert torch.equal(features, reference) and broken == {}
    assert modes == ["c", "c", "r"]
    os.truncate(store / "features.npy", 500)
    with pytest.raises(PZSLError, match="damaged"): open_store(store)
    with pytest.raises(PZSLError, match="no such file"): open_store(tmp_path)


def test_killed_after_the_last_step_but_one(encoder, pictures, reference, tmp_path):
    "The store is complete and its shards are still there: they go with the next look."
    extract_features(encoder, pictures, tmp_path, progress=False)
    store, = tmp_path.iterdir()
    for name in ("shard-000000000.safetensors", ".features.0123.npy"): (store / name).write_bytes(b"left behind")
    assert torch.equal(extract_features(encoder, pictures, tmp_path, progress=False).features, reference)
    assert {file.name for file in store.iterdir()} == {"features.npy", "store.json", "lock"}


def test_a_store_that_may_only_be_read(encoder, pictures, reference, tmp_path, monkeypatch):
    "A cache that others share needs no lock and no permission to write."
    extract_features(encoder, pictures, tmp_path, progress=False)
    monkeypatch.setattr(extract, "_locked", None)
    monkeypatch.setattr(Path, "unlink", None)
    found = extract_features(encoder, pictures, tmp_path, progress=False)
    assert torch.equal(found.features, reference)
    found.features[:] = 0
    assert torch.equal(extract_features(encoder, pictures, tmp_path, progress=False).features, reference)


def test_a_full_disk(encoder, pictures, tmp_path):
    "Played by a limit on the size of files."
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(PZSLError, match="features cannot be kept there .*cache_dir"):
            extract_features(encoder, pictures, tmp_path, progress=False)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert extract_features(encoder, pictures, tmp_path, progress=False).broken == {}


def test_a_cache_that_cannot_be_a_folder(encoder, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PZSLError, match="features cannot be kept there"):
        extract_features(encoder, pictures[:3], tmp_path / "file", progress=False)


@pytest.mark.parametrize("wrong", [{"on_error": "ignore"}, {"dtype": torch.float64}, {"batch_size": 0},
                                   {"workers": -1}])
def test_settings_out_of_range(encoder, pictures, wrong):
    with pytest.raises(PZSLError, match=[*wrong][0]): extract_features(encoder, pictures, **wrong)


# memory

HUNGRY = """
import json, os, sys, threading, time
from dataclasses import replace
from pathlib import Path
from torch.nn.functional import avg_pool2d
from torchvision.transforms import Compose, Resize, ToTensor
from pzsl_nb.encoders import load_encoder
from pzsl_nb.extract import extract_features
folder, n = Path(sys.argv[1]), int(sys.argv[2])
def resident(process):
    try: return int(Path(f"/proc/{process}/smaps_rollup").read_text().split("Pss:")[1].split()[0]) / 1024
    except (OSError, IndexError): return 0     # it has just ended
def everyone():
    tasks = Path("/proc/self/task").iterdir()
    return [os.getpid(), *(int(c) for t in tasks for c in (t / "children").read_text().split())]
def watch():
    while True: peak.append(sum(map(resident, everyone()))); time.sleep(.03)
peak = []
sys.setswitchinterval(.001)
encoder = replace(load_encoder(device="cpu"), preprocess=Compose([Resize((224, 224)), ToTensor()]))
encode = encoder.model.encode_image
encoder.model.encode_image = lambda pixels: encode(avg_pool2d(pixels, 7))
threading.Thread(target=watch, daemon=True).start()
images = [str(folder / f"{i % 4}.jpg") for i in range(n)]
found = extract_features(encoder, images, folder / f"cache-{n}", workers=2, batch_size=32, progress=False)
assert len(found.features) == n
middle = peak[:len(peak) * 2 // 5]
print(json.dumps([max(middle), max(peak)]))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory of processes is read from /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    "320 pictures, 1.1 GB when decoded and 190 MB when prepared; what two fifths of them need is enough for all."
    noise = np.random.default_rng(0).integers(0, 255, (17, 25, 3), dtype=np.uint8)
    for i in range(4): Image.fromarray(noise + np.uint8(i)).resize((1250, 900)).save(tmp_path / f"{i}.jpg")
    early, late = answer(run(HUNGRY, tmp_path, 320, OMP_NUM_THREADS="1"))
    assert late < early + 160, (early, late)


# photographs

def test_photographs_through_a_large_encoder(tmp_path):
    files = sorted(DATA.rglob("*.JPEG"))
    if not files: pytest.skip("the photographs are not here; set PZSL_DATA to the folder of the data")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-B-32").state_dict(), tmp_path / "weights.pt")
    large = load_encoder("ViT-B-32", "openai", device="cpu", weights=tmp_path / "weights.pt")
    (tmp_path / "broken.JPEG").write_bytes(files[0].read_bytes()[:5000])
    files = [*files[::8], tmp_path / "broken.JPEG"]
    n = len(files) - 1
    with pytest.warns(UserWarning, match=f"1 of {n + 1} pictures are broken .*broken.JPEG"):
        features, broken = extract_features(large, files, tmp_path / "c", on_error="skip", workers=2, progress=False)
    assert features.shape == (n + 1, 512) and features.dtype == torch.float16 and [*broken] == [n]
    torch.testing.assert_close(features[:n].float().norm(dim=1), torch.ones(n), rtol=0, atol=1e-3)
    begin = time.perf_counter()
    with pytest.warns(UserWarning, match="broken.JPEG"):
        again = extract_features(large, files, tmp_path / "c", on_error="skip", progress=False).features
    assert torch.equal(again, features) and time.perf_counter() - begin < 1


# as cameras and scanners leave them

def test_pictures_stand_as_the_camera_was_held(tmp_path):
    flat = np.zeros((20, 40, 3), np.uint8)
    flat[:, :20] = 255   # white on the left
    for number in range(1, 9):
        picture = Image.fromarray(flat)
        exif = picture.getexif()
        exif[274] = number
        picture.save(tmp_path/"held.png", exif=exif)
        shown = np.asarray(open_picture(tmp_path/"held.png"))
        assert shown.shape == ((20, 40, 3) if number < 5 else (40, 20, 3)), number
        bright = {1: shown[:, :20], 2: shown[:, 20:], 3: shown[:, 20:], 4: shown[:, :20],
                  5: shown[:20], 6: shown[:20], 7: shown[20:], 8: shown[20:]}[number]
        assert bright.min() == 255 and shown.sum() == bright.sum(), number


def test_numbers_of_sixteen_bits_are_scaled_and_others_refused(tmp_path):
    ramp = np.linspace(0, 65535, 300).astype(np.uint16).reshape(10, 30)
    for name in ("deep.png", "deep.tif"):
        picture = Image.fromarray(ramp)
        exif = picture.getexif()
        exif[274] = 3   # held upside down
        picture.save(tmp_path/name, exif=exif)
        shown = np.asarray(open_picture(tmp_path/name))
        assert abs(shown[::-1, ::-1, 0].astype(float) - ramp/257).max() <= .5
    Image.fromarray(np.float32(ramp)/65535).save(tmp_path/"float.tif")
    with pytest.raises(PZSLError, match="float.tif: its numbers may mean anything"): open_picture(tmp_path/"float.tif")

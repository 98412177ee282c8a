"Feature files: what is read, and that nothing but a PZSLError comes out of a bad one."
import dataclasses
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pzsl_nb.core import PZSLError
from pzsl_nb.features_files import load_features_npz, load_features_safetensors, save_features
from pzsl_nb.task import CandidateSets, make_task

C, D, ROWS = 6, 5, 4   # classes 4 and 5 are unseen


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(C).repeat(ROWS)
    return {"X_train": rng.normal(size=(len(y), D)).astype("f2"), "y_train": y, "X_test": rng.normal(size=(len(y), D)),
            "y_test": y, "text": rng.normal(size=(C, D)).astype("f4"), "unseen": np.arange(C) >= 4}


@pytest.fixture
def save_mapped(tmp_path):
    def save_mapped(texts=None, drop=(), **changes):
        from safetensors.torch import save_file
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in (arrays() | changes).items()
                   if key not in drop}
        save_file(tensors, tmp_path / "birds.safetensors", {} if texts is None else {"pzsl": texts})
        return tmp_path / "birds.safetensors"
    return save_mapped


@pytest.fixture
def save(tmp_path):
    def save(drop=(), **changes):
        np.savez(tmp_path / "birds.npz", **{k: v for k, v in (arrays() | changes).items() if k not in drop})
        return tmp_path / "birds.npz"
    return save


def test_the_shortest_file(save):
    task = load_features_npz(save())
    assert (task.name, task.logit_scale, task.candidates, task.superclass) == ("birds", 100., None, None)
    assert task.features.dtype == torch.float32 and task.labels.tolist() == [c for c in range(4) for _ in range(ROWS)]
    assert task.dropped_rows == 2*ROWS and len(task.test_labels) == C*ROWS
    expected = torch.nn.functional.normalize(torch.tensor(arrays()["X_train"][:4*ROWS].astype("f4")), dim=1)
    torch.testing.assert_close(task.features, expected)


def test_the_longest_file(save):
    y = arrays()["y_train"]
    task = load_features_npz(save(names=np.array(list("abcdef")), X_val=arrays(1)["X_test"], y_val=y, logit_scale=20.,
                                  superclass=np.arange(C) % 2, candidates_indptr=np.arange(0, 2*len(y) + 1, 2),
                                  candidates_indices=np.stack([(y + 1) % 4, y % 4], 1).ravel(), extra=np.zeros(3)))
    assert task.class_names == tuple("abcdef") and task.logit_scale == 20 and task.superclass.tolist() == [0, 1]*3
    assert len(task.validation_features) == 4*ROWS and task.seen[task.validation_labels].all()
    assert list(task.candidates) == [sorted({(c + 1) % 4, c}) for c in task.labels.tolist()]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1", ">f4"])
def test_features_of_any_number_type(save, dtype):
    X = (np.abs(arrays()["X_train"]*50) + 1).astype(dtype)
    task = load_features_npz(save(X_train=X, unseen=arrays()["unseen"].astype(int)))
    expected = torch.nn.functional.normalize(torch.tensor(X[:4*ROWS].astype("f4")), dim=1)
    torch.testing.assert_close(task.features, expected)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u8", "f4", ">i4", ">f8"])
def test_labels_of_any_number_type(save, dtype):
    task = load_features_npz(save(y_train=arrays()["y_train"].astype(dtype)))
    assert task.labels.tolist() == [0]*4 + [1]*4 + [2]*4 + [3]*4


def test_names_as_bytes(save):
    assert load_features_npz(save(names=np.array(list("abcdef"), dtype="S"))).class_names == tuple("abcdef")


def test_sets_of_rows_that_are_left_out_may_name_unseen_classes(save):
    y = arrays()["y_train"]
    task = load_features_npz(save(candidates_indptr=np.arange(len(y) + 1), candidates_indices=y))
    assert [c for c, in task.candidates] == task.labels.tolist()


def spoil(key, row, value):
    array = arrays()[key].astype("f8")
    array[row, slice(None) if value == 0 else 1] = value   # NaN spoils a row alone, zeros only all together
    return {key: array}


def given(indptr, indices): return {"candidates_indptr": indptr, "candidates_indices": indices}


BAD = [
    ("X_train", spoil("X_train", 3, np.nan), "row 3"), ("X_test", spoil("X_test", 2, np.inf), "row 2"),
    ("text", spoil("text", 1, np.nan), "row 1"), ("text", spoil("text", 1, 0), "all zeros in row 1"),
    ("X_train", spoil("X_train", 20, np.nan), "row 20"),   # a row that would be left out: rows are those of the file
    ("X_train", {"X_train": np.zeros((24, 4))}, "4 wide and 'text' 5"),
    ("X_test", {"X_test": np.ones(24)}, "shape (24,)"),
    ("X_train", {"X_train": np.zeros((0, D))}, "empty"), ("text", {"text": np.ones(3)}, "shape (3,)"),
    ("text", {"text": np.float32(1)}, "shape ()"), ("X_train", {"X_train": np.array([["a"]*D]*24)}, "not numbers"),
    ("X_train", {"X_train": np.ones((24, D), complex)}, "not numbers"),
    ("X_train", {"X_train": np.array([[None]*D]*24, dtype=object)}, "cannot be read"),
    ("y_train", {"y_train": np.arange(24) % C + 1}, "counted from 1"),
    ("y_train", {"y_train": np.arange(24) % C - 1}, "correct them"),
    ("y_train", {"y_train": np.arange(23) % C}, "23 labels for 24 rows"),
    ("y_test", {"y_test": np.eye(24)}, "must be flat"),
    ("y_train", {"y_train": np.full(24, .5)}, "not whole numbers"),
    ("y_train", {"y_train": np.full(24, np.nan)}, "not whole"),
    ("y_train", {"y_train": np.array(["a"]*24)}, "not whole numbers"),
    ("y_train", {"y_train": np.arange(24) % 2 + 4}, "nothing is left"),
    ("unseen", {"unseen": np.array([4, 5])}, "np.isin(np.arange(C), list)"), ("unseen", {"unseen": np.arange(C)}, "true or false"),
    ("unseen", {"unseen": np.arange(C) > 0}, "1 of 6"), ("unseen", {"unseen": np.array(["no"]*C)}, "true or false"),
    ("names", {"names": np.array(["a", "b"])}, "shape (2,)"), ("names", {"names": np.array(["a"]*C)}, "repeats 'a'"),
    ("names", {"names": np.arange(C)}, "not text"),
    ("names", {"names": np.array(list("abcde") + [None], dtype=object)}, "cannot be"),
    ("names", {"names": np.array([b"\xff", b"b", b"c", b"d", b"e", b"f"])}, "UTF-8"),
    ("logit_scale", {"logit_scale": 0.}, "positive"), ("logit_scale", {"logit_scale": np.nan}, "positive"),
    ("logit_scale", {"logit_scale": np.ones(2)}, "positive"), ("logit_scale", {"logit_scale": "100"}, "positive"),
    ("superclass", {"superclass": np.arange(3)}, "shape (3,)"),
    ("X_val", {"X_val": np.ones((3, D))}, "without 'y_val'"), ("y_val", {"y_val": np.ones(3)}, "without 'X_val'"),
    ("X_val", {"X_val": np.ones((3, 4)), "y_val": np.zeros(3)}, "4 wide"),
    ("y_val", {"X_val": np.ones((3, D)), "y_val": np.full(3, C)}, "is 6 in row 0"),
    ("candidates_indptr", {"candidates_indptr": np.arange(25)}, "without"),
    ("candidates_indptr", given(np.arange(24), np.zeros(23, int)), "25 entries"),
    ("candidates_indptr", given(np.arange(25), np.zeros(20, int)), "rise from 0 to 20"),
    ("candidates_indptr", given(np.arange(25)[::-1], np.zeros(24, int)), "rise"),
    ("candidates_indices", given(np.arange(25), np.full(24, 9)), "class 9 does not exist"),
    ("candidates_indices", given(np.r_[0, np.arange(24)], np.zeros(23, int)), "row 0 is empty"),
    ("candidates_indices", given(np.arange(25), np.full(24, 5)), "unseen class 5 in row 0, 1"),
]


bad_arrays = pytest.mark.parametrize("key, changes, message", BAD,
                                     ids=[f"{i}-{key}" for i, (key, _, _) in enumerate(BAD)])


@pytest.mark.parametrize("key", ["candidates", "candidate_indptr", "Candidates_indices", "train_candidates", "partial_labels"])
def test_sets_under_another_name_are_not_overlooked(save, save_mapped, key):
    for load, path in ((load_features_npz, save), (load_features_safetensors, save_mapped)):
        with pytest.raises(PZSLError, match=f"'{key}' is not one that is read; save .*candidates_indptr"):
            load(path(**{key: np.ones((24, C))}))
        load(path(confidence=np.ones(24)))   # what nobody reads may be there


@bad_arrays
def test_bad_arrays_are_refused_by_file_and_key(save, key, changes, message):
    with pytest.raises(PZSLError) as caught: load_features_npz(save(**changes))
    text = str(caught.value)
    assert "birds.npz: " in text and f"key '{key}'" in text and message in text and "\n" not in text


@bad_arrays
def test_the_same_is_refused_from_safetensors(save_mapped, key, changes, message):
    if any(np.asarray(value).dtype.kind in "cUSO" for value in changes.values()): pytest.skip("no tensors")
    with pytest.raises(PZSLError) as caught: load_features_safetensors(save_mapped(**changes))
    text = str(caught.value)
    assert "birds.safetensors: " in text and f"key '{key}'" in text and message in text and "\n" not in text


def test_rows_are_those_of_the_file_however_long_it_is(save, save_mapped):
    long = np.ones((500_000, D), "f4")   # more than one block
    long[[3, 300_000, 499_999], [0, 4, 2]] = np.nan
    for load, path in ((load_features_npz, save(X_test=long)), (load_features_safetensors, save_mapped(X_test=long))):
        with pytest.raises(PZSLError, match="key 'X_test' has NaN .* in row 3, 300000, 499999;"): load(path)


@pytest.mark.parametrize("key", arrays())
def test_missing_keys_are_named(save, key):
    with pytest.raises(PZSLError, match=f"birds.npz: has no key '{key}'"): load_features_npz(save(drop=[key]))


def test_any_cut_is_refused(save, tmp_path):
    whole = save().read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(PZSLError, match="cut.npz: "): load_features_npz(tmp_path / "cut.npz")


def test_any_spoiled_byte_is_refused_or_harmless(save, tmp_path):
    path, sound = save(), load_features_npz(save())
    whole = bytearray(path.read_bytes())
    refused = 0
    for at in range(0, len(whole), 29):
        spoiled = whole.copy()
        spoiled[at] ^= 0xFF
        path.write_bytes(spoiled)
        try: task = load_features_npz(path)
        except PZSLError as error:
            assert "birds.npz" in str(error)
            refused += 1
        else: assert torch.equal(task.features, sound.features) and torch.equal(task.test_labels, sound.test_labels)
    assert refused > len(whole)/29/2


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "bare.npy", np.ones(3))
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "folder.npz").mkdir()
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive: archive.writestr("readme.txt", "hello")
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        for key in arrays(): archive.writestr(key, "hello")
    for name in ("bare", "text", "empty", "folder", "zip", "raw", "absent"):
        with pytest.raises(PZSLError, match=f"{name}.npz: "): load_features_npz(tmp_path / f"{name}.npz")


def test_sets_survive_a_trip_through_the_file(save):
    sets = CandidateSets.from_lists([[c % 4, (c + 1) % 4] for c in arrays()["y_train"]], C)
    task = load_features_npz(save(candidates_indptr=sets.indptr.numpy(), candidates_indices=sets.indices.numpy()))
    assert list(task.candidates) == list(sets)[:4*ROWS]


# Mapped files, and files that are written

def unit(n, seed=0, width=D):
    return torch.nn.functional.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)))


def whole_task():
    sets = CandidateSets.from_lists([[c % 4, (c + 1) % 4] for c in range(12)], C)
    return make_task("all", unit(12), np.arange(12) % 4, unit(C, 1), np.arange(C) < 4, unit(7, 2), np.arange(7) % C - 1,
                     class_names=["\u00e9 |", *"bcdef"], candidates=sets, logit_scale=12.5, superclass=np.arange(C) % 2,
                     validation_features=unit(3, 3), validation_labels=np.arange(3), attributes=torch.rand(C, 2),
                     image_ids=[f"a/{i}.jpg" for i in range(12)], test_ids=[f"b/\u6771{i}" for i in range(7)],
                     notes=("one, two", "three"))


@pytest.mark.parametrize("form, load", [("npz", load_features_npz), ("safetensors", load_features_safetensors)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_task_survives_the_trip(tmp_path, form, load, dtype):
    task = whole_task()
    task = dataclasses.replace(task, features=task.features.to(dtype))
    save_features(tmp_path / f"all.{form}", task)
    again = load(tmp_path / f"all.{form}")
    if form == "safetensors": assert again.features.dtype == dtype and torch.equal(again.features, task.features)
    for field in dataclasses.fields(task):
        one, other = getattr(task, field.name), getattr(again, field.name)
        if isinstance(one, torch.Tensor): torch.testing.assert_close(other.float(), one.float(), atol=1e-3, rtol=0)
        elif field.name == "candidates": assert list(one) == list(other)
        elif field.name.endswith("ids"): assert list(one) == list(other)
        elif field.name != "fingerprint": assert one == other, field.name


def test_what_a_task_lacks_is_not_written(tmp_path):
    task = make_task("few", unit(8), None, unit(C, 1), np.arange(C) < 4, unit(0), np.zeros(0, int),
                     candidates=CandidateSets.from_lists([[c % 4] for c in range(8)], C))
    for form, load in (("npz", load_features_npz), ("safetensors", load_features_safetensors)):
        save_features(tmp_path / f"few.{form}", task)
        again = load(tmp_path / f"few.{form}")
        assert again.labels is None and len(again.test_features) == 0
        assert list(again.candidates) == list(task.candidates)


def test_sets_without_truth_may_not_name_unseen_classes(save):
    with pytest.raises(PZSLError, match="unseen class 5 in row 3"):
        load_features_npz(save(drop=["y_train"], **given(np.arange(25), np.where(np.arange(24) == 3, 5, 0))))
    assert load_features_npz(save(drop=["y_train"], **given(np.arange(25), np.zeros(24, int)))).labels is None


def test_only_npz_and_safetensors_are_written(tmp_path):
    with pytest.raises(PZSLError, match="all.h5: .*these endings"): save_features(tmp_path / "all.h5", whole_task())
    assert not list(tmp_path.iterdir())
    task = dataclasses.replace(whole_task(), class_names=("\ud800", *"bcdef"))
    with pytest.raises(PZSLError, match="not Unicode"): save_features(tmp_path / "all.safetensors", task)
    assert not list(tmp_path.iterdir())


def test_writing_over_the_file_that_is_mapped(tmp_path):
    path = tmp_path / "all.safetensors"
    save_features(path, whole_task())
    task = load_features_safetensors(path)
    save_features(path, dataclasses.replace(task, features=-task.features))
    assert torch.equal(load_features_safetensors(path).features, -task.features) and len(list(tmp_path.iterdir())) == 1


def test_the_library_reads_what_is_written(tmp_path):
    from safetensors.torch import load_file
    save_features(tmp_path / "all.safetensors", whole_task())
    found = load_file(tmp_path / "all.safetensors")
    assert torch.equal(found["X_train"], whole_task().features) and found["unseen"].tolist() == [False]*4 + [True]*2
    content = (tmp_path / "all.safetensors").read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0   # so that mapped numbers lie even


@pytest.mark.parametrize("texts, message", [("[1", "not JSON"), ("[]", "not an object"),
                                            ('{"names": "abcdef"}', "'names'"), ('{"names": [1, 2]}', "list of text"),
                                            ('{"names": ["a"]}', "shape (1,)"),
                                            ('{"names": ["\\ud800", "b", "c", "d", "e", "f"]}', "Unicode"),
                                            ('{"image_ids": ["a"]}', "give one name a row"), ("["*10**5, "not JSON")])
def test_bad_texts_are_refused(save_mapped, texts, message):
    with pytest.raises(PZSLError) as caught: load_features_safetensors(save_mapped(texts))
    assert message in str(caught.value) and "birds.safetensors: " in str(caught.value)


def test_other_files_are_refused_as_safetensors(tmp_path, save_mapped):
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "cut.safetensors").write_bytes(save_mapped().read_bytes()[:-1])
    for name in ("text", "empty", "folder", "cut", "absent"):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(PZSLError, match=f"{name}.safetensors: "): load_features_safetensors(path)


def test_bombs_are_turned_away(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", X_train=np.zeros((2000, 1000)))
    monkeypatch.setattr("pzsl_nb.core._FREE", 2**20)
    with pytest.raises(PZSLError, match="bomb.npz: would unpack to"): load_features_npz(tmp_path / "bomb.npz")


def test_a_large_table_stays_on_the_disk(tmp_path):
    "100,000 rows of 512 half-precision features, 98 MiB: checked row by row, in less private memory than half of that."
    if not Path("/proc/self/status").exists(): pytest.skip("the system does not tell how memory is used")
    rows, y = unit(1000, 0, 512).half(), np.arange(100_000)
    task = make_task("large", rows.repeat(100, 1), y % 9, unit(10, 1, 512), np.arange(10) < 9, rows, y[:1000] % 10)
    save_features(tmp_path / "large.safetensors", task)
    save_features(tmp_path / "small.safetensors", make_task("small", rows[:90], y[:90] % 9, unit(10, 1, 512), np.arange(10) < 9, rows, y[:1000] % 10))
    code = f"""
import re, threading, time
from pzsl_nb.features_files import load_features_safetensors
load_features_safetensors({str(tmp_path / "small.safetensors")!r})   # what the first call imports is no part of it
def own(): return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])//1024
begin, peak, done = own(), [0], threading.Event()
def watch():
    while not done.wait(.002): peak.append(own())
watcher = threading.Thread(target=watch); watcher.start()
task = load_features_safetensors({str(tmp_path / "large.safetensors")!r})
done.set(); watcher.join()
at = task.features.data_ptr()
spans = [line.split() for line in open("/proc/self/maps")]
print(max(peak) - begin, task.features.dtype, *[span[-1] for span in spans
      if int(span[0].split("-")[0], 16) <= at < int(span[0].split("-")[1], 16)])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parent.parent).stdout.split()
    assert told[1:] == ["torch.float16", str(tmp_path / "large.safetensors")] and int(told[0]) < 49, told

"Feature files: what is read, and that nothing but a PZSLError comes out of a bad one."
import zipfile

import numpy as np
import pytest
import torch

from pzsl_nb.core import PZSLError
from pzsl_nb.features_files import load_features_npz
from pzsl_nb.task import CandidateSets

C, D, ROWS = 6, 5, 4   # classes 4 and 5 are unseen


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(C).repeat(ROWS)
    return {"X_train": rng.normal(size=(len(y), D)).astype("f2"), "y_train": y, "X_test": rng.normal(size=(len(y), D)),
            "y_test": y, "text": rng.normal(size=(C, D)).astype("f4"), "unseen": np.arange(C) >= 4}


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
    ("y_train", {"y_train": np.arange(24) % C - 1}, "is -1"),
    ("y_train", {"y_train": np.arange(23) % C}, "23 labels for 24 rows"),
    ("y_test", {"y_test": np.eye(24)}, "must be flat"),
    ("y_train", {"y_train": np.full(24, .5)}, "not whole numbers"),
    ("y_train", {"y_train": np.full(24, np.nan)}, "not whole"),
    ("y_train", {"y_train": np.array(["a"]*24)}, "not whole numbers"),
    ("y_train", {"y_train": np.arange(24) % 2 + 4}, "nothing is left"),
    ("unseen", {"unseen": np.array([4, 5])}, "shape (2,)"), ("unseen", {"unseen": np.arange(C)}, "true or false"),
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


@pytest.mark.parametrize("key, changes, message", BAD, ids=[f"{i}-{key}" for i, (key, _, _) in enumerate(BAD)])
def test_bad_arrays_are_refused_by_file_and_key(save, key, changes, message):
    with pytest.raises(PZSLError) as caught: load_features_npz(save(**changes))
    text = str(caught.value)
    assert "birds.npz: " in text and f"key '{key}'" in text and message in text and "\n" not in text


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

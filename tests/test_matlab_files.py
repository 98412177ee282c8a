"MATLAB files: what is read, real benchmarks where they are at hand, and planted faults."
import dataclasses
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array, random_array

from pzsl_nb.core import PZSLError
from pzsl_nb.experiment import Config, fit_task, measure
from pzsl_nb.matlab_files import (attribute_label_features, candidate_likelihoods, class_means, load_pll, load_xlsa17,
                                  read_mat, split_version, with_attribute_features)
from pzsl_nb.task import CandidateSets

DATA = Path(os.environ.get("PZSL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def real(name):
    if not (DATA / name).exists(): pytest.skip(f"{name} is not here; set PZSL_DATA to the folder of the data")
    return DATA / name


# The reader

@pytest.mark.parametrize("deflate", [False, True])
def test_reads_what_scipy_writes(tmp_path, deflate):
    rng = np.random.default_rng(0)
    arrays = {"f8": rng.normal(size=(3, 5)), "f4": rng.normal(size=(1, 4)).astype("f4"),
              "u2": np.uint16([[7], [65535]]),
              "i8": np.int64([[2**60]]), "flag": np.array([[True, False]]), "whole": np.array([[1., 2, 300]]),
              "none": np.zeros((0, 3)), "text": "grizzly+bear", "greek": "\u03b1\u03b2",
              "sparse": random_array((6, 4), density=.4, rng=rng, format="csc"), "empty": csc_array((3, 2))}
    savemat(tmp_path / "a.mat", arrays, do_compression=deflate)
    found, other = read_mat(tmp_path / "a.mat", arrays), loadmat(tmp_path / "a.mat")
    for key in ("f8", "f4", "u2", "i8", "flag", "whole", "none"):
        np.testing.assert_array_equal(found[key], other[key])
    assert (found["text"], found["greek"]) == ("grizzly+bear", "\u03b1\u03b2")
    for key in ("sparse", "empty"): np.testing.assert_array_equal(found[key].toarray(), arrays[key].toarray())


def test_reads_cells_and_rows_of_letters(tmp_path):
    cells = np.empty((2, 2), dtype=object)
    cells[0, 0], cells[1, 0], cells[0, 1], cells[1, 1] = "ox", np.arange(3), "\u00e9", csc_array(np.eye(2))
    savemat(tmp_path / "a.mat", {"cells": cells, "rows": np.array(["cat", "giraffe"])})
    found = read_mat(tmp_path / "a.mat", ["cells", "rows"])
    assert found["cells"][0] == "ox" and found["cells"][1].tolist() == [[0, 1, 2]] and found["cells"][2] == "\u00e9"
    assert found["cells"][3].toarray().tolist() == [[1, 0], [0, 1]] and found["rows"] == ["cat", "giraffe"]


def piece(kind, content, order="<"):
    return struct.pack(order + "II", kind, len(content)) + content + bytes(-len(content) % 8)


def table(name, shape, content, kind=6, number=9, order="<"):
    shape = struct.pack(order + "ii", *shape)
    return piece(14, piece(6, struct.pack(order + "II", kind, 0), order) + piece(5, shape, order)
                 + piece(1, name, order) + (piece(number, content, order) if content is not None else b""), order)


def mat(path, *elements, order="<"):
    end = struct.pack(order + "H", 0x100) + {"<": b"IM", ">": b"MI"}[order]
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + end + b"".join(elements))
    return path


def test_reads_the_other_byte_order(tmp_path):
    path = mat(tmp_path / "a.mat", table(b"x", (1, 2), struct.pack(">dd", 1, 2), order=">"), order=">")
    assert read_mat(path, ["x"])["x"].tolist() == [[1, 2]]


def packed(element):
    content = zlib.compress(element)
    return struct.pack("<II", 15, len(content)) + content


def cell(name, inside):
    content = piece(6, struct.pack("<II", 1, 0)) + piece(5, struct.pack("<ii", 1, 1)) + piece(1, name) + inside
    return struct.pack("<II", 14, len(content)) + content


@pytest.mark.parametrize("order", ["<", ">"])
def test_letters_of_two_and_four_bytes(tmp_path, order):
    for number, code in ((4, "utf-16"), (17, "utf-16"), (18, "utf-32")):
        letters = "\u03b1b".encode(f"{code}-{'le' if order == '<' else 'be'}")
        path = mat(tmp_path / f"{number}.mat", table(b"x", (1, 2), letters, 4, number, order), order=order)
        assert read_mat(path, ["x"])["x"] == "\u03b1b"


def test_only_what_is_asked_for_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("pzsl_nb.matlab_files._FREE", 2**20)
    path = mat(tmp_path / "a.mat", packed(table(b"other", (1, 2**22), bytes(2**25))), table(b"x", (1, 1), bytes(8)))
    assert read_mat(path, ["x"])["x"].tolist() == [[0]]
    with pytest.raises(PZSLError, match="a.mat: an array would unpack to more than"): read_mat(path, ["other"])
    monkeypatch.setattr("pzsl_nb.matlab_files._FREE", 2**26)
    assert read_mat(path, ["other"])["other"].shape == (1, 2**22)


def test_nests_are_turned_away(tmp_path):
    nest = table(b"", (1, 1), bytes(8))
    for _ in range(3000): nest = cell(b"", nest)   # a hundred thousand end the process in scipy.io.loadmat
    with pytest.raises(PZSLError, match="cells in cells"): read_mat(mat(tmp_path / "nest.mat", cell(b"x", nest)), ["x"])


GARBLED = {
    "numbers its shape asks for": table(b"x", (3, 2), bytes(8)), "structs": table(b"x", (1, 1), bytes(8), kind=2),
    "ends in the middle": table(b"x", (1, 1), bytes(8))[:-4], "it ends": cell(b"x", b""),
    "unknown kind": table(b"x", (1, 1), bytes(8), number=99), "garbled; fetch": table(b"x", (-1, -1), bytes(8)),
    "does not unpack": piece(15, b"nonsense"), "has no array 'x'": table(b"y", (1, 1), bytes(8)),
}


@pytest.mark.parametrize("message", GARBLED)
def test_garbled_files_are_refused(tmp_path, message):
    path = mat(tmp_path / "a.mat", GARBLED[message])
    with pytest.raises(PZSLError, match=f"a.mat: .*{message}"): read_mat(path, ["x"])


def test_other_files_are_refused(tmp_path):
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(64))
    (tmp_path / "text.mat").write_text("hello")
    (tmp_path / "empty.mat").write_bytes(b"")
    (tmp_path / "folder.mat").mkdir()
    for name, message in {"new": "-v7", "text": "not a MATLAB 5", "empty": "cannot be read", "folder": "no such file",
                          "absent": "no such file"}.items():
        with pytest.raises(PZSLError, match=f"{name}.mat: .*{message}"): read_mat(tmp_path / f"{name}.mat", ["x"])


# The zero-shot benchmark

C, ATTRIBUTES, WIDTH, ROWS = 6, 4, 10, 120


def benchmark(seed=0):
    "Features and splits as they go to MATLAB; classes 4 and 5 are unseen, and there are the lists of version 1."
    rng = np.random.default_rng(seed)
    att, labels = rng.random((C, ATTRIBUTES)), rng.permutation(np.arange(ROWS) % C)
    x = (att @ rng.normal(size=(ATTRIBUTES, WIDTH)))[labels] + .05*rng.normal(size=(ROWS, WIDTH))
    seen, unseen = rng.permutation(np.flatnonzero(labels < 4)), np.flatnonzero(labels >= 4)
    lists = {"trainval_loc": seen[20:], "test_seen_loc": seen[:20], "test_unseen_loc": unseen,
             "train_loc": seen[labels[seen] < 3], "val_loc": seen[labels[seen] == 3]}
    names = np.array([f"big+bird_{c}" for c in range(C)], dtype=object)[:, None]
    files = np.array([f"/data/x/JPEG/bird{c}/{i}.jpg" for i, c in enumerate(labels)], dtype=object)[:, None]
    lists = {key: np.uint16(rows[:, None] + 1) for key, rows in lists.items()}
    return ({"features": x.T, "labels": labels[:, None] + 1, "image_files": files},
            lists | {"att": att.T, "allclasses_names": names})


@pytest.fixture
def zoo(tmp_path):
    def save(features={}, **splits):
        parts = [given | changed for given, changed in zip(benchmark(), (features, splits))]
        (tmp_path / "ZOO").mkdir(exist_ok=True)
        for name, arrays in zip(("res101", "att_splits"), parts):
            savemat(tmp_path / "ZOO" / f"{name}.mat", {k: v for k, v in arrays.items() if v is not None})
        return tmp_path / "ZOO"
    return save


def test_the_benchmark_as_a_task(zoo):
    task, (table_, lists) = load_xlsa17(zoo()), benchmark()
    assert task.name == "ZOO" and task.class_names == tuple(f"big bird {c}" for c in range(C))
    assert task.seen.tolist() == [True]*4 + [False]*2 and task.candidates is None and task.dropped_rows == 0
    rows = lists["trainval_loc"].ravel() - 1
    assert task.labels.tolist() == (table_["labels"].ravel()[rows] - 1).tolist()
    tests = np.concatenate([lists["test_seen_loc"].ravel(), lists["test_unseen_loc"].ravel()]) - 1
    assert task.test_labels.tolist() == (table_["labels"].ravel()[tests] - 1).tolist()
    np.testing.assert_allclose(task.attributes, lists["att"].T, atol=1e-6)
    assert task.image_ids[0] == f"bird{task.labels[0]}/{rows[0]}.jpg" and len(task.test_ids) == len(tests)
    x = table_["features"].T/np.linalg.norm(table_["features"].T, axis=1, keepdims=True)
    centred = torch.nn.functional.normalize(torch.from_numpy(x - x[rows].mean(0)).float(), dim=1)
    torch.testing.assert_close(task.features, centred[rows])
    torch.testing.assert_close(task.test_features, centred[tests])


def test_split_versions_are_told_apart(zoo):
    none = {"train_loc": None, "val_loc": None}
    assert "version 1 (2017): its train_loc and val_loc hold 20 of the 20 seen test" in load_xlsa17(zoo()).notes[0]
    assert "probably version 2.0" in load_xlsa17(zoo(**none)).notes[0]
    train = benchmark()[1]["trainval_loc"]
    assert "version not known" in load_xlsa17(zoo(train_loc=train[:50], val_loc=train[50:])).notes[0]
    assert "version not known: its val_loc hold" in load_xlsa17(zoo(train_loc=None, val_loc=train[50:])).notes[0]
    task = load_xlsa17(zoo(test_seen_loc=None, **none))
    assert "standard split" in task.notes[0] and not task.seen[task.test_labels].any()
    assert split_version({"test_seen_loc": np.arange(3), "val_loc": np.array([2])}).count("hold 1 of the 3") == 1


def test_names(zoo):
    task = load_xlsa17(zoo(allclasses_names=None))
    assert task.class_names[0] == "class 1" and "no class names" in task.notes[1]
    (zoo() / "allclasses.txt").write_text("\n".join(f"00{c}.Sea_bird{c}" for c in range(C)) + "\n")
    assert load_xlsa17(zoo(allclasses_names=None)).class_names[3] == "Sea bird3"
    (zoo() / "allclasses.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(PZSLError, match="allclasses.txt: cannot be read"): load_xlsa17(zoo(allclasses_names=None))


def test_label_features_of_names(zoo):
    asked = []
    def encoder(names): asked.append(names); return torch.eye(WIDTH)[:len(names)]*2
    task = load_xlsa17(zoo(), semantics="names", encoder=encoder)
    torch.testing.assert_close(task.label_features, torch.eye(WIDTH)[:C])
    assert task.attributes is None   # or they would take the place of the names
    assert asked == [[f"big bird {c}" for c in range(C)]]
    x = torch.from_numpy(benchmark()[0]["features"].T[benchmark()[1]["trainval_loc"].ravel() - 1]).float()
    torch.testing.assert_close(task.features, torch.nn.functional.normalize(x, dim=1))   # not centred: text is not
    def narrow(names): return torch.eye(3)
    for wrong in ({"semantics": "names"}, {"semantics": "words"}, {"semantics": "names", "encoder": narrow}):
        with pytest.raises(PZSLError, match="semantics|ZOO: "): load_xlsa17(zoo(), **wrong)


def shifted(*keys): return {key: benchmark()[1][key] - 1 for key in keys}


def spoiled(key, row, value, part=0):
    array = benchmark()[part][key].astype("f8")
    array[row] = value
    return array


TABLE, LISTS = benchmark()
FIRST = int(LISTS["trainval_loc"][0, 0]) - 1
FAULTS = {
    "counted from 1": ({}, shifted("trainval_loc", "test_seen_loc", "test_unseen_loc")),
    "'labels' go from 0 to 5": ({"labels": TABLE["labels"] - 1}, {}),
    "'labels' go from 1 to 6, but must go from 1 to 5": ({}, {"att": LISTS["att"][:, :5],
                                                              "allclasses_names": LISTS["allclasses_names"][:5]}),
    "transpose it": ({"features": TABLE["features"].T}, {}),
    "6 class names for 4 columns of 'att'": ({}, {"att": LISTS["att"].T}),
    "but there are 119": ({"features": TABLE["features"][:, :119], "labels": TABLE["labels"][:119]}, {}),
    "fetch the file again": ({"features": TABLE["features"][:, :100]}, {}),
    "in 'trainval_loc' and in 'test_seen_loc'": ({}, {"test_seen_loc": LISTS["trainval_loc"]}),
    "in 'trainval_loc' and in 'test_unseen_loc'": ({}, {"test_unseen_loc": LISTS["trainval_loc"]}),
    "so not unseen": ({"labels": np.roll(TABLE["labels"], 1)}, {}),
    "has no image in 'trainval_loc'": ({"labels": spoiled("labels", slice(0), 0)}, {
        "test_seen_loc": LISTS["test_unseen_loc"][:1], "test_unseen_loc": LISTS["test_unseen_loc"][1:]}),
    "names images twice": ({}, {"trainval_loc": np.tile(LISTS["trainval_loc"], (2, 1))}),
    f"image {FIRST + 1} are all zeros or hold NaN": ({"features": spoiled("features", (0, FIRST), np.nan)}, {}),
    "all zeros": ({"features": spoiled("features", (slice(None), FIRST), 0)}, {}),
    "or infinite": ({"features": spoiled("features", (0, FIRST), 1e300)}, {}),
    "'att' has NaN, infinite or huge entries in column 3": ({}, {"att": spoiled("att", (0, 2), np.inf, 1)}),
    "has no array 'trainval_loc'": ({}, {"trainval_loc": None}), "has no array 'features'": ({"features": None}, {}),
    "must be a cell array of names": ({}, {"allclasses_names": np.arange(C)}),
    "are the same as words": ({}, {"allclasses_names": np.array(["a_b", "A+B", *"cdef"], dtype=object)}),
    "list of whole numbers": ({}, {"trainval_loc": LISTS["trainval_loc"] + .5}),
    "it is text": ({}, {"trainval_loc": "1 to 80"}), "must be a table of numbers, one column": ({}, {"att": "none"}),
    "it is a cell array": ({"features": TABLE["image_files"]}, {}),
}


@pytest.mark.parametrize("message", FAULTS)
def test_planted_faults_are_found(zoo, message):
    features, splits = FAULTS[message]
    with pytest.raises(PZSLError) as caught: load_xlsa17(zoo(features, **splits))
    text = str(caught.value)
    assert message in text and "ZOO" in text and ".mat: " in text and "\n" not in text


def test_any_cut_is_refused(zoo):
    folder = zoo()
    for name in ("res101.mat", "att_splits.mat"):
        whole = (folder / name).read_bytes()
        for length in range(0, len(whole), 211):
            (folder / name).write_bytes(whole[:length])
            with pytest.raises(PZSLError, match=f"{name}: "): load_xlsa17(folder)
        (folder / name).write_bytes(whole)


def test_the_real_split_of_awa2(tmp_path):
    folder = real("xlsa17/AWA2")
    (tmp_path / "AWA2").mkdir()
    shutil.copyfile(folder / "att_splits.mat", tmp_path / "AWA2" / "att_splits.mat")
    splits = loadmat(folder / "att_splits.mat")
    names = [name.item() for name in splits["allclasses_names"].ravel()]
    seen = np.isin(names, (folder / "trainvalclasses.txt").read_text().split())
    rng, labels = np.random.default_rng(0), np.zeros(37322, int)   # the true labels are in a file that is not here
    for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc"):
        rows = splits[key].ravel() - 1
        labels[rows] = rng.choice(np.flatnonzero(seen if key != "test_unseen_loc" else ~seen), len(rows))
    x = splits["att"].T[labels] @ rng.normal(size=(85, 32)) + .1*rng.normal(size=(37322, 32))
    savemat(tmp_path / "AWA2" / "res101.mat", {"features": x.T, "labels": labels[:, None] + 1})
    task = load_xlsa17(tmp_path / "AWA2")
    assert (len(task.features), len(task.test_labels), int(task.seen.sum())) == (23527, 5882 + 7913, 40)
    assert task.class_names[1] == "grizzly bear" and torch.equal(task.seen, torch.from_numpy(seen))
    assert "version not known" in task.notes[0] and task.attributes.shape == (50, 85)
    task = with_attribute_features(task, CandidateSets.from_pairs(torch.arange(23527), task.labels, 23527, 50))
    found = (task.test_features @ task.label_features.T).masked_fill(task.seen, -2).argmax(1)
    unseen = ~task.seen[task.test_labels]
    assert (found == task.test_labels)[unseen].float().mean() > .6   # attributes carry over to classes never seen


# Attributes

def test_class_means_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(7, 3)))
    lists = [[0], [0, 1], [1, 2], [2], [0, 1, 2], [1], [2, 0]]
    means, mass = class_means(x, CandidateSets.from_lists(lists, 4))
    for c in range(4):
        shares = np.array([(c in row)/len(row) for row in lists])
        np.testing.assert_allclose(mass[c], shares.sum())
        np.testing.assert_allclose(means[c], (shares @ x.numpy())/max(shares.sum(), 1e-9), atol=1e-12)


def test_the_bridge_knows_no_labels(zoo):
    task = load_xlsa17(zoo())
    sets = CandidateSets.from_lists([sorted({int(c), int(c + i % 3) % 4}) for i, c in enumerate(task.labels)], C)
    told = attribute_label_features(task.features, sets, task.attributes, task.seen)
    other = with_attribute_features(dataclasses.replace(task, labels=task.labels.flip(0)), sets)
    torch.testing.assert_close(told, other.label_features, rtol=0, atol=0)
    torch.testing.assert_close(told.norm(dim=1), torch.ones(C))
    truth = CandidateSets.from_pairs(torch.arange(len(sets)), task.labels, len(sets), C)
    clean = attribute_label_features(task.features, truth, task.attributes, task.seen)
    assert (clean*told).sum(1).min() < .9999   # and with them it would be another


def test_exact_attributes_are_followed_exactly():
    rng = np.random.default_rng(1)
    attributes, lens = rng.normal(size=(9, 3)), rng.normal(size=(3, 12))
    labels, seen = np.arange(60) % 6, np.arange(9) < 6
    x = torch.from_numpy((attributes - attributes[:6].mean(0)) @ lens)
    sets = CandidateSets.from_pairs(torch.arange(60), torch.from_numpy(labels), 60, 9)
    t = attribute_label_features(x[labels], sets, torch.from_numpy(attributes), torch.from_numpy(seen))
    torch.testing.assert_close(t, torch.nn.functional.normalize(x, dim=1).float(), atol=1e-3, rtol=0)
    moved = attribute_label_features(x[labels] + 3, sets, torch.from_numpy(attributes), torch.from_numpy(seen))
    torch.testing.assert_close(moved, t, atol=1e-4, rtol=0)   # what all classes share says nothing


def test_likelihood_of_sets():
    x, t = torch.eye(2), torch.eye(2)
    seen = torch.tensor([True, True])
    sure, every = CandidateSets.from_lists([[0], [1]], 2), CandidateSets.from_lists([[0, 1], [0, 1]], 2)
    got = candidate_likelihoods(x, t, sure, seen, [1., 5.])
    np.testing.assert_allclose(got, -np.log1p(np.exp([-1., -5.])), rtol=1e-5)
    np.testing.assert_allclose(candidate_likelihoods(x, t, every, seen, [1., 5.]), 0, atol=1e-6)
    three = torch.cat([t, t[:1]])   # an unseen class with the label feature of the first takes nothing from it
    sure = CandidateSets.from_lists([[0], [1]], 3)
    np.testing.assert_allclose(candidate_likelihoods(x, three, sure, torch.tensor([True, True, False]), [1., 5.]), got)


# Partial labels

def faces(n=60, classes=3, width=4, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, width))[truth]*3 + rng.normal(size=(n, width))
    sets = (rng.random((n, classes)) < .3) | np.eye(classes, dtype=bool)[truth]
    folds, order = np.empty((2, 5), dtype=object), rng.permutation(n) + 1
    for k in range(5): folds[:, k] = np.setdiff1d(order, order[k::5]), order[k::5]
    return {"features": x, "p_labels": sets.astype(float), "logitlabels": np.eye(classes)[truth], "tr": folds[:1],
            "te": folds[1:]}


@pytest.fixture
def pll(tmp_path):
    def save(**changes):
        savemat(tmp_path / "faces.mat", {k: v for k, v in (faces() | changes).items() if v is not None})
        return tmp_path / "faces.mat"
    return save


def test_partial_labels_as_a_task(pll):
    task, given_ = load_pll(pll(), 3), faces()
    train, test = (given_[key][0, 3] - 1 for key in ("tr", "te"))
    assert task.seen.all() and (task.name, task.class_names[0]) == ("faces, fold 3", "class 1")
    assert [list(row) for row in task.candidates] == [np.flatnonzero(row).tolist() for row in given_["p_labels"][train]]
    assert task.labels.tolist() == given_["logitlabels"][train].argmax(1).tolist()
    assert task.test_labels.tolist() == given_["logitlabels"][test].argmax(1).tolist()
    x = given_["features"]
    x = torch.from_numpy((x - x[train].mean(0))/x[train].std(0))
    torch.testing.assert_close(task.test_features, torch.nn.functional.normalize(x, dim=1)[test].float())


def test_test_rows_and_truth_shape_nothing_that_is_learned_from(pll):
    "Label features, training features and scale are the same whatever is in the test rows and the truth."
    given_ = faces()
    features, truth = given_["features"].copy(), given_["logitlabels"][::-1]
    features[given_["te"][0, 0] - 1] *= 5
    task, other = load_pll(pll()), load_pll(pll(features=features, logitlabels=truth))
    for key in ("features", "label_features"): assert torch.equal(getattr(task, key), getattr(other, key))
    assert task.logit_scale == other.logit_scale and not torch.equal(task.test_features, other.test_features)


def test_other_names_and_shapes(pll):
    given_, task = faces(), load_pll(pll())
    truth = given_["logitlabels"]
    forms = [{"p_labels": given_["p_labels"].T}, {"p_labels": csc_array(given_["p_labels"])},
             {"features": given_["features"].T},
             {"p_labels": csc_array(given_["p_labels"].T), "logitlabels": csc_array(truth.T)},
             {"logitlabels": truth.argmax(1) + 1}, {"logitlabels": truth.argmax(1)[:, None] + 1.},
             {"features": None, "data": given_["features"], "p_labels": None, "partial_target": given_["p_labels"].T,
              "logitlabels": None, "target": csc_array(truth.T)}]
    for changes in forms:
        again = load_pll(pll(**changes))
        assert torch.equal(again.features, task.features) and list(again.candidates) == list(task.candidates)
        assert torch.equal(again.labels, task.labels) and torch.equal(again.label_features, task.label_features)


def test_without_truth_or_folds(pll):
    task = load_pll(pll(logitlabels=None))
    assert task.labels is None and (task.test_labels == -1).all()
    parts = [load_pll(pll(tr=None, te=None), fold) for fold in range(5)]
    assert sum(len(task.test_labels) for task in parts) == 60 and "no folds" in parts[0].notes[1]
    with pytest.raises(PZSLError, match="fold 5 does not exist"): load_pll(pll(tr=None, te=None), 5)


def test_a_class_that_no_set_names(pll):
    sets = np.c_[faces()["p_labels"], np.zeros(60)]
    task = load_pll(pll(p_labels=sets, logitlabels=np.c_[faces()["logitlabels"], np.zeros(60)]))
    assert task.n_classes == 4 and task.label_features[3].norm() == pytest.approx(1)


PLL_FAULTS = {
    "counted from 1": {"tr": faces()["tr"] - 1}, "in 'tr' and 'te' of fold 0": {"te": faces()["tr"]},
    "each of 50 images": {"features": faces()["features"][:50]},
    "must hold 0 and 1": {"p_labels": faces()["p_labels"]*2}, "is empty": {"p_labels": np.zeros((60, 3))},
    "exactly one of 3 classes": {"logitlabels": np.ones((60, 3))},
    "from 1 to 3": {"logitlabels": np.arange(60)}, "'features' or 'data'": {"features": None},
    "'p_labels' or 'partial_target'": {"p_labels": None}, "hold NaN": {"features": faces()["features"]*np.nan},
    "too large": {"features": faces()["features"]*np.where(np.arange(60) == 7, 1e200, 1)[:, None]},
    "it is text": {"p_labels": "all"}, "table of numbers": {"features": faces()["tr"]},
    "fold 0 does not exist": {"tr": np.empty((1, 0), dtype=object)},
    "list of whole": {"tr": np.array([["a"]*5], dtype=object)},
}


@pytest.mark.parametrize("message", PLL_FAULTS)
def test_planted_faults_in_partial_labels(pll, message):
    with pytest.raises(PZSLError) as caught: load_pll(pll(**PLL_FAULTS[message]))
    assert message in str(caught.value) and "faces.mat: " in str(caught.value)


@pytest.mark.parametrize("name, rows, classes, accuracy", [("lost", 1122, 16, .45), ("birdac", 4998, 13, .4)])
def test_real_partial_labels(name, rows, classes, accuracy):
    path, tested = real(f"pll/{name}.mat"), 0
    raw = loadmat(path)
    for fold in range(5):
        task = load_pll(path, fold)
        train, test = (raw[key][0, fold].ravel() - 1 for key in ("tr", "te"))
        assert len(task.features) + len(task.test_labels) == rows and task.n_classes == classes and task.seen.all()
        assert task.candidates.contains(task.labels).all() and task.logit_scale in (4., 16.)
        np.testing.assert_array_equal(task.candidates.to_mask().numpy(), raw["p_labels"][train] == 1)
        np.testing.assert_array_equal(task.test_labels, raw["logitlabels"][test].argmax(1))
        assert ((task.test_features @ task.label_features.T).argmax(1) == task.test_labels).float().mean() > accuracy
        tested += len(test)
    assert tested == rows


@pytest.mark.parametrize("method", ["clip-pzsl", "proden", "cc"])
def test_methods_learn_on_lost(method):
    task, config = load_pll(real("pll/lost.mat")), Config(method=method)
    est, _ = fit_task(config, task, device="cpu", progress=False)
    row, tops = measure(config, task, est)
    right = {model: float((top.seen_class == task.test_labels).float().mean()) for model, top in tops.items()}
    assert right[method] > right["zero-shot"] + .05
    assert row["metrics"]["disambiguation_accuracy"] > row["zero_shot"]["disambiguation_accuracy"] + .05


def test_a_sparse_table_of_complex_numbers_is_refused(tmp_path):
    savemat(tmp_path/"a.mat", {"table": csc_array(np.array([[1 + 2j, 0], [0, 3]]))})
    with pytest.raises(PZSLError, match="complex numbers"): read_mat(tmp_path/"a.mat", ["table"])

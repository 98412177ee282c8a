"""Known data sets, written to disk as their archives lay them out: read as torchvision reads them, split as said, and
nothing of a stranger's file run. Human labels of CIFAR-10 and the split of AWA2 are real where they are at hand."""
import functools
import io
import json
import os
import pickle
import shutil
import struct
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as theirs
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from scipy.io import savemat

from pzsl_nb import datasets
from pzsl_nb.core import PZSLError
from pzsl_nb.datasets import KNOWN, read_known

DATA = Path(os.environ.get("PZSL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FEW = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def real(place):
    if not (DATA / place).exists():
        pytest.skip(f"{place} is not here; set PZSL_DATA to the folder of the data")
    return DATA / place


# The layouts

def picture(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), number % 256, np.uint8)).save(path)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_pets(root):
    parts = {"trainval": [], "test": []}
    for i, (label, breed) in enumerate([(2, "american_bulldog"), (1, "Abyssinian"), (3, "Egyptian_Mau")]*4):
        parts["test" if i % 4 == 0 else "trainval"].append(f"{breed}_{i} {label} 1 {label}")
        picture(root / f"oxford-iiit-pet/images/{breed}_{i}.jpg", i)
    for part, rows in parts.items():
        lines(root / f"oxford-iiit-pet/annotations/{part}.txt", rows)


def write_food101(root):
    names = "waffles", "apple_pie", "beef_tartare"
    lists = {part: {name: [f"{name}/{i + start}" for i in range(count)] for name in names}
             for part, start, count in (("train", 0, 3), ("test", 10, 2))}
    for part, content in lists.items():
        lines(root / f"food-101/meta/{part}.json", [json.dumps(content)])
        for name in sum(content.values(), []):
            picture(root / f"food-101/images/{name}.jpg")


def write_dtd(root):
    for k, part in enumerate(("train", "val", "test")):
        names = "zigzagged", "banded", "polka-dotted"
        rows = [f"{name}/{name}_{10*k + i:04d}.jpg" for name in names for i in range(2)]
        lines(root / f"dtd/dtd/labels/{part}1.txt", rows)
        for row in rows:
            picture(root / "dtd/dtd/images" / row)


def write_aircraft(root):
    data, names = root / "fgvc-aircraft-2013b/data", ["707-320", "Boeing 717", "DC-9-30"]
    lines(data / "variants.txt", names)
    for k, part in enumerate(("trainval", "test")):
        rows = [f"{1000*k + 10*c + i:07d} {name}" for i in range(2) for c, name in enumerate(names)]
        lines(data / f"images_variant_{part}.txt", rows)
        for row in rows:
            picture(data / f"images/{row.split()[0]}.jpg")


def write_flowers(root):
    folder, labels = root / "flowers-102", np.arange(1, 103).repeat(3)[::-1]
    parts = {key: np.random.default_rng(k).permutation(np.arange(k, len(labels), 3)) + 1
             for k, key in enumerate(("trnid", "valid", "tstid"))}
    for i in np.concatenate([*parts.values()]):
        picture(folder / f"jpg/image_{i:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": labels.astype(np.uint8)})
    savemat(folder / "setid.mat", parts)


def write_eurosat(root):
    for i, name in enumerate(["AnnualCrop", "Forest", "SeaLake"]*6):
        picture(root / f"eurosat/2750/{name}/{name}_{i}.jpg", i)


def write_caltech101(root):
    for name in ("BACKGROUND_Google", "Faces", "Faces_easy", "accordion", "wild_cat"):
        for i in range(1, 7):
            picture(root / f"caltech101/101_ObjectCategories/{name}/image_{i:04d}.jpg", i)


def write_cub(root):
    for c, name in enumerate(["Black_footed_Albatross", "Groove_billed_Ani", "Cardinal"], 1):
        for i in range(5):
            picture(root / f"CUB_200_2011/images/{c:03d}.{name}/{name}_{i:04d}_{c}.jpg")
    lines(root / "xlsa17/CUB/testclasses.txt", ["002.Groove_billed_Ani"])


def write_sun(root):
    for c, name in enumerate(["a/abbey", "b/bakery/shop", "b/bakery/kitchen"]):
        for i in range(5):
            picture(root / f"SUNAttributeDB_Images/images/{name}/sun_a{c}{i}.jpg")
    lines(root / "xlsa17/data/SUN/testclasses.txt", ["bakery_kitchen"])


TWELVE = "antelope bat blue+whale bobcat dolphin giraffe horse polar+bear rat seal sheep walrus".split()


def write_awa2(root, names=TWELVE, count=4):
    for name in names:
        for i in range(count):
            picture(root / f"Animals_with_Attributes2/JPEGImages/{name}/{name}_1000{i}.jpg")


# CIFAR, as Python 2 wrote it: texts and bytes are the same opcode

class Python2(pickle._Pickler):
    "Writes text and bytes as Python 2 did, and arrays as its NumPy did."
    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, value):
        value = value.encode("latin1") if isinstance(value, str) else value
        size = len(value)
        self.write((b"U" + bytes([size]) if size < 256 else b"T" + struct.pack("<i", size)) + value)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python2(value):
    Python2(file := io.BytesIO(), protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_cifar10(root, labels=None, dump=python2):
    rng, folder = np.random.default_rng(0), root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(60) % 10 if labels is None else labels
    for name, part in zip(["test_batch"] + [f"data_batch_{i}" for i in range(1, 6)], np.array_split(labels, 6)):
        data = rng.integers(0, 256, (len(part), 3072), dtype=np.uint8)
        (folder / name).write_bytes(dump({"batch_label": name, "labels": part.tolist(), "data": data,
                                          "filenames": [f"{name}_{i}.png" for i in range(len(part))]}))
    (folder / "batches.meta").write_bytes(dump({"num_cases_per_batch": 10, "label_names": TEN, "num_vis": 3072}))


GROUPS = ["aquatic_mammals", "fish", "insects", "medium_mammals", "people", "trees"]


def write_cifar100(root, dump=python2):
    rng, folder = np.random.default_rng(0), root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", 36), ("test", 12)):
        fine = np.arange(count) % 12
        (folder / name).write_bytes(dump({"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
                                          "fine_labels": fine.tolist(), "coarse_labels": (fine % 6).tolist()}))
    names = [f"sort_{c}" for c in "abcdefghijkl"]
    (folder / "meta").write_bytes(dump({"fine_label_names": names, "coarse_label_names": GROUPS}))


def write_people(root, labels, **changes):
    lists = {"clean_label": labels} | {f"random_label{i}": labels for i in (1, 2, 3)} | changes
    torch.save(lists, root / "CIFAR-10_human.pt")


def write_cifar10n(root):
    write_cifar10(root)
    write_people(root, np.arange(10, 60) % 10, random_label3=np.roll(np.arange(10, 60) % 10, 1))


WRITE = {"cifar10": write_cifar10, "cifar10n": write_cifar10n, "cifar100": write_cifar100, "cub": write_cub,
         "awa2": write_awa2, "sun": write_sun, "flowers": write_flowers, "pets": write_pets, "food101": write_food101,
         "caltech101": write_caltech101, "dtd": write_dtd, "eurosat": write_eurosat, "fgvc_aircraft": write_aircraft}
everywhere = pytest.mark.parametrize("name", WRITE)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    "Every data set on disk, each written once, in a folder whose name has a space and letters of several languages."
    @functools.cache
    def root(name):
        folder = tmp_path_factory.mktemp("x") / f"Daten für {name} 数据"
        WRITE[name](folder)
        return folder
    return root


# What is read

def test_every_known_data_set_is_tested_here():
    assert set(WRITE) == set(KNOWN)


@everywhere
@pytest.mark.parametrize("split", ["published", "half", "all"])
def test_no_training_picture_is_of_an_unseen_class_and_no_test_picture_is_for_training(name, split, roots):
    found = KNOWN[name](roots(name), split=split)
    assert found.name == name and len(found.train) and len(found.test)
    assert found.seen[found.labels].all() and found.seen.all() == (split == "all")
    assert set(found.test_labels.tolist()) == set(range(len(found.class_names)))   # unseen classes are tested, too
    assert not any(c in name for name in found.class_names for c in "_+/.")
    assert all("{}" in template for template in found.templates)
    assert found.notes[0].startswith("split: ") and all(Path(path).exists() for path in found.depends[:1])
    if found.train_ids is None:
        assert found.train.dtype == np.uint8 and found.train.shape[1:] == (32, 32, 3)
    else:
        assert not set(found.train_ids) & set(found.test_ids)
        assert all(isinstance(path, str) and path.endswith(name) and Path(path).is_file()
                   for path, name in zip([*found.train, *found.test], [*found.train_ids, *found.test_ids]))


@everywhere
def test_the_folder_of_the_data_set_itself_may_be_named(name, roots, tmp_path):
    inner = next(path for path in roots(name).iterdir() if path.is_dir() and path.name not in ("xlsa17",))
    assert KNOWN[name](inner).test_labels.tolist() == KNOWN[name](roots(name)).test_labels.tolist()


def torchvision_pairs(name, root, test):
    "File or pixels, and class, of each picture as torchvision reads them."
    if name in ("cifar10", "cifar100"):
        data = getattr(theirs, name.upper())(root, train=not test)
        return [(pixels.tobytes(), label) for pixels, label in zip(data.data, data.targets)], data.classes
    if name == "flowers":
        parts = [theirs.Flowers102(root, part) for part in (["test"] if test else ["train", "val"])]
        return [(str(p), c) for d in parts for p, c in zip(d._image_files, d._labels)], None
    if name == "dtd":
        parts = [theirs.DTD(root, part) for part in (["test"] if test else ["train", "val"])]
        return [(str(p), c) for d in parts for p, c in zip(d._image_files, d._labels)], parts[0].classes
    make = {"pets": theirs.OxfordIIITPet, "food101": theirs.Food101, "fgvc_aircraft": theirs.FGVCAircraft}[name]
    data = make(root, "test" if test else "train" if name == "food101" else "trainval")
    files = getattr(data, "_image_files", None) or data._images
    return [(str(p), c) for p, c in zip(files, data._labels)], data.classes


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "flowers", "pets", "food101", "dtd", "fgvc_aircraft"])
def test_torchvision_reads_the_same_pictures_and_labels(name, roots, monkeypatch):
    for module in ("cifar", "flowers102"):   # they ask for the checksums of the real files
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)
    found = KNOWN[name](roots(name), split="all")
    for test, pictures, labels in ((False, found.train, found.labels), (True, found.test, found.test_labels)):
        pairs, classes = torchvision_pairs(name, str(roots(name)), test)
        ours = [(p if isinstance(p, str) else p.tobytes(), int(c)) for p, c in zip(pictures, labels)]
        assert sorted(ours) == sorted(pairs)
        if classes: assert [c.lower().replace("_", " ") for c in classes] == [c.lower() for c in found.class_names]


@pytest.mark.parametrize("name, make", [("eurosat", theirs.EuroSAT), ("caltech101", theirs.Caltech101)])
def test_torchvision_reads_the_same_folders(name, make, roots):
    found, data = KNOWN[name](roots(name), split="all"), make(str(roots(name)))
    counts = np.bincount(data.targets if name == "eurosat" else data.y)
    assert (np.bincount([*found.labels, *found.test_labels]) == counts).all()
    assert "BACKGROUND_Google" not in "".join([*found.train, *found.test])


@pytest.mark.parametrize("name, files", [
    ("cifar10n", {"data_batch_5", "test_batch", "batches.meta", "CIFAR-10_human.pt"}),
    ("cifar100", {"train", "test", "meta"}),
    ("flowers", {"imagelabels.mat", "setid.mat", "jpg"}), ("pets", {"trainval.txt", "test.txt", "images"}),
    ("food101", {"train.json", "test.json", "images"}), ("dtd", {"train1.txt", "val1.txt", "test1.txt", "images"}),
    ("fgvc_aircraft", {"variants.txt", "images_variant_trainval.txt", "images_variant_test.txt"}),
    ("eurosat", {"Forest", "SeaLake", "2750"}), ("cub", {"002.Groove_billed_Ani", "testclasses.txt", "att_splits.mat"}),
    ("sun", {"shop", "kitchen", "testclasses.txt"})])
def test_a_remembered_reading_depends_on_all_that_was_read(name, files, roots):
    assert {path.name for path in KNOWN[name](roots(name)).depends} >= files


def test_class_names_are_words(roots):
    assert KNOWN["cub"](roots("cub")).class_names == ("Black footed Albatross", "Groove billed Ani", "Cardinal")
    assert KNOWN["sun"](roots("sun")).class_names == ("abbey", "bakery kitchen", "bakery shop")
    assert KNOWN["eurosat"](roots("eurosat")).class_names == ("annual crop land", "Forest", "lake or sea")
    assert KNOWN["caltech101"](roots("caltech101")).class_names[:2] == ("off-center face", "centered face")
    assert KNOWN["flowers"](roots("flowers")).class_names[59:61] == ("pink-yellow dahlia", "cautleya spicata")


# Splits

def unseen(found):
    return {name for name, seen in zip(found.class_names, found.seen) if not seen}


def test_published_splits(roots):
    for name in ("cifar10", "cifar10n"): assert unseen(KNOWN[name](roots(name))) == {"cat", "truck"}
    hundred = KNOWN["cifar100"](roots("cifar100"))
    assert {GROUPS[g] for g in hundred.superclass[~hundred.seen]} == {*GROUPS} - {"fish", "trees"}
    assert {GROUPS[g] for g in hundred.superclass[hundred.seen]} == {"fish", "trees"}
    assert unseen(KNOWN["awa2"](roots("awa2"))) == {"bat", "blue whale", "bobcat", "dolphin", "giraffe", "horse", "rat",
                                                    "seal", "sheep", "walrus"}
    assert unseen(KNOWN["cub"](roots("cub"))) == {"Groove billed Ani"}
    assert unseen(KNOWN["sun"](roots("sun"))) == {"bakery kitchen"}
    assert unseen(KNOWN["pets"](roots("pets"))) == {"Egyptian Mau"}          # two of three are the first half
    assert unseen(KNOWN["flowers"](roots("flowers"))) == set(KNOWN["flowers"](roots("flowers")).class_names[51:])


def test_what_is_left_out_is_counted(roots):
    published, every = (KNOWN["cifar10"](roots("cifar10"), split=split) for split in ("published", "all"))
    assert (len(every.train), len(published.train)) == (50, 40) and len(every.test) == len(published.test) == 10
    assert "10 training pictures of unseen classes are left out" in published.notes and len(every.notes) == 1


@pytest.mark.parametrize("name", ["cub", "sun"])
def test_without_the_files_of_the_benchmark_its_split_is_asked_for(name, tmp_path):
    WRITE[name](tmp_path)
    shutil.rmtree(tmp_path / "xlsa17")
    said = f"xlsa17/{name.upper()}: the split of .* is not there; put att_splits.mat and res101.mat .*xlsa17.zip"
    with pytest.raises(PZSLError, match=f"{said}, or ask for the split 'half'"): KNOWN[name](tmp_path)
    assert len(unseen(KNOWN[name](tmp_path, split="half"))) == 1


def test_the_other_list_of_the_benchmark_serves_too_and_a_strange_one_does_not(tmp_path):
    write_cub(tmp_path)
    expected = KNOWN["cub"](tmp_path)
    (tmp_path / "xlsa17/CUB/testclasses.txt").unlink()
    lines(tmp_path / "xlsa17/CUB/trainvalclasses.txt", ["001.Black_footed_Albatross", "003.Cardinal"])
    assert (KNOWN["cub"](tmp_path).seen == expected.seen).all()
    lines(tmp_path / "xlsa17/CUB/testclasses.txt", ["sheep"])
    with pytest.raises(PZSLError, match="testclasses.txt: the unseen class 'sheep' is not among the 3"):
        KNOWN["cub"](tmp_path)


def test_held_out_pictures_stay_when_others_come(tmp_path):
    write_eurosat(tmp_path)
    before = KNOWN["eurosat"](tmp_path)
    assert before.seen.tolist() == [True, True, False] and (np.bincount(before.test_labels) == [1, 1, 6]).all()
    for i in range(100, 400):
        picture(tmp_path / f"eurosat/2750/Forest/Forest_{i}.jpg")
    after = KNOWN["eurosat"](tmp_path)
    assert 40 <= (after.test_labels == 1).sum() <= 80
    kept = {name for name in before.test_ids if "AnnualCrop" in name}
    assert kept == {name for name in after.test_ids if "AnnualCrop" in name}
    assert set(KNOWN["eurosat"](tmp_path, seed=1).test_ids) != set(after.test_ids)
    assert KNOWN["eurosat"](tmp_path).test_ids == after.test_ids


# The benchmark, picture by picture

def write_benchmark(root, names, rows, folder="xlsa17/AWA2"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    cells = np.array([f"/BS/somebody/Animals_with_Attributes2//JPEGImages/{name}" for name in names], object)[:, None]
    savemat(root / folder / "res101.mat", {"image_files": cells, "labels": np.ones((len(names), 1))})
    savemat(root / folder / "att_splits.mat", {key: np.array(value, np.uint16)[:, None] for key, value in rows.items()})


ANIMALS = [f"{name}/{name}_1000{i}.jpg" for name in ("polar+bear", "antelope", "horse") for i in range(4)]
ROWS = {"trainval_loc": [1, 2, 5, 6], "test_seen_loc": [3, 8], "test_unseen_loc": [9, 10, 11, 12]}


def test_the_benchmark_decides_picture_by_picture(tmp_path):
    write_awa2(tmp_path, ("antelope", "horse", "polar+bear"))
    write_benchmark(tmp_path, ANIMALS, ROWS)
    found = KNOWN["awa2"](tmp_path)
    assert {*found.train_ids} == {ANIMALS[i - 1] for i in ROWS["trainval_loc"]}
    assert {*found.test_ids} == {ANIMALS[i - 1] for i in ROWS["test_seen_loc"] + ROWS["test_unseen_loc"]}
    assert unseen(found) == {"horse"} and found.class_names == ("antelope", "horse", "polar bear")
    assert "2 pictures that the split does not name are left out" in found.notes and "proposed split" in found.notes[0]
    assert {path.name for path in found.depends} >= {"att_splits.mat", "res101.mat", "antelope"}


@pytest.mark.parametrize("rows, said", [
    (ROWS | {"trainval_loc": [0, 1, 4, 5]}, "'trainval_loc' is not a list of whole numbers from 1 to 12"),
    (ROWS | {"test_unseen_loc": [9, 13]}, "'test_unseen_loc' is not a list of whole numbers from 1 to 12"),
    (ROWS | {"test_seen_loc": [2, 8]}, "trainval_loc and test_seen_loc share 1 pictures"),
    (ROWS | {"trainval_loc": [1, 2, 5, 9], "test_unseen_loc": [10, 11]},
     "trainval_loc has 1 pictures of classes that test_unseen_loc has too (horse)"),
    ({"trainval_loc": [1, 2]}, "att_splits.mat: has no array 'test_unseen_loc'")])
def test_faults_of_the_benchmarks_files(rows, said, tmp_path):
    write_awa2(tmp_path, ("antelope", "horse", "polar+bear"))
    write_benchmark(tmp_path, ANIMALS, rows)
    with pytest.raises(PZSLError) as caught: KNOWN["awa2"](tmp_path)
    assert said in str(caught.value)
    write_benchmark(tmp_path, [*ANIMALS, "bat/bat_1.jpg"], ROWS)
    with pytest.raises(PZSLError, match="1 of its 13 pictures are not in .*bat/bat_1.jpg"): KNOWN["awa2"](tmp_path)


def test_the_real_split_of_awa2(tmp_path):
    "att_splits.mat is the real one; which picture a row is comes from a file made for the test."
    source = real("xlsa17/AWA2")
    from scipy.io import loadmat
    rows = {key: loadmat(source / "att_splits.mat")[key][:, 0].astype(int) for key in ROWS}
    names = (source / "allclasses.txt").read_text().split()
    held = {*names} - {*(source / "trainvalclasses.txt").read_text().split()}
    label = np.zeros(sum(map(len, rows.values())) + 1, int)
    for key in ROWS:
        classes = held if key == "test_unseen_loc" else {*names} - held
        label[rows[key]] = np.resize([names.index(name) for name in sorted(classes)], len(rows[key]))
    pictures = [f"{names[c]}/{names[c]}_{i}.jpg" for i, c in enumerate(label[1:])]
    base = tmp_path / "Animals_with_Attributes2/JPEGImages"
    for name in names: (base / name).mkdir(parents=True)
    for name in pictures: (base / name).touch()
    write_benchmark(tmp_path, pictures, {})
    shutil.copy(source / "att_splits.mat", tmp_path / "xlsa17/AWA2")
    found = KNOWN["awa2"](tmp_path)
    assert (len(found.train), len(found.test), (found.test_labels >= 0).sum()) == (23527, 13795, 13795)
    assert (~found.seen[found.test_labels]).sum() == 7913
    by_rows = unseen(found)
    for file in ("res101.mat", "att_splits.mat"): (tmp_path / "xlsa17/AWA2" / file).unlink()
    by_constant = unseen(KNOWN["awa2"](tmp_path))
    shutil.copy(source / "trainvalclasses.txt", tmp_path / "xlsa17/AWA2")
    assert by_rows == by_constant == unseen(KNOWN["awa2"](tmp_path)) == {name.replace("+", " ") for name in held}


# CIFAR-10N

def test_the_real_human_labels_of_cifar10(tmp_path):
    shutil.copy(real("cifar_n/CIFAR-10_human.pt"), tmp_path)
    lists = datasets._human_labels(tmp_path / "CIFAR-10_human.pt")
    write_cifar10(tmp_path, np.concatenate([np.arange(10_000) % 10, lists["clean_label"]]))
    every = KNOWN["cifar10n"](tmp_path, split="all")
    assert len(every.train) == 50_000 and (every.labels == lists["clean_label"]).all()
    holds = every.candidates.contains(torch.as_tensor(every.labels))
    said = np.stack([lists[f"random_label{i}"] for i in (1, 2, 3)], 1)
    assert holds.float().mean() == pytest.approx((said == every.labels[:, None]).any(1).mean())
    assert .94 < holds.float().mean() < 1 and 1.2 < every.candidates.nnz / 50_000 < 1.5
    for row in (0, 4_321, 49_999): assert every.candidates[row] == sorted({*said[row].tolist()})
    found = KNOWN["cifar10n"](tmp_path)
    gone = np.isin(lists["clean_label"], [3, 9]) | np.isin(said, [3, 9]).all(1)
    assert len(found.train) == (~gone).sum() and not np.isin(found.candidates.indices, [3, 9]).any()
    assert len(found.notes) == 4 and found.notes[1].startswith("10,000 ")


@pytest.mark.parametrize("changes, said", [
    ({"clean_label": np.arange(50) % 10 + 1}, "to 10 for 50 training pictures of 10"),
    ({"clean_label": np.roll(np.arange(10, 60) % 10, 1)}, "not those of the pictures in row 0, 1, 2, 3, 4 and 45 more"),
    ({"random_label2": np.zeros(49, int)}, "key 'random_label2' has 49 labels"),
    ({"random_label3": np.zeros(50)}, "key 'random_label3': is no array of whole numbers"),
    ({"random_label3": np.array(["a"]*50, object)}, "key 'random_label3': is no array of whole numbers")])
def test_human_labels_of_other_pictures(changes, said, tmp_path):
    write_cifar10(tmp_path)
    write_people(tmp_path, np.arange(10, 60) % 10, **changes)
    with pytest.raises(PZSLError) as caught: KNOWN["cifar10n"](tmp_path)
    assert said in str(caught.value) and "CIFAR-10_human.pt" in str(caught.value)


# Nothing is run

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


def forged(steps):
    "A pickle written by hand."
    return b"\x80\x02" + steps + b"."


HOSTILE = {
    "calls a function": lambda mark: pickle.dumps(Evil(mark), 2),
    "calls a function by the newer opcode": lambda mark: pickle.dumps(Evil(mark), 4),
    "hides it in the data": lambda mark: pickle.dumps({"data": Evil(mark), "labels": [0]}, 2),
    "old instance opcode": lambda mark: forged(b"(U" + bytes([len(bytes(mark))]) + bytes(mark) + b"ios\nmkdir\n"),
    "an attribute of an allowed module": lambda mark: forged(b"cnumpy\nfromfile\n"),
    "room for four billion values": lambda mark: forged(b"}r\xff\xff\xff\xff"),
    "a nest of tuples": lambda mark: forged(b")" + b"\x85"*200_000 + b"}\x94"),
    "the reader's own class, changed": lambda mark: forged(b"cnumpy\nndarray\n}U\x05stateK\x01sb"),
    "persistent id": lambda mark: forged(b"Px\n"),
    "extension": lambda mark: forged(b"\x82\x01"),
    "empty": lambda mark: b"",
    "cut off": lambda mark: python2({"data": np.zeros((1, 3072), np.uint8), "labels": [0]})[:-200],
    "no dict": lambda mark: pickle.dumps([1, 2], 2),
    "text": lambda mark: b"<html>404</html>",
}
SAID = {"room for four billion values": "it makes room for more values", "a nest of tuples": "it builds more than 500",
        "calls a function": "it asks for", "old instance opcode": "it asks for os.mkdir"}


@pytest.mark.parametrize("place", ["data_batch_2", "batches.meta", "people"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_not_run(kind, place, tmp_path):
    write_cifar10n(tmp_path)
    mark = tmp_path / "ran"
    content = HOSTILE[kind](mark)
    if place == "people":
        with zipfile.ZipFile(tmp_path / "CIFAR-10_human.pt", "w") as file: file.writestr("archive/data.pkl", content)
    else: (tmp_path / "cifar-10-batches-py" / place).write_bytes(content)
    with pytest.raises(PZSLError) as caught: KNOWN["cifar10n"](tmp_path)
    assert ("CIFAR-10_human.pt" if place == "people" else place) in str(caught.value) and not mark.exists()
    assert SAID.get(kind, "") in str(caught.value)   # some would end the process, were they only tried


def test_the_evil_pickles_of_these_tests_do_run_elsewhere(tmp_path):
    for i, (kind, make) in enumerate([*HOSTILE.items()][:4]):
        pickle.loads(make(tmp_path / str(i)))
        assert (tmp_path / str(i)).is_dir(), kind


@pytest.mark.parametrize("dump", [python2, *(functools.partial(pickle.dumps, protocol=p) for p in (2, 3, 4))])
def test_all_pythons_pickles_and_both_orders_of_arrays_are_read(dump, tmp_path):
    write_cifar10(tmp_path / "a")
    write_cifar10(tmp_path / "b", dump=lambda batch: dump({k: np.asfortranarray(v) if k == "data" else v
                                                           for k, v in batch.items()}))
    a, b = (KNOWN["cifar10"](tmp_path / name) for name in "ab")
    assert (a.train == b.train).all() and (a.labels == b.labels).all() and len(np.unique(a.train)) == 256


@pytest.mark.parametrize("change, said", [
    ({"labels": [0]*9}, "key 'labels' has 9 labels for 10 pictures"), ({"labels": [10]*10}, "labels run from 0 to 10"),
    ({"labels": ["a"]*10}, "key 'labels': is no array of whole"),
    ({"data": np.zeros((10, 3071), np.uint8)}, "(10, 3071)"),
    ({"data": np.zeros((10, 3072))}, "key 'data': is no array of whole"),
    ({"data": np.zeros((10, 3072), int)}, "type int64, not (n, 3072) bytes"),
    ({"data": None}, "key 'data': is no array of whole"),
    ({"labels": None}, "key 'labels': is no array of whole")])
def test_batches_that_are_not_what_they_should_be(change, said, tmp_path):
    write_cifar10(tmp_path)
    batch = {"data": np.zeros((10, 3072), np.uint8), "labels": [0]*10} | change
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(PZSLError) as caught: KNOWN["cifar10"](tmp_path)
    assert said in str(caught.value)


def test_a_bomb_among_human_labels_is_not_unpacked(tmp_path, monkeypatch):
    write_cifar10n(tmp_path)
    monkeypatch.setattr(datasets, "_MOST_BYTES", 1000)
    with pytest.raises(PZSLError, match="bytes unpacked"): KNOWN["cifar10n"](tmp_path)


# Malformed files: read, or our one error

def reads_or_says(name, root):
    try: KNOWN[name](root)
    except PZSLError as error: assert str(error).count(";") and str(root) in str(error)


def mangled(content, cuts):
    "The bytes with some places overwritten, and cut off where the last one says."
    content = bytearray(content)
    for where, value in cuts: content[int(where * (len(content) - 1))] = value
    return bytes(content[:int(cuts[-1][0] * len(content))] if len(cuts) > 3 else content)


places = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    "Copies that may be spoiled."
    @functools.cache
    def root(name):
        WRITE[name](folder := tmp_path_factory.mktemp("spoiled"))
        return folder
    return root


SPOILED = [("cifar10", "cifar-10-batches-py/batches.meta"), ("cifar10n", "CIFAR-10_human.pt"),
           ("flowers", "flowers-102/setid.mat"), ("pets", "oxford-iiit-pet/annotations/test.txt"),
           ("food101", "food-101/meta/test.json"), ("dtd", "dtd/dtd/labels/test1.txt"),
           ("fgvc_aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt"), ("cub", "xlsa17/CUB/testclasses.txt")]


@pytest.mark.parametrize("name, file", SPOILED, ids=[name for name, _ in SPOILED])
def test_a_spoiled_file_is_read_or_refused(name, file, mine):
    path = mine(name) / file
    good = path.read_bytes()

    @FEW
    @given(places)
    def check(cuts):
        path.write_bytes(mangled(good, cuts))
        reads_or_says(name, mine(name))
    try: check()
    finally: path.write_bytes(good)


@FEW
@given(places, st.integers(0, 1))
def test_a_spoiled_batch_is_read_or_refused(cuts, head):
    good = python2({"labels": [1, 2], "data": np.zeros((2, 3072), np.uint8), "filenames": ["a.png", "b.png"]})
    spoiled = mangled(good[:200], cuts) + good[200:] if head else mangled(good, cuts)
    try: batch = datasets._unpickled(spoiled, Path("batch"))
    except PZSLError: return
    if isinstance(batch, dict):
        for value in batch.values():
            try: datasets._numbers(value, "batch")
            except PZSLError: pass


@FEW
@given(st.recursive(st.none() | st.integers() | st.text(max_size=8), lambda x: st.lists(x, max_size=3) |
                    st.dictionaries(st.text(max_size=8), x, max_size=3), max_leaves=6))
def test_any_json_as_the_list_of_food_is_refused(mine, content):
    path = mine("food101") / "food-101/meta/test.json"
    good = path.read_text()
    path.write_text(json.dumps(content))
    try: reads_or_says("food101", mine("food101"))
    finally: path.write_text(good)


@pytest.mark.parametrize("bad", ["../../secret", "/etc/passwd", "a/../../b", "..\\..\\x", "a\0b"])
def test_lists_do_not_lead_out_of_their_folder(bad, tmp_path):
    write_food101(tmp_path)
    lines(tmp_path / "food-101/meta/test.json", [json.dumps({"waffles": [bad]})])
    with pytest.raises(PZSLError, match="test.json: the picture .* lies outside of the data set"):
        KNOWN["food101"](tmp_path)


def test_missing_pictures_are_counted(tmp_path):
    write_dtd(tmp_path)
    (tmp_path / "dtd/dtd/images/banded/banded_0020.jpg").unlink()
    with pytest.raises(PZSLError, match="1 of 18 pictures are not there .banded/banded_0020.jpg.; unpack the archive"):
        KNOWN["dtd"](tmp_path)


# What is not there

@everywhere
def test_what_is_missing_is_asked_for_by_name_and_address(name, tmp_path):
    with pytest.raises(PZSLError) as caught: KNOWN[name](tmp_path / "nothing here")
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and datasets._TABLE[name].needs[0].split(" or ")[0] in message
    assert "http" in message and ("--download" in message) == (name not in ("cub", "awa2", "sun"))
    assert not (tmp_path / "nothing here").exists()


def test_names_that_are_not_known():
    with pytest.raises(PZSLError, match="data set: 'imagenet' is not known; use one of cifar10, "):
        read_known("imagenet", ".")
    with pytest.raises(PZSLError, match="split: 'best' is not known; use one of published, half, all"):
        KNOWN["pets"](".", split="best")


@pytest.mark.parametrize("name, module, write", [
    ("food101", "torchvision.datasets.food101", write_food101),
    ("pets", "torchvision.datasets.oxford_iiit_pet", write_pets),
    ("cifar10", "torchvision.datasets.utils", write_cifar10)])
def test_download_is_torchvisions_and_silent(name, module, write, tmp_path, monkeypatch, capfd):
    asked = []

    def fetch(url, *args, **kwargs):
        asked.append(url)
        print("100%", flush=True)
        write(tmp_path)
    monkeypatch.setattr(f"{module}.download_and_extract_archive", fetch)
    assert len(KNOWN[name](tmp_path, download=True).train) and asked[0].startswith("http")
    count = len(asked)
    KNOWN[name](tmp_path, download=True)
    assert len(asked) == count and capfd.readouterr() == ("", "")   # what is there is not fetched again


@pytest.mark.parametrize("name", ["cifar10", "food101", "flowers", "caltech101"])
def test_a_download_that_fails_says_where_to_get_the_files(name, tmp_path, monkeypatch, capfd):
    def no_net(*args, **kwargs): raise urllib.error.URLError("no network")
    monkeypatch.setattr("urllib.request.urlopen", no_net)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_net)
    with pytest.raises(PZSLError, match=f"{name}: could not be fetched .*no network.*; get it from http"):
        KNOWN[name](tmp_path / "new", download=True)
    assert capfd.readouterr() == ("", "")

"""Names, picture sets and folders: what a folder gives, and that nothing but a PZSLError comes out of a bad one."""
import os
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pzsl_nb.core import PZSLError
from pzsl_nb.images import Paths, PictureSet, class_words, normalise_name, read_folder
from pzsl_nb.task import CandidateSets

quick = settings(max_examples=80, deadline=None, derandomize=True)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def album(tmp_path):
    "Makes class folders with pictures: album(cat=3, dog=2)."
    def album(under="", **counts):
        for name, count in counts.items():
            for i in range(count):
                put(tmp_path / under / name / f"{i}.jpg", b"")
        return tmp_path
    return album


def sets(pictures):
    names = np.array(pictures.class_names, object)
    return {key: set(names[pictures.candidates[row]]) for row, key in enumerate(pictures.train_ids)}


def refuses(message, read, *arguments, **settings):
    with pytest.raises(PZSLError) as caught:
        read(*arguments, **settings)
    assert message in str(caught.value)
    return str(caught.value)


# Properties

@quick
@given(st.text())
def test_names_come_to_rest(text):
    assert class_words(class_words(text)) == class_words(text)
    assert normalise_name(normalise_name(text)) == normalise_name(text)
    assert normalise_name(class_words(text)) == normalise_name(text)


@quick
@given(st.text())
def test_spellings_fall_together(text):
    assert normalise_name(f" {text}\t") == normalise_name(text)
    assert normalise_name(unicodedata.normalize("NFD", text)) == normalise_name(unicodedata.normalize("NFC", text))
    assert normalise_name("x_y" + text) == normalise_name("x y" + text) == normalise_name("X+Y" + text)


def loads_or_refuses(read, path):
    "The outcome, where it is one of the two that are allowed."
    try:
        return read()
    except PZSLError as error:
        assert path.name in str(error) and len(str(error)) < 1500
        assert ";" in str(error), "no mend"


@st.composite
def spoiled(draw, text):
    "A good file with some pieces cut, doubled or written over."
    content = bytearray(text.encode())
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 12))
        junk = draw(st.binary(max_size=6) | st.sampled_from([b'"', b"\n", b",", b"|",
                                                            b"\0", b"\r", b",,,,", b"../", b"\xff\xfe",
                                                            "é".encode(), "\u202e".encode(), b"image", b"label"]))
        content[at:at + length] = junk
    return bytes(content)


@quick
@given(spoiled("image,candidates,annotator\na/1.jpg,a|b,ann\nb/1.jpg,b,ben\nb/1.jpg,a,ann\n") | st.binary(max_size=80))
def test_any_candidates_load_or_are_refused(tmp_path_factory, content):
    root = tmp_path_factory.getbasetemp() / "with candidates"
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        put(root / name, b"")
    put(root / "candidates.csv", content)
    loads_or_refuses(lambda: read_folder(root), root)


def test_paths_are_put_together_when_asked_for():
    paths = Paths("root", ["a", "b", "c"])
    assert list(paths) == [os.path.join("root", key) for key in "abc"] and list(paths[1:]) == list(paths)[1:]
    assert paths[-1] == os.path.join("root", "c") and len(paths[:2]) == 2


# Folders

def test_a_folder_keeps_a_fifth_and_moves_nothing_when_it_grows(album):
    root = album(cat=40, dog=40, one=1, two=2)
    got = read_folder(root)
    assert (got.class_names, got.seen.all(), got.candidates) == (("cat", "dog", "one", "two"), True, None)
    count = np.bincount(got.test_labels, minlength=4)
    assert 3 <= count[0] <= 14 and 3 <= count[1] <= 14 and count[2:].tolist() == [0, 1]
    album(cat=80)
    later = read_folder(root)
    assert set(got.test_ids) <= set(later.test_ids) and set(got.train_ids) <= set(later.train_ids)
    assert read_folder(root, seed=1).test_ids != later.test_ids
    assert read_folder(root).test_ids == later.test_ids
    assert {root, root / "cat", root / "classes.csv", root / "candidates.csv"} <= set(got.depends)


def test_a_class_of_one_picture_is_learned_from(album):
    got = read_folder(album(**{f"class {i}": 1 for i in range(30)}))
    assert (len(got.train), len(got.test)) == (30, 0)


def test_classes_csv_makes_all_pictures_of_a_class_test_pictures(album):
    root = album(cat=5, dog_breeds=5, zebra=5)
    put(root / "classes.csv", "name,seen\nZebra,0\nDog-Breeds,1\ncat,1\nunicorn,0\n")
    got = read_folder(root)
    assert got.class_names == ("Zebra", "Dog-Breeds", "cat", "unicorn") and not (got.labels == 0).any()
    assert (got.test_labels == 0).sum() == 5 and got.seen.tolist() == [False, True, True, False]
    put(root / "classes.csv", "name\nDog-Breeds\ncat\n")
    refuses("'zebra': not a class of classes.csv", read_folder, root)


def test_train_and_test_folders(album):
    album("train", cat=3, dog=2), album("test", cat=1, zebra=2)
    root = album("val", dog=2)
    for stray in ("labels/1.jpg", "train/stray.jpg", "train/cat/note.txt"):
        put(root / stray, b"")
    got = read_folder(root)
    assert (len(got.train), len(got.test), got.class_names) == (7, 3, ("cat", "dog", "zebra"))
    assert got.seen.tolist() == [True, True, False] and "train/cat/0.jpg" in got.train_ids
    said = " / ".join(got.notes)
    for note in ("1 files that are no pictures", "in no class folder are not used: labels/1.jpg, train/stray.jpg",
                 "2 validation pictures join", "classes named in no training row are unseen: zebra"):
        assert note in said
    put(root / "candidates.csv", "image,candidates\ntrain/cat/0.jpg,cat|dog\ntest/cat/0.jpg,dog\n")
    voted = read_folder(root)
    assert voted.train_ids == got.train_ids and sets(voted)["train/cat/0.jpg"] == {"cat", "dog"}
    assert sets(voted)["train/dog/1.jpg"] == {"dog"} and voted.test_ids == got.test_ids


def test_a_class_may_be_called_train(album):
    assert read_folder(album(bus=3, train=3, plane=3)).class_names == ("bus", "plane", "train")


def test_flat_test_pictures_have_no_label(album):
    root = album("train", cat=2, dog=2)
    put(root / "test" / "1.jpg", b"")
    got = read_folder(root)
    assert got.test_labels.tolist() == [-1] and got.test_ids == ["test/1.jpg"]


def test_candidates_of_pictures_in_no_class_folder(tmp_path):
    for i in range(3):
        put(tmp_path / f"{i}.jpg", b"")
    refuses("in no class folder are not used: 0.jpg, 1.jpg, 2.jpg", read_folder, tmp_path)
    put(tmp_path / "candidates.csv", "image,candidates\n0.jpg,cat|dog\n./1.jpg,dog\n")
    got = read_folder(tmp_path)
    assert sets(got) == {"0.jpg": {"cat", "dog"}, "1.jpg": {"dog"}} and got.labels is None and len(got.test) == 0
    assert "no class folder are not used: 2.jpg" in got.notes[0]
    put(tmp_path / "candidates.csv", "image,candidates\n0.jpeg,cat|dog\n")
    refuses("candidates.csv: line 2 ('0.jpeg'): no such picture", read_folder, tmp_path)
    put(tmp_path / "candidates.csv", "image,label\n0.jpg,cat\n")
    refuses("has no column 'candidates'", read_folder, tmp_path)


def test_class_folders_that_collide_are_refused(album):
    refuses("'Grizzly bear', 'grizzly bear': the same name but for its spelling",
            read_folder, album(**{"grizzly_bear": 2, "Grizzly bear": 2}))


def test_links_in_folders(album, tmp_path_factory):
    root, elsewhere = album(cat=3, dog=3), tmp_path_factory.mktemp("elsewhere")
    put(elsewhere / "1.jpg", b"")
    (root / "cat" / "again").symlink_to(root)                       # a loop
    (root / "dog" / "linked.jpg").symlink_to(root / "dog" / "0.jpg")
    (root / "another dog").symlink_to(root / "dog")                 # read where it lies
    got = read_folder(root)
    assert len(got.train) + len(got.test) == 7 and got.class_names == ("cat", "dog")
    for link, target in ((root / "bird", elsewhere), (elsewhere / "loop", elsewhere), (elsewhere / "up", root)):
        link.symlink_to(target)
    refuses("'bird': a link that leads out of its folder", read_folder, root)
    assert "bird" in read_folder(root, allow_outside=True).class_names
    (root / "bird").unlink(), (root / "cat" / "9.jpg").symlink_to(elsewhere / "1.jpg")
    refuses("'cat/9.jpg': a link that leads out of its folder", read_folder, root)


def test_odd_folders_are_refused(tmp_path, album):
    refuses("is not there, or no folder", read_folder, tmp_path / "gone")
    refuses("is not there, or no folder", read_folder, put(tmp_path / "x.jpg", b""))
    refuses("holds no picture among 1 files", read_folder, put(tmp_path / "docs" / "a.txt", b"").parent)
    refuses("1 of 1 classes are seen", read_folder, album("lone", cat=4) / "lone")
    root = album("odd", cat=2, dog=2) / "odd"
    os.mkfifo(root / "cat" / "pipe.jpg")
    put(root / ".hidden" / "1.jpg", b""), put(root / "__MACOSX" / "1.jpg", b""), put(root / "cat" / "._0.jpg", b"")
    assert len(read_folder(root).train) == 2


def test_file_names_that_are_no_text(album):
    root = album(cat=3, dog=3)
    try:
        (root / "cat" / os.fsdecode(b"\xff\xfe.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes text only")
    refuses("'cat/\\udcff\\udcfe.jpg': its name is no text", read_folder, root)
    put(root / "cat" / "Käuzchen \u202f 猫.jpg", b"").parent.joinpath(os.fsdecode(b"\xff\xfe.jpg")).unlink()
    got = read_folder(root)
    assert "cat/Käuzchen \u202f 猫.jpg" in [*got.train_ids, *got.test_ids] and len(got.train) + len(got.test) == 7


# The bundle

GOOD = dict(name="two", train=["1", "2"], test=["3"], class_names=("cat", "dog", "eel"), seen=np.array([1, 1, 0], bool),
            labels=[0, 1], test_labels=[-1])


@pytest.mark.parametrize("change, message", [
    (dict(train=[], labels=[]), "no picture to train on"), (dict(labels=[0]), "labels has 1 entries, not 2"),
    (dict(labels=[0, 3]), "row 1 name no class"), (dict(labels=[0, -1]), "row 1 name no class"),
    (dict(labels=[0., 1.]), "not whole numbers"), (dict(labels=[0, 2]), "training row 1 is of an unseen class"),
    (dict(test_labels=[-2]), "test_labels of row 0"), (dict(test_labels=[0, 1]), "test_labels has 2 entries, not 1"),
    (dict(labels=None), "no candidates and no labels"), (dict(seen=[1, 1, 0]), "seen is int64"),
    (dict(seen=np.ones(2, bool)), "seen is bool (2,)"), (dict(labels=[[0], [1]]), "labels are int64 (2, 1)"),
    (dict(candidates=CandidateSets.from_lists([[0], [1]], 2)), "candidates of 2 classes"),
    (dict(candidates=CandidateSets.from_lists([[0], [1, 2]], 3)), "row 1 hold an unseen class"),
    (dict(candidates=CandidateSets.from_lists([[0]], 3)), "candidates has 1 entries"),
    (dict(seen=np.array([1, 0, 0], bool)), "1 of 3 classes are seen"),
    (dict(class_names=("cat", "Cat", "eel")), "the same name but for its spelling"),
    (dict(train_ids=["1"]), "train_ids has 1"),
    (dict(class_names=("cat", " ", "eel")), "' ': is no class name"),
    (dict(superclass=[0, 1]), "superclass has 2 entries, not 3"),
    (dict(phrases=(("x",), (), ("y",))), "a class has no phrases"),
])
def test_a_bundle_that_does_not_fit_together(change, message):
    assert PictureSet(**GOOD).test_labels.dtype == np.int64
    refuses(message, lambda: PictureSet(**GOOD | change))

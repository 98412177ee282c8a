"""Pictures of one's own: what folders and tables give, and that nothing but a PZSLError comes out of bad ones.

Properties are tried by hypothesis: a well-formed table gives the sets that plain loops give; whatever else a file
holds, it loads or is refused with its name.
"""
import csv
import io
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pzsl_nb.core import PZSLError
from pzsl_nb.images import (Paths, PictureSet, apply_descriptions, class_words, described, normalise_name, read_csv,
                            read_folder)

quick = settings(max_examples=80, deadline=None, derandomize=True)
PICTURES = ["a.png", "b c.jpg", "ü/é ü.png", "d/e/f.webp"]
ROWS = "image,candidates,label,split\na.png,cat|dog,cat,\nb c.jpg,dog,,\nd/e/f.webp,,bird,test\n"
CLASSES = "name,seen,prompt\ncat,1,cat|kitten\ndog,1,\nbird,0,\n"


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with four (empty) pictures."
    home = tmp_path_factory.mktemp("photos of ours")
    for name in PICTURES:
        put(home / name, b"")
    return home


@pytest.fixture
def album(tmp_path):
    "Makes class folders with pictures: album(cat=3, dog=2)."
    def album(under="", **counts):
        for name, count in counts.items():
            for i in range(count):
                put(tmp_path / under / name / f"{i}.jpg", b"")
        return tmp_path
    return album


def table(home, content, name="t.csv", **settings):
    return read_csv(put(home / name, content), **settings)


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


names = st.text(st.characters(exclude_characters="|", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
distinct = st.lists(names.filter(normalise_name), min_size=2, max_size=5, unique_by=normalise_name)


@st.composite
def crowds(draw):
    "Class names and rows of (picture, class numbers, person); the first picture is named by two people."
    classes = draw(distinct)
    numbers = st.lists(st.integers(0, len(classes) - 1), min_size=1, max_size=4)
    row = st.tuples(st.sampled_from(PICTURES), numbers, st.sampled_from(["", "ann", "ben"]))
    rows = draw(st.lists(row, max_size=8))
    return classes, [(PICTURES[0], [0, 1], "ann"), (PICTURES[0], [1, 0], "ben"), *rows]


def said_by(rows, min_votes):
    "Who said what, counted by plain loops: a person has one vote, rows without a name are of different people."
    votes = {}
    for line, (image, numbers, person) in enumerate(rows):
        for number in numbers:
            votes.setdefault(image, {}).setdefault(number, set()).add(person or line)
    return {image: {number for number, people in one.items() if len(people) >= min_votes}
            for image, one in votes.items()}


def as_csv(columns, rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([columns, *rows])
    return text.getvalue()


@quick
@given(crowds(), st.sampled_from(",;\t"), st.sampled_from([1, 2]), st.booleans())
def test_a_table_gives_the_sets_that_loops_give(home, crowd, delimiter, min_votes, listed):
    classes, rows = crowd
    cells = [(image, "|".join(classes[c] for c in chosen), who) for image, chosen, who in rows]
    content = as_csv(["image", "candidates", "annotator"], cells, delimiter)
    (home / "classes.csv").unlink(missing_ok=True)
    if listed:
        put(home / "classes.csv", as_csv(["name"], [[name] for name in classes]))
    expected = said_by(rows, min_votes)
    if not all(expected.values()):
        refuses("votes; lower min_votes", table, home, content, min_votes=min_votes)
        return
    got = table(home, content, min_votes=min_votes)
    assert sets(got) == {image: {class_words(classes[c]) for c in chosen} for image, chosen in expected.items()}
    used = set.union(*expected.values())
    assert dict(zip(got.class_names, got.seen)) == {class_words(name): c in used for c, name in enumerate(classes)
                                                    if listed or c in set.union(*(set(cs) for _, cs, _ in rows))}
    assert list(got.class_names) == ([class_words(name) for name in classes] if listed else sorted(got.class_names))


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
@given(spoiled(ROWS) | st.binary(max_size=80) | st.text().map(lambda t: f"image,candidates\n{t}".encode()))
def test_any_table_loads_or_is_refused(home, content):
    (home / "classes.csv").unlink(missing_ok=True)
    got = loads_or_refuses(lambda: table(home, content), home / "t.csv")
    assert got is None or isinstance(got, PictureSet) and all(Path(path).is_relative_to(home) for path in got.train)


@quick
@given(spoiled(CLASSES) | st.binary(max_size=80) | st.text().map(lambda t: f"name,seen\n{t}".encode()))
def test_any_classes_load_or_are_refused(home, content):
    put(home / "classes.csv", content)
    try:
        loads_or_refuses(lambda: table(home, ROWS), home)
    finally:
        (home / "classes.csv").unlink()


@quick
@given(spoiled("image,candidates,annotator\na/1.jpg,a|b,ann\nb/1.jpg,b,ben\nb/1.jpg,a,ann\n") | st.binary(max_size=80))
def test_any_candidates_load_or_are_refused(tmp_path_factory, content):
    root = tmp_path_factory.getbasetemp() / "with candidates"
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        put(root / name, b"")
    put(root / "candidates.csv", content)
    loads_or_refuses(lambda: read_folder(root), root)


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                      lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=8), some, max_size=3))
tables = st.dictionaries(st.sampled_from(["Cat", "cat", "dog", "DOG ", "x"]), values)


@quick
@given((values | tables).map(json.dumps).map(str.encode)
       | spoiled('{"cat": ["whiskers", "a tail"], "dog": ["has a nose"]}') | st.binary(max_size=60))
def test_any_descriptions_load_or_are_refused(home, content):
    two = PictureSet("two", ["1", "2"], [], ("cat", "Dog"), np.ones(2, bool), [0, 1], [])
    path = put(home / "told.json", content)
    told = loads_or_refuses(lambda: apply_descriptions(two, path), path)
    assert told is None or len(told.phrases) == 2 and all(phrase.strip() for one in told.phrases for phrase in one)


@quick
@given(st.dictionaries(st.sampled_from(["cat", "Dog", "bird_of+prey"]),
                       st.lists(names.filter(normalise_name), min_size=1)))
def test_descriptions_reach_the_class_they_are_of(home, given_phrases):
    two = PictureSet("two", ["1", "2"], [], ("Cat", "dog"), np.ones(2, bool), [0, 1], [])
    path = put(home / "told.json", json.dumps(given_phrases))
    if not {"cat", "Dog"} <= set(given_phrases):
        refuses("and not 'Cat'" if "cat" not in given_phrases else "and not 'dog'", apply_descriptions, two, path)
        return
    told = apply_descriptions(two, path)
    for shown, key, got in zip(("Cat", "dog"), ("cat", "Dog"), told.phrases):
        assert got == tuple(described(shown, " ".join(phrase.split())) for phrase in given_phrases[key])
    assert told.depends[-1] == path and len(told.notes) == ("bird_of+prey" in given_phrases)


# Tables

def test_what_a_table_says(home):
    got = table(home, ROWS.replace("candidates", "Candidates "))
    assert (got.class_names, got.seen.tolist()) == (("bird", "cat", "dog"), [False, True, True])
    assert got.labels is None and got.test_labels.tolist() == [0] and got.test_ids == ["d/e/f.webp"]
    assert list(got.train) == [str(home / name) for name in PICTURES[:2]] and sets(got)["b c.jpg"] == {"dog"}
    assert "labels are known of 1 among 2" in got.notes[1] and "1 classes are named in no training row" in got.notes[0]
    assert {home / "t.csv", home / "classes.csv", home, home / "d" / "e"} <= set(got.depends)


def test_labels_alone_are_no_candidates_and_an_empty_cell_is_its_label(home):
    alone = table(home, "image,label\na.png,cat\nb c.jpg,dog\n")
    assert alone.candidates is None and alone.labels.tolist() == [0, 1]
    beside = table(home, "image,candidates,label\na.png,cat|dog,cat\nb c.jpg,,dog\n")
    assert sets(beside) == {"a.png": {"cat", "dog"}, "b c.jpg": {"dog"}}
    assert "the label is their only candidate" in beside.notes[0]


def test_columns_of_annotators_are_people(home):
    content = "image,annotator_1,annotator_2,annotator_10\na.png,cat|dog,dog,\na.png,cat,,dog|bird\nb c.jpg,cat,cat,\n"
    assert sets(table(home, content)) == {"a.png": {"cat", "dog", "bird"}, "b c.jpg": {"cat"}}
    # one person said cat twice
    assert sets(table(home, content, min_votes=2)) == {"a.png": {"dog"}, "b c.jpg": {"cat"}}
    refuses("no candidate of line 4 has 3 votes", table, home, content, min_votes=3)
    for odd in (0, -1, 1.5, True, "2"):
        refuses("min_votes: ", table, home, content, min_votes=odd)


def test_a_person_who_says_it_twice_has_one_vote_and_strangers_have_one_each(home):
    content = "image,candidates,annotator\na.png,cat| |dog,{0}\na.png,cat||,{0}\nb c.jpg,dog,x\nb c.jpg,dog,y\n"
    refuses("no candidate of line 2 has 2 votes", table, home, content.format("ann"), min_votes=2)
    assert sets(table(home, content.format(" "), min_votes=2)) == {"a.png": {"cat"}, "b c.jpg": {"dog"}}
    assert sets(table(home, content.format("ann"))) == {"a.png": {"cat", "dog"}, "b c.jpg": {"dog"}}


def test_a_label_beside_the_candidates_is_noted_and_its_class_is_seen(home):
    got = table(home, "image,candidates,label\na.png,cat|dog,bird\nb c.jpg,dog,dog\n")
    assert got.seen.all() and got.labels.tolist() == [0, 2]
    assert "label of 1 training pictures is not among" in got.notes[0]


def test_validation_is_the_test_where_there_is_no_other(home):
    content = "image,label,split\na.png,cat,train\nb c.jpg,dog,\nü/é ü.png,cat,{}\nd/e/f.webp,dog,{}\n"
    assert len(table(home, content.format("val", "VAL")).test) == 2
    both = table(home, content.format("val", "test"))
    assert (len(both.train), both.test_ids) == (3, ["d/e/f.webp"]) and "1 validation pictures join" in both.notes[0]


def test_rows_of_unseen_classes_are_left_out(home):
    put(home / "classes.csv", "name,seen,superclass,prompt\nbird,0,wild,\nCat,1,tame,\nDog,true,tame,good boy|dog\n")
    try:
        got = table(home, "image,candidates,label,split\na.png,cat|bird,bird,\nb c.jpg,dog,dog,\nü/é ü.png,dog|cat,,\n"
                          "d/e/f.webp,bird,bird,test\n")
        assert got.train_ids == PICTURES[1:3] and sets(got)["ü/é ü.png"] == {"Cat", "Dog"}
        assert got.seen.tolist() == [False, True, True]
        assert "1 training pictures of unseen classes are left out: bird" in got.notes[1]
        assert got.superclass.tolist() == [1, 0, 0] and got.phrases == (("bird",), ("Cat",), ("good boy", "dog"))
        refuses("candidates of line 2 hold the unseen class 'bird'",
                table, home, "image,candidates,label\na.png,bird,cat\n")
        refuses("leaves no picture to train on", table, home, "image,label\na.png,bird\n")
        refuses("line 2: seen is 'maybe'",
                lambda: [put(home / "classes.csv", "name,seen\ncat,maybe\n"), table(home, ROWS)])
        refuses("line 3 names the class 'CAT', and line 2 'cat'",
                lambda: [put(home / "classes.csv", "name\ncat\nCAT\n"), table(home, ROWS)])
        refuses("line 3 repeats the class 'cat'",
                lambda: [put(home / "classes.csv", "name\ncat\ncat\n"), table(home, ROWS)])
    finally:
        (home / "classes.csv").unlink()


@pytest.mark.parametrize("content, message", {
    "": "is empty", "image,label": "has a header and no rows", ",,\n\n;;": "is empty", "\ufeff": "is empty",
    "image,label\n,cat": "line 2 names no picture", "label,image\ncat,.": "line 2 names no picture",
    "image,label\na.png,cat\n\nb c.jpg,Cat": "line 4 names the class 'Cat', and line 2 'cat'",
    "image,label\na.png,grizzly bear\nb c.jpg,Grizzly+Bear": "the same name but for its spelling",
    "image,label\na.png,cat\nb c.jpg,cat": "1 of 1 classes are seen (cat)",
    "image,label\na.png,_": "the class name '_' is empty", "image,label\na.png," + "x"*501: "500 are the most",
    "image,label\na.png,c\x1b[2Jat": "control characters",
    "image,label\na.png,cat,dog": "line 2 has 3 fields and the header 2",
    "image,label,label\n": "is there more than once", "images,label\na.png,cat": "did you mean 'images'?",
    "Path,label\na.png,cat": "did you mean 'path'?", "image,candidate\na.png,cat": "did you mean 'candidates'?",
    'image,label\na.png,"cat\n': "line 2: unexpected end of data", "image,label\rcat,a.png": "new-line",
    'image,label\n"a.png"x,cat': "line 2: ','", "image,label,split\na.png,cat,trian": "did you mean 'train'?",
    "image,label\nhttps://a.org/b.png,cat": "is not there (line 2)", "image,label\nd,cat": "'d' is no file (line 2)",
    "image,label\nd\\e\\f.webp,cat": "write / between folders", "image,label\n" + "a"*300 + ",cat": "is not there",
    "image,label\n../a.png,cat": "leads out of its folder", "image,label\nd/../../x.png,cat": "leads out of its folder",
    "image,label\n/etc/hostname,cat": "leads out of its folder",
    "image,label\n//etc/hostname,cat": "leads out of its folder",
    "image,label,split\na.png,cat,test\nb c.jpg,dog,test": "leaves no picture to train on",
}.items(), ids=lambda value: value[:24])
def test_what_cannot_be_meant_is_refused(home, content, message):
    text = refuses(message, table, home, content)
    assert "t.csv: " in text and ";" in text


@pytest.mark.parametrize("content, message", [
    ("image,label\na.png,cat".encode("utf-16"), "line 1 holds NUL bytes or is UTF-16"),
    ("image,label\na.png,cat".encode("utf-16-le"), "line 1 holds NUL bytes"),
    ("image,label\na.png,cat\na.png,Käuzchen".encode("latin-1"), "line 3 is not UTF-8 text (byte 0xe4)"),
    (b"image,label\n" + b"a"*(1 << 21), "line 2 is longer than 1,048,576 bytes"), (b"\0"*(1 << 21), "line 1 is longer"),
    (b"image,label\n" + b'"' + b"a\n"*70_000, "line 2: field larger"),
    (b"\x89PNG\r\n\x1a\n\0\0", "line 1 is not UTF-8"),
])
def test_what_is_no_text_is_refused(home, content, message):
    refuses(message, table, home, content)


def test_what_is_no_file_is_refused(home):
    os.mkfifo(home / "pipe.csv")      # would wait for ever
    for path, message in ((home / "gone.csv", "no such file"), (home / "d", "is a folder"),
                                  (home / "pipe.csv", "a pipe"),
                          ("a\0b", "cannot be read")):
        refuses(message, read_csv, path)
    os.mkfifo(home / "pipe.png")
    refuses("'pipe.png' is no file (line 2)", table, home, "image,label\npipe.png,cat")
    refuses("on_error: ", table, home, ROWS, on_error="ignore")


def test_pictures_that_are_gone_are_left_out_when_asked(home):
    content = "image,candidates,label\nx1.png,cat,cat\na.png,cat|dog,cat\nx2.png,bird,bird\nb c.jpg,dog,dog\n"
    refuses("2 of 4 pictures cannot be read: 'x1.png' is not there (line 2), 'x2.png'", table, home, content)
    got = table(home, content, on_error="skip")
    assert sets(got) == {"a.png": {"cat", "dog"}, "b c.jpg": {"dog"}} and got.labels.tolist() == [1, 2]
    assert got.notes[0].startswith("2 of 4 pictures are left out: 'x1.png'")


def test_links_and_absolute_paths_stay_inside_unless_allowed(home, tmp_path):
    outside = put(tmp_path / "out.png", b"")
    for name, target in (("link.png", outside), ("linked", tmp_path),
                                ("inner.png", home / "a.png"), ("lost.png", home / "no")):
        (home / name).symlink_to(target)
    for path in ("link.png", "linked/out.png", outside, f"d/../../{tmp_path.name}/out.png"):
        content = f"image,label\n{path},cat\nb c.jpg,dog\n"
        refuses("line 2 leads out of its folder", table, home, content)
        if "d/.." not in str(path):
            assert Path(table(home, content, allow_outside=True).train[0]).samefile(outside)
    assert len(table(home, "image,label\ninner.png,cat\nb c.jpg,dog\n").train) == 2
    refuses("'lost.png' is not there", table, home, "image,label\nlost.png,cat\n")
    twin = put(home.parent / f"{home.name} too" / "t.png", b"")
    (home / "twin.png").symlink_to(twin)                       # its folder's name begins like ours
    refuses("line 2 leads out of its folder", table, home, "image,label\ntwin.png,cat\n")
    absolute = table(home, f"image,label\n{home / 'a.png'},cat\nb c.jpg,dog\n")     # inside after all
    assert absolute.train_ids[0] == "a.png"


def test_the_same_picture_in_two_spellings_of_its_path_is_one(home):
    got = table(home, "image,candidates\n./a.png,cat\nd/../a.png,dog\na.png ,bird\nb c.jpg,cat\n")
    assert sets(got) == {"a.png": {"cat", "dog", "bird"}, "b c.jpg": {"cat"}}


def test_a_path_is_found_in_either_unicode_form(home):
    content = unicodedata.normalize("NFD", "image,candidates\nü/é ü.png,cat\nb c.jpg,dog\n")
    got = table(home, content)
    assert got.train[0] == str(home / PICTURES[2]) and os.path.exists(got.train[0])


def test_contradictions_are_refused(home):
    head = "image,candidates,label,split\na.png,cat|dog,cat,train\n"
    refuses("line 3 gives label 'dog' to a picture", table, home, head + "a.png,,dog,\n")
    refuses("line 3 gives split 'test' to a picture", table, home, head + "a.png,,,test\n")
    assert sets(table(home, head + "a.png,bird,cat,\n")) == {"a.png": {"bird", "cat", "dog"}}


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
    refuses("folder 'zebra' names the class 'zebra', which is not in classes.csv", read_folder, root)


def test_train_and_test_folders(album):
    album("train", cat=3, dog=2), album("test", cat=1, zebra=2)
    root = album("val", dog=2)
    for stray in ("labels/1.jpg", "train/stray.jpg", "train/cat/note.txt"):
        put(root / stray, b"")
    got = read_folder(root)
    assert (len(got.train), len(got.test), got.class_names) == (7, 3, ("cat", "dog", "zebra"))
    assert got.seen.tolist() == [True, True, False] and "train/cat/0.jpg" in got.train_ids
    said = " / ".join(got.notes)
    for note in ("1 .txt", "beside train and test are not used: labels", "train/stray.jpg",
                 "2 validation pictures join",
                 "1 classes are named in no training row and so are unseen: zebra"):
        assert note in said
    put(root / "candidates.csv", "image,candidates\nlabels/1.jpg,dog\ntrain/cat/0.jpg,cat|dog\ntest/cat/0.jpg,dog\n")
    voted = read_folder(root)
    assert voted.train_ids == got.train_ids and sets(voted)["train/cat/0.jpg"] == {"cat", "dog"}
    assert sets(voted)["train/dog/1.jpg"] == {"dog"} and "candidates of 1 test pictures are not used" in voted.notes


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
    refuses("are in no class folder", read_folder, tmp_path)
    put(tmp_path / "candidates.csv", "image,candidates\n0.jpg,cat|dog\n./1.jpg,dog\n")
    got = read_folder(tmp_path)
    assert sets(got) == {"0.jpg": {"cat", "dog"}, "1.jpg": {"dog"}} and got.labels is None and len(got.test) == 0
    assert "no class folder are not used: 2.jpg" in got.notes[0]
    put(tmp_path / "candidates.csv", "image,candidates\n0.jpeg,cat|dog\n")
    refuses("line 2 names the picture '0.jpeg', which is not in the folder; did you mean '0.jpg'?",
            read_folder, tmp_path)
    put(tmp_path / "candidates.csv", "image,label\n0.jpg,cat\n")
    refuses("has no column 'candidates'", read_folder, tmp_path)


def test_class_folders_that_collide_are_refused(album):
    refuses("folder 'grizzly_bear' names the class 'grizzly bear', and folder 'Grizzly bear' 'Grizzly bear'",
            read_folder, album(**{"grizzly_bear": 2, "Grizzly bear": 2}))


def test_links_in_folders(album, tmp_path_factory):
    root, elsewhere = album(cat=3, dog=3), tmp_path_factory.mktemp("elsewhere")
    put(elsewhere / "1.jpg", b"")
    (root / "cat" / "again").symlink_to(root)                       # a loop
    (root / "dog" / "linked.jpg").symlink_to(root / "dog" / "0.jpg")
    got = read_folder(root)
    assert len(got.train) + len(got.test) == 7
    assert "links to folders that are read where they lie: cat/again" in got.notes
    for link, target in ((root / "bird", elsewhere), (elsewhere / "loop", elsewhere), (elsewhere / "up", root.parent)):
        link.symlink_to(target)
    refuses("a link leads out of its folder: 'bird'", read_folder, root)
    assert "bird" in read_folder(root, allow_outside=True).class_names
    (root / "bird").unlink(), (root / "cat" / "9.jpg").symlink_to(elsewhere / "1.jpg")
    refuses("a link leads out of its folder: 'cat/9.jpg'", read_folder, root)


def test_odd_folders_are_refused(tmp_path, album):
    refuses("no such folder", read_folder, tmp_path / "gone")
    refuses("is a file; give a folder", read_folder, put(tmp_path / "x.jpg", b""))
    refuses("holds no picture (1 other files)", read_folder, put(tmp_path / "docs" / "a.txt", b"").parent)
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
    got = read_folder(root)
    shown = [*got.train_ids, *got.test_ids]
    assert "cat/\\xff\\xfe.jpg" in shown and all(name.encode() for name in shown)
    assert all(os.path.exists(path) for path in [*got.train, *got.test])
    (root / os.fsdecode(b"b\xff")).mkdir()
    put(root / os.fsdecode(b"b\xff") / "1.jpg", b"")
    refuses("bytes that are no text", read_folder, root)


# Descriptions

def test_how_descriptions_read():
    assert described("cat", "a tail") == "cat, which is a tail"
    assert described("cat", "whiskers") == "cat, which has whiskers"
    assert described("cat", "often sleeps") == "cat, which often sleeps"
    assert described("Cat", "a cat on a mat") == "a cat on a mat"


@pytest.mark.parametrize("content, message", [
    ("[" * 100_000, "t.json: "), ("9" * 5000, "t.json: "), ('{"cat": 1}', "'cat' has no list of phrases but '1'"),
    ('{"cat": []}', "'cat' has no phrase"), ('{"cat": [" "]}', "'cat' has no phrase"),
    ('{"cat": ["x", 1]}', "no list of phrases"),
    ('{"cat": ["x"], "CAT": ["y"]}', "'cat' and 'CAT' are the same name"),
    ('{"": ["x"]}', "the class name '' is empty"),
    ('{"kat": ["x"], "dog": "y"}', "and not 'cat' of two; did you mean 'kat'?"), ("{", "not valid JSON at line 1"),
    ('{"\\ud800": ["x"]}', "no text"), (b"\xff", "is not text"),
])
def test_descriptions_that_cannot_be_used(tmp_path, content, message):
    two = PictureSet("two", ["1", "2"], [], ("cat", "dog"), np.ones(2, bool), [0, 1], [])
    refuses(message, apply_descriptions, two, put(tmp_path / "t.json", content))


def test_descriptions_of_real_data_sets():
    data = Path(os.environ.get("PZSL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "descriptors"
    if not (data / "descriptors_cub.json").exists():
        pytest.skip("the descriptions are not here; set PZSL_DATA to the folder of the data")
    shown = "Laysan_Albatross", "black footed albatross"
    two = PictureSet("birds", ["1", "2"], [], shown, np.ones(2, bool), [0, 1], [])
    told = apply_descriptions(two, data / "descriptors_cub.json")
    assert "Laysan_Albatross, which is a seabird" in told.phrases[0] and "198 descriptions" in told.notes[0]


# The bundle

GOOD = dict(name="two", train=["1", "2"], test=["3"], class_names=("cat", "dog", "eel"), seen=np.array([1, 1, 0], bool),
            labels=[0, 1], test_labels=[-1])


@pytest.mark.parametrize("change, message", [
    (dict(train=[], labels=[]), "no training picture"), (dict(labels=[0]), "labels (1,) for 2 pictures"),
    (dict(labels=[0, 3]), "row 1 name no class"), (dict(labels=[0, -1]), "row 1 name no class"),
    (dict(labels=[0., 1.]), "not whole numbers"), (dict(labels=[0, 2]), "training row 1 is of an unseen class"),
    (dict(test_labels=[-2]), "test_labels of row 0"), (dict(test_labels=[0, 1]), "test_labels (2,) for 1"),
    (dict(labels=None), "neither candidates nor labels"), (dict(seen=[1, 1, 0]), "seen is int64"),
    (dict(seen=np.ones(2, bool)), "seen has shape (2,)"),
    (dict(seen=np.array([1, 0, 0], bool)), "1 of 3 classes are seen"),
    (dict(class_names=("cat", "Cat", "eel")), "the same name but for its spelling"),
    (dict(train_ids=["1"]), "train_ids has 1"),
    (dict(class_names=("cat", " ", "eel")), "is empty"), (dict(superclass=[0, 1]), "superclass has shape (2,)"),
    (dict(phrases=(("x",), (), ("y",))), "phrases are given for 2 of 3 classes"),
])
def test_a_bundle_that_does_not_fit_together(change, message):
    assert PictureSet(**GOOD).test_labels.dtype == np.int64
    refuses(message, lambda: PictureSet(**GOOD | change))

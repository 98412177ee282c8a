"""Tables of what people said, and descriptions of classes: the right sets, or a PZSLError, and never another error.

Properties are tried by hypothesis: a well-formed table gives the sets that plain loops give; whatever else a file
holds, it loads or is refused with its name.
"""
import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pzsl_nb.annotations import apply_descriptions, described, read_csv
from pzsl_nb.images import PictureSet, class_words, normalise_name
from test_images import loads_or_refuses, put, quick, refuses, sets, spoiled

PICTURES = ["a.png", "b c.jpg", "ü/é ü.png", "d/e/f.webp"]
ROWS = "image,candidates,label,split\na.png,cat|dog,cat,\nb c.jpg,dog,,\nd/e/f.webp,,bird,test\n"
CLASSES = "name,seen,prompt\ncat,1,cat|kitten\ndog,1,\nbird,0,\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with four (empty) pictures."
    home = tmp_path_factory.mktemp("photos of ours")
    for name in PICTURES:
        put(home / name, b"")
    return home


def table(home, content, name="t.csv", **settings):
    return read_csv(put(home / name, content), **settings)


# Properties

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
    assert told.depends[-1] == path


# Tables

def test_what_a_table_says(home):
    got = table(home, ROWS.replace("candidates", "Candidates "))
    assert (got.class_names, got.seen.tolist()) == (("bird", "cat", "dog"), [False, True, True])
    assert got.labels is None and got.test_labels.tolist() == [0] and got.test_ids == ["d/e/f.webp"]
    assert list(got.train) == [str(home / name) for name in PICTURES[:2]] and sets(got)["b c.jpg"] == {"dog"}
    assert got.notes == ("classes named in no training row are unseen: bird",
                         "labels of 1 training pictures are not known: labels are not used to measure")
    assert {home / "t.csv", home / "classes.csv", home, home / "d" / "e"} <= set(got.depends)


def test_labels_alone_are_no_candidates_and_an_empty_cell_is_its_label(home):
    alone = table(home, "image,label\na.png,cat\nb c.jpg,dog\n")
    assert alone.candidates is None and alone.labels.tolist() == [0, 1]
    beside = table(home, "image,candidates,label\na.png,cat|dog,cat\nb c.jpg,,dog\n")
    assert sets(beside) == {"a.png": {"cat", "dog"}, "b c.jpg": {"dog"}}


def test_columns_of_annotators_are_people(home):
    content = "image,annotator_1,annotator_2,annotator_10\na.png,cat|dog,dog,\na.png,cat,,dog|bird\nb c.jpg,cat,cat,\n"
    assert sets(table(home, content)) == {"a.png": {"cat", "dog", "bird"}, "b c.jpg": {"cat"}}
    # one person said cat twice
    assert sets(table(home, content, min_votes=2)) == {"a.png": {"dog"}, "b c.jpg": {"cat"}}
    refuses("line 4 ('b c.jpg'): no candidate has 3 votes", table, home, content, min_votes=3)
    for odd in (0, -1, 1.5, True, "2"):
        refuses("min_votes: ", table, home, content, min_votes=odd)


def test_a_person_who_says_it_twice_has_one_vote_and_strangers_have_one_each(home):
    content = "image,candidates,annotator\na.png,cat| |dog,{0}\na.png,cat||,{0}\nb c.jpg,dog,x\nb c.jpg,dog,y\n"
    refuses("line 2 ('a.png'): no candidate has 2 votes", table, home, content.format("ann"), min_votes=2)
    assert sets(table(home, content.format(" "), min_votes=2)) == {"a.png": {"cat"}, "b c.jpg": {"dog"}}
    assert sets(table(home, content.format("ann"))) == {"a.png": {"cat", "dog"}, "b c.jpg": {"dog"}}


def test_the_class_of_a_label_beside_the_candidates_is_seen(home):
    got = table(home, "image,candidates,label\na.png,cat|dog,bird\nb c.jpg,dog,dog\n")
    assert got.seen.all() and got.labels.tolist() == [0, 2]


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
        assert "1 training pictures of unseen classes are left out: bird" in got.notes[0]
        assert got.superclass.tolist() == [1, 0, 0] and got.phrases == (("bird",), ("Cat",), ("good boy", "dog"))
        refuses("line 2 ('a.png'): the candidates hold an unseen class (bird)",
                table, home, "image,candidates,label\na.png,bird,cat\n")
        refuses("has no picture to train on", table, home, "image,label\na.png,bird\n")
        refuses("classes.csv: line 2 ('maybe'): seen is neither 1 nor 0",
                lambda: [put(home / "classes.csv", "name,seen\ncat,maybe\n"), table(home, ROWS)])
        refuses("classes.csv: line 2 ('cat'), line 3 ('CAT'): the same name",
                lambda: [put(home / "classes.csv", "name\ncat\nCAT\n"), table(home, ROWS)])
        refuses("classes.csv: line 2 ('cat'), line 3 ('cat'): the same name",
                lambda: [put(home / "classes.csv", "name\ncat\ncat\n"), table(home, ROWS)])
    finally:
        (home / "classes.csv").unlink()


@pytest.mark.parametrize("content, message", {
    "": "No columns", "image,label": "has a header and no rows", ",,\n\n;;": "has no column 'image'",
    "\ufeff": "No columns", "image,label\n,cat": "line 2 ('.'): names no picture",
    "label,image\ncat,.": "line 2 ('.'): names no picture",
    "image,label\na.png,cat\n\nb c.jpg,Cat": "line 2 ('cat'), line 4 ('Cat'): the same name but for its spelling",
    "image,label\na.png,grizzly bear\nb c.jpg,Grizzly+Bear": "the same name but for its spelling",
    "image,label\na.png,cat\nb c.jpg,cat": "1 of 1 classes are seen", "image,label\na.png,_": "is no class name",
    "image,label\na.png,c\x1b[2Jat": "line 2 ('c\\x1b[2Jat'): holds signs that are no UTF-8",
    "image,label\na.png,cat,dog": "Expected 2 fields in line 2, saw 3",
    "image,label,label\n": "the column label is there more than once", "images,label\na.png,cat": "did you mean 'image'?",
    "path,label\na.png,cat": "has no column 'image' but 'path', 'label'",
    "image,label,split,annotator_1,anotator_2\na.png,cat,train,cat,cat": "did you mean 'annotator_2'?",
    "image,candidate\na.png,cat": "did you mean 'candidates'?", "image\na.png": "neither candidates nor a label",
    'image,label\na.png,cat\na.png,"cat\n': "string starting at line 3",
    "image,label,split\na.png,cat,trian": "line 2 ('trian'): the split is not known",
    "image,label\nhttps://a.org/b.png,cat": "1 of 1 pictures are not there", "image,label\nd,cat": "not there",
    "image,label\nd\\e\\f.webp,cat": "with / between folders", "image,label\n" + "a"*300 + ",cat": "not there",
    "image,label\n../a.png,cat": "leads out of the folder", "image,label\nd/../../x.png,cat": "leads out of the folder",
    "image,label\n/etc/hostname,cat": "leads out of the folder", "image,label\na.png,cat|dog": "more than one label",
    "image,label\n//etc/hostname,cat": "leads out of the folder",
    "image,label,split\na.png,cat,test\nb c.jpg,dog,test": "has no picture to train on",
    "image,label,split\na.png,,test": "has no picture to train on",
}.items(), ids=lambda value: value[:24])
def test_what_cannot_be_meant_is_refused(home, content, message):
    text = refuses(message, table, home, content)
    assert "t.csv: " in text and ";" in text


@pytest.mark.parametrize("content, message", [
    ("image,label\na.png,cat".encode("utf-16"), "has no column 'image'"),
    ("image,label\na.png,cat".encode("utf-16-le"), "has no column 'image'"),
    ("image,label\na.png,cat\na.png,Käuzchen".encode("latin-1"), "line 3 ('K\\udce4uzchen'): holds signs that are no UTF"),
    (b"image,label\n" + b"a"*(1 << 21), "pictures are not there"), (b"\0"*(1 << 21), "has no column 'image'"),
    (b"image,label\n" + b'"' + b"a\n"*70_000, "string starting at line 2"),
    (b"image,label\na\0.png,cat", "line 2 ('a"), (b"\x89PNG\r\n\x1a\n\0\0", "has no column 'image'"),
])
def test_what_is_no_text_is_refused(home, content, message):
    assert len(refuses(message, table, home, content)) < 1500


def test_what_is_no_file_is_refused(home):
    os.mkfifo(home / "pipe.csv")      # would wait for ever
    for path in (home / "gone.csv", home / "d", home / "pipe.csv", "a\0b"):
        refuses("is not there, or no file", read_csv, path)
    refuses("on_error: ", table, home, ROWS, on_error="ignore")


def test_pictures_that_are_gone_are_left_out_when_asked(home):
    content = "image,candidates,label\nx1.png,cat,cat\na.png,cat|dog,cat\nx2.png,bird,bird\nb c.jpg,dog,dog\n"
    refuses("line 2 ('x1.png'), line 4 ('x2.png'): 2 of 4 pictures are not there", table, home, content)
    got = table(home, content, on_error="skip")
    assert sets(got) == {"a.png": {"cat", "dog"}, "b c.jpg": {"dog"}} and got.labels.tolist() == [0, 1]
    assert got.notes[0].startswith("2 of 4 pictures are not there and left out: 'x1.png'")


def test_links_and_absolute_paths_stay_inside_unless_allowed(home, tmp_path):
    outside = put(tmp_path / "out.png", b"")
    for name, target in (("link.png", outside), ("linked", tmp_path),
                                ("inner.png", home / "a.png"), ("lost.png", home / "no")):
        (home / name).symlink_to(target)
    for path in ("link.png", "linked/out.png", outside, f"d/../../{tmp_path.name}/out.png"):
        content = f"image,label\n{path},cat\nb c.jpg,dog\n"
        refuses("leads out of the folder of the table", table, home, content)
        if "d/.." not in str(path):
            assert Path(table(home, content, allow_outside=True).train[0]).samefile(outside)
    assert len(table(home, "image,label\ninner.png,cat\nb c.jpg,dog\n").train) == 2
    refuses("line 2 ('lost.png'): 1 of 1 pictures are not there", table, home, "image,label\nlost.png,cat\n")
    twin = put(home.parent / f"{home.name} too" / "t.png", b"")
    (home / "twin.png").symlink_to(twin)                       # its folder's name begins like ours
    refuses("leads out of the folder of the table", table, home, "image,label\ntwin.png,cat\n")
    absolute = table(home, f"image,label\n{home / 'a.png'},cat\nb c.jpg,dog\n")     # inside after all
    assert absolute.train[0] == str(home / "a.png")


def test_the_same_picture_in_two_spellings_of_its_path_is_one(home):
    got = table(home, "image,candidates\n./a.png,cat\nd/../a.png,dog\na.png ,bird\nb c.jpg,cat\n")
    assert sets(got) == {"a.png": {"cat", "dog", "bird"}, "b c.jpg": {"cat"}}


def test_contradictions_are_refused(home):
    head = "image,candidates,label,split\na.png,cat|dog,cat,train\n"
    refuses("line 2 ('a.png'), line 3 ('a.png'): more than one label", table, home, head + "a.png,,dog,\n")
    refuses("line 2 ('a.png'), line 3 ('a.png'): more than one split", table, home, head + "a.png,,,test\n")
    assert sets(table(home, head + "a.png,bird,cat,\n")) == {"a.png": {"bird", "cat", "dog"}}


# Descriptions

def test_how_descriptions_read():
    assert described("cat", "a tail") == "cat, which is a tail"
    assert described("cat", "whiskers") == "cat, which has whiskers"
    assert described("cat", "often sleeps") == "cat, which often sleeps"
    assert described("Cat", "a cat on a mat") == "a cat on a mat"


@pytest.mark.parametrize("content, message", [
    ("[" * 100_000, "t.json: "), ("9" * 5000, "t.json: "), ('{"cat": 1}', "'cat': has no list of phrases"),
    ('{"cat": []}', "'cat': has no list of phrases"), ('{"cat": [" "]}', "'cat': has no list of phrases"),
    ('{"cat": ["x", 1]}', "no list of phrases"),
    ('{"cat": ["x"], "CAT": ["y"]}', "'cat', 'CAT': the same name"),
    ('{"": ["x"]}', "'': is no class name"),
    ('{"kat": ["x"], "dog": "y"}', "and not 'cat' of two; did you mean 'kat'?"), ("{", "not valid JSON at line 1"),
    ('{"\\ud800": ["x"]}', "is no class name"), (b"\xff", "is not text"),
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
    assert "Laysan_Albatross, which is a seabird" in told.phrases[0] and len(told.phrases) == 2

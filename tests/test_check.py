"What `pzsl check` finds: planted faults, and numbers that agree with loops a child would write."
import dataclasses
import json
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from small_world import World

from pzsl_nb.check import _LOOK, _copies, _inseparable, _sizes, draw_samples, examine, findings_text
from pzsl_nb.core import PZSLError
from pzsl_nb.images import PictureSet
from pzsl_nb.task import CandidateSets, Task

NAMES = ("ant", "bee", "cat", "dog", "eel")


def pictures(train, test=(), sets=None, labels=None, test_labels=None, names=NAMES, **more):
    "Uniform grey pictures, one for each number; the last class is unseen."
    solid = lambda values: np.tile(np.array(values, np.uint8).reshape(-1, 1, 1, 1), (1, 4, 5, 3))
    test_labels = np.full(len(test), -1) if test_labels is None else test_labels
    sets = None if sets is None else CandidateSets.from_lists(sets, len(names))
    return PictureSet("grey", solid(train), solid(test), names, np.arange(len(names)) < len(names) - 1, labels,
                      test_labels, sets, **more)


def files(folder, count):
    "Pictures as files, of different colours."
    paths = []
    for i in range(count):
        paths.append(folder/f"{i}.png")
        Image.new("RGB", (40, 36), (i, i//256, 7)).save(paths[-1])
    return [str(path) for path in paths]


def of_files(train, test=()):
    "Pictures in files, their labels without end."
    return PictureSet("files", train, test, NAMES, np.array([1, 1, 1, 1, 0], bool), np.arange(len(train)) % 4,
                      np.arange(len(test)) % 5)


def look(found, **how): return examine(found, progress=False, **how)


def said(findings, words): return [warning for warning in findings.warnings if words in warning]


def world_task(**more):
    w = World()
    names = tuple(f"class {i}" for i in range(len(w.t)))
    return Task("world", w.x, w.t, names, w.seen, w.sets, w.y, w.x_test, w.y_test, **more)


def test_classes_of_the_same_words_and_sets_of_everything_are_told():
    task = world_task()
    assert not look(task).same_words and not said(look(task), "label features")
    words = task.label_features.clone()
    words[[4, 7]] = words[[1, 1]]
    found = look(dataclasses.replace(task, label_features=words))
    assert found.same_words == [["class 1", "class 4"], ["class 1", "class 7"]]
    assert "class 1 = class 4" in said(found, "the same label features")[0]
    seen = torch.arange(int(task.seen.sum()))
    full = CandidateSets.from_lists([seen.tolist()]*len(task.features), len(task.seen))
    assert said(look(dataclasses.replace(task, candidates=full)), "leave out a seen class")
    assert not said(look(task), "leave out a seen class")


# Copies

contents = st.lists(st.integers(0, 12), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(contents, st.lists(st.integers(0, 12), max_size=20), st.randoms(use_true_random=False))
def test_copies_are_what_loops_find(train, test, random):
    sets = [random.sample(range(4), random.randint(1, 3)) for _ in train]
    copies = look(pictures(train, test, sets)).copies
    like_first = [set(s) == set(sets[train.index(value)]) for value, s in zip(train, sets)]
    again = len(train) - len(set(train))
    assert copies["train"] == again and copies["conflicting"] == like_first.count(False)
    assert copies["repeated"] == again - like_first.count(False)
    assert copies["test"] == len(test) - len(set(test))
    assert copies["leaked"] == sum(value in train for value in test)
    at = {"train": train, "test": test}
    value = lambda name: at[name.split()[0]][int(name.split()[-1])]
    for kind, pairs in copies["pairs"].items():
        for first, second in pairs:
            assert value(first) == value(second) and first != second and first.startswith("train")
            assert second.startswith("test" if kind == "leaked" else "train")
            same = kind == "leaked" or set(sets[int(first.split()[-1])]) == set(sets[int(second.split()[-1])])
            assert same == (kind != "conflicting")
    assert len(copies["pairs"]["conflicting"]) == copies["conflicting"]


def test_labels_that_differ_are_a_conflict_where_there_are_no_sets():
    copies = look(pictures([1, 1, 2, 2], labels=[0, 1, 3, 3])).copies
    assert (copies["conflicting"], copies["repeated"]) == (1, 1)


def test_files_with_the_same_pixels_are_copies_whatever_their_bytes(tmp_path):
    train, test = files(tmp_path, 4), [str(tmp_path/"other name.bmp")]
    Image.open(train[2]).save(test[0])
    rotated = str(tmp_path/"rotated.png")
    Image.open(train[0]).rotate(90, expand=True).save(rotated)        # the same bytes of pixels, another shape
    findings = look(of_files(train + [rotated], test))
    assert findings.copies["pairs"]["leaked"] == [[train[2], test[0]]]
    assert findings.copies["train"] == 0
    assert train[2] in said(findings, "in training as well")[0]


def test_rows_of_features_are_compared_across_kinds_of_numbers():
    task = world_task()
    features = torch.cat([task.features[:-1], task.features[:1]]).half()
    test = torch.cat([task.test_features[:-2], features[3:5].float()])
    fields = {**vars(task), "features": features, "test_features": test}
    found = look(Task(**{key: fields[key] for key in task.__dataclass_fields__}))
    assert found.of == "features" and found.sizes is None
    assert (found.copies["train"], found.copies["leaked"]) == (1, 2)
    assert found.copies["pairs"]["leaked"][0] == ["train row 3", f"test row {len(test) - 2}"]


# Broken

@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_are_told_with_path_and_reason_and_are_no_copies(tmp_path, workers):
    train, test = files(tmp_path, 70), files(tmp_path, 5)[3:]
    for row in (3, 40, 41): open(train[row], "w").close()
    with open(train[66], "r+b") as file: file.truncate(60)
    test.append(str(tmp_path/"nowhere.png"))
    findings = look(of_files(train, test), workers=workers)
    assert (findings.broken["train"], findings.broken["test"]) == (4, 2)       # test[0] is train[3]
    bad = [*(train[i] for i in (3, 40, 41, 66)), test[0], test[2]]
    assert [one["picture"] for one in findings.broken["pictures"]] == bad
    assert findings.broken["pictures"][0]["reason"] == "the file is empty"
    assert findings.copies["train"] == 0 and findings.copies["leaked"] == 1
    text = findings_text(findings, most=2)
    assert train[40] in text and train[41] not in text and "and 4 more" in text


def test_all_pictures_broken(tmp_path):
    (tmp_path/"a.png").write_bytes(b"x")
    findings = look(of_files([str(tmp_path/"a.png")]*150))
    assert findings.broken["train"] == 150 and len(findings.broken["pictures"]) == 100 and findings.sizes is None
    assert findings.copies["train"] == 0
    assert "cannot be read: 150" in findings_text(findings)
    draw_samples(of_files([str(tmp_path/"a.png")]*3), tmp_path/"out.png")
    assert Image.open(tmp_path/"out.png").format == "PNG"


def test_names_that_would_upset_a_terminal(tmp_path):
    path = str(tmp_path/"a\x1b[31m\nb.png")
    open(path, "w").close()
    text = findings_text(look(of_files([path])))
    assert "\x1b" not in text and "a?[31m?b.png" in text
    text.encode("utf-8")


def test_sizes_of_pictures(tmp_path):
    shapes = {"wide": (160, 40), "tiny": (31, 40), "tall": (40, 170), "usual": (40, 40), "again": (40, 40)}
    for name, size in shapes.items(): Image.effect_noise(size, 20).save(tmp_path/f"{name}.png")
    sizes = look(of_files([str(tmp_path/f"{name}.png") for name in shapes])).sizes
    assert sizes == {"smallest": [31, 40], "largest": [40, 170]}


# Sets and classes

@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_numbers_are_what_loops_find(sets, random):
    labels = [random.choice(range(4)) for _ in sets]
    test_labels = [random.choice(range(-1, 5)) for _ in range(random.randint(0, 6))]
    test = range(100, 100 + len(test_labels))
    found = look(pictures(range(len(sets)), test, sets, labels, np.array(test_labels, int)))
    sizes = sorted(len(s) for s in sets)
    assert found.sets["mean"] == pytest.approx(sum(sizes)/len(sizes))
    assert found.sets["median"] == pytest.approx((sizes[(len(sizes) - 1)//2] + sizes[len(sizes)//2])/2)
    assert found.sets["largest"] == sizes[-1] and found.sets["single"] == pytest.approx(sizes.count(1)/len(sizes))
    assert found.sets["coverage"] == pytest.approx(sum(y in s for y, s in zip(labels, sets))/len(sets))
    counts = {c: sum(c in s for s in sets) for c in range(4)}
    assert found.untrained == [NAMES[c] for c in range(4) if counts[c] == 0]
    assert found.untested == [name for c, name in enumerate(NAMES) if c not in test_labels]
    assert (found.test, found.test_known) == (len(test_labels), sum(y >= 0 for y in test_labels))
    for key, times in {"candidates": counts, "truth": {c: labels.count(c) for c in range(4)}}.items():
        there = [k for k in times.values() if k]
        told = found.balance[key]
        assert (told["most_count"], told["least_count"]) == (max(there), min(there))
        assert times[NAMES.index(told["most"])] == max(there) and times[NAMES.index(told["least"])] == min(there)
        assert told["ratio"] == pytest.approx(max(there)/min(there))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_inseparable_labels_are_what_loops_find(seed):
    rng = np.random.default_rng(seed)
    leader = rng.integers(0, 4)
    sets = []
    for _ in range(150):
        s = set(rng.choice(8, rng.integers(1, 3), replace=False).tolist())
        if leader in s and rng.random() < rng.choice([.5, .93, 1]): s.add(8)      # 8 comes with the leader, and alone
        if rng.random() < .1: s.add(8)
        if s & {6, 7}: s |= {6, 7}                                                # never one without the other
        sets.append(s)
    names = tuple("abcdefghij")
    found = look(pictures(range(150), (), sets, names=names)).inseparable
    share = lambda a, b: sum({a, b} <= s for s in sets)/max(1, sum(a in s for s in sets))
    told = {(p["label"], p["companion"]) for p in found["pairs"]}
    assert ("g", "h") in told or not 10 <= sum(6 in s for s in sets) < 75
    for p in found["pairs"]:
        a, b = names.index(p["label"]), names.index(p["companion"])
        assert share(a, b) == pytest.approx(p["share"]) and p["share"] >= .95
        assert p["sets"] == sum(a in s for s in sets)
    assert ((names[leader], "i") in told) == (share(leader, 8) >= .95)


def test_frequent_and_rare_labels_are_not_called_inseparable():
    everything = pictures(range(200), (), [[0, 1, 2, 3]]*200)
    assert look(everything).inseparable["labels"] == 0
    for k in (9, 10):
        few = pictures(range(200), (), [[0, 1]]*k + [[2], [3]]*((200 - k)//2) + [[2]]*(k % 2))
        assert look(few).inseparable["labels"] == (2 if k == 10 else 0)
    rng = np.random.default_rng(0)
    often = pictures(range(200), (), [[0] + [c for c in (1, 2, 3) if rng.random() < .4] for _ in range(200)])
    assert look(often).inseparable["labels"] == 0
    nearly = [[0]]*2800 + [[0, 1]]*190 + [[1]]*10      # with label 1, label 0 is less frequent than elsewhere
    assert look(pictures(np.arange(3000) % 256, (), nearly)).inseparable["labels"] == 0


def test_imbalance_coverage_and_missing_classes_are_warnings_with_a_mend():
    labels = np.array([0]*60 + [1]*3 + [2])
    findings = look(pictures(range(64), (100,), [[3 if i % 4 == 0 else y] for i, y in enumerate(labels)], labels))
    assert "ant is the truth 60 times as often as cat (60 : 1)" in said(findings, "the truth")[0]
    assert findings.sets["coverage"] == 48/64 and said(findings, "hold the true class: only")
    assert said(findings, "test rows of known class: none") and not said(findings, "without a test row")
    tested = look(pictures(range(3), range(9, 12), labels=[0, 1, 2], test_labels=[0, 4, -1]))
    assert said(tested, "classes without a test row: 3 (bee, cat, dog)") and tested.test_known == 2
    for warning in findings.warnings + tested.warnings: assert "; " in warning, "a warning says what to do"


def test_sound_data_bring_no_warning():
    task = world_task(notes=("made up",))
    findings = look(task)
    assert findings.warnings == [] and findings.broken == {"train": 0, "test": 0, "pictures": []}
    text = findings_text(findings)
    assert "Nothing looks wrong" in text and "made up" in text and len(text.splitlines()) < 40
    assert findings.sets["mean"] == pytest.approx(task.candidates.sizes.double().mean().item())


def test_plain_values_survive_json():
    plain = look(world_task()).plain()
    assert json.loads(json.dumps(plain)) == plain


def test_one_screen_whatever_is_wrong(tmp_path):
    names = tuple(f"class number {i} with a long name" for i in range(400))
    sets = [[i % 300, (i % 300) ^ 1] for i in range(6000)]
    found = PictureSet("wrong", [str(tmp_path/"none.png")]*6000, np.zeros((90, 4, 500, 3), np.uint8), names,
                       np.arange(400) < 390, np.array([s[0] for s in sets]), np.full(90, -1),
                       CandidateSets.from_lists(sets, 400))
    findings = look(found, workers=0)
    text = findings_text(findings)
    assert len(text.splitlines()) <= 45 and max(map(len, text.splitlines())) <= 110
    assert findings.inseparable["labels"] == 300 and len(findings.inseparable["pairs"]) == 100
    assert len(json.dumps(findings.plain())) < 100_000


def test_memory_does_not_grow_with_pictures_times_classes(monkeypatch):
    n = 12_000                                                 # a table of bools would be 144 MB
    classes = torch.cat([torch.arange(n), 7919*torch.arange(n) % n])
    sets = CandidateSets.from_pairs(torch.arange(n).repeat(2), classes, n, n)
    looks = np.ones(n, _LOOK)
    looks["key"] = np.arange(n)//2
    names = [str(c) for c in range(n)]
    found = Task("many", torch.ones(n, 1), torch.ones(n, 1), tuple(names), torch.ones(n, dtype=torch.bool), sets, None,
                 torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))
    def refuse(*_): raise AssertionError("a table of pictures x classes")
    monkeypatch.setattr(CandidateSets, "to_mask", refuse)
    tracemalloc.start()   # sees what NumPy holds, and not PyTorch
    _copies(found, looks, looks[:0]), _sizes(looks), _inseparable(sets, names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


# Drawing

def test_grid_of_pictures_with_odd_names(tmp_path):
    names = ("$\\bad{$", "貓", "a "*40 + "b", "Straße", "unseen")
    found = pictures(range(20), (), [[0], [0, 1, 2, 3]]*10, labels=[0, 2]*10, names=names)
    assert draw_samples(found, tmp_path/"new"/"grid.png", count=2, seed=1) == tmp_path/"new"/"grid.png"
    first = np.asarray(Image.open(tmp_path/"new"/"grid.png"))
    draw_samples(found, tmp_path/"again.png", count=2, seed=1)
    draw_samples(found, tmp_path/"more.png", count=50)
    assert np.array_equal(first, np.asarray(Image.open(tmp_path/"again.png")))
    assert Image.open(tmp_path/"more.png").size[0] > first.shape[1]


def test_grid_passes_over_broken_pictures(tmp_path):
    paths = files(tmp_path, 12)
    for path in paths[:-1]: open(path, "w").close()
    draw_samples(of_files(paths), tmp_path/"grid.png")
    colours = {tuple(c) for c in np.asarray(Image.open(tmp_path/"grid.png").convert("RGB")).reshape(-1, 3).tolist()}
    assert (11, 0, 7) in colours


@pytest.mark.filterwarnings("error")
def test_a_task_draws_its_pictures_or_its_counts(tmp_path):
    red = world_task(pictures=lambda rows: np.full((len(rows), 8, 8, 3), (250, 3, 9), np.uint8))
    fields = {key: vars(red)[key] for key in red.__dataclass_fields__}
    for name, changes in {"red": {}, "counts": {"pictures": None}, "no sets": {"candidates": None, "pictures": None},
                          "nothing": {"candidates": None, "labels": None}}.items():
        draw_samples(Task(**fields | changes), tmp_path/f"{name}.png", count=3)
    colours = [{tuple(c) for c in np.asarray(Image.open(tmp_path/f"{name}.png").convert("RGB")).reshape(-1, 3).tolist()}
               for name in ("red", "counts")]
    assert (250, 3, 9) in colours[0] and (250, 3, 9) not in colours[1]


def test_pictures_in_memory_are_not_changed(tmp_path):
    held = [Image.effect_noise((300, 260), 50).convert("RGB") for _ in range(3)]
    before = [image.tobytes() for image in held]
    found = of_files(held, held[1:2])
    assert look(found).copies["pairs"]["leaked"] == [["train row 1", "test row 0"]]
    draw_samples(found, tmp_path/"grid.png")
    assert [image.tobytes() for image in held] == before


def test_a_task_without_sets_or_labels():
    task = world_task()
    fields = {key: vars(task)[key] for key in task.__dataclass_fields__}
    features = torch.cat([task.features[:-1], task.features[:1]])
    findings = look(Task(**fields | {"candidates": None, "labels": None, "features": features}))
    assert (findings.sets, findings.balance, findings.untrained) == (None, {}, []) and findings.copies["repeated"] == 1
    assert "a rule can draw them" in findings_text(findings)


# Bad input

def test_bad_input_is_refused(tmp_path):
    with pytest.raises(PZSLError, match="read_source"): examine(np.zeros((2, 3)))
    with pytest.raises(PZSLError, match="workers"): look(world_task(), workers=-1)
    with pytest.raises(PZSLError, match="count"): draw_samples(world_task(), tmp_path/"x.png", count=0)

"Tasks by name or file: the same seed is the same task, and odd specifications are answered in one line."
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from pzsl_nb import sources
from pzsl_nb.candidates import draw_candidates
from pzsl_nb.core import PZSLError
from pzsl_nb.features_files import save_features
from pzsl_nb.shapes import class_name, default_split, render
from pzsl_nb.sources import Reading, encode, load_task, shapes_pictures


def shapes_task(cache_dir=None, **pictures):
    return encode(shapes_pictures(**pictures), Reading(encoder="embedded", device="cpu", cache_dir=cache_dir, progress=False))


@pytest.fixture(scope="module")
def cache(tmp_path_factory): return tmp_path_factory.mktemp("features")


def test_same_seed_same_task(cache):
    "Without and with the cache, cold and warm."
    a, b, c = (shapes_task(seed=3, train_per_class=2, test_per_class=1, cache_dir=d) for d in (None, cache, cache))
    assert torch.equal(a.features, b.features) and torch.equal(b.features, c.features)
    assert torch.equal(a.label_features, c.label_features) and torch.equal(a.test_features, c.test_features)


def test_training_and_test_pictures_differ(cache):
    "Also where both fill a whole portion of the renderer, so that equal seeds would mean equal scenes."
    task = shapes_task(train_per_class=13, test_per_class=10, cache_dir=cache)
    assert len(task.features) >= 512 and len(task.test_features) >= 512
    assert (task.features[task.labels == 0] @ task.test_features[task.test_labels == 0].T).max() < .999


def test_pictures_belong_to_the_features(cache):
    "The pictures shown beside the beliefs are the ones that were encoded."
    from pzsl_nb.encoders import load_encoder
    from pzsl_nb.extract import extract_features
    task = shapes_task(train_per_class=2, test_per_class=1, cache_dir=cache)
    rows = torch.tensor([70, 3, 11])
    x = extract_features(load_encoder(device="cpu"), task.pictures(rows), dtype=torch.float32, progress=False).features
    torch.testing.assert_close(x, task.features[rows], rtol=0, atol=1e-5)


def test_candidates_follow_the_seed(cache):
    a, b, c = (load_task(seed=s, cache_dir=cache) for s in (0, 0, 1))
    assert torch.equal(a.candidates.indices, b.candidates.indices)
    assert a.candidates.nnz != c.candidates.nnz or not torch.equal(a.candidates.indices, c.candidates.indices)
    assert a.candidates.contains(a.labels).all() and a.seen[a.candidates.indices].all()


@pytest.mark.parametrize("spec", ["shape", "nothing", "", "a/b.csv", "missing.npz"])
def test_data_that_is_not_there(spec):
    with pytest.raises(PZSLError): load_task(spec)


def test_a_rule_that_does_not_parse(cache):
    with pytest.raises(PZSLError, match="candidate rule"): load_task(candidates="unifrom:0.3", cache_dir=cache)


# The memory of a reading

def write_photos(root, classes=6, each=8):
    attributes = np.concatenate(default_split())[-classes:]
    for k, attribute in enumerate(attributes):
        (root/class_name(attribute)).mkdir(parents=True)
        for i, picture in enumerate(render(np.repeat(attribute[None], each, 0), seed=k)):
            Image.fromarray(picture).save(root/class_name(attribute)/f"{i}.png")
    (root/"classes.csv").write_text("name,seen\n" + "".join(f"{class_name(a)},{int(k > 1)}\n" for k, a in enumerate(attributes)))
    return root


@pytest.fixture
def photos(tmp_path): return write_photos(tmp_path/"my photos")


@pytest.fixture
def reads(monkeypatch):
    "Names of the readers that were called: a remembered task needs none."
    called = []
    for kind, reader in dict(sources.SOURCES).items():
        monkeypatch.setitem(sources.SOURCES, kind, lambda path, how, kind=kind, reader=reader: (called.append(kind), reader(path, how))[1])
    return called


def load(photos, tmp_path, **more):
    return load_task(f"folder:{photos}", **{"encoder": "embedded", "device": "cpu", "cache_dir": tmp_path/"cache", "progress": False} | more)


def same(a, b):
    "The same in all that training and measuring look at."
    for key in ("features", "test_features", "label_features", "seen", "labels", "test_labels"):
        assert torch.equal(getattr(a, key), getattr(b, key)), key
    assert torch.equal(a.candidates.indices, b.candidates.indices) and torch.equal(a.candidates.indptr, b.candidates.indptr)
    assert (a.name, a.class_names, a.notes, a.logit_scale, a.facts()) == (b.name, b.class_names, b.notes, b.logit_scale, b.facts())
    assert list(a.image_ids) == list(b.image_ids) and list(a.test_ids) == list(b.test_ids)


def test_second_time_nothing_is_read(photos, tmp_path, reads):
    first, second = (load(photos, tmp_path) for _ in range(2))
    assert reads == ["folder"]
    same(first, second)
    same(first, load(photos, tmp_path, fresh=True))
    assert reads == ["folder"]*2


@pytest.mark.parametrize("change", ["new picture", "other content", "other test picture", "removed", "classes.csv", "renamed"])
def test_a_change_is_noticed(photos, tmp_path, reads, change):
    task = load(photos, tmp_path)
    some = photos/task.image_ids[3]
    if change == "new picture": some.with_name("new.png").write_bytes(some.read_bytes())
    if change == "other test picture":
        some = photos/task.test_ids[1]
        some.write_bytes((photos/task.test_ids[0]).read_bytes())
    if change == "other content": some.write_bytes(sorted(photos.glob("*/4.png"))[-1].read_bytes())
    if change == "removed": some.unlink()
    if change == "classes.csv": (photos/"classes.csv").write_text((photos/"classes.csv").read_text().replace(",0\n", ",1\n", 1))
    if change == "renamed": some.rename(some.with_name("another name.png"))
    load(photos, tmp_path)
    assert reads == ["folder"]*2


@pytest.mark.parametrize("what", ["record cut", "record of nothing", "features gone", "features cut"])
def test_a_damaged_memory_is_not_believed(photos, tmp_path, reads, what):
    first = load(photos, tmp_path)
    record, = (tmp_path/"cache"/"tasks").glob("*.safetensors")
    store = sorted((tmp_path/"cache").glob("*/features.npy"))[0]
    if what == "record cut": record.write_bytes(record.read_bytes()[:200])
    if what == "record of nothing": record.write_bytes(b"")
    if what == "features gone": store.unlink()
    if what == "features cut":   # beside and renamed: `first` has the old file mapped
        (tmp_path/"cut").write_bytes(store.read_bytes()[:500])
        (tmp_path/"cut").replace(store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(first, load(photos, tmp_path))
    assert reads == ["folder"]*2


@pytest.mark.parametrize("other", [{"min_votes": 2}, {"on_error": "skip"}, {"seed": 1}])
def test_another_reading_is_another_memory(photos, tmp_path, reads, other):
    load(photos, tmp_path)
    load(photos, tmp_path, **other)
    assert reads == ["folder"]*2


def test_a_feature_file_is_mapped_and_remembered(photos, tmp_path, reads):
    task = load(photos, tmp_path)
    file = tmp_path/"features.safetensors"
    save_features(file, task)
    first, second = (load_task(f"safetensors:{file}", cache_dir=tmp_path/"cache") for _ in range(2))
    assert reads == ["folder", "safetensors"]
    assert torch.equal(first.features, task.features) and torch.equal(second.features, task.features)
    assert torch.equal(second.candidates.indices, task.candidates.indices) and list(second.image_ids) == list(task.image_ids)
    save_features(file, dataclasses.replace(task, class_names=tuple("abcdef")))
    assert load_task(f"safetensors:{file}", cache_dir=tmp_path/"cache").class_names == tuple("abcdef")


def test_broken_pictures_are_left_out_with_a_word(photos, tmp_path):
    bad = sorted(photos.glob("*/*.png"))[-1]
    bad.write_bytes(b"")
    with pytest.raises(PZSLError, match=bad.name): load(photos, tmp_path)
    with pytest.warns(UserWarning, match=bad.name): task = load(photos, tmp_path, on_error="skip")
    rows = len(task.features) + len(task.test_features)
    assert rows == 6*8 - 1 and any(bad.name in note for note in task.notes)
    assert not any(str(name).endswith(f"{bad.parent.name}/{bad.name}") for name in [*task.image_ids, *task.test_ids])
    assert len(task.pictures(torch.tensor([0, len(task.features) - 1]))) == 2


@pytest.mark.parametrize("spec, kind", [("shapes", "shapes"), ("a.npz", "npz"), ("npz:a b.npz", "npz"), ("x.SAFETENSORS", "safetensors"),
                                        ("csv:weird:name.csv", "csv"), ("cifar10", "cifar10"), ("cub:/data", "cub"), ("lists/a.csv", "csv")])
def test_kinds(spec, kind): assert sources.parse_source(spec)[0] == kind


@pytest.mark.parametrize("spec", ["", ":", "shape:", "foldr:x", "cifar:x", "a.mat", "no such folder"])
def test_no_kind(spec):
    with pytest.raises(PZSLError, match="no source"): sources.parse_source(spec)


@pytest.mark.parametrize("spec, says", [
    ("ViT-B-32:{0}", "NAME:RUN=FILE"),                       # a file alone does not say which activation it wants
    ("ViT-B-32:openai={0}/no.pt", "no weights file at"),     # run and file are told apart
    ("ViT-B-32:openay={0}", "openai"),
])
def test_weights_from_a_file_say_which_run_they_are(tmp_path, spec, says):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"no weights")
    with pytest.raises(PZSLError, match=says):
        sources.find_encoder(Reading(encoder=spec.format(weights), device="cpu"))


def test_half_wide_features_can_be_made_similar_sets(cache):
    "Features of pictures in files are half as wide; the rule asks frozen CLIP all the same."
    task = shapes_task(seed=3, train_per_class=2, test_per_class=1, cache_dir=cache)
    half = dataclasses.replace(task, features=task.features.half(), candidates=None)
    wide, narrow = (draw_candidates(t, "similar:0.3", 0) for t in (dataclasses.replace(task, candidates=None), half))
    assert abs(narrow.candidates.nnz / wide.candidates.nnz - 1) < .05


def test_sets_that_nobody_gave_are_said_to_be_drawn(photos, tmp_path):
    said = lambda **more: [note for note in load(photos, tmp_path, **more).notes if "drawn from the labels" in note]
    assert len(said()) == 1 and said(candidates="uniform:0.2") == []


def test_a_source_of_ones_own_is_remembered_only_if_it_says_what_it_depends_on(photos, tmp_path, monkeypatch):
    def mine(path, how):
        made = dataclasses.replace(sources.SOURCES["folder"](str(photos), how), depends=depends)
        return dataclasses.replace(made, labels=made.labels[::-1].copy()) if turned else made
    monkeypatch.setitem(sources.SOURCES, "mine", mine)
    found = []
    for depends in ((), (photos/"classes.csv",)):
        for turned in (False, True):
            found.append(load_task("mine", encoder="embedded", device="cpu", cache_dir=tmp_path/"cache", progress=False).labels)
    assert torch.equal(found[1], found[0].flip(0)) and not torch.equal(found[1], found[0])   # nothing said, nothing kept
    assert torch.equal(found[3], found[2])   # it said so itself

"Tasks by name or file: the same seed is the same task, and odd specifications are answered in one line."
import pytest
import torch

from pzsl_nb.core import PZSLError
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

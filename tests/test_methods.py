"Every entry of METHODS under conditions that teach nothing: odd sets, resumed runs, permuted classes, sampled labels."
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone

import pzsl_nb.views as views
from pzsl_nb.baselines import centred
from pzsl_nb.core import PZSLError, Processes
from pzsl_nb.disambiguation import Beliefs, uniform_prior
from pzsl_nb.estimator import CLIPPZSL
from pzsl_nb.experiment import Config, make_estimator
from pzsl_nb.loss import Batch
from pzsl_nb.methods import METHODS, SEES_TRUTH, method_settings, unread_settings
from pzsl_nb.model import CLIPPZSLModel
from pzsl_nb.purification import Purification
from pzsl_nb.task import CandidateSets
from pzsl_nb.training import read_checkpoint
from small_world import BY_HAND, Stop, World, estimator, stop_at, whole_checkpoint

TRAINED = sorted(set(METHODS) - {"zero-shot"})
RULES = [name for name in METHODS if "objective" in METHODS[name] and "architecture" not in METHODS[name]]
CLOSED = ["tip-adapter", "eszsl", "attribute-map"]
MEMORY = ["pico", "papi", "pop"]   # rules with buffers
EXPECTED = {"clip-pzsl", "zero-shot", "supervised", "cc", "rc", "proden", "lws", "cavl", "abs-gce", "abs-mae", "crdpll",
            "pico", "papi", "pop", "coop", "tip-adapter", "eszsl", "attribute-map"}


def made(name, **more):
    return estimator(**BY_HAND | more | method_settings(name))


def probabilities(est, x): return torch.as_tensor(est.predict_proba(x))


def test_the_table():
    assert set(METHODS) == EXPECTED and type(METHODS) is dict
    assert set(SEES_TRUTH) < EXPECTED
    for name in RULES: assert " at 0x" not in repr(METHODS[name]["objective"])   # a checkpoint's fingerprint holds it
    assert repr(Purification(grows=.2)) != repr(Purification())
    with pytest.raises(PZSLError, match="'nobody' is not known"): method_settings("nobody")


@pytest.mark.parametrize("name", METHODS)
def test_rehearses_fits_and_predicts(name):
    world = World()
    est = estimator(**method_settings(name)).fit(world.x, world.sets, world.t, seen=world.seen)
    p = probabilities(est, world.x_test)
    assert p.isfinite().all() and p.shape == (len(world.x_test), 9)
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=p.dtype))
    sums = torch.zeros(len(world.sets)).index_add(0, world.sets.rows, est.beliefs_)
    torch.testing.assert_close(sums, torch.ones(len(sums)))
    assert (est.beliefs_ >= 0).all() and math.isfinite(est.choice_.gamma)


@pytest.mark.parametrize("name", TRAINED)
def test_learns_and_keeps_its_hands_off_the_table(name):
    world, before = World(), repr(METHODS[name])
    x, seen_rows = world.x_test, world.seen[world.y_test]
    est = made(name).fit(world.x, world.sets, world.t, seen=world.seen)
    assert repr(METHODS[name]) == before and not list(getattr(est.objective, "buffers", list)())
    frozen, own = (est.top_scores(x, trust).seen_score.float() for trust in (0., 1.))
    torch.testing.assert_close(frozen, 20*(x @ world.t.T)[:, :6].amax(1))   # trust 0 is CLIP for everybody
    assert (own - frozen).abs().max() > .01
    if name not in ("coop", "eszsl", "attribute-map", "pico"):   # the others know the seen classes better than by chance
        assert float((est.top_scores(x[seen_rows]).seen_class == world.y_test[seen_rows]).float().mean()) > .5


@pytest.mark.parametrize("name", ["crdpll", *MEMORY, "coop", *CLOSED])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name):
    world = World()
    def fit(file, **more):
        return made(name, **{} if name in CLOSED else {"epochs": 7}).fit(
            world.x, world.sets, world.t, seen=world.seen, checkpoint=file, every=1, **more)
    whole = fit(tmp_path/"whole.safetensors")
    with pytest.raises(Stop): fit(tmp_path/"cut.safetensors", on_epoch=stop_at(1 if name in CLOSED else 6))
    fit(tmp_path/"cut.safetensors", resume=True)
    assert whole_checkpoint(tmp_path/"cut.safetensors") == whole_checkpoint(tmp_path/"whole.safetensors")
    kept = {key for key in read_checkpoint(tmp_path/"whole.safetensors")[0] if key.startswith("rule.")}
    assert bool(kept) == (name in MEMORY)
    again = CLIPPZSL.load(tmp_path/"whole.safetensors", architecture=METHODS[name].get("architecture"))
    assert torch.equal(probabilities(again, world.x_test), probabilities(whole, world.x_test))


@pytest.mark.parametrize("name", METHODS)
def test_classes_may_come_in_any_order(name):
    world = World()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    place = order.argsort()   # the new number of each class
    permuted = CandidateSets.from_pairs(world.sets.rows, place[world.sets.indices], len(world.sets), 9)
    here = made(name, epochs=2).fit(world.x, world.sets, world.t, seen=world.seen)
    there = made(name, epochs=2).fit(world.x, permuted, world.t[order], seen=world.seen[order])
    torch.testing.assert_close(probabilities(there, world.x_test), probabilities(here, world.x_test)[:, order],
                               atol=1e-3, rtol=0)


def bundle(lists, scale, ids=None, x=None, t=None):
    "A batch of a real model, label columns perhaps a part of all."
    g = torch.Generator().manual_seed(0)
    t = F.normalize(torch.randn(9, 16, generator=g), dim=1) if t is None else t
    seen, x = torch.arange(9) < 6, F.normalize(torch.randn(len(lists), 16, generator=g), dim=1) if x is None else x
    sets, model = CandidateSets.from_lists(lists, 9), CLIPPZSLModel(t, seen, scale, 8, 2)
    columns, classes, weights = torch.arange(9), sets.indices, uniform_prior(sets)
    if ids is not None: columns, classes = ids, torch.searchsorted(ids, sets.indices)
    images, labels = model.images(x), model.labels(t)[columns]
    batch = Batch(model.score(images, labels), seen[columns], weights, sets.rows, classes, x,
                  images, labels, torch.arange(len(x)), torch.arange(sets.nnz), ids, None, model, 1.5, 4)
    return batch, model, Beliefs(sets, weights)


def ready(name, model, beliefs):
    rule = copy.deepcopy(METHODS[name]["objective"])
    if hasattr(rule, "start"): rule.start(model, beliefs)
    return rule


@pytest.mark.parametrize("lists", [[[0, 1], [2], [3, 5]], [[0], [4], [5]], [[0, 1, 2, 3, 4, 5]]*3], ids=["some", "one", "all"])
@pytest.mark.parametrize("name", RULES)
def test_extreme_scores_have_finite_gradients(name, lists):
    batch, model, beliefs = bundle(lists, 300.)
    assert batch.logits.max() > 100 and batch.logits.min() < -100
    rule = ready(name, model, beliefs)
    loss = rule(batch)["loss"]
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite() and grads and all(grad.isfinite().all() for grad in grads)
    if hasattr(rule, "opinion"):
        with torch.no_grad(): w = rule.opinion(batch)
        sums = torch.zeros(3).index_add(0, batch.local_row, w)
        torch.testing.assert_close(sums, torch.ones(3))
        if lists == [[0], [4], [5]]: assert torch.equal(w, torch.ones(3))


@pytest.mark.parametrize("name", RULES)
def test_columns_that_are_a_part_of_all_labels(name):
    "Leaving out seen labels that get no probability changes nothing, though all columns have moved."
    t = F.normalize(torch.randn(9, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    x = F.normalize(t[[1, 2, 4]] - t[0] - t[3], dim=1)   # far from labels 0 and 3
    lists, results = [[1, 2], [2, 4, 5], [4]], []
    for ids in (None, torch.tensor([1, 2, 4, 5, 6, 7, 8])):
        batch, model, beliefs = bundle(lists, 200., ids, x, t)
        rule = ready(name, model, beliefs)
        rule(batch)
        w = rule.opinion(batch) if hasattr(rule, "opinion") else batch.weights
        results.append((w.detach(), getattr(rule, "prototypes", torch.zeros(1))))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_steps_with_sampled_labels(name):
    world = World(seen=20, unseen=12, rule="uniform:0.1")
    est = made(name, negatives=4, batch_size=8).fit(world.x, world.sets, world.t, seen=world.seen)
    assert probabilities(est, world.x_test).isfinite().all()


@pytest.mark.parametrize("name", MEMORY)
def test_several_processes_are_refused(monkeypatch, name):
    monkeypatch.setattr(views, "processes", lambda *_: Processes(0, 2))
    world = World()
    with pytest.raises(PZSLError, match="run it in one process"):
        made(name).fit(world.x, world.sets, world.t, seen=world.seen)


@pytest.mark.parametrize("name", ["eszsl", "attribute-map"])
def test_attributes(tmp_path, name):
    world, file = World(), tmp_path/"a.safetensors"
    a = torch.rand(9, 5, generator=torch.Generator().manual_seed(2))
    fit = lambda a, **more: made(name).fit(world.x, world.sets, world.t, seen=world.seen, attributes=a, **more)
    est = fit(a, checkpoint=file)
    assert (probabilities(est, world.x_test) - probabilities(fit(None), world.x_test)).abs().max() > .01
    again = CLIPPZSL.load(file, architecture=METHODS[name]["architecture"])
    assert torch.equal(probabilities(again, world.x_test), probabilities(est, world.x_test))
    with pytest.raises(PZSLError, match="10 labels are asked for, and 9 classes"):
        est.add_classes([9], torch.randn(1, 16)).predict(world.x_test)
    with pytest.raises(PZSLError, match="shape .8, 5.; give one row of numbers for each of 9 classes"): fit(a[:8])


@pytest.mark.filterwarnings("ignore:.*too few to rehearse")
@pytest.mark.parametrize("name", ["eszsl", "attribute-map"])
def test_a_map_of_nothing_is_none(name):
    "One image a class: a rehearsal may train on one image, or on classes with one signature, and nothing varies there."
    world, one = World(), torch.tensor([[1., 0.]])
    for seed in range(3):
        est = CLIPPZSL(inner=8, heads=2, random_state=seed, device="cpu").set_params(**method_settings(name))
        few = torch.stack([world.x[world.y == c][0] for c in range(4)])
        est.fit(few, [0, 1, 2, 3], world.t)
        assert probabilities(est, world.x_test).isfinite().all()
    same = made(name).fit(world.x, world.sets, world.t, seen=world.seen, attributes=one.repeat(9, 1))
    assert probabilities(same, world.x_test).isfinite().all()


@pytest.mark.parametrize("name", ["coop", "tip-adapter", "eszsl", "attribute-map", "pico"])
def test_new_classes(name):
    world = World()
    est = clone(made(name)).fit(world.x, world.sets, world.t, seen=world.seen)
    before = est.top_scores(world.x_test)
    est.add_classes([9], world.t[6:7])   # a twin of an unseen class
    after = probabilities(est, world.x_test)
    torch.testing.assert_close(after[:, 9], after[:, 6], atol=1e-3, rtol=1e-2)
    if name != "pico": torch.testing.assert_close(est.top_scores(world.x_test).seen_score, before.seen_score)


@pytest.mark.parametrize("name", ["proden", "rc", "cavl", "papi", "pop"])
def test_fixed_beliefs_are_not_moved_by_a_rule_either(name):
    world = World()
    est = made(name, anchor=1., epochs=8).fit(world.x, world.sets, world.t, seen=world.seen)
    assert torch.equal(est.beliefs_, uniform_prior(world.sets))
    assert not torch.equal(made(name).fit(world.x, world.sets, world.t, seen=world.seen).beliefs_, est.beliefs_)


@pytest.mark.parametrize("epochs, first", [(14, 8), (7, 4), (28, 16), (3, 2)])
def test_pop_purifies_at_the_same_share_of_any_training(epochs, first):
    sets = CandidateSets.from_lists([[0, 1]], n_classes=3)
    z, every, beliefs, rule, left = torch.tensor([[9., 0., 0.]]), torch.ones(3, dtype=torch.bool), None, Purification(.4), []
    beliefs = Beliefs(sets, uniform_prior(sets))
    rule.start(None, beliefs)
    for epoch in range(1, epochs + 1):
        step = Batch(z, every, beliefs.weights, sets.rows, sets.indices, position=torch.arange(2), epochs=epochs)
        beliefs.weights[step.position] = rule.opinion(step)
        rule.after_epoch(beliefs, epoch)
        left.append(int(rule.kept.sum()))
    assert left == [2]*(first - 1) + [1]*(epochs - first + 1)


def test_settings_that_a_method_never_looks_at():
    for name in METHODS:
        void = unread_settings(name)
        assert ("inner" in void) == ("architecture" in METHODS[name])
        if "inner" in void:
            with pytest.raises(PZSLError, match=f"{name} does not look at inner"):
                make_estimator(Config(method=name, inner=64), 100.)
        make_estimator(Config(method=name), 100.)   # with defaults all is well


def test_centred_scores_of_a_sample():
    "A column counts for the labels that it stands for, else the candidates of a batch would weigh too much."
    logits, counts = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1., 1., 3., 1.])
    batch = Batch(logits + counts.log(), torch.tensor([True, True, True, False]), None, None, None, correction=counts.log())
    torch.testing.assert_close(centred(batch), logits - logits[:, [0, 1, 2, 2, 2]].mean(1, keepdim=True))
    plain = batch._replace(logits=logits, correction=None)
    assert torch.equal(centred(plain), logits - logits[:, :3].mean(1, keepdim=True))

"The estimator: resume, identity, seeds, odd shapes of tasks, what a new class may change, and memory."
import itertools
import json
import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pandas
import pytest
import sklearn
import torch
from safetensors.torch import save_file
from scipy.sparse import csr_array
from sklearn.model_selection import cross_val_score

from pzsl_nb.baselines import CandidateNLL
from pzsl_nb.core import PZSLError
from pzsl_nb.estimator import CLIPPZSL, _unit_rows, as_candidates
from pzsl_nb.evidence import FEWEST, _crossed
from pzsl_nb.methods import METHODS
from pzsl_nb.task import CandidateSets
from pzsl_nb.training import read_checkpoint, run
from small_world import BY_HAND, SWITCHES, Stop, World, estimator, stop_at, whole_checkpoint

W = World()


def fit(est, w=W, **more): return est.fit(w.x, w.sets, w.t, seen=w.seen, **more)


def learned(est):
    "Everything `fit` leaves that is a number, as bytes."
    state = {name: value.numpy().tobytes() for name, value in est.model_.state_dict().items()}
    return state, est.beliefs_.numpy().tobytes(), est.choice_


# Resume

@pytest.mark.parametrize("settings", [{}, BY_HAND, BY_HAND | dict.fromkeys(SWITCHES, False),
                                      BY_HAND | {"random_state": None}, BY_HAND | {"objective": CandidateNLL()},
                                      BY_HAND | {"negatives": 2, "batch_size": 4}, BY_HAND | {"anchor": .5}],
                         ids=["rehearsed", "by hand", "nothing to train", "no seed", "another loss", "sampled labels", "anchored"])
def test_two_and_two_are_four(tmp_path, settings):
    files = [tmp_path/"whole.safetensors", tmp_path/"parts.safetensors"]
    if settings.get("random_state", 0) is None: np.random.seed(7)
    whole = fit(estimator(**settings), checkpoint=files[0], every=1)
    stop = 2
    if settings.get("random_state", 0) is None: np.random.seed(7)
    with pytest.raises(Stop): fit(estimator(**settings), checkpoint=files[1], every=1, on_epoch=stop_at(stop + 1))
    torch.manual_seed(99)   # another process has another random state
    parts = fit(estimator(**settings), checkpoint=files[1], resume=True)
    assert learned(whole) == learned(parts)
    (tensors, plain), (again, plain_again) = map(whole_checkpoint, files)
    assert tensors == again and plain == plain_again and len(parts.history_) == 4
    moments = [value for name, value in tensors.items() if name.endswith(".exp_avg_sq")]
    assert sum(map(len, moments)) == 4*sum(p.numel() for p in whole.model_.parameters())


def test_rehearsal_is_not_repeated_by_a_resume(tmp_path, monkeypatch):
    "A run that is stopped in its first epoch has its choice already; it is read, not made again."
    file = tmp_path/"c.safetensors"
    with pytest.raises(Stop): fit(estimator(), checkpoint=file, on_epoch=stop_at(1))
    expected = fit(estimator())
    monkeypatch.setattr("pzsl_nb.estimator.choose", None)
    assert learned(fit(estimator(), checkpoint=file, resume=True)) == learned(expected)


def test_a_finished_fit_resumed_trains_no_more(tmp_path):
    file = tmp_path/"c.safetensors"
    first, before = fit(estimator(**BY_HAND), checkpoint=file), file.read_bytes()
    again = fit(estimator(**BY_HAND), checkpoint=file, resume=True, on_epoch=stop_at(1))
    assert learned(first) == learned(again) and file.read_bytes() == before


def test_without_resume_a_checkpoint_is_replaced(tmp_path):
    file = tmp_path/"c.safetensors"
    fit(estimator(**BY_HAND, random_state=1), checkpoint=file)
    assert learned(fit(estimator(**BY_HAND), checkpoint=file)) == learned(fit(estimator(**BY_HAND)))
    assert (CLIPPZSL.load(file).predict(W.x_test) == fit(estimator(**BY_HAND)).predict(W.x_test)).all()


def one_row_changed(x): return torch.cat([x[1:2], x[1:]])


OTHERS = {
    "x": {"x": one_row_changed(W.x)}, "order": {"x": W.x.flip(0)}, "text": {"t": one_row_changed(W.t)},
    "seen": {"seen": torch.arange(9) < 7},
    "sets": {"sets": CandidateSets.from_lists([W.sets[0][:1] if len(W.sets[0]) > 1 else [0, 1], *list(W.sets)[1:]], 9)},
    "same sizes": {"sets": CandidateSets.from_lists([[5 - c for c in row] for row in W.sets], 9)}}
SETTINGS = {"lr": 2e-2, "weight_decay": .1, "batch_size": 4, "negatives": 2, "pictures": .9, "trust": .5, "gamma": .2,
            "random_state": 1, "epochs": 5, "start": "clip", "anchor": .5, "inner": 4, "adapter": False, "logit_scale": 21.}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    file = tmp_path_factory.mktemp("stopped")/"c.safetensors"
    with pytest.raises(Stop): fit(estimator(**BY_HAND), checkpoint=file, every=1, on_epoch=stop_at(3))
    return file


@pytest.mark.parametrize("other", OTHERS)
def test_resume_refuses_other_data(stopped, other):
    before, w = stopped.read_bytes(), {"x": W.x, "sets": W.sets, "t": W.t, "seen": W.seen} | OTHERS[other]
    with pytest.raises(PZSLError, match="c.safetensors: was written with other images, candidate sets"):
        estimator(**BY_HAND).fit(w["x"], w["sets"], w["t"], seen=w["seen"], checkpoint=stopped, resume=True)
    assert stopped.read_bytes() == before


@pytest.mark.parametrize("name", SETTINGS)
def test_resume_refuses_other_settings(stopped, name):
    with pytest.raises(PZSLError, match="settings, objective or"):
        fit(estimator(**BY_HAND | {name: SETTINGS[name]}), checkpoint=stopped, resume=True)


@pytest.mark.parametrize("settings", [{"objective": CandidateNLL()}, {"random_state": np.int64(5)},
                                      {"lr": np.float32(3)}], ids=["objective", "numpy seed", "numpy lr"])
def test_resume_refuses_other_settings_that_are_not_plain(tmp_path, settings):
    plain = {key: type(value)(1) for key, value in settings.items() if key != "objective"}
    fit(estimator(**BY_HAND | plain), checkpoint=tmp_path/"c.safetensors")
    with pytest.raises(PZSLError):
        fit(estimator(**BY_HAND | settings), checkpoint=tmp_path/"c.safetensors", resume=True)


@pytest.mark.parametrize("share", [0, .01, .5, .99])
def test_a_checkpoint_cut_in_the_middle(stopped, tmp_path, share):
    file, whole = tmp_path/"cut.safetensors", stopped.read_bytes()
    file.write_bytes(whole[:int(share*len(whole))])
    with pytest.raises(PZSLError, match="cut.safetensors: is not a checkpoint"):
        fit(estimator(**BY_HAND), checkpoint=file, resume=True)
    with pytest.raises(PZSLError, match="cut.safetensors: is not a checkpoint"): CLIPPZSL.load(file)


def test_resume_where_there_is_nothing_begins(tmp_path):
    est = fit(estimator(**BY_HAND), checkpoint=tmp_path/"new.safetensors", resume=True)
    assert learned(est) == learned(fit(estimator(**BY_HAND)))


# The anchor

@pytest.mark.parametrize("settings", [{"start": "clip"}, {"start": "uniform"}, {"words": 0.}], ids=str)
def test_by_itself_nothing_is_anchored_where_no_words_are_trusted(settings):
    free, auto, half, held = (fit(estimator(**BY_HAND | settings | {"anchor": anchor})) for anchor in (0., "auto", .5, 1.))
    assert learned(free) == learned(auto) != learned(half)
    assert not np.array_equal(half.beliefs_, free.beliefs_) and not np.array_equal(half.beliefs_, held.beliefs_)


def test_the_anchor_is_a_share():
    for wrong in (True, 1.5, "much"):
        with pytest.raises(PZSLError, match="anchor: .* from 0 to 1, or auto"): fit(estimator(anchor=wrong))


# Before training

@pytest.mark.parametrize("on", list(itertools.product([True, False], repeat=3)), ids=str)
def test_no_epochs_is_frozen_clip(on):
    est = fit(estimator(epochs=0, start="clip", gamma=0., **dict(zip(SWITCHES, on))))
    frozen = 20*W.x_test @ W.t.T
    p = est.predict_proba(W.x_test)
    torch.testing.assert_close(torch.tensor(p), frozen.double().softmax(1), atol=1e-5, rtol=0)
    assert (est.predict(W.x_test) == frozen.argmax(1).numpy()).all() and est.history_ == []
    prior = (20*W.x @ W.t.T).masked_fill(~W.sets.to_mask(), -torch.inf).softmax(1)
    torch.testing.assert_close(est.beliefs_, prior[W.sets.rows, W.sets.indices])


def test_trust_zero_is_frozen_clip_whatever_was_learned():
    est = fit(estimator(**BY_HAND | {"trust": 0., "gamma": 0.}))
    assert (est.predict(W.x_test) == (W.x_test @ W.t.T).argmax(1).numpy()).all()
    assert (est.predict_proba(W.x_test) != fit(estimator(**BY_HAND)).predict_proba(W.x_test)).any()


# Seeds

@pytest.mark.parametrize("make", [lambda: 3, lambda: np.int64(3), lambda: np.random.RandomState(3)],
                         ids=["int", "int64", "RandomState"])
def test_the_same_seed_is_the_same_result(make):
    assert learned(fit(estimator(random_state=make()))) == learned(fit(estimator(random_state=make())))


def test_what_a_seed_is():
    def model(seed): return learned(fit(estimator(**BY_HAND, random_state=seed)))
    assert model(np.int64(3)) == model(3) != model(4)
    state = np.random.RandomState(3)
    assert model(state) != model(state)   # a state moves on
    np.random.seed(5)
    assert model(None) != model(None)


def test_fit_leaves_the_global_random_state_alone():
    def state(): return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()
    before = state()
    for settings in (BY_HAND | {"epochs": 1}, {"epochs": 1}, {"epochs": 1, "words": .1, "negatives": 2}): fit(estimator(**settings))
    assert state() == before


# Odd tasks

def check(est, w):
    "What holds for every fitted estimator."
    top, p = est.top_scores(w.x_test), est.predict_proba(w.x_test)
    assert p.shape == (len(w.x_test), len(w.t)) and np.isfinite(p).all() and np.allclose(p.sum(1), 1)
    assert (est.predict(w.x_test) == est.classes_[p.argmax(1)]).all()
    assert w.seen[top.seen_class].all() and (w.seen.all() or not w.seen[top.unseen_class].any())
    totals = torch.zeros(len(w.x)).index_add(0, w.sets.rows, est.beliefs_)
    torch.testing.assert_close(totals, torch.ones(len(w.x)))
    assert w.sets.contains(torch.as_tensor(est.labels_.astype(int))).all()
    assert 0 <= est.choice_.trust <= 1 and np.isfinite(est.choice_.gamma)


ODD = {"two seen": World(2, 3), "three seen": World(3, 3), "four seen": World(4, 3),
       "ten of a hundred": World(10, 90, 5), "no unseen": World(6, 0), "two seen, no unseen": World(2, 0),
       "sets of one": World(rule="uniform:0"),
       "nearly full sets": World(8, rule="uniform:0.97"), "one row a class": World(8, 3, 1),
       "one unseen of many": World(20, 1, 4)}


@pytest.mark.parametrize("name", ODD)
def test_odd_tasks(name):
    w = ODD[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        est = fit(estimator(), w)
    check(est, w)
    few = int(w.seen.sum()) < 4 and not w.seen.all()
    assert ["too few to rehearse" in str(warning.message) for warning in said] == [True]*few
    if few: assert (est.choice_.trust, est.choice_.gamma, est.choice_.table) == (1., 0., ())
    if name == "sets of one": assert (est.labels_ == w.y.numpy()).all()
    if w.seen.all(): assert est.choice_.gamma == 0 and "ausuc" not in str(est.choice_.table)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_rows_than_folds(n):
    sets = CandidateSets.from_lists([[i, i + 1] for i in range(n)], 9)
    with pytest.warns(UserWarning, match="too few to rehearse with"):
        est = estimator(folds=3).fit(W.x[:n], sets, W.t, seen=W.seen)
    assert (est.choice_.trust, est.choice_.gamma) == (1, 0) and np.isfinite(est.predict_proba(W.x_test)).all()


def test_full_sets_say_nothing():
    w = World(rule="uniform:1")
    with pytest.raises(PZSLError, match="every set holds every seen class"): fit(estimator(), w)
    check(fit(estimator(**BY_HAND, start="clip"), w), w)   # nobody asks the sets, so nothing to complain of


def test_seen_classes_without_a_row():
    "Classes 0 and 1 occur, six count as seen."
    sets = CandidateSets.from_lists([[i % 2] for i in range(len(W.x))], 9)
    est = estimator().fit(W.x, sets, W.t, seen=W.seen)
    assert est.seen_.sum() == 6 and np.isfinite(est.predict_proba(W.x_test)).all()


def test_all_forms_of_candidates_train_the_same():
    lists, mask = list(W.sets), W.sets.to_mask()
    expected = learned(fit(estimator(**BY_HAND)))
    for form in (lists, [set(row) for row in lists], [np.array(row) for row in lists], mask, mask.numpy(),
                 csr_array(mask.numpy())):
        est = estimator(**BY_HAND).fit(W.x.numpy(), form, W.t.numpy())   # numbers: names are 0..C-1, the rest is unseen
        assert learned(est) == expected and est.classes_.tolist() == list(range(9)) and (est.seen_ == W.seen).all()
        assert set(est.predict(W.x_test)) - set(range(6)), "unseen classes are predicted"


@pytest.mark.parametrize("candidates, names, told", [
    ([["cat"], [3]], None, "some classes are named by text and some by number"),
    ([["cat"], ["dog"]], ["cat", "cat", "dog"], "two classes have the same name"),
    ([["cat"], None], None, "row 1 is not of texts or numbers"), ([[["cat"]], ["dog"]], None, "row 0 is not of texts"),
    ([1, None], None, "row 1 is not of texts"), ([[True, False], [False, True]], None, "true and false in lists name no class"),
    ([["cat"], ["cow"]], ["cat", "dog"], "'cow' is not among the 2 classes")])
def test_names_that_leave_a_doubt(candidates, names, told):
    with pytest.raises(PZSLError, match=told): as_candidates(candidates, names)


@pytest.mark.parametrize("wrong", [{"trust": "half"}, {"trust": 3.}, {"words": "some"}, {"pictures": None}, {"gamma": np.nan}])
def test_a_setting_that_is_no_number(wrong):
    [name] = wrong
    with pytest.raises(PZSLError, match=f"{name}: .*cannot be used; give a number.*, or auto"): fit(estimator(**wrong))


@pytest.mark.parametrize("wrong, number", [
    ({"epochs": -1}, "whole number from 0 to 1,000,000$"), ({"epochs": 1.5}, "whole number"),
    ({"batch_size": 0}, "whole number from 1 to"), ({"inner": 0}, "whole number from 1 to"),
    ({"folds": 1}, "whole number from 2 to 100"), ({"negatives": True}, "whole number"), ({"lr": -1}, "number from 0 to 10"),
    ({"lr": 100.}, "number from 0 to 10"), ({"lr": "a"}, "number from 0"), ({"words": -1}, "number from 0"),
    ({"logit_scale": np.nan}, "number from 1e-09"), ({"logit_scale": -1.}, "number from 1e-09"),
    ({"dropped": 1.}, "number from 0 to 0.999, or auto")], ids=str)
def test_a_setting_out_of_range(wrong, number):
    name, value = *wrong, *wrong.values()
    with pytest.raises(PZSLError, match=f"{name}: {value!r} cannot be used; give a {number}"): fit(estimator(**wrong))


def test_a_table_of_names():
    sets, names = as_candidates(np.array([["cat", "dog"], ["owl", "cat"]]))
    assert names.tolist() == ["cat", "dog", "owl"] and [sets[i] for i in range(2)] == [[0, 1], [0, 2]]


@pytest.mark.parametrize("seen", [["yes"]*6 + ["no"]*3, list(range(9)), [.5]*9])
def test_marks_of_seen_classes_are_true_or_false(seen):
    with pytest.raises(PZSLError, match="seen: holds other things"): estimator().fit(W.x, W.sets, W.t, seen=seen)


def test_more_that_an_estimator_refuses(tmp_path):
    with pytest.raises(PZSLError, match="attributes: .*give a table of numbers"): fit(estimator(), attributes=[["a"]]*9)
    est = fit(estimator())
    with pytest.raises(PZSLError, match="trust: 5.0 is not from 0 to 1"): est.top_scores(W.x_test, 5.)
    with pytest.raises(PZSLError, match="'cat' is no list of names"): est.add_classes("cat", W.t[:3])
    assert estimator().fit(W.x, W.sets, W.t.clone().requires_grad_(), seen=W.seen).predict(W.x).tolist() == est.predict(W.x).tolist()
    fit(estimator(), checkpoint=tmp_path/"c.safetensors")
    tensors, plain = read_checkpoint(tmp_path/"c.safetensors")
    plain["notes"] = {"settings": plain["notes"]["settings"] | {"newer": 1}}
    for notes in ({}, plain["notes"]):
        save_file(tensors, tmp_path/"d.safetensors", {"pzsl": json.dumps(plain | {"notes": notes})})
        with pytest.raises(PZSLError, match="was not written by"): CLIPPZSL.load(tmp_path/"d.safetensors")


def test_words_and_attributes_that_cannot_be():
    zero = W.t.clone()
    zero[[2, 5]] = 0
    with pytest.raises(PZSLError, match="label_features: row 2, 5 is all zeros"):
        estimator().fit(W.x, W.sets, zero, seen=W.seen)
    with pytest.raises(PZSLError, match="attributes: shape .2, 3.; give one row of numbers for each of 9"):
        fit(estimator(), attributes=np.ones((2, 3)))


def test_a_table_of_pandas_is_no_reason_to_warn():
    est = estimator(**BY_HAND)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est.fit(pandas.DataFrame(2*W.x.numpy()), W.sets, W.t, seen=W.seen)
        assert len(est.predict(pandas.DataFrame(W.x_test.numpy()))) == len(W.x_test)


@pytest.mark.parametrize("per_class", [FEWEST - 1, FEWEST, 3*FEWEST, 6*FEWEST])
def test_beliefs_stay_with_the_evidence_where_images_are_few(monkeypatch, per_class):
    w, trained = World(per_class=per_class), []
    def noted(trainer, *given, **more):
        before = trainer.beliefs.weights.clone()
        done = run(trainer, *given, **more)
        limit = FEWEST*(1 + (len(trainer.x) < len(w.x)))   # in rehearsal twice as many
        trained.append((len(trainer.x) >= limit*len(trainer.beliefs.sets.indices.unique()),
                        not torch.equal(before, trainer.beliefs.weights)))
        return done
    monkeypatch.setattr("pzsl_nb.estimator.run", noted)
    fit(estimator(apprentice=0., dropped=0.), w)
    assert len(trained) == 3 and all(many == moved for many, moved in trained)
    assert trained[-1] == (per_class >= FEWEST,)*2
    trained.clear()
    fit(estimator(apprentice=.5, pictures=0.), w)   # where pictures have no say, nothing leads astray
    assert trained and all(moved for _, moved in trained)


def test_fit_changes_none_of_its_input():
    x, t, sets = 3*W.x.numpy(), 2*W.t.numpy(), list(W.sets)
    copies = x.copy(), t.copy(), [list(row) for row in sets]
    est = estimator(**BY_HAND).fit(x, sets, t)
    assert (x == copies[0]).all() and (t == copies[1]).all() and sets == copies[2]
    expected = fit(estimator(**BY_HAND)).beliefs_   # of unit length: length is no matter
    torch.testing.assert_close(est.beliefs_, expected, atol=1e-4, rtol=0)


# Leaks: fit sees no truth, and prediction moves nothing

def test_prediction_changes_nothing():
    est = fit(estimator(**BY_HAND))
    before, p = learned(est), est.predict_proba(W.x_test)
    for rows in (W.x_test[:1], 100*W.x_test, -W.x_test):
        est.predict(rows), est.predict_proba(rows), est.top_scores(rows, 0.)
    assert learned(est) == before and (est.predict_proba(W.x_test) == p).all()
    one_by_one = np.concatenate([est.predict_proba(row[None]) for row in W.x_test])
    np.testing.assert_allclose(one_by_one, p, atol=1e-5)   # a row's answer does not depend on the rows beside it


def test_a_fitted_model_owns_its_weights():
    est = fit(estimator(**BY_HAND))   # in training they are pieces of one vector, which a pickle would hold with each
    assert all(p.untyped_storage().nbytes() == p.nbytes and p.grad is None for p in est.model_.parameters())


# Evidence that several methods share

def test_methods_share_evidence_and_nothing_changes(tmp_path, monkeypatch):
    peers = [{"start": "uniform", "objective": CandidateNLL()}, {"start": "uniform"}, {"start": "clip"}]
    alone = [learned(fit(estimator(**peer))) for peer in peers]
    spared = []
    for peer, expected in zip(peers, alone):
        est = fit(estimator(**peer), memory=tmp_path)
        assert learned(est) == expected
        spared.append(est.spared_)
    assert spared[0] == 0 and min(spared[1:]) > 0
    for other in ({"random_state": 1}, {"words": .5}, {"logit_scale": 30.}):   # is other evidence
        est = fit(estimator(**peers[0] | other), memory=tmp_path)
        assert est.spared_ == 0 and learned(est) == learned(fit(estimator(**peers[0] | other)))
    asked = []
    monkeypatch.setattr("pzsl_nb.evidence._crossed", lambda *given: asked.append(given) or _crossed(*given))
    for settings in ({}, {"apprentice": .5}):   # an apprentice is of one method only: trained each time
        own, twice = fit(estimator(**settings)), [fit(estimator(**settings), memory=tmp_path) for _ in range(2)]
        assert learned(twice[0]) == learned(twice[1]) == learned(own) and twice[1].spared_ > 0
        assert len(asked) == (3 if settings else 0)   # words are not doubted here
        asked.clear()


# Prediction and new classes

def test_the_prediction_is_the_most_probable_class_at_any_gamma():
    w = World(12, 12, 6)
    for gamma in (-3., -.1, 0., .1, .7, 3., 1e5):
        est = fit(estimator(**BY_HAND | {"gamma": gamma, "epochs": 2}), w)
        p = est.predict_proba(w.x_test)
        assert (est.predict(w.x_test) == est.classes_[p.argmax(1)]).all()
        np.testing.assert_allclose(p.sum(1), 1)
    assert not w.seen[torch.as_tensor(est.predict(w.x_test))].any()   # at 1e5 only unseen ones are left


def test_frozen_clip_tells_unseen_classes_apart():
    "Who is unseen is decided as before; which unseen class it is, by frozen CLIP; seen classes feel nothing."
    w = World(12, 12, 6)
    for gamma in (-1., 0., .1, 3.):
        trained, frozen = (fit(estimator(**BY_HAND | {"gamma": gamma, "lr": .05, "naming": naming}), w)
                           for naming in ("trained", "frozen"))
        top, plain, clip = frozen.top_scores(w.x_test), trained.top_scores(w.x_test), frozen.top_scores(w.x_test, 0.)
        assert torch.equal(top.unseen_class, clip.unseen_class)
        assert not torch.equal(top.unseen_class, plain.unseen_class)
        for key in ("seen_score", "seen_class", "unseen_score"): assert torch.equal(getattr(top, key), getattr(plain, key))
        p, before = frozen.predict_proba(w.x_test), trained.predict_proba(w.x_test)
        assert (frozen.predict(w.x_test) == p.argmax(1)).all()
        np.testing.assert_allclose(p.sum(1), 1)
        among_seen = [q[:, :12]/q[:, :12].sum(1, keepdims=True) for q in (p, before)]
        np.testing.assert_allclose(*among_seen)
    with pytest.raises(PZSLError, match="naming: 'both' is not known"): fit(estimator(naming="both"))


def test_columns_of_new_classes():
    names, late = [f"c{i}" for i in range(9)], torch.nn.functional.normalize(W.x_test[:2] + .01, dim=1)
    est = estimator(**BY_HAND | {"self_attention": False}).fit(W.x, W.sets, W.t, class_names=names)
    before = est.predict_proba(W.x_test)
    p = est.add_classes(["a much longer name", "b"], 5*late.numpy()).predict_proba(W.x_test)
    assert est.classes_.tolist() == [*names, "a much longer name", "b"] and p.shape == (45, 11)
    assert (est.predict(W.x_test) == est.classes_[p.argmax(1)]).all() and not est.seen_[9:].any()
    np.testing.assert_allclose(p[:, :9]/p[:, :9].sum(1, keepdims=True), before, atol=1e-5)   # ratios of the others stay
    assert set(est.predict(W.x_test)) & {"a much longer name", "b"}
    for taken in (["c3"], ["new", "new"]):
        with pytest.raises(PZSLError, match="a class already|add_classes: two classes have the same name"): est.add_classes(taken, late[:len(taken)])
    for wrong in (late[:1], torch.cat([late, late], 1), late*torch.nan):
        with pytest.raises(PZSLError, match="label_features"): est.add_classes(["d", "e"], wrong)
    assert len(est.classes_) == len(est.seen_) == len(est.label_features_) == 11   # a refusal leaves nothing behind


def test_score_after_a_numbered_class_is_added():
    est = fit(estimator(**BY_HAND)).add_classes([9], W.t[:1])
    assert est.score(W.x_test.numpy(), W.y_test.numpy()) == np.mean(est.predict(W.x_test) == W.y_test.numpy()) > 0


# Files

def test_load_gives_the_same_model(tmp_path):
    for number, settings in enumerate(({}, BY_HAND | {"naming": "frozen"}, BY_HAND | {"adapter": False}, {"epochs": 0},
                                     {"start": "uniform"}, {"dropped": 0})):
        file, names = tmp_path/f"{number}.safetensors", [f"k{i}" for i in range(9)]
        est = estimator(**settings).fit(W.x, W.sets, W.t, class_names=names, checkpoint=file)
        loaded = CLIPPZSL.load(file)
        assert (loaded.predict_proba(W.x_test) == est.predict_proba(W.x_test)).all()
        assert loaded.classes_.tolist() == names and loaded.choice_.gamma == est.choice_.gamma
        assert {**loaded.get_params(), "device": "cpu"} == est.get_params()


@pytest.mark.parametrize("settings", [{"logit_scale": np.float32(20)}, {"inner": np.int64(16)}], ids=str)
def test_load_after_numpy_settings(tmp_path, settings):
    est = fit(estimator(**BY_HAND | settings), checkpoint=tmp_path/"c.safetensors")
    loaded = CLIPPZSL.load(tmp_path/"c.safetensors")
    np.testing.assert_allclose(loaded.predict_proba(W.x_test), est.predict_proba(W.x_test))


def test_the_choice_comes_back_equal(tmp_path):
    est = fit(estimator(), checkpoint=tmp_path/"c.safetensors")
    assert CLIPPZSL.load(tmp_path/"c.safetensors").choice_ == est.choice_


# Memory

MEMORY = """
import resource
import numpy as np
from pzsl_nb.estimator import CLIPPZSL

rng, rows, classes = np.random.default_rng(0), 40_000, 3_000   # a table of scores has 480 MB
text, x = rng.normal(size=(classes, 4)).astype("f4"), rng.normal(size=(rows, 4)).astype("f4")
est = CLIPPZSL(epochs=0, inner=4, self_attention=False, cross_attention=False, device="cpu")
est.fit(x[:8], [[i, i + 1] for i in range(8)], text)
est.predict(x[:10]), est.predict_proba(x[:10])
used = int(open("/proc/self/statm").read().split()[0])*resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400*2**20,)*2)
print(len(est.predict(x)))
try: est.predict_proba(x)
except (RuntimeError, MemoryError): print("no memory for a table")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux holds a process to RLIMIT_AS")
def test_predict_makes_no_table_of_rows_and_classes():
    "Under a limit that a table does not fit, `predict` passes; `predict_proba`, which has to return one, does not."
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, env=environment, timeout=120)
    assert run.stdout.split("\n")[:2] == ["40000", "no memory for a table"], run.stderr


# What a second review found

def test_a_table_whose_columns_have_names():
    names = [f"c{i}" for i in range(9)]
    table = pandas.DataFrame(W.sets.to_mask().numpy(), columns=names)
    mixed = table[[names[i] for i in (8, 3, 1, 0, 5, 2, 4, 7, 6)]]
    for given in (table, mixed):
        sets, classes = as_candidates(given, names)
        assert torch.equal(sets.indices, W.sets.indices) and classes.tolist() == names
    sets, classes = as_candidates(mixed)
    assert classes.tolist() == mixed.columns.tolist()
    assert {classes[c] for c in sets[0]} == {names[c] for c in W.sets[0]}
    plain, numbers = as_candidates(pandas.DataFrame(W.sets.to_mask().numpy()))   # no names, only numbers
    assert torch.equal(plain.indices, W.sets.indices) and numbers.tolist() == list(range(9))
    est = estimator(**BY_HAND).fit(W.x, mixed, W.t[[8, 3, 1, 0, 5, 2, 4, 7, 6]])   # label features in the order of the columns
    assert est.classes_.tolist() == mixed.columns.tolist()
    assert (est.labels_ == fit(estimator(**BY_HAND), class_names=names).labels_).mean() > .9
    with pytest.raises(PZSLError, match="columns are not the classes, 'c8', 'okapi' is one of the two only"):
        as_candidates(table, [*names[:8], "okapi"])


def test_a_number_that_is_a_name_elsewhere():
    with pytest.raises(PZSLError, match="candidates: 1, 2 is the name of one class and the number of another"):
        as_candidates([[1], [2]], ["1", "2", "3"])
    assert as_candidates([[1], [2]], ["0", "1", "2"])[0].indices.tolist() == [1, 2]


@pytest.mark.parametrize("names", ["abc", {"a", "b"}, [("a", "b")], [b"a", b"b"], []])
def test_names_that_are_none(names):
    with pytest.raises(PZSLError, match="class_names: .* is no list of names"): as_candidates([[0], [1]], names)


def test_rows_without_a_direction_are_told():
    zero = W.x.clone()
    zero[[3, 5]] = 0
    with pytest.warns(UserWarning, match="X: row 3, 5 is all zeros"):
        est = estimator(**BY_HAND).fit(zero, W.sets, W.t, seen=W.seen)
    with pytest.warns(UserWarning, match="X: row 0 is all zeros"): est.predict(torch.zeros(1, 16))
    with pytest.raises(PZSLError, match="X: row 0, 1, 2, .* is too long for float32"): est.predict(W.x*1e30)


def test_a_mapped_table_of_unit_rows_is_not_copied(tmp_path):
    np.save(tmp_path/"x.npy", W.x.numpy())
    mapped = np.load(tmp_path/"x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = _unit_rows(estimator(), mapped, reset=True)
        same = estimator(**BY_HAND).fit(mapped, W.sets, W.t, seen=W.seen)
    assert np.shares_memory(x.numpy(), mapped)
    assert learned(same) == learned(fit(estimator(**BY_HAND)))


def test_tables_of_any_kind():
    wanted = learned(fit(estimator(**BY_HAND)))
    back = np.ascontiguousarray(W.t.numpy()[:, ::-1])[:, ::-1]
    mask = np.ascontiguousarray(W.sets.to_mask().numpy()[:, ::-1])[:, ::-1]
    frozen = W.sets.to_mask().numpy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sets, t in ((mask, back), (frozen, W.t.numpy().astype(">f8"))):
            assert learned(estimator(**BY_HAND).fit(W.x, sets, t, seen=W.seen)) == wanted
        assert learned(estimator(**BY_HAND).fit(W.x.clone().requires_grad_(), W.sets, W.t, seen=W.seen)) == wanted
        few = estimator(**BY_HAND).fit(W.x.bfloat16(), W.sets, W.t.bfloat16(), seen=W.seen)
    assert (few.predict(W.x) == fit(estimator(**BY_HAND)).predict(W.x)).mean() > .9
    assert W.sets.select(np.arange(5)[::-1])[0] == W.sets[4]


def test_an_encoder_cannot_read_numbers():
    class Asked:
        def encode_text(self, texts): raise AssertionError(texts)
    with pytest.raises(PZSLError, match="label_features: the classes are numbers"):
        estimator(encoder=Asked()).fit(W.x, W.sets)


def test_a_refused_class_changes_nothing():
    class Wide:
        def encode_text(self, texts): return torch.ones(len(texts), 20)
    est = fit(estimator(**BY_HAND, encoder=Wide()), class_names=[f"c{i}" for i in range(9)])
    before = est.predict(W.x_test).tolist()
    with pytest.raises(PZSLError, match="label_features: shape .1, 20. does not fit"): est.add_classes(["okapi"])
    with pytest.raises(PZSLError, match="no list of names"): est.add_classes([("a", "b")], W.t[:1])
    known = estimator(**METHODS["eszsl"]).fit(W.x, W.sets, W.t, seen=W.seen, attributes=np.eye(9))
    with pytest.raises(PZSLError, match="labels are asked for"): known.add_classes(["okapi"], W.t[:1])
    assert est.predict(W.x_test).tolist() == before and len(est.classes_) == len(est.label_features_) == 9
    assert len(known.predict(W.x_test)) == 45 and len(known.classes_) == 9


RESUMED = """
import sys
import torch
from pzsl_nb.loss import seen_log_probabilities
from small_world import BY_HAND, Stop, World, estimator, stop_at
def nll(batch): return {"loss": -seen_log_probabilities(batch.logits, batch.seen)[batch.local_row, batch.classes].mean()}
w = World()
filler = [object() for _ in range(int(sys.argv[2]))]   # so that the function lies elsewhere
try: est = estimator(**BY_HAND, objective=nll).fit(w.x, w.sets, w.t, seen=w.seen, checkpoint=sys.argv[1], resume=True,
                                                    every=1, on_epoch=stop_at(3) if sys.argv[2] == "0" else None)
except Stop: print("stopped")
else: print(len(est.history_), hex(id(nll)))
"""


class _Rule:
    def __init__(self, weight): self.weight = weight
    def __call__(self, batch): return {"loss": self.weight*batch.logits.square().mean()}


def test_another_objective_of_the_same_kind_is_another_one(tmp_path):
    with pytest.raises(Stop):
        fit(estimator(**BY_HAND, objective=_Rule(1.)), checkpoint=tmp_path/"c.safetensors", every=1, on_epoch=stop_at(3))
    with pytest.raises(PZSLError, match="objective or architecture"):
        fit(estimator(**BY_HAND, objective=_Rule(-5.)), checkpoint=tmp_path/"c.safetensors", resume=True)
    assert len(fit(estimator(**BY_HAND, objective=_Rule(1.)), checkpoint=tmp_path/"c.safetensors", resume=True).history_) == 4


def test_a_function_as_objective_can_be_resumed_in_another_process(tmp_path):
    said = [subprocess.run([sys.executable, "-c", RESUMED, str(tmp_path/"c.safetensors"), filler], text=True,
                           capture_output=True, cwd=os.path.dirname(__file__), check=True).stdout
            for filler in ("0", "100000")]
    assert said[0] == "stopped\n" and said[1].startswith("4 0x")


def test_a_fit_that_was_stopped_is_not_loaded(tmp_path):
    with pytest.raises(Stop): fit(estimator(), checkpoint=tmp_path/"c.safetensors", every=1, on_epoch=stop_at(3))
    with pytest.raises(PZSLError, match="ended after epoch 2 of 4; complete it first"):
        CLIPPZSL.load(tmp_path/"c.safetensors")
    fit(estimator(), checkpoint=tmp_path/"c.safetensors", resume=True)
    assert len(CLIPPZSL.load(tmp_path/"c.safetensors").history_) == 4


class _Learns(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))


class _Empty(torch.nn.ModuleList):
    def __call__(self, batch): return {"mine": batch.logits.sum()*0, "loss": batch.logits.sum()*0}


@pytest.mark.parametrize("objective, said", [
    (_Learns(), "the objective has weights of its own"), (lambda batch: batch.logits.sum(), "gave no named tensors"),
    (lambda batch: {"mine": batch.logits.sum()}, "gave no named tensors"),
    (lambda batch: {"mine": 1., "loss": batch.logits.sum()}, "gave no named tensors")])
def test_objectives_that_are_none(objective, said):
    with pytest.raises(PZSLError, match=said): fit(estimator(**BY_HAND, objective=objective))


def test_an_objective_without_content_is_still_one():
    assert "mine" in fit(estimator(**BY_HAND, objective=_Empty()), on_epoch=lambda trainer: None).history_[0]


def test_metadata_routing_and_what_an_earlier_fit_leaves():
    y = W.y.numpy()
    with sklearn.config_context(enable_metadata_routing=True):
        scores = cross_val_score(estimator(**BY_HAND).set_fit_request(label_features=True), W.x.numpy(), y, cv=2,
                                 params={"label_features": W.t[:6]}, error_score="raise")
    assert scores.mean() > .5
    frame = pandas.DataFrame(W.x.numpy(), columns=[f"f{i}" for i in range(16)])
    est = fit(estimator(**BY_HAND), World())
    est.fit(frame, W.sets, W.t, seen=W.seen)
    assert len(est.feature_names_in_) == 16
    other = World(width=8)
    fit(est, other)
    assert not hasattr(est, "feature_names_in_") and est.n_features_in_ == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est.predict(other.x_test)


def test_a_subclass_may_have_other_settings():
    class Mine(CLIPPZSL):
        def __init__(self, lr=1e-3, extra=1):
            super().__init__(lr=lr, epochs=2, logit_scale=20., device="cpu")
            self.extra = extra
    assert set(Mine().get_params()) == {"lr", "extra"} and len(fit(Mine(extra=3)).history_) == 2


def test_one_image_a_class_is_rehearsed_or_said_to_be_too_few():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for seed in range(12):
            w = World(seen=4, per_class=1, seed=seed)
            fit(estimator(epochs=1, random_state=seed), w)


def test_an_apprentice_of_an_architecture_that_adds_at_certain_labels():
    seen = torch.tensor([True, True, False, True, True, False, True, False, True])
    w = World()
    order = torch.cat([seen.nonzero()[:, 0], (~seen).nonzero()[:, 0]])   # where the world's classes go
    t = torch.empty_like(w.t).index_copy_(0, order, w.t)
    sets = CandidateSets.from_lists([[int(order[c]) for c in w.sets[i]] for i in range(len(w.sets))], 9)
    est = estimator(architecture=METHODS["tip-adapter"]["architecture"], apprentice=.5).fit(w.x, sets, t, seen=seen)
    assert est.witnesses_.apprentice == .5 and len(est.predict(w.x_test)) == 45


def test_a_negative_seed():
    with pytest.raises(PZSLError, match="random_state: -1 is negative"): fit(estimator(random_state=-1))

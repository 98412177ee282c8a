"Evidence: what it may not see, what it needs, and that nothing grows with images x classes."
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from pzsl_nb.candidates import make_candidates
from pzsl_nb.core import PZSLError
from pzsl_nb.disambiguation import Beliefs, clip_prior
from pzsl_nb.evidence import DOUBT, FEWEST, Evidence, EvidentBeliefs, Pictures, Witnesses, gather_evidence
from pzsl_nb.metrics import disambiguation_accuracy
from pzsl_nb.task import CandidateSets
from small_world import World

W = World(12, 4, 30)


def gather(w=W, fixed={}, **more): return gather_evidence(w.x, more.pop("t", w.t), w.sets, w.seen, 20., fixed, **more)


def same(a, b, **close):
    for key in ("beliefs", "coverage", "surprise"): torch.testing.assert_close(getattr(a, key), getattr(b, key), **close)
    return a.witnesses == b.witnesses


# What it sees

def test_names_of_unseen_classes_are_not_asked():
    other = torch.nn.functional.normalize(torch.randn(16, 16, generator=torch.manual_seed(3)), dim=1)
    assert same(gather(), gather(t=torch.where(W.seen[:, None], W.t, other)), atol=0, rtol=0)
    assert not same_beliefs(gather(), gather(t=torch.where(W.seen[:, None], other, W.t)))


def same_beliefs(a, b): return torch.equal(a.beliefs, b.beliefs)


def test_the_order_of_images_is_no_matter():
    order = torch.randperm(len(W.x), generator=torch.manual_seed(0))
    a = gather()
    b = gather_evidence(W.x[order], W.t, W.sets.select(order), W.seen, 20.)
    torch.testing.assert_close(b.coverage, a.coverage[order], atol=2e-3, rtol=0)
    torch.testing.assert_close(b.beliefs, a.beliefs[W.sets.positions(order)[0]], atol=2e-2, rtol=0)


def test_the_same_seed_is_the_same_evidence_and_nothing_global_moves():
    torch.manual_seed(1), np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = gather(seed=3)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    torch.manual_seed(2)
    assert same(first, gather(seed=3), atol=0, rtol=0)


@pytest.mark.parametrize("rule", ["uniform:0.1", "uniform:0.6", "similar:0.3", "noisy:0.3,0.2", "pair:0.5", "uss"])
def test_what_holds_under_every_rule(rule):
    w = World(12, 4, 30)
    w.sets = make_candidates(rule, w.y, w.seen, 0, features=w.x, label_features=w.t, logit_scale=20.)
    found = gather(w)
    totals = torch.zeros(len(w.x)).index_add(0, w.sets.rows, found.beliefs)
    torch.testing.assert_close(totals, torch.ones(len(w.x)))
    assert ((found.coverage >= 0) & (found.coverage <= 1)).all() and (found.surprise >= 0).all()
    assert np.isfinite([*vars(found.witnesses).values(), found.log_likelihood]).all()
    before = disambiguation_accuracy(clip_prior(w.x, w.t, w.sets, 20.), w.sets, w.y)
    assert disambiguation_accuracy(found.beliefs, w.sets, w.y) > before - .05


# An image does not vouch for itself

def test_a_mean_without_the_image_is_the_mean_of_the_others():
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(50, 6, generator=g), dim=1)
    sets = CandidateSets.from_mask(torch.rand(50, 4, generator=g) < .5 + torch.eye(4).repeat(13, 1)[:50])
    mass = torch.rand(sets.nnz, generator=g)
    pictures = Pictures(x, block=7).learn(mass, sets)
    table = torch.zeros(50, 4).index_put((sets.rows, sets.indices), mass)
    scores = pictures.at_candidates(x, mass, sets.rows, sets.indices)
    for k in range(0, sets.nnz, 9):
        i, c = int(sets.rows[k]), int(sets.indices[k])
        others = torch.arange(50) != i
        count = table[others, c].sum() + 1
        apart = x[i] - (table[others, c] @ x[others] + x.mean(0))/count
        assert scores[k] == pytest.approx(float(-.5*count/(count + 1)*apart @ pictures.precision @ apart), rel=1e-3)
    away = pictures.at_labels(x, torch.arange(4))[torch.arange(50), :]
    outside = table == 0   # for labels that are no candidates nothing is left out
    full = pictures.at_candidates(x, torch.zeros(200), torch.arange(50).repeat_interleave(4), torch.arange(4).repeat(50))
    torch.testing.assert_close(away[outside], full.view(50, 4)[outside], rtol=1e-4, atol=1e-4)


def test_an_apprentice_is_asked_about_images_that_it_did_not_learn_from():
    learned, asked = [], []
    def apprentice(evidence, rows):
        learned.append(set(rows.tolist()))
        assert isinstance(evidence, Evidence) and rows.tolist() == sorted(rows.tolist())
        mine = learned[-1]
        def ask(images, ids):
            found = (images[:, None] == W.x).all(2).float().argmax(1)   # which images these are
            asked.append(len(found))
            assert not mine & set(found.tolist())
            return torch.zeros(len(images), len(ids))
        return ask
    confused = W.t.roll(1, 0)   # words that are worth nothing, so that an apprentice is called
    found = gather(t=confused, apprentice=apprentice)
    assert len(learned) == 2 and not learned[0] & learned[1] and learned[0] | learned[1] == set(range(len(W.x)))
    assert sum(asked) >= len(W.x) and found.witnesses.apprentice > 0


def test_an_apprentice_is_not_called_where_words_are_good_or_it_is_switched_off():
    def never(*_): raise AssertionError("nobody called")
    good = World(12, 4, 30)
    good.x = torch.nn.functional.normalize(good.t[good.y] + .05*torch.randn(len(good.y), 16, generator=torch.manual_seed(1)), dim=1)
    assert gather(good, apprentice=never).witnesses.apprentice == 0
    gather(t=W.t.roll(1, 0), fixed={"apprentice": 0.}, apprentice=never)


# Fixed numbers, odd sets

def test_fixed_numbers_stay():
    fixed = {"words": .7, "pictures": 0., "dropped": .05, "slope": 0.}
    assert {key: vars(gather(fixed=fixed).witnesses)[key] for key in fixed} == fixed


@pytest.mark.parametrize("fixed", [{"level": 0.}, {"words": -1.}, {"dropped": 1.}, {"pictures": float("inf")}])
def test_what_cannot_be_fixed(fixed):
    with pytest.raises(PZSLError, match=f"evidence: {[*fixed][0]} cannot be fixed"): gather(fixed=fixed)


@pytest.mark.parametrize("lists", [[[0], [1]], [[0, 1]]*3 + [[2]], [[i % 12] for i in range(24)]], ids=["two", "few", "ones"])
def test_odd_sets(lists):
    sets = CandidateSets.from_lists(lists, 16)
    found = gather_evidence(W.x[:len(lists)], W.t, sets, W.seen, 20.)
    assert np.isfinite([*vars(found.witnesses).values()]).all() and found.beliefs.isfinite().all()
    same_image = gather_evidence(W.x[:1].repeat(len(lists), 1), W.t, sets, W.seen, 20.)
    assert same_image.beliefs.isfinite().all()


def test_restricted_evidence_is_about_what_is_left():
    found, rows = gather(), torch.arange(0, len(W.x), 3)
    classes = torch.arange(16) != 2
    rows = rows[(W.sets.select(rows).sizes > 1) | ~W.sets.select(rows).contains(torch.full((len(rows),), 2))]
    part = found.restrict(W.sets, rows, classes)
    position, local_row = W.sets.positions(rows)
    kept = classes[W.sets.indices[position]]
    assert len(part.beliefs) == len(part.surprise) == int(kept.sum()) and len(part.coverage) == len(rows)
    left = torch.zeros(len(rows)).index_add(0, local_row[kept], found.beliefs[position[kept]])
    torch.testing.assert_close(part.coverage, found.coverage[rows]*left, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.zeros(len(rows)).index_add(0, local_row[kept], part.beliefs), torch.ones(len(rows)))


# Beliefs

def test_beliefs_ask_pictures_in_every_other_epoch():
    found = gather()
    beliefs = EvidentBeliefs(W.sets, found, W.x, anchor=0.)
    assert torch.equal(beliefs.odds, found.surprise)
    seen = []
    for epoch in range(1, 6):
        beliefs.look(epoch)
        seen.append(beliefs.odds.clone())
        beliefs.weights = beliefs.weights.roll(1)   # so that there is something new to learn
    assert [torch.equal(a, b) for a, b in zip(seen, seen[1:])] == [True, False, True, False]
    still, before = EvidentBeliefs(W.sets, found, W.x, anchor=1.), found.beliefs.clone()
    still.look(1)
    position, local_row, classes = still.batch(torch.arange(len(W.x)))
    still.update(position, local_row, torch.randn(len(position)))
    assert not still.moving and torch.equal(still.weights, before)


def test_the_better_the_words_the_more_the_evidence_keeps():
    found = gather()
    for words, apprentice, anchor in ((0., 0., 0.), (DOUBT, 0., 0.), (2*DOUBT, 0., .5), (4*DOUBT, 0., .75), (4*DOUBT, .1, 0.)):
        told = replace(found, witnesses=replace(found.witnesses, words=words, apprentice=apprentice))
        assert EvidentBeliefs(W.sets, told, W.x).anchor == pytest.approx(anchor)
        assert EvidentBeliefs(W.sets, told, W.x, anchor=.3).anchor == .3


def test_anchored_beliefs_are_a_product_of_powers():
    found, position = gather(), torch.arange(W.sets.nnz)
    scores = torch.randn(W.sets.nnz, generator=torch.manual_seed(0))
    for anchor in (0., .25, .9):
        beliefs = EvidentBeliefs(W.sets, found, W.x, anchor)
        beliefs.look(1)
        told = Pictures(W.x).learn(found.beliefs*found.coverage[W.sets.rows], W.sets).at_candidates(
            W.x, found.beliefs*found.coverage[W.sets.rows], W.sets.rows, W.sets.indices)
        odds = found.surprise + found.witnesses.pictures*told
        power = (scores + odds).exp()**(1 - anchor)*found.beliefs**anchor
        beliefs.update(position, W.sets.rows, scores)
        rows = torch.zeros(len(W.sets)).index_add(0, W.sets.rows, power)
        torch.testing.assert_close(beliefs.weights, power/rows[W.sets.rows], atol=1e-5, rtol=1e-4)


def test_by_itself_an_image_comes_to_rest():
    "An opinion that repeats the beliefs comes to rest at the start times the odds to the power (1 - anchor)/anchor."
    sets, start, odds = CandidateSets.from_lists([[0, 1, 2]], 3), torch.tensor([.5, .3, .2]), torch.tensor([1., 0., -2.])
    for anchor in (.25, .5, .8):
        beliefs = Beliefs(sets, start, anchor, odds)
        for _ in range(200): beliefs.update(torch.arange(3), torch.zeros(3, dtype=torch.int64), beliefs.weights.log())
        rest = start*(odds*(1 - anchor)/anchor).exp()
        torch.testing.assert_close(beliefs.weights, rest/rest.sum())
    free = Beliefs(sets, start, 0., odds)
    for _ in range(200): free.update(torch.arange(3), torch.zeros(3, dtype=torch.int64), free.weights.clamp_min(1e-30).log())
    assert free.weights[0] > .999


def test_certain_beliefs_and_sets_of_one_can_be_anchored():
    sets, start = CandidateSets.from_lists([[0, 1], [2]], 3), torch.tensor([1., 0., 1.])
    beliefs = Beliefs(sets, start, .5, odds=torch.zeros(3, dtype=torch.float64))
    beliefs.update(torch.arange(3), torch.tensor([0, 0, 1]), torch.tensor([-50., 50., 7.]))
    assert beliefs.weights.dtype == torch.float32 and beliefs.weights.isfinite().all()
    torch.testing.assert_close(beliefs.weights[:2].sum(), torch.tensor(1.))
    assert beliefs.weights[2] == 1
    for wrong in (-.1, 1.1, float("nan")):
        with pytest.raises(PZSLError, match="anchor is"): Beliefs(sets, start, wrong)


def test_few_images_a_class_do_not_speak_for_each_other():
    for per_class, moving in ((2, False), (FEWEST - 1, False), (FEWEST, True), (12, True)):
        w = World(per_class=per_class)
        found = gather_evidence(w.x, w.t, w.sets, w.seen, 20., {"words": 1., "pictures": .1, "dropped": 0.})
        beliefs = EvidentBeliefs(w.sets, found, w.x)
        before = beliefs.weights.clone(), beliefs.odds.clone()
        beliefs.look(1)
        position, local_row, classes = beliefs.batch(torch.arange(len(w.x)))
        beliefs.update(position, local_row, torch.zeros(len(position)))
        same = torch.equal(beliefs.weights, before[0]), torch.equal(beliefs.odds, before[1])
        assert beliefs.moving == moving and same == (not moving, not moving), per_class
    for per_class in (2*FEWEST - 1, 2*FEWEST):   # of a part of the images, on whose whole the numbers were fitted, twice as many
        w = World(per_class=2*per_class)
        found = gather_evidence(w.x, w.t, w.sets, w.seen, 20., {"words": 1., "pictures": .1, "dropped": 0.})
        half = torch.arange(0, len(w.x), 2)
        part = EvidentBeliefs(w.sets.select(half), found.restrict(w.sets, half, w.seen), w.x[half])
        assert part.moving == (per_class >= 2*FEWEST) and EvidentBeliefs(w.sets, found, w.x).moving
    w = World(per_class=2)
    unasked = gather_evidence(w.x, w.t, w.sets, w.seen, 20., {"words": 1., "pictures": 0., "dropped": 0.})
    assert EvidentBeliefs(w.sets, unasked, w.x).moving   # as an apprentice's, who hears no pictures


def test_beliefs_come_back_from_a_checkpoint():
    found = gather()
    a = EvidentBeliefs(W.sets, found, W.x, anchor=.5)
    b = EvidentBeliefs(W.sets, replace(found, beliefs=found.beliefs.roll(1), surprise=found.surprise.roll(1)), W.x, anchor=.5)
    a.look(1)
    b.restore({name: value.clone() for name, value in a.tensors().items()})
    assert all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())
    for beliefs in (a, b): beliefs.look(3)
    assert torch.equal(a.odds, b.odds)


def test_witnesses_show_their_numbers():
    text = repr(Evidence(Witnesses(.5, .1, 0., .02, -1., 0.), torch.ones(2), torch.ones(2), torch.zeros(2), -1.))
    assert "words 0.5" in text and "2 images" in text and "\n" not in text


# Memory

MEMORY = """
import resource, torch
from pzsl_nb.evidence import gather_evidence
from pzsl_nb.task import CandidateSets

torch.set_num_threads(1)
rows, classes = 40_000, 3_000   # a table of scores has 480 MB, and there would be several
g = torch.Generator().manual_seed(0)
unit = lambda *shape: torch.nn.functional.normalize(torch.randn(*shape, generator=g), dim=1)
x, t, y = unit(rows, 8), unit(classes, 8), torch.randint(classes, (rows,), generator=g)
sets = CandidateSets.from_lists([sorted({int(c), (int(c) + 7) % classes, (int(c) + i) % classes}) for i, c in enumerate(y)], classes)
seen = torch.ones(classes, dtype=torch.bool)
gather_evidence(x[:64], t, sets.select(torch.arange(64)), seen, 20., rounds=1)
used = int(open("/proc/self/statm").read().split()[0])*resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400*2**20,)*2)
print(len(gather_evidence(x, t, sets, seen, 20., rounds=1).coverage))
try: x @ t.T
except RuntimeError: print("no memory for a table")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux holds a process to RLIMIT_AS")
def test_no_table_of_images_and_classes():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["40000", "no memory for a table"], done.stderr[-2000:]

"Rehearsal: what it may not see, and tasks that leave little to rehearse with."
import dataclasses
import math
import warnings

import pytest
import torch

from pzsl_nb.core import PZSLError
from pzsl_nb.disambiguation import clip_prior, uniform_prior
from pzsl_nb.evidence import gather_evidence
from pzsl_nb.metrics import Curve, TopScores
from pzsl_nb.model import CLIPPZSLModel
from pzsl_nb.selection import (TRUSTS, choose, clearly_better, credit, estimated_curve, exponential_mean, plateau_gamma,
                               rehearsal_sets, rehearsals)
from pzsl_nb.task import CandidateSets
from small_world import World


def untrained(w, spread=.1):
    "Stands for a training: a fresh model of the fold's seed."
    def train(fold, sets, seed):
        torch.manual_seed(seed)
        model = CLIPPZSLModel(w.t[fold.classes], fold.seen[fold.classes], 20., inner=8)
        for parameter in model.parameters(): torch.nn.init.normal_(parameter, std=spread)   # so that trust matters
        return model
    return train


def folds_of(w, prior=None, **more):
    return rehearsals(w.sets, clip_prior(w.x, w.t, w.sets, 20.) if prior is None else prior, w.seen, **more)


def chosen(w, train=None, t=None, **more):
    evidence = gather_evidence(w.x, w.t, w.sets, w.seen, 20.)
    return choose(train or untrained(w), w.x, w.sets, w.t if t is None else t, w.seen, evidence, **more)


SIZES = {"even": (9, 3), "ten of a hundred": (10, 90), "one unseen": (9, 1), "none unseen": (9, 0), "four seen": (4, 4),
         "five of fifty": (5, 45)}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("rule", ["uniform:0", "uniform:0.3", "uniform:0.95"])
def test_a_fold_is_honest(name, rule):
    w = World(*SIZES[name], rule=rule)
    folds, unseen = folds_of(w), SIZES[name][1]
    assert folds
    for fold in folds:
        assert not fold.plays_unseen[~w.seen].any() and not (fold.plays_unseen & fold.seen).any()
        assert (fold.plays_unseen | fold.seen)[w.seen].all()
        assert fold.seen.sum() >= 2 and (fold.plays_unseen.sum() >= 2 if unseen else not fold.plays_unseen.any())
        assert not set(fold.train.tolist()) & set(fold.check.tolist())
        inside = rehearsal_sets(w.sets, fold)
        assert inside.sizes.min() >= 1 and fold.seen[fold.classes[inside.indices]].all()
        for i, row in enumerate(fold.train.tolist()):   # the naive loop
            assert [int(fold.classes[c]) for c in inside[i]] == [c for c in w.sets[row] if fold.seen[c]]
    assert len(torch.cat([fold.check for fold in folds]).unique()) == sum(len(fold.check) for fold in folds)


def test_rows_that_may_show_a_class_playing_unseen_are_left_out():
    w = World(9, 3)
    prior = clip_prior(w.x, w.t, w.sets, 20.)
    for fold in folds_of(w):
        for row in fold.train.tolist():
            begin, end = w.sets.indptr[row:row + 2].tolist()
            mass = sum(float(prior[k]) for k in range(begin, end) if fold.plays_unseen[w.sets.indices[k]])
            assert mass < .1


def test_sets_so_full_that_half_of_the_rows_is_taken():
    "Equal beliefs in nearly everything: no row is clean, so the cleaner half of those that can be used is trained on."
    w = World(9, 3, rule="uniform:0.9")
    prior = uniform_prior(w.sets)
    for fold in folds_of(w, prior):
        mass = torch.zeros(len(w.x)).index_add(0, w.sets.rows, prior*fold.plays_unseen[w.sets.indices])
        usable = sorted(set(range(len(w.x))) - set(fold.check.tolist()))
        assert len(fold.train) == -(-len(usable)//2)
        left = sorted(set(usable) - set(fold.train.tolist()))
        assert mass[fold.train].max() <= mass[left].min() and rehearsal_sets(w.sets, fold).sizes.min() >= 1


def test_rows_that_show_nothing_else_than_classes_playing_unseen_are_never_trained_on():
    "Nearly all rows show class 0; where it plays unseen, the few others are all there is."
    lists, seen = [[0]]*70 + [[1], [2], [3]]*3, torch.arange(6) < 4
    sets = CandidateSets.from_lists(lists, 6)
    folds = rehearsals(sets, torch.ones(79), seen)
    assert any(fold.plays_unseen[0] for fold in folds)
    for fold in folds: assert rehearsal_sets(sets, fold).sizes.min() == 1


def test_folds_belong_to_their_seed_and_draw_from_nothing_else():
    w = World(9, 3)
    torch.manual_seed(1)
    first, state = folds_of(w, seed=3), torch.get_rng_state()
    torch.manual_seed(2)
    again, other = folds_of(w, seed=3), folds_of(w, seed=4)
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("seen", "plays_unseen", "train", "check"))
    assert any(not torch.equal(a.check, b.check) for a, b in zip(first, other))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_how_many_rows_are_checked_on():
    assert [len(fold.check) for fold in folds_of(World(9, 3), most=7)] == [7, 7]
    with pytest.raises(PZSLError, match="at least 2"): folds_of(World(9, 3), count=1)


# The choice

def test_names_of_real_unseen_classes_change_no_choice():
    w, other = World(9, 3), torch.nn.functional.normalize(torch.randn(12, 16, generator=torch.manual_seed(8)), dim=1)
    t = torch.where(w.seen[:, None], w.t, other)
    assert chosen(w) == chosen(w, t=t) and len(chosen(w).table) == len(TRUSTS)
    assert chosen(w) != chosen(w, t=torch.where(w.seen[:, None], other, w.t))


def test_what_a_rehearsal_is_given():
    w, calls = World(9, 3), []
    def train(fold, sets, seed):
        calls.append(seed)
        assert len(fold.train) == len(sets) < len(w.x) and sets.n_classes == len(fold.classes) == 9
        assert int(fold.plays_unseen.sum()) == 2 and fold.seen[fold.classes[sets.indices]].all()
        assert not set(fold.train.tolist()) & set(fold.check.tolist())
        return untrained(w)(fold, sets, seed)
    chosen(w, train, seed=5, count=3)
    assert calls == [5, 6, 7]


def test_no_unseen_classes():
    found = chosen(World(9, 0))
    weights = [math.exp(100*row["S"]) for row in found.table]
    assert found.trust == pytest.approx(sum(w*trust for w, trust in zip(weights, TRUSTS))/sum(weights), abs=.005)
    assert found.gamma == 0 and not found.frozen_naming


@pytest.mark.parametrize("seen", [2, 3])
def test_too_few_seen_classes(seen):
    def train(*args, **more): raise AssertionError("there is nothing to rehearse with")
    with pytest.warns(UserWarning, match=f"{seen} seen classes and .* too few to rehearse with: trust 1, gamma 0"):
        found = chosen(World(seen, 3), train)
    assert (found.trust, found.gamma) == (1., 0.)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(World(seen, 0), train).trust == 1.   # nothing is lost, nothing is said


def test_the_choice_is_the_mean_of_the_table():
    found = chosen(World(9, 3))
    weights, best = [math.exp(100*row["ausuc"]) for row in found.table], max(found.table, key=lambda row: row["ausuc"])
    trust, gamma = (sum(w*row[key] for w, row in zip(weights, found.table))/sum(weights) for key in ("trust", "gamma"))
    assert found.trust == pytest.approx(trust, abs=.005) and found.gamma == pytest.approx(gamma)
    assert min(abs(trust - .5), abs(trust - best["trust"])) > .02   # neither the plain mean nor the largest
    assert [row["trust"] for row in found.table] == [*TRUSTS]


def table_of(areas, frozen=(True, True, False, False, False)):
    return [{"trust": trust, "ausuc": area, "gamma": 1 + 3*trust**2, "frozen_naming": naming}
            for trust, area, naming in zip(TRUSTS, areas, frozen)]


@pytest.mark.parametrize("areas, trust, gamma", [
    ((.5, .5, .5, .5, .5), .5, 1 + 3*.375),      # nothing is known: the middle
    ((.1, .2, .3, .4, .9), 1., 4.),              # one is far ahead
    ((.9, .4, .3, .2, .1), 0., 1.),
    ((.3, .3, 0., 0., 0.), .125, 1 + 3/32),      # two share the lead: between them
    ((.3, .3 - .01, 0., 0., 0.), .25/(1 + math.e), 1 + 3/16/(1 + math.e)),   # a point behind weighs 1/e
], ids=str)
def test_the_mean_of_some_options(areas, trust, gamma):
    found = exponential_mean(table_of(areas))
    assert found["trust"] == pytest.approx(trust, abs=.0051) and found["trust"] == round(found["trust"], 2)
    assert found["gamma"] == pytest.approx(gamma, abs=1e-6)


def test_how_near_counts_as_near():
    hard, soft = (exponential_mean(table_of((.3, .32, .3, .3, .3)), nearly)["trust"] for nearly in (1e-3, 10.))
    assert (hard, soft) == (.25, .5)


@pytest.mark.parametrize("frozen, kept", [
    ((True, False, True, False, True), True),    # the middle is where trust comes out, but the others have a vote
    ((True, True, False, True, True), True), ((False, False, True, False, False), False),
    ((True, False, False, False, True), False)], ids=str)
def test_options_vote_on_naming_by_their_weight(frozen, kept):
    assert exponential_mean(table_of([.5]*5, frozen))["frozen_naming"] == kept
    assert exponential_mean(table_of([.5, 0., 0., 0., .5], (True, False, False, False, False)))["frozen_naming"]   # a tie


def test_the_mean_of_one_option_is_that_option():
    for row in ({"trust": .333, "ausuc": .4, "gamma": 1.5, "frozen_naming": True}, {"trust": .75, "S": .4, "gamma": 0.}):
        expected = {"trust": row["trust"], "gamma": row["gamma"], "frozen_naming": row.get("frozen_naming", False)}
        assert exponential_mean([row]) == expected
    assert chosen(World(9, 3), trusts=(.333,)).trust == .333


def test_frozen_clip_keeps_the_word_among_unseen_classes():
    "Unless rehearsal shows clearly that training is better; the untrained model here knows nothing."
    w = World(9, 3, 40)
    found = {naming: chosen(w, untrained(w, .5), naming=naming) for naming in ("auto", "trained", "frozen")}
    assert all(row["frozen_naming"] for row in found["auto"].table) and found["auto"] == found["frozen"]
    assert not any(row["frozen_naming"] for row in found["trained"].table)
    trust = [[row["ausuc"] for row in found[naming].table] for naming in ("trained", "frozen")]
    assert trust[0][0] == trust[1][0] and trust[0][-1] < trust[1][-1]   # at trust 0 there is no difference


def test_rows_that_all_seem_to_play_unseen_are_nothing_to_rehearse_with(monkeypatch):
    "In sums of beliefs all of them may miss the whole by a last digit."
    drawn = lambda *given, **more: [dataclasses.replace(fold, share_unseen=1 - 1e-7) for fold in rehearsals(*given, **more)]
    monkeypatch.setattr("pzsl_nb.selection.rehearsals", drawn)
    with pytest.warns(UserWarning, match="too few to rehearse with: trust 1, gamma 0"): found = chosen(World(9, 3))
    assert (found.trust, found.gamma, found.table) == (1., 0., ())


def test_clearly_better_is_two_standard_errors():
    one, other = torch.zeros(100, dtype=torch.float64), torch.zeros(100, dtype=torch.float64)
    assert not clearly_better(one, other)
    one[:4] = 1   # mean .04, standard error .0197
    assert clearly_better(one, other) and not clearly_better(other, one)
    one[3] = 0    # mean .03, standard error .0171
    assert not clearly_better(one, other)


# Estimates

def test_credit_by_hand():
    sets = CandidateSets.from_lists([[0, 1], [2], [0, 2]], 3)
    mass = torch.tensor([.6, .3, .8, .2, .7])
    assert credit(torch.tensor([1, 2, 1]), sets, mass).tolist() == pytest.approx([.3, .8, 0.])


def test_curve_needs_both_sides():
    w = World(9, 3)
    top = TopScores(*(torch.zeros(len(w.y)), w.y)*2)
    for share in (0., 1., float("nan")):
        with pytest.raises(PZSLError, match="both sides"): estimated_curve(top, lambda guess: guess.double(), share)


def test_plateau_by_hand():
    gamma = torch.tensor([-torch.inf, 0., 1., 2., torch.inf]).double()
    S, U = torch.tensor([1., .8, .5, .498, 0.]).double(), torch.tensor([0., .2, .5, .502, .6]).double()
    H = [0, .32, .5, .49998, 0]   # each from its gamma to the next
    assert plateau_gamma(Curve(gamma, S, U)) == ((1.5 + 2)/2, pytest.approx(H[2]))   # the last stretch has no middle
    assert plateau_gamma(Curve(gamma, S, U), within=1e-9)[0] == 1.5
    assert plateau_gamma(Curve(gamma, S, U), within=.2)[0] == pytest.approx((.5 + 1.5 + 2)/3)
    below = plateau_gamma(Curve(gamma, -S, U))   # estimates may be negative
    assert below == (pytest.approx((.5 + 1.5 + 2)/3), 0.)

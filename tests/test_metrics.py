"The measures against plain loops, hand-computed cases, and the edges where they are not defined."
import math

import numpy as np
import pytest
import torch

from pzsl_nb.core import PZSLError
from pzsl_nb.metrics import (TopScores, accuracy_from_covering, approximated_accuracy, area, belief_entropy,
                             best_gamma, class_mean_accuracy, covering_rate, disambiguation_accuracy,
                             expected_calibration_error, flips, gzsl_metrics, harmonic_mean, oracle_gamma,
                             seen_unseen_curve, top_belief, top_scores)
from pzsl_nb.task import CandidateSets


def problem(seed=0, n=400, C=12, ties=False):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C - 1, (n,), generator=generator)   # the last class has no test row
    scores = torch.randn(n, C, generator=generator) + 2*torch.eye(C)[labels]
    if ties: scores = (2*scores).round()
    return scores, labels, torch.arange(C) < 7


def naive(scores, labels, seen, gamma):
    "S and U by loops; a tie between the best seen and the best unseen class goes to the unseen one."
    hits = {}
    for row, label in zip(scores.double(), labels.tolist()):
        best_seen = max(range(len(seen)), key=lambda c: (bool(seen[c]), float(row[c]), -c))
        best_unseen = max(range(len(seen)), key=lambda c: (not seen[c], float(row[c]), -c))
        answer = best_seen if row[best_seen] - row[best_unseen] > gamma else best_unseen
        hits.setdefault(label, []).append(answer == label)
    def mean(side): return np.mean([np.mean(v) for c, v in hits.items() if bool(seen[c]) == side])
    return mean(True), mean(False)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("gamma", [-math.inf, -1., 0., .5, 3., math.inf])
def test_s_and_u_equal_the_loops_at_every_gamma(gamma, ties):
    scores, labels, seen = problem(ties=ties)
    top, curve = top_scores(scores, seen), seen_unseen_curve(top_scores(scores, seen), labels, seen)
    got, at = gzsl_metrics(top, labels, seen, gamma), int((curve.gamma <= gamma).sum()) - 1
    np.testing.assert_allclose((got["S"], got["U"]), naive(scores, labels, seen, gamma), atol=1e-12)
    np.testing.assert_allclose((curve.S[at], curve.U[at]), (got["S"], got["U"]), atol=1e-12)


def test_the_curve_is_monotone_from_end_to_end():
    scores, labels, seen = problem(1)
    top = top_scores(scores, seen)
    curve, got = seen_unseen_curve(top, labels, seen), gzsl_metrics(top, labels, seen)
    assert (curve.gamma.diff() > 0).all() and (curve.S.diff() <= 0).all() and (curve.U.diff() >= 0).all()
    assert curve.U[0] == 0 and curve.S[-1] == 0
    assert float(curve.U[-1]) == pytest.approx(got["T1"]) and 0 < got["ausuc"] <= float(curve.S[0]*curve.U[-1])


def test_ausuc_does_not_change_with_a_constant_on_seen_scores():
    scores, labels, seen = problem(2)
    moved = scores.double() + 5.*seen
    got, other = (gzsl_metrics(top_scores(s, seen), labels, seen) for s in (scores, moved))
    assert got["ausuc"] == pytest.approx(other["ausuc"]) and got["T1"] == other["T1"] and other["U"] < got["U"]


def test_perfect_and_useless_scores():
    labels, seen = torch.arange(6).repeat(3), torch.arange(6) < 4
    perfect = gzsl_metrics(top_scores(torch.eye(6)[labels], seen), labels, seen)
    assert perfect == pytest.approx({"S": 1, "U": 1, "H": 1, "T1": 1, "ausuc": 1})
    wrong = gzsl_metrics(top_scores(torch.eye(6)[(labels + 1) % 4], seen), labels, seen)   # always another seen class
    assert wrong["S"] == wrong["U"] == wrong["H"] == 0
    nothing = top_scores(torch.eye(6)[torch.tensor([1, 2, 3, 0, 5, 4])[labels]], seen)   # wrong among its own side, too
    assert best_gamma(seen_unseen_curve(nothing, labels, seen)) == (0, 0)


def test_classes_count_alike_and_empty_classes_do_not_count():
    assert class_mean_accuracy(torch.tensor([1, 1, 1, 0]), torch.tensor([0, 0, 0, 9])) == .5
    assert math.isnan(class_mean_accuracy(torch.zeros(0), torch.zeros(0, dtype=torch.int64)))


def test_chunks_of_scores_give_the_same_table():
    scores, _, seen = problem()
    whole, parts = top_scores(scores, seen), TopScores.cat(top_scores(s, seen) for s in scores.split(7))
    for key in ("seen_score", "seen_class", "unseen_score", "unseen_class"):
        assert torch.equal(getattr(whole, key), getattr(parts, key))


@pytest.mark.parametrize("seen", [torch.ones(12, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)])
def test_one_sided_test_sets_give_nan_and_not_nonsense(seen):
    scores, labels, _ = problem()
    got = gzsl_metrics(top_scores(scores, seen), labels, seen)
    known, unknown = ("S", "U") if seen.all() else ("U", "S")
    assert got[known] == pytest.approx(class_mean_accuracy(scores.argmax(1) == labels, labels))
    assert math.isnan(got[unknown]) and math.isnan(got["H"]) and math.isnan(got["ausuc"])


def test_unseen_classes_without_test_rows_still_attract_seen_rows():
    scores, labels, seen = problem()
    keep = seen[labels]
    got = gzsl_metrics(top_scores(scores[keep], seen), labels[keep], seen)
    assert math.isnan(got["U"]) and math.isnan(got["T1"]) and got["S"] < 1
    with pytest.raises(PZSLError, match="one side has no rows"):
        best_gamma(seen_unseen_curve(top_scores(scores[keep], seen), labels[keep], seen))


def test_rows_with_equal_differences_pass_over_together():
    top = top_scores(torch.tensor([[.5, 0], [.5, 0], [.25, 0]]), torch.tensor([True, False]))
    curve = seen_unseen_curve(top, torch.tensor([0, 1, 0]), torch.tensor([True, False]))
    assert curve.gamma.tolist() == [-math.inf, .25, .5]
    assert curve.S.tolist() == [1, .5, 0] and curve.U.tolist() == [0, 0, 1]
    assert area(curve) == .25   # half of what the tied seen row would add if it went last


@pytest.mark.parametrize("seed", range(5))
def test_best_gamma_gives_the_h_it_promises(seed):
    scores, labels, seen = problem(seed, n=60)
    top = top_scores(scores, seen)
    gamma, H = best_gamma(seen_unseen_curve(top, labels, seen))
    assert gzsl_metrics(top, labels, seen, gamma)["H"] == pytest.approx(H)


def test_a_row_that_is_wrong_either_way_does_not_end_the_stretch():
    seen = torch.tensor([True, True, False])
    top = top_scores(torch.tensor([[0., 1, 0], [5, 0, 0], [0, 0, 1]]), seen)   # the first, at 1, is wrong on both sides
    gamma, H = best_gamma(seen_unseen_curve(top, torch.tensor([0, 0, 2]), seen))
    assert gamma == 2 and H == pytest.approx(2/3)   # in the middle of -1 and 5


def test_best_gamma_is_the_best_of_all():
    scores, labels, seen = problem(3)
    top = top_scores(scores + 1.5*seen, seen)
    oracle = oracle_gamma(top, labels, seen)
    assert oracle["oracle_H"] == pytest.approx(harmonic_mean(oracle["oracle_S"], oracle["oracle_U"]))
    every = [gzsl_metrics(top, labels, seen, float(g))["H"] for g in (top.seen_score - top.unseen_score)[::5]]
    assert oracle["oracle_H"] >= max(every) and math.isfinite(oracle["oracle_gamma"])


@pytest.mark.parametrize("labels, message", [(torch.zeros(3).long(), "give one for each row"),
                                             (torch.full((400,), 12), "they run from 12 to 12"),
                                             (torch.full((400,), -1), "they run from -1")])
def test_labels_that_do_not_fit_are_refused(labels, message):
    scores, _, seen = problem()
    with pytest.raises(PZSLError, match=message): gzsl_metrics(top_scores(scores, seen), labels, seen)


def test_nan_scores_are_refused():
    scores, _, seen = problem()
    scores[3, 3] = torch.nan
    with pytest.raises(PZSLError, match="NaN"): top_scores(scores, seen)


# Beliefs

SETS = CandidateSets.from_lists([[0, 2], [1], [0, 1, 3], [2, 3]], 4)
BELIEFS = torch.tensor([.5, .5, 1., .2, .3, .5, .9, .1])


def test_top_belief_breaks_ties_by_number_and_accuracy_shares_them():
    label, weight = top_belief(BELIEFS, SETS)
    assert label.tolist() == [0, 1, 3, 2] and torch.allclose(weight, torch.tensor([.5, 1., .5, .9]))
    assert disambiguation_accuracy(BELIEFS, SETS, torch.tensor([2, 1, 3, 3])) == pytest.approx((.5 + 1 + 1 + 0)/4)


def test_a_truth_outside_its_set_is_never_right():
    assert disambiguation_accuracy(BELIEFS, SETS, torch.tensor([1, 0, 2, 0])) == 0


def test_top_belief_equals_the_loop_on_random_sets():
    generator = torch.Generator().manual_seed(0)
    sets = CandidateSets.from_mask(torch.rand(50, 9, generator=generator).argsort(1) < 4)
    beliefs = torch.rand(sets.nnz, generator=generator)
    label, weight = top_belief(beliefs, sets)
    for i in range(50):
        own = beliefs[sets.rows == i]
        assert label[i] == sets[i][int(own.argmax())] and weight[i] == own.max()


def test_entropy_at_its_limits_and_gradient_free_zeros():
    uniform = 1/SETS.sizes[SETS.rows].float()
    assert torch.allclose(belief_entropy(uniform, SETS), SETS.sizes.float().log())
    onehot = torch.tensor([1., 0, 1, 0, 0, 1, 0, 1])
    assert belief_entropy(onehot, SETS).tolist() == [0, 0, 0, 0]


def test_beliefs_of_another_length_are_refused():
    with pytest.raises(PZSLError, match="give one for each"): top_belief(BELIEFS[1:], SETS)


def test_flips_is_a_share():
    assert flips(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])) == .5


def test_calibration_error_by_hand():
    # bins of width 1/2: (.2, .4) one right of two, (.6, 1., 1.) two right of three
    confidence, correct = torch.tensor([.2, .4, .6, 1., 1.]), torch.tensor([True, False, False, True, True])
    expected = 2/5*abs(.5 - .3) + 3/5*abs(2/3 - 2.6/3)
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(expected, abs=1e-6)
    assert expected_calibration_error(torch.zeros(4), torch.zeros(4).bool()) == 0


# Without truth

def test_covering_and_approximated_accuracy_equal_the_loop():
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(40, 9, generator=generator).softmax(1)
    sets = CandidateSets.from_mask(torch.rand(40, 9, generator=generator).argsort(1) < 4)
    inside = [int(p[i].argmax()) in sets[i] for i in range(40)]
    by_hand = np.mean([float(p[i].max()/p[i, sets[i]].sum()) if inside[i] else 0 for i in range(40)])
    assert covering_rate(p.argmax(1), sets) == np.mean(inside)
    assert approximated_accuracy(p, sets) == pytest.approx(by_hand, abs=1e-6)
    assert approximated_accuracy((chunk for chunk in p.split(11)), sets) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("rows", [3, 5])
def test_approximated_accuracy_refuses_other_lengths(rows):
    with pytest.raises(PZSLError, match="do not add up to 4"): approximated_accuracy(torch.ones(rows, 4)/4, SETS)


def test_probabilities_that_underflow_on_the_set_count_as_outside():
    assert approximated_accuracy(torch.tensor([[0., 1., 0., 0.]]), CandidateSets.from_lists([[0, 2]], 4)) == 0


def test_accuracy_from_covering():
    assert accuracy_from_covering(.6 + .4*.3, .3) == pytest.approx(.6)
    with pytest.raises(PZSLError, match="q is 1"): accuracy_from_covering(1., 1.)


def test_area_of_a_square_is_one():
    labels, seen = torch.tensor([0, 1]), torch.tensor([True, False])
    top = top_scores(torch.tensor([[1., 0], [0, 1.]]), seen)
    assert area(seen_unseen_curve(top, labels, seen)) == 1

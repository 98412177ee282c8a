"Sampled labels: right on average, the same step the same draw, and no effect where all labels are taken."
import math

import pytest
import torch
from small_world import BY_HAND, World, estimator

from pzsl_nb.baselines import CandidateNLL
from pzsl_nb.disambiguation import Beliefs, candidate_cosines, clip_prior
from pzsl_nb.loss import partial_zero_shot_loss
from pzsl_nb.mining import SemanticMining, visual_prototypes
from pzsl_nb.model import CLIPPZSLModel
from pzsl_nb.sampling import LabelSampler
from pzsl_nb.task import CandidateSets
from pzsl_nb.training import Trainer, run

SEEN = torch.arange(60) < 50


def test_every_label_is_drawn_equally_often_and_candidates_always():
    sampler, classes, count = LabelSampler(SEEN, negatives=10), torch.tensor([3, 3, 41]), torch.zeros(60)
    for step in range(2000): count[sampler(classes, step).ids] += 1
    assert (count[[3, 41]] == 2000).all()
    others = SEEN.clone()
    others[[3, 41]] = False
    assert ((count[others]/2000 - 10/48).abs() < .05).all() and (count[~SEEN] == 0).all()


def test_the_sum_over_labels_is_right_on_average():
    "exp of what the loss sums up, over many draws, against the sum over all seen labels."
    torch.manual_seed(0)
    z, classes, sampler = torch.randn(60).double(), torch.tensor([7]), LabelSampler(SEEN, negatives=5)
    sums = []
    for step in range(20_000):
        part = sampler(classes, step)
        sums.append((z[part.ids] + part.correction).exp().sum())
    assert torch.stack(sums).mean().item() == pytest.approx(z[SEEN].exp().sum().item(), rel=.01)


def test_what_labels_look_at():
    part = LabelSampler(SEEN, negatives=10, looked_at=7)(torch.tensor([1]), 0)
    assert len(part.neighbours) == len(part.prototypes) == 7 and part.prototypes.max() < 50


def test_another_seed_or_step_is_another_draw():
    draw = lambda seed, step: LabelSampler(SEEN, 10, seed)(torch.tensor([1]), step).ids.tolist()
    assert draw(0, 5) == draw(0, 5) and len({tuple(draw(s, k)) for s in range(4) for k in range(4)}) == 16


def weights(est): return {name: value for name, value in est.model_.state_dict().items()}


def fit(**settings):
    w = World(seen=12, unseen=5)
    return estimator(**BY_HAND | settings).fit(w.x, w.sets, w.t, seen=w.seen), w


@pytest.mark.parametrize("all_seen", [False, True])
def test_labels_that_are_few_are_not_drawn_and_look_at_all(all_seen):
    seen = torch.arange(400) < (400 if all_seen else 350)   # more than a mining block looks at where labels are drawn
    part = LabelSampler(seen)(torch.tensor([7, 3, 349]), 0)
    if all_seen: assert part is None
    else: assert part.ids.tolist() == [*range(350)] and part[1].tolist() == [7, 3, 349] and part[2:] == (None, None, None)


def test_many_labels_look_at_a_sample_also_where_all_of_them_are_candidates():
    seen = torch.arange(1300) < 1200
    part = LabelSampler(seen)(torch.arange(1200).flip(0), 0)
    assert part.ids.tolist() == [*range(1200)] and part.classes.tolist() == [*range(1199, -1, -1)]
    assert (part.correction == 0).all() and len(part.neighbours.unique()) == len(part.prototypes.unique()) == 256
    assert part.neighbours.max() < 1300 and part.prototypes.max() < 1200


def test_unseen_labels_that_are_many_are_looked_at_by_sample():
    part = LabelSampler(torch.arange(3005) < 5)(torch.tensor([1]), 0)
    assert part.ids.tolist() == [*range(5)] and (part.correction == 0).all()
    assert len(part.neighbours) == 256 and (part.neighbours > 4).any() and len(part.prototypes) == 5


def test_columns_for_seen_labels_alone_change_nothing_that_is_learned():
    w, learned = World(seen=12, unseen=5), []
    for sampler in (None, LabelSampler(w.seen)):
        torch.manual_seed(0)
        model = CLIPPZSLModel(w.t, w.seen, 20., inner=8, heads=2)
        before = model.adapter.outward.weight.clone()
        run(Trainer(model, partial_zero_shot_loss, Beliefs(w.sets, clip_prior(w.x, w.t, w.sets, 20.)), w.x, w.t, 2, 1e-2,
                    batch_size=16, device="cpu", sampler=sampler), progress=False)
        assert (model.adapter.outward.weight - before).abs().max() > 1e-3
        learned.append(model.state_dict())
    for name, value in learned[0].items(): torch.testing.assert_close(value, learned[1][name], atol=1e-4, rtol=1e-3)


def test_a_loss_is_told_what_sampling_added():
    told = []
    class Notes(CandidateNLL):
        def __call__(self, batch):
            plain = batch.model.score(batch.images, batch.labels)
            added = torch.zeros(1) if batch.correction is None else batch.correction
            torch.testing.assert_close(batch.logits, plain + added, atol=1e-4, rtol=0)
            told.append(float(added.max()))
            return super().__call__(batch)
    fit(objective=Notes(), negatives=2, batch_size=1)   # of twelve seen labels a batch of one leaves most to be drawn
    assert max(told) > .5
    told.clear()
    fit(objective=Notes())
    assert told and set(told) == {0.}


def test_enough_negatives_is_no_sampling():
    a, b = (fit(negatives=n)[0] for n in (12, 10**6))
    for name, value in weights(a).items(): assert torch.equal(value, weights(b)[name]), name


def test_sampling_trains_too():
    "Other weights, but a model that knows more than frozen CLIP; again to the bit with the same seed."
    exact, w = fit(epochs=15)
    (few, _), (again, _) = fit(epochs=15, negatives=3), fit(epochs=15, negatives=3)
    assert not torch.equal(weights(exact)["adapter.outward.weight"], weights(few)["adapter.outward.weight"])
    for name, value in weights(few).items(): assert torch.equal(value, weights(again)[name]), name
    right = lambda est, trust: (est.top_scores(w.x_test, trust).seen_class == w.y_test)[w.seen[w.y_test]].double().mean()
    assert right(few, 1.) > right(few, 0.)


def test_neighbours_given_are_the_ones_looked_at():
    torch.manual_seed(0)
    t, m, block = torch.randn(9, 16), torch.randn(6, 16), SemanticMining(16, inner=8, heads=2)
    for p in block.parameters(): torch.nn.init.normal_(p, std=.3)
    torch.testing.assert_close(block(t, m, neighbours=t), block(t, m))
    assert not torch.allclose(block(t, m, neighbours=t[:3]), block(t, m))


@pytest.mark.parametrize("classes, size", [(5, 4), (5000, 3)])
def test_sparse_and_dense_ways_agree(classes, size):
    "Prototypes and prior against tables, where the labels are few and where they are many."
    g = torch.Generator().manual_seed(0)
    unit = lambda n: torch.nn.functional.normalize(torch.randn(n, 16, generator=g), dim=1)
    x, t = unit(40), unit(classes)
    sets = CandidateSets.from_lists([torch.randperm(classes, generator=g)[:size].tolist() for _ in range(40)], classes)
    z = 20*x @ t.T
    expected = z.masked_fill(~sets.to_mask(), -math.inf).softmax(1)[sets.rows, sets.indices]
    torch.testing.assert_close(clip_prior(x, t, sets, 20.), expected)
    torch.testing.assert_close(candidate_cosines(x, t, sets.rows, sets.indices), z[sets.rows, sets.indices]/20)
    table = torch.zeros(40, classes)
    table[sets.rows, sets.indices] = expected
    total = torch.nn.functional.normalize(table.T @ x, dim=1)
    expected_prototypes = torch.where((table.sum(0) >= .5)[:, None], total, t)
    torch.testing.assert_close(visual_prototypes(x, expected, sets, t, block=7), expected_prototypes)

"Candidate rules: seeds, exact laws, arguments that are refused, and no table however many classes."
import math
import tracemalloc

import pytest
import torch

from pzsl_nb.candidates import RULES, Rule, draw_candidates, make_candidates, parse_rule, realised
from pzsl_nb.core import PZSLError
from pzsl_nb.task import make_task

C, N = 30, 4000
SEEN = torch.arange(C) % 3 != 1   # 20 seen classes with holes between
LABELS = SEEN.nonzero()[:, 0][torch.arange(N) % 20]


def world(seed=0):
    generator = torch.Generator().manual_seed(seed)
    text = torch.nn.functional.normalize(torch.randn(C, 16, generator=generator), dim=1)
    x = torch.nn.functional.normalize(text[LABELS] + .3*torch.randn(N, 16, generator=generator), dim=1)
    return {"features": x, "label_features": text, "superclass": torch.arange(C) // 10}


EXAMPLES = ["uniform:0.3", "binomial:0.3", "uss", "pair:0.3", "hierarchical:0.3", "similar:0.3", "noisy:0.3,0.2"]


def test_every_rule_has_an_example_here():
    assert {parse_rule(text).name for text in EXAMPLES} == set(RULES)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_seeded_seen_only_and_never_empty(rule):
    first, again, other = (make_candidates(rule, LABELS, SEEN, seed, **world()) for seed in (3, 3, 4))
    assert torch.equal(first.indices, again.indices) and torch.equal(first.indptr, again.indptr)
    assert not torch.equal(first.indptr, other.indptr) or not torch.equal(first.indices, other.indices)
    assert SEEN[first.indices].all() and (first.sizes > 0).all() and len(first) == N and first.n_classes == C
    assert realised(first, LABELS)["coverage"] == 1 or rule.startswith("noisy")


@pytest.mark.parametrize("rule, mean", [
    ("uniform:0.3", 1 + 19*.3), ("uniform:0", 1), ("uniform:1", 20), ("binomial:0", 2),
    ("binomial:0.1", 1 + 1.9 + .9**19),
    ("uss", 1 + 9.5), ("pair:0.3", 1.3), ("pair:1", 2), ("similar:0.1", 2.9), ("similar:0.5", 10.5), ("similar:0", 1),
    ("similar:1", 20), ("noisy:0.3,0", 6.7), ("noisy:0.3,0.5", 6.2), ("noisy:0,1", 1),
    ("hierarchical:0.5", 1 + .5*(7*6 + 6*5 + 7*6)/20),
])
def test_mean_size_is_what_the_rule_says(rule, mean):
    got = realised(make_candidates(rule, LABELS, SEEN, 0, **world()))["mean_size"]
    assert got == pytest.approx(mean, rel=.03)


def test_every_wrong_label_is_equally_likely_and_the_truth_is_stepped_over():
    sets = make_candidates("uniform:0.25", torch.full((20_000,), 12), SEEN, 0)
    share = torch.bincount(sets.indices, minlength=C)/20_000
    assert share[12] == 1
    others = share[SEEN & (torch.arange(C) != 12)]
    assert len(others) == 19 and (others - .25).abs().max() < 5*math.sqrt(.25*.75/20_000)


def test_inclusions_are_independent():
    sets = make_candidates("uniform:0.4", torch.zeros(20_000, dtype=torch.int64), torch.ones(6, dtype=torch.bool), 1)
    table = sets.to_mask()[:, 1:].double()
    correlation = torch.corrcoef(table.T) - torch.eye(5)
    assert correlation.abs().max() < 5/math.sqrt(20_000)


def test_uss_at_two_hundred_classes_has_half_of_them():
    sets = make_candidates("uss", torch.arange(2000) % 200, torch.ones(200, dtype=torch.bool), 0)
    assert realised(sets)["mean_size"] == pytest.approx(100.5, rel=.01)


def test_uss_with_two_classes_never_draws_the_full_set():
    sets = make_candidates("uss", torch.arange(100) % 2, torch.ones(2, dtype=torch.bool), 0)
    assert sets.indices.tolist() == [i % 2 for i in range(100)]


def test_pair_takes_the_next_seen_label_and_wraps():
    sets = make_candidates("pair:1", torch.tensor([0, 2, 29]), SEEN, 0)   # 1 is unseen, 29 the last
    assert list(sets) == [[0, 2], [2, 3], [0, 29]]


def test_hierarchical_stays_inside_the_superclass():
    groups = world()["superclass"]
    sets = make_candidates("hierarchical:1", LABELS, SEEN, 0, superclass=groups)
    assert sets[0] == [c for c in range(10) if SEEN[c]]
    assert (groups[sets.indices] == groups[LABELS[sets.rows]]).all()
    lonely = make_candidates("hierarchical:1", LABELS, SEEN, 0, superclass=torch.arange(C))   # nobody else in the group
    assert (lonely.sizes == 1).all()


def test_noisy_drops_the_truth_at_its_rate_and_fills_what_it_empties():
    sets = make_candidates("noisy:0,0.4", LABELS, SEEN, 0)
    assert (sets.sizes == 1).all() and realised(sets, LABELS)["coverage"] == pytest.approx(.6, abs=.03)
    assert realised(make_candidates("noisy:0.2,1", LABELS, SEEN, 0), LABELS)["coverage"] == 0


def test_similar_prefers_what_clip_finds_likely():
    parts = world()
    sets = make_candidates("similar:0.2", LABELS, SEEN, 0, logit_scale=20., **parts)
    score = (parts["features"] @ parts["label_features"].T).masked_fill(~SEEN, -torch.inf)
    runner_up = score.scatter(1, LABELS[:, None], -torch.inf).argmax(1)
    assert float(sets.contains(runner_up).float().mean()) > .8


def test_similar_does_not_depend_on_how_rows_are_chunked(monkeypatch):
    import pzsl_nb.candidates as module
    whole = make_candidates("similar:0.3", LABELS, SEEN, 0, **world())
    chunks, split = [], module.np.array_split
    def smaller(rows, _):
        chunks.extend(split(rows, 7))
        return split(rows, 7)
    monkeypatch.setattr(module.np, "array_split", smaller)
    again = make_candidates("similar:0.3", LABELS, SEEN, 0, **world())
    assert len(chunks) == 14 and torch.equal(whole.indices, again.indices)   # once to scale, once to draw


def test_fifty_thousand_classes_need_no_table():
    n, many = 200_000, 50_000
    tracemalloc.start()
    sets = make_candidates("uniform:0.00002", torch.arange(n) % many, torch.ones(many, dtype=torch.bool), 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert realised(sets)["mean_size"] == pytest.approx(2, rel=.02) and peak < 100*2**20   # a table: 10 GB of bool


@pytest.mark.parametrize("text, message", [
    ("", "there is no rule ''"), ("unifrom:0.3", "did you mean uniform:q"), ("uniform", "takes 1 argument"),
    ("uniform:", "takes 1 argument"), ("uniform:0.3,0.4", "takes 1 argument"), ("uss:0.5", "takes 0 argument"),
    ("uniform:1.5", "q is 1.5"), ("uniform:-0.1", "q is -0.1"), ("uniform:nan", "q is nan"),
    ("uniform:inf", "q is inf"),
    ("uniform:half", "not a number"), ("noisy:0.3", "takes 2 argument"), ("noisy:0.3,2", "eta is 2"),
    ("noisy:,", "not a number"),
])
def test_rules_that_do_not_parse_are_answered_with_help(text, message):
    with pytest.raises(PZSLError) as caught: parse_rule(text)
    assert message in str(caught.value) and "candidate rule" in str(caught.value)


def test_rules_print_as_they_are_written():
    for text in EXAMPLES: assert str(parse_rule(text)) == text
    assert parse_rule(" pair:0.25 ") == Rule("pair", (.25,))


@pytest.mark.parametrize("labels, seen, seed, message", [
    ([1], SEEN, 0, "must all be of seen classes"), ([-1], SEEN, 0, "must all be of seen"),
    ([C], SEEN, 0, "must all be of seen"),
    ([], SEEN, 0, "0 labels"), ([0], torch.arange(C) < 1, 0, "1 class is seen"), ([0], SEEN, -1, "seed: -1"),
    ([0], SEEN, .5, "seed: 0.5"),
])
def test_bad_input_is_refused(labels, seen, seed, message):
    with pytest.raises(PZSLError, match=message):
        make_candidates("uniform:0.3", torch.tensor(labels, dtype=torch.int64), seen, seed)


@pytest.mark.parametrize("more, message", [
    ({"features": torch.ones(9, 4)}, "9 features for 3;"), ({"label_features": torch.ones(2, 4)}, "2 label_features for"),
    ({"superclass": torch.zeros(2)}, "2 superclass for")])
def test_tables_of_another_length_are_refused(more, message):
    with pytest.raises(PZSLError, match=message): make_candidates("uniform:0.3", torch.tensor([0, 1, 0]), SEEN, 0, **more)
    with pytest.raises(PZSLError, match="by number"): make_candidates("uniform:0.3", torch.tensor([0., 1.]), SEEN, 0)


@pytest.mark.parametrize("rule, missing", [("similar:0.3", "label_features"), ("hierarchical:0.3", "superclass")])
def test_rules_say_what_they_lack(rule, missing):
    with pytest.raises(PZSLError, match=missing): make_candidates(rule, LABELS, SEEN, 0)


def test_a_task_draws_with_what_it_carries():
    parts = world()
    text, test = parts["label_features"], (parts["features"][:40], LABELS[:40])
    task = make_task("small", parts["features"], LABELS, text, SEEN, *test, superclass=parts["superclass"],
                     logit_scale=20.)
    for rule in EXAMPLES: assert len(draw_candidates(task, rule, 0).candidates) == N
    direct = make_candidates("similar:0.3", task.labels, SEEN, 0, features=task.features,
                             label_features=task.label_features, logit_scale=20.)
    assert torch.equal(draw_candidates(task, "similar:0.3", 0).candidates.indices, direct.indices)
    unlabelled = make_task("own", parts["features"], None, text, SEEN, *test)
    with pytest.raises(PZSLError, match="where the labels are known"): draw_candidates(unlabelled, "uss", 0)


@pytest.mark.parametrize("wrong", [-1, 20, .5])
def test_a_rule_that_gives_classes_that_are_none(monkeypatch, wrong):
    monkeypatch.setitem(RULES, "odd", lambda draw: (draw.rows, [*draw.labels[:-1], wrong]))
    with pytest.raises(PZSLError, match=f"candidate rule odd: gives class {wrong}; .* from 0 to 19"):
        make_candidates("odd", LABELS, SEEN, seed=0)

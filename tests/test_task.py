"Candidate sets and tasks: round trips, batches, and everything that must be refused."
import dataclasses

import numpy as np
import pytest
import torch

from pzsl_nb.core import PZSLError
from pzsl_nb.task import CandidateSets, make_task


def random_mask(n=37, n_classes=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, n_classes, generator=generator) < .3
    mask[torch.arange(n), torch.randint(n_classes, (n,), generator=generator)] = True
    return mask


def identical(a, b):
    return torch.equal(a.indptr, b.indptr) and torch.equal(a.indices, b.indices) and a.n_classes == b.n_classes


def arrays(n_classes=6, rows=5, width=4, seed=0):
    "Raw arrays of a small task; classes 4 and 5 are unseen, training rows of all classes."
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_classes).repeat(rows)
    return {"features": torch.randn(len(labels), width, generator=generator), "labels": labels,
            "label_features": torch.randn(n_classes, width, generator=generator), "seen": torch.arange(n_classes) < 4,
            "test_features": torch.randn(len(labels), width, generator=generator), "test_labels": labels}


# Candidate sets

def test_round_trips_give_the_same_sets(tmp_path):
    mask = random_mask()
    sets = CandidateSets.from_mask(mask)
    assert torch.equal(sets.to_mask(), mask) and sets.nnz == int(mask.sum())
    sets.save(tmp_path / "deeper" / "sets.npz")
    shuffled = torch.randperm(sets.nnz)
    for other in (CandidateSets.from_lists(list(sets), 11), CandidateSets.from_scipy(sets.to_scipy()),
                  CandidateSets.from_scipy(sets.to_scipy().tocsc()),
                  CandidateSets.load(tmp_path / "deeper" / "sets.npz"),
                  CandidateSets.from_pairs(sets.rows[shuffled], sets.indices[shuffled], 37, 11),
                  CandidateSets.from_mask(mask.numpy()), sets.to("cpu"), sets.select(torch.arange(37))):
        assert identical(other, sets)


def test_stored_zeros_of_scipy_are_no_candidates():
    from scipy.sparse import csr_array
    matrix = csr_array((np.array([1., 0., 2.]), np.array([0, 1, 2]), np.array([0, 2, 3])), shape=(2, 3))
    assert list(CandidateSets.from_scipy(matrix)) == [[0], [2]]


@pytest.mark.parametrize("rows", [[0], [36, 0, 36, 5], list(range(37)), []])
def test_positions_and_select_equal_the_loop(rows):
    sets, rows = CandidateSets.from_mask(random_mask()), torch.tensor(rows, dtype=torch.int64)
    position, local = sets.positions(rows)
    assert sets.indices[position].tolist() == [c for row in rows.tolist() for c in sets[row]]
    assert local.tolist() == [k for k, row in enumerate(rows.tolist()) for _ in sets[row]]
    assert list(sets.select(rows)) == [sets[row] for row in rows.tolist()]


def test_contains_equals_the_loop():
    sets, labels = CandidateSets.from_mask(random_mask()), torch.arange(37) % 11
    assert sets.contains(labels).tolist() == [int(c) in sets[i] for i, c in enumerate(labels)]


def test_row_numbers_may_count_from_the_end_but_not_beyond():
    sets = CandidateSets.from_lists([[0], [1, 2]], 3)
    assert sets[-1] == [1, 2]
    with pytest.raises(IndexError): sets[2]


def test_memory_does_not_grow_with_the_classes():
    classes = torch.arange(1000)*1_000_000   # of a thousand million: a table would have 10**12 cells
    sets = CandidateSets.from_pairs(torch.arange(1000), classes, 1000, 10**9)
    assert sets.nnz == 1000 and sets.select(torch.tensor([999]))[0] == [999_000_000]


@pytest.mark.parametrize("build, message", [
    (lambda: CandidateSets([0, 1, 1], [0], 3), "row 1 is empty"),
    (lambda: CandidateSets([0, 2, 1], [0, 1], 3), "must rise from 0 to 2"),
    (lambda: CandidateSets([1, 2], [0, 1], 3), "must rise from 0"),
    (lambda: CandidateSets([0, 2], [2, 1], 3), "ascending order"),
    (lambda: CandidateSets([0, 2], [1, 1], 3), "row 0 repeats"),
    (lambda: CandidateSets([0, 1], [-1], 3), "names class -1"),
    (lambda: CandidateSets([0, 1], [3], 3), "names class 3; there are 3 classes"),
    (lambda: CandidateSets([[0, 1]], [0], 3), "must be flat"),
    (lambda: CandidateSets([], [], 3), "must be flat"),
    (lambda: CandidateSets([0, 1], [.5], 3), "whole numbers"),
    (lambda: CandidateSets([0, 1], ["cat"], 3), "whole numbers"),
    (lambda: CandidateSets.from_lists([[0], []], 3), "row 1 is empty"),
    (lambda: CandidateSets.from_lists([["cat"]], 3), "whole numbers"),
    (lambda: CandidateSets.from_lists([[0], [7]], 3), "class 7 does not exist"),
    (lambda: CandidateSets.from_pairs([0, 5], [0, 1], 2, 3), "row 5 does not exist"),
    (lambda: CandidateSets.from_pairs([0], [0, 1], 2, 3), "do not pair up"),
    (lambda: CandidateSets.from_mask(torch.ones(3)), "must be a table"),
    (lambda: CandidateSets.from_mask(torch.rand(3, 3) + .1), "0 and 1 only"),
    (lambda: CandidateSets.from_mask(torch.eye(3) * torch.tensor([1, 1, 0])), "row 2 is empty"),
])
def test_bad_sets_are_refused(build, message):
    with pytest.raises(PZSLError) as caught: build()
    assert message in str(caught.value)


@pytest.mark.parametrize("spoil", ["missing", "cut", "text", "key", "values", "object", "count"])
def test_bad_files_of_sets_are_refused_by_name(tmp_path, spoil):
    path = tmp_path / "sets.npz"
    if spoil != "missing": CandidateSets.from_mask(random_mask()).save(path)
    if spoil == "cut": path.write_bytes(path.read_bytes()[:100])
    if spoil == "text": path.write_text("no archive")
    if spoil == "key": np.savez(path, indptr=[0, 1])
    if spoil == "values": np.savez(path, indptr=[0, 1], indices=[9], n_classes=3)
    if spoil == "object": np.savez(path, indptr=np.array([0, None], dtype=object), indices=[0], n_classes=3)
    if spoil == "count": np.savez(path, indptr=[0, 1], indices=[0], n_classes=[3, 4])
    with pytest.raises(PZSLError, match="sets.npz: "): CandidateSets.load(path)


# Tasks

def test_make_task_scales_converts_and_keeps_unseen_rows_out():
    raw = arrays()
    raw["features"] = raw["features"].numpy().astype("f2")
    raw["candidates"] = CandidateSets.from_pairs(torch.arange(30), raw["labels"], 30, 6)
    task = make_task("small", **raw, pictures=lambda rows: rows.numpy())
    kept = [i for i in range(30) if i % 6 < 4]
    assert task.dropped_rows == 10 and task.labels.tolist() == [i % 6 for i in kept]
    assert task.features.dtype == torch.float32 and torch.allclose(task.features.norm(dim=1), torch.ones(20), atol=1e-6)
    assert list(task.candidates) == [[i % 6] for i in kept]
    assert task.pictures(torch.arange(20)).tolist() == kept
    assert len(task.test_labels) == 30 and task.facts()["test_unseen"] == 10
    assert "10 rows of unseen classes left out" in task.summary() and "small" in repr(task)


def test_validation_rows_of_unseen_classes_are_left_out_too():
    raw = arrays()
    task = make_task("small", **raw, validation_features=raw["test_features"], validation_labels=raw["test_labels"])
    assert len(task.validation_features) == len(task.validation_labels) == 20
    assert task.seen[task.validation_labels].all()


def test_half_precision_large_values_do_not_overflow():
    raw = arrays()
    raw["features"] = torch.full((30, 4), 60_000.).half()
    assert torch.allclose(make_task("small", **raw).features, torch.full((20, 4), .5))


def test_all_classes_may_be_seen():
    task = make_task("closed", **arrays() | {"seen": torch.ones(6, dtype=torch.bool)})
    assert task.dropped_rows == 0 and task.facts()["unseen"] == 0


def changed(**changes): return lambda: make_task("small", **arrays() | changes)


def spoiled_row(value):
    features = arrays()["features"]
    features[7] = value
    return features


ONE_EACH = CandidateSets.from_pairs(torch.arange(30), torch.arange(30) % 6, 30, 6)


@pytest.mark.parametrize("build, message", [
    (changed(features=torch.randn(30, 3)), "features are 3 wide, label features 4"),
    (changed(test_features=torch.randn(30, 5)), "test features are 5 wide"),
    (changed(features=spoiled_row(torch.nan)), "features: row 7 has NaN"),
    (changed(features=spoiled_row(torch.inf)), "features: row 7 has NaN or infinite"),
    (changed(features=spoiled_row(0)), "features: row 7 is all zeros"),
    (changed(features=torch.randn(30)), "is not a table"),
    (changed(features=[["a"]*4]*30), "not numbers"),
    (changed(features=[[None]*4]*30), "not numbers"),
    (changed(labels=torch.arange(30)), "classes run from 0 to 5"),
    (changed(labels=torch.arange(29) % 6), "29,) labels do not fit 30 rows"),
    (changed(labels=torch.arange(30) % 6 + .5), "whole numbers"),
    (changed(labels=torch.full((30,), torch.inf)), "whole numbers"),
    (changed(labels=[None]*30), "whole numbers"),
    (changed(labels=torch.arange(30) % 2 + 4), "no training row of a seen class is left"),
    (changed(test_labels=torch.full((30,), -2)), "test labels"),
    (changed(seen=torch.arange(6) < 1), "1 of 6 classes are seen"),
    (changed(seen=torch.arange(5) < 3), "give one bool for each of the 6"),
    (changed(seen=torch.arange(6)), "give one bool"),
    (changed(class_names=list("aabcde")), "class name a occurs more than once"),
    (changed(class_names=list("abc")), "3 class names for 6"),
    (changed(logit_scale=0), "logit_scale"),
    (changed(logit_scale=float("nan")), "logit_scale"),
    (changed(superclass=torch.arange(4)), "superclass has shape (4,)"),
    (changed(validation_features=torch.randn(3, 4)), "come together"),
    (changed(test_features=None, test_labels=None), "where there are no rows, give tables without any"),
    (changed(attributes=torch.zeros(5, 2)), "attributes of shape (5, 2)"),
    (changed(attributes=torch.full((6, 2), torch.nan)), "or are not finite"),
    (changed(features=torch.full((30, 4), 1e25)), "too long for float32"),
    (changed(candidates=ONE_EACH.select(torch.arange(29))), "do not fit 30 training rows"),
    (changed(candidates=CandidateSets.from_pairs(torch.arange(30), torch.arange(30) % 6, 30, 7)), "over 7 classes"),
    (changed(candidates=CandidateSets.from_lists([[c, 5] for c in (torch.arange(30) % 6).tolist()], 6)),
     "unseen class class 5 is in the candidate set of row 0, 1, 2, 3, 6"),
    (changed(labels=None, candidates=ONE_EACH),
     "unseen class class 4, class 5 is in the candidate set of row 4, 5, 10"),
])
def test_bad_tasks_are_refused(build, message):
    with pytest.raises(PZSLError) as caught: build()
    assert message in str(caught.value)


def test_a_mask_selects_as_in_pytorch():
    mask = torch.arange(30) % 3 == 0
    assert ONE_EACH.select(mask).indices.tolist() == ONE_EACH.indices[mask].tolist()
    with pytest.raises(PZSLError, match="a mask of 3 for 30 sets"): ONE_EACH.select(mask[:3])


def test_a_task_checks_what_is_changed_later():
    task = make_task("small", **arrays())
    with pytest.raises(PZSLError, match="belongs to an unseen class"):
        dataclasses.replace(task, labels=torch.full_like(task.labels, 5))
    with pytest.raises(PZSLError, match="do not fit 20 training rows"): task.with_candidates(ONE_EACH)
    with pytest.raises(PZSLError, match="unit length"): dataclasses.replace(task, label_features=2*task.label_features)
    with pytest.raises(dataclasses.FrozenInstanceError): task.name = "other"


# Views for notebooks

def test_a_view_takes_nothing_for_markup_and_asks_for_four_pictures():
    asked, given = [], arrays(rows=1000)
    names = ["<script>alert(1)</script>", "a & b", *"cdef"]
    sets = CandidateSets.from_lists([[c % 4, (c + 1) % 4] for c in given["labels"].tolist()], 6)
    def pictures(rows): asked.append(len(rows)); return np.zeros((len(rows), 300, 200, 3), np.uint8)
    task = make_task("<b>own</b>", **given, class_names=names, candidates=sets, pictures=pictures)
    view = task._repr_html_()
    assert "<script" not in view and "<b>" not in view and "&lt;script&gt;" in view and "a &amp; b" in view
    assert asked == [4] and view.count("<img") == 4 and len(view) < 20_000
    assert repr(task).startswith("Task(<b>own</b>: 4 seen") and "\n" not in repr(task)


def test_a_view_stands_without_truth_sets_or_files():
    given = arrays()
    def gone(rows): raise FileNotFoundError("no such file: <i>.png")
    task = make_task("own", **given | {"labels": None}, pictures=gone)
    view = task._repr_html_()
    assert "no such file: &lt;i&gt;.png" in view and "truth" not in view and "candidates</th>" not in view
    for sets in (CandidateSets([0], [], 3), CandidateSets.from_mask(torch.ones(3, 400, dtype=torch.bool))):
        assert sets._repr_html_().count("<tr>") <= 11

"Real feature files, where they are at hand: through PZSL_DATA, else ../shared/data from the project's root."
import os
from pathlib import Path

import pytest
import torch

from pzsl_nb.candidates import draw_candidates, realised
from pzsl_nb.features_files import load_features_npz
from pzsl_nb.metrics import TopScores, gzsl_metrics, top_scores

DATA = Path(os.environ.get("PZSL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "clip_vitb32"
FACTS = {"cars196": (147, 49, 2352, 784, 0), "caltech68": (51, 17, 816, 272, 902)}


def real(name):
    if not (DATA / f"{name}.npz").exists():
        pytest.skip(f"{name}.npz is not here; set PZSL_DATA to the folder of the data")
    return load_features_npz(DATA / f"{name}.npz")


def frozen(task):
    "What CLIP does without any training, a batch at a time."
    top = TopScores.cat(top_scores(x @ task.label_features.T, task.seen) for x in task.test_features.split(256))
    return gzsl_metrics(top, task.test_labels, task.seen)


@pytest.mark.parametrize("name", FACTS)
def test_no_row_of_an_unseen_class_reaches_training_or_selection(name):
    task = real(name)
    facts = task.facts()
    assert tuple(facts[key] for key in ("seen", "unseen", "train", "dropped_rows", "validation")) == FACTS[name]
    assert task.seen[task.labels].all() and facts["test_unseen"] > 400
    assert task.validation_labels is None or task.seen[task.validation_labels].all()


def test_frozen_clip_on_cars_is_what_was_measured_before():
    got = frozen(real("cars196"))   # the area is exact: 50 samples of gamma give .475, 2001 give .479
    assert {key: round(got[key], 3) for key in got} == {"S": .613, "U": .518, "H": .561, "T1": .784, "ausuc": .479}


def test_frozen_clip_on_caltech_is_what_was_measured_before():
    assert round(frozen(real("caltech68"))["H"], 3) == .907


def test_similar_sets_on_real_features_have_the_size_of_uniform_ones():
    task = real("cars196")
    for q in (.05, .3, .7):
        alike, uniform = (realised(draw_candidates(task, f"{rule}:{q}", 0).candidates, task.labels)
                          for rule in ("similar", "uniform"))
        assert alike["mean_size"] == pytest.approx(uniform["mean_size"], rel=.02) and alike["coverage"] == 1
    assert torch.equal(draw_candidates(task, "similar:0.3", 1).candidates.indices,
                       draw_candidates(task, "similar:0.3", 1).candidates.indices)

"Edges of the renderer and of the captions that teach nothing in a notebook."
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pzsl_nb import pretraining
from pzsl_nb.core import PZSLError, read_json
from pzsl_nb.encoders import EMBEDDED
from pzsl_nb.pretraining import (is_unseen, learn_merges, pretrain, pretraining_classes, studio_batch,
                                 vocabulary_words, write_captions)
from pzsl_nb.shapes import SHAPES, class_name, default_split, render


def test_every_portion_is_drawn():
    "Pictures beyond the first portion of 512 are pictures, too, and not the first ones again."
    attributes = np.tile([[0, 0, 0]], (1030, 1))
    pictures = render(attributes, seed=3)
    assert pictures.shape == (1030, 32, 32, 3)
    assert (pictures.reshape(1030, -1).std(1) > 5).all()
    assert len({p.tobytes() for p in pictures}) == 1030


@pytest.mark.parametrize("n", [0, 1, 512, 513])
def test_number_of_pictures(n): assert len(render(np.zeros((n, 3), int), seed=0, domain="field")) == n


@pytest.mark.parametrize("size", [8, 33, 64])
def test_size_of_pictures(size): assert render([(1, 2, 3)], seed=0, size=size).shape == (1, size, size, 3)


def test_rendering_leaves_the_global_generator_alone():
    np.random.seed(5); expected = np.random.rand()
    np.random.seed(5); render(default_split()[0], seed=9)
    assert np.random.rand() == expected


@pytest.mark.parametrize("wrong", [[(8, 0, 0)], [(0, -1, 0)], [(0, 0)], (0, 0, 0), [(.5, 0, 0)], [("red",) * 3]])
def test_wrong_attributes(wrong):
    with pytest.raises(PZSLError, match="attributes"): render(wrong, seed=0)


def test_too_small_to_see():
    with pytest.raises(PZSLError, match="size"): render([(0, 0, 0)], seed=0, size=4)


def test_shapes_cover_different_pixels():
    "With one scene for all, each shape leaves its own silhouette."
    red, blue = (np.stack([render([(colour, 0, s)], seed=0)[0] for s in range(len(SHAPES))]) for colour in (0, 5))
    silhouettes = (red != blue).any(-1)
    different = [[(a != b).sum() for b in silhouettes] for a in silhouettes]
    assert (np.array(different) + 1000 * np.eye(len(SHAPES))).min() > 15


def test_same_pictures_in_another_process():
    code = ("from pzsl_nb.shapes import render; import hashlib; "
            "print(hashlib.sha256(render([(1, 1, 1)] * 9, 4, 'field')).hexdigest())")
    run = [sys.executable, "-c", code]
    out = [subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in "ab"]
    assert len(out[0]) > 60 and out[0] == out[1]


def test_steps_differ_and_repeat():
    (a, said), (b, again), (c, _) = studio_batch(4, 16), studio_batch(4, 16), studio_batch(5, 16)
    assert np.array_equal(a, b) and said == again and not np.array_equal(a, c)
    assert not np.array_equal(a, studio_batch(4, 16, seed=1)[0])


def test_captions_leave_their_input_alone():
    attributes = pretraining_classes()
    before = attributes.copy()
    write_captions(attributes, np.random.default_rng(0), wrong=1.)
    assert np.array_equal(attributes, before)


def test_no_unseen_class_in_many_batches():
    "Neither in a caption nor, seen from the attributes drawn, in a picture."
    names = [class_name(a) for a in default_split()[1]]
    for seed in range(3):
        for step in range(8):
            said = " ".join(studio_batch(step, 64, seed)[1])
            assert not any(name in said for name in names)
    assert not is_unseen(pretraining_classes()).any() and len(pretraining_classes()) == 244


def test_merges_make_one_token_of_every_word():
    words = vocabulary_words()
    spelled = {"".join(m) for m in learn_merges(words)}
    assert {w + "</w>" for w in words if len(w) > 1} <= spelled


def test_pretraining_repeats_and_replaces_only_its_own(tmp_path):
    "Same seed, same weights; `force` replaces a pretraining and nothing else."
    runs = [pretrain(tmp_path / name, steps=2, batch_size=16, progress=False) for name in "ab"]
    assert runs[0]["history"] == runs[1]["history"] and runs[0]["data_hash"] == runs[1]["data_hash"]
    weights = [(tmp_path / name / "open_clip_model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1] and len(weights[0]) < 2.2e6, "half precision"
    pretrain(tmp_path / "a", steps=1, batch_size=16, seed=1, force=True, progress=False)
    assert (tmp_path / "a" / "open_clip_model.safetensors").read_bytes() != weights[0]
    (tmp_path / "mine").mkdir(); (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(PZSLError, match="not replaced"): pretrain(tmp_path / "mine", steps=1, force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(PZSLError, match="teach nothing"): pretrain(tmp_path / "c", steps=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "mine"]


def test_the_code_still_makes_the_shipped_weights(monkeypatch):
    "The first 25 steps, run again, have the loss that was recorded; processors may differ in the last digits."
    record = read_json(EMBEDDED / "pretraining.json")

    class Stopped(Exception): pass

    def stop_at_the_first_report(steps, **_):
        "Stands in for the progress bar, which is told the loss every 25 steps."
        class Bar:
            def __iter__(self): return iter(steps)
            def set_postfix(self, loss): seen.append(loss); raise Stopped
        return Bar()

    seen = []
    monkeypatch.setattr(pretraining, "progress_bar", stop_at_the_first_report)
    threads = torch.get_num_threads()
    torch.set_num_threads(record["versions"]["threads"])
    with pytest.raises(Stopped), tempfile.TemporaryDirectory() as folder:
        pretraining.pretrain(Path(folder) / "again", steps=record["steps"], seed=record["seed"])
    torch.set_num_threads(threads)
    assert record["history"][0]["step"] == 25 and seen == pytest.approx([record["history"][0]["loss"]], abs=.02)

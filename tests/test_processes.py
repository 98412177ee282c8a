"""Two real processes, started by accelerate, against one: the same features to the bit, the same metrics nearly.

Sums of gradients are taken in another order by two processes, so that weights differ in their last digits and a row whose
two best classes are equally good may change sides. Metrics may differ by TOLERANCE, in shares.
"""
import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pzsl_nb.shapes import class_name, default_split, render
from small_world import BY_HAND, World, estimator

TOLERANCE = .02
ONE, TWO = [], ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "A folder a class: ten seen ones with pictures to learn from, and three that classes.csv calls unseen."
    root = tmp_path_factory.mktemp("two processes") / "photos"
    seen, unseen = default_split()
    attributes = np.concatenate([seen[:10], unseen[:3]])
    for attribute in attributes:
        folder = root / class_name(attribute)
        folder.mkdir(parents=True)
        for i, picture in enumerate(render(np.repeat(attribute[None], 20, 0), seed=int(attribute @ [100, 10, 1]), domain="field")):
            Image.fromarray(picture).save(folder / f"{i}.png")
    lines = ["name,seen", *(f"{class_name(a)},{int(k < 10)}" for k, a in enumerate(attributes))]
    (root / "classes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def pzsl(start, *words, cwd):
    command = [sys.executable, *start, "-m", "pzsl_nb.cli", *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def runs(photos):
    "The same command by one process and by two: printed text, folder of the run, features in the cache."
    made = {}
    for name, start in (("one", ONE), ("two", TWO)):
        words = ["run", "--data", f"folder:{photos}", "--encoder", "embedded", "--device", "cpu", "--cache", f"cache {name}", "--out",
                 name, "--epochs", "6", "--set", "folds=2", "--no-figures"]
        code, out, err = pzsl(start, *words, cwd=photos.parent)
        assert code == 0, err[-2000:]
        stores = sorted((photos.parent / f"cache {name}").glob("*/features.npy"))
        made[name] = out, photos.parent / name, [np.load(store) for store in stores]
    return made


def test_features_are_the_same_to_the_bit(runs):
    one, two = (features for _, _, features in runs.values())
    assert len(one) == len(two) == 2 and sum(map(len, one)) == 13*20
    for a, b in zip(one, two): assert a.dtype == np.float16 and a.tobytes() == b.tobytes()


def test_metrics_are_the_same_within_the_tolerance(runs):
    one, two = (json.loads((folder / "result.json").read_text()) for _, folder, _ in runs.values())
    for model in ("metrics", "zero_shot", "supervised"):
        for key in ("S", "U", "H", "T1", "ausuc"):
            assert one[model][key] == pytest.approx(two[model][key], abs=TOLERANCE), (model, key)
    assert one["choice"]["trust"] == pytest.approx(two["choice"]["trust"], abs=.05)
    assert one["choice"]["frozen_naming"] == two["choice"]["frozen_naming"]


def test_losses_and_beliefs_are_the_same_but_for_rounding(runs):
    tables, beliefs = [], []
    for _, folder, _ in runs.values():
        with open(folder/"history.csv", newline="") as file: tables.append([*csv.DictReader(file)])
        with np.load(folder/"beliefs.npz") as kept: beliefs.append(kept["weights"])
    for one, two in zip(*tables, strict=True): assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-4)
    np.testing.assert_allclose(*beliefs, atol=1e-3)   # sums are taken in another order


def test_only_the_first_process_speaks(runs):
    one, two = (out for out, _, _ in runs.values())
    assert two.count("Run in") == one.count("Run in") == 1 and two.count("frozen CLIP") == one.count("frozen CLIP")


def test_a_mistake_ends_both(photos):
    code, _, err = pzsl(TWO, "run", "--data", "folder:nowhere", "--device", "cpu", cwd=photos.parent)
    assert code != 0 and "nowhere" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the two would ask for a GPU each")
def test_two_know_of_each_other_where_auto_finds_no_gpu(tmp_path):
    "torchrun, and the device left to the program."
    (tmp_path / "who.py").write_text("from pzsl_nb.core import processes\nprint(processes())\n", encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "who.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(re.findall(r"Processes\(rank=\d, count=\d\)", done.stdout)) == [f"Processes(rank={k}, count=2)" for k in (0, 1)]


NOISY = """
import hashlib
import torch
from pzsl_nb import evidence
from pzsl_nb.core import processes
from small_world import BY_HAND, World, estimator
group, exact = processes("cpu"), evidence.clip_prior
def other_last_digits(*given): return exact(*given)*(1 + 1e-3*group.rank)   # as sums on a GPU have
evidence.clip_prior = other_last_digits
w = World()
found = evidence.gather_evidence(w.x, w.t, w.sets, w.seen, 20.)
told = hashlib.sha256(b"".join(part.numpy().tobytes() for part in (found.beliefs, found.coverage, found.surprise))).hexdigest()
evidence.clip_prior = exact
est = estimator(**BY_HAND).fit(w.x, w.sets, w.t, seen=w.seen, memory=f"memory {group.rank}")   # one of them is filled
with open(f"said {group.rank}", "w") as file: print(told, found.witnesses, len(est.history_), file=file)
"""


def test_all_processes_believe_the_same_evidence(tmp_path):
    "Folds are drawn from it, and processes with other folds would wait for each other for ever."
    (tmp_path/"noisy.py").write_text(NOISY)
    w = World()
    estimator(**BY_HAND).fit(w.x, w.sets, w.t, seen=w.seen, memory=tmp_path/"memory 1")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, *TWO, "noisy.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = ((tmp_path/f"said {rank}").read_text() for rank in (0, 1))
    assert one == two and one.endswith(" 4\n")

"""The `pzsl` command as a shell sees it: exit codes, one line a complaint, nothing half-written, Ctrl-C.

Importing PyTorch takes seconds, so most commands are typed into processes that are forked from one which has it
imported already; they are real processes all the same, with their own folder, streams, signals and exit code.
"""
import csv
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pzsl_nb import cli
from pzsl_nb.experiment import read_images
from pzsl_nb.shapes import class_name, default_split, render
from pzsl_nb.training import read_checkpoint

C, D = 8, 16   # classes, of which the last two are unseen; width


def type_in(words, folder, out, err):
    "In a child process: run one command, say its exit code last."
    os.chdir(folder)
    for number, path in ((1, out), (2, err)): os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ["MPLBACKEND"] = "Agg"
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    import torch
    from pzsl_nb.cli import main
    torch.set_num_threads(1)
    sys.exit(main(words))


@pytest.fixture(scope="session")
def forked(tmp_path_factory):
    os.environ["PZSL_CACHE"] = str(tmp_path_factory.mktemp("cache"))   # not the user's; processes inherit it
    if "forkserver" not in multiprocessing.get_all_start_methods(): pytest.skip("no forkserver on this system")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pzsl_nb.experiment", "pzsl_nb.figures", "pzsl_nb.cli"])
    return context


@pytest.fixture(scope="session")
def begin(forked, tmp_path_factory):
    "Begin a command in a folder; wait() gives exit code, stdout and stderr."
    def begin(folder, command):
        out, err = (tmp_path_factory.mktemp("streams")/name for name in ("out", "err"))
        words = shlex.split(command) if isinstance(command, str) else command
        process = forked.Process(target=type_in, args=(words, folder, out, err))
        process.start()
        def wait():
            process.join(120)
            return process.exitcode, out.read_text(), err.read_text()
        process.wait = wait
        return process
    return begin


@pytest.fixture
def start(begin, tmp_path):
    return lambda command: begin(tmp_path, command)


@pytest.fixture
def pzsl(start):
    return lambda command: start(command).wait()


def arrays(seed=0):
    "Clusters around the label features: learnable, and small."
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(C, D))
    y, y_test = np.arange(C).repeat(12), np.arange(C).repeat(5)
    near = lambda labels: (text[labels] + .9*rng.normal(size=(len(labels), D))).astype("f4")
    return {"X_train": near(y), "y_train": y, "X_test": near(y_test), "y_test": y_test, "text": text.astype("f4"),
            "unseen": np.arange(C) >= C - 2, "names": np.array([f"bird {c}" for c in range(C)]), "logit_scale": 10.}


@pytest.fixture
def birds(tmp_path):
    def save(name="birds.npz", drop=(), **changes):
        np.savez(tmp_path/name, **{key: value for key, value in (arrays() | changes).items() if key not in drop})
        return tmp_path/name
    save()
    return save


def tree(folder):
    "Every file and what is in it."
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


QUICK = "--data birds.npz --candidates uniform:0.3 --epochs 3 --set folds=2 --no-figures"
BY_HAND = "--set trust=1 --set gamma=0"   # nothing left for rehearsal
FIXED = f"--data birds.npz --candidates uniform:0.3 {BY_HAND} --no-figures --no-supervised"


# Answers at once

def test_help_is_quick_and_imports_nothing_heavy():
    code = ("import sys; from pzsl_nb.cli import main; code = main(['--help']); "
            "print([m for m in ('torch', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'open_clip') if m in sys.modules])")
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - begin)
    assert done.stdout.splitlines()[-1] == "[]" and "Start with: pzsl run" in done.stdout
    assert min(seconds) < .5, seconds


@pytest.mark.parametrize("command", ["run", "check", "extract", "labels", "predict", "ablate", "report", "pretrain"])
def test_every_command_explains_itself(pzsl, command):
    code, text, err = pzsl(f"{command} --help")
    assert (code, err) == (0, "") and text.startswith(f"Usage: pzsl {command} [OPTIONS]")
    options = [line for line in text.split("Options:")[1].splitlines() if line.startswith("  --")]
    described = [line for line in options if len(line.split("  ")) > 2 or "\n" + line + "\n     " in text]
    assert len(options) >= 5 and options == described


def test_console_script_and_version():
    from pzsl_nb import __version__
    script = Path(sys.executable).with_name("pzsl")
    if not script.exists(): pytest.skip("the package is not installed with its console script")
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pzsl {__version__}\n", "")
    done = subprocess.run([script, "run", "--sed", "3"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and "--sed" in done.stderr


# The main job

@pytest.fixture(scope="session")
def default_run(begin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("default")
    return folder, *begin(folder, "run --epochs 2 --set folds=2").wait()


def test_the_default_run(default_run):
    folder, code, text, bars = default_run
    assert code == 0, bars
    out = folder/"runs"/"shapes-uniform-0.3-clip-pzsl-0"
    assert sorted(path.name for path in out.iterdir()) == [
        "beliefs.npz", "checkpoint.safetensors", "config.json", "figures", "history.csv", "result.json"]
    result = json.loads((out/"result.json").read_text())
    said = [result[key] for key in ("method", "data", "candidates", "seed")]
    assert said == ["clip-pzsl", "shapes", "uniform:0.3", 0]
    assert 0 < result["seconds"] < 600 and 100 < result["peak_memory_mb"] < 2000
    for model in ("metrics", "zero_shot", "supervised"): assert {"S", "U", "H", "T1", "ausuc"} <= set(result[model])
    assert 0 < result["metrics"]["disambiguation_accuracy"] <= 1
    for name, model in {"frozen CLIP": "zero_shot", "CLIP-PZSL": "metrics", "clean labels": "supervised"}.items():
        line = next(line for line in text.splitlines() if line.startswith(name))
        shown = [f"{100*result[model][key]:.1f}" for key in ("S", "U", "H", "T1", "ausuc")]
        assert line[len(name):].split()[:5] == shown
    assert "Rehearsal chose" in text and str(out.relative_to(folder)) in text and "settled" in bars
    figures = sorted((out/"figures").iterdir())
    assert {path.stem for path in figures} == {"summary", "seen_unseen_curve", "disambiguation", "beliefs", "embedding",
                                               "candidates", "confusion"}
    for path in figures: assert min(Image.open(path).size) > 200
    assert len(list(csv.DictReader((out/"history.csv").open()))) in (1, 2)
    with np.load(out/"beliefs.npz") as beliefs:
        np.testing.assert_allclose(np.add.reduceat(beliefs["weights"], beliefs["indptr"][:-1]), 1, atol=1e-5)


@pytest.mark.parametrize("method", ["zero-shot", "supervised", "cc", "proden"])
def test_every_method_runs(pzsl, birds, tmp_path, method):
    words = QUICK.replace("--epochs 3", "") if method == "zero-shot" else QUICK   # which has no epochs
    code, text, err = pzsl(f"run {words} --method {method} --no-supervised")
    assert code == 0, err
    result = json.loads((tmp_path/"runs"/f"birds-uniform-0.3-{method}-0"/"result.json").read_text())
    assert result["method"] == method and "supervised" not in result and f"\n{method} " in text
    if method == "zero-shot": assert result["metrics"]["H"] == result["zero_shot"]["H"]


def test_sets_of_the_file_are_used(pzsl, birds, tmp_path):
    y = arrays()["y_train"]
    sets = np.stack([np.minimum(y, 5), (np.minimum(y, 5) + 1) % 6], 1)
    birds(candidates_indptr=np.arange(0, 2*len(y) + 1, 2), candidates_indices=np.sort(sets).ravel())
    words = FIXED.replace("--candidates uniform:0.3", "")
    assert pzsl(f"run {words} --epochs 1 --out a")[0] == 0
    assert pzsl(f"run {words} --epochs 1 --out b --candidates pair:0")[0] == 0
    for run, size in (("a", 2), ("b", 1)):
        with np.load(tmp_path/run/"beliefs.npz") as beliefs: assert (np.diff(beliefs["indptr"]) == size).all()


# Bad input: a code, one line, nothing written

def spoiled(key, row, value):
    array = arrays()[key].copy()
    array[row] = value
    return {key: array}


def with_sets(*sets):
    "Sets for the first rows as given, for the others their own class; rows of unseen classes get class 0."
    rest = [[c if c < C - 2 else 0] for c in arrays()["y_train"][len(sets):].tolist()]
    sets = [*sets, *rest]
    return {"candidates_indptr": np.cumsum([0, *map(len, sets)]),
            "candidates_indices": np.concatenate(sets).astype(int)}


BAD_FILES = {  # what is saved, what the line has to say
    "NaN": (spoiled("X_train", 3, np.nan), ["birds.npz", "'X_train'", "NaN", "row 3"]),
    "NaN in test rows": (spoiled("X_test", 2, np.inf), ["birds.npz", "'X_test'", "row 2"]),
    "other width": ({"text": np.ones((C, D + 1))}, ["birds.npz", f"{D} wide", f"{D + 1}", "same encoder"]),
    "label out of range": (spoiled("y_train", 5, 99), ["birds.npz", "'y_train'", "99", "row 5", "0 to 7"]),
    "label below zero": (spoiled("y_test", 1, -2), ["birds.npz", "'y_test'", "-2", "row 1"]),
    "empty candidate set": (with_sets([0], [], [0]), ["birds.npz", "'candidates_indices'", "row 1", "candidate"]),
    "unseen class in a set": (with_sets([0, 7]), ["birds.npz", "unseen class 7", "row 0", "remove it"]),
    "missing key": ({"drop": ["text"]}, ["birds.npz", "'text'", "add"]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file(pzsl, birds, tmp_path, kind):
    changes, words = BAD_FILES[kind]
    birds(**changes)
    complains(pzsl, tmp_path, "run --data birds.npz --epochs 1 --no-figures", 1, words)


def complains(pzsl, folder, command, code, words):
    "The command ends with this code and one line that says all this, and leaves the folder as it was."
    before = tree(folder)
    ended, text, err = pzsl(command)
    assert (ended, text) == (code, ""), err
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert [word for word in words if word not in err] == [], err
    assert tree(folder) == before


@pytest.mark.parametrize("kind", ["truncated", "another kind", "empty", "damaged"])
def test_broken_archive(pzsl, birds, tmp_path, kind):
    whole = birds().read_bytes()
    middle = whole.index(b"X_train") + 500   # inside the first array
    content = {"truncated": whole[:len(whole)//2], "another kind": b"row,label\n1,2\n", "empty": b"",
               "damaged": whole[:middle] + b"\xff"*400 + whole[middle + 400:]}[kind]
    (tmp_path/"birds.npz").write_bytes(content)
    complains(pzsl, tmp_path, "run --data birds.npz", 1, ["birds.npz", "again"])


BAD_WORDS = {  # command: exit code, what the line has to say
    "run --data nowhere.npz": (1, ["nowhere.npz", "no such file", "check the path"]),
    "run --data shepes": (1, ["'shepes'", "shapes", "npz"]),
    "run --data birds.npz --candidates unifrm:0.3": (1, ["'unifrm:0.3'", "uniform:q"]),
    "run --data birds.npz --candidates uniform:x": (1, ["'uniform:x'", "not a number", "uniform:0.3"]),
    "run --data birds.npz --candidates uniform:1.5": (1, ["uniform:1.5"]),
    "run --data birds.npz --candidates hierarchical:0.5": (1, ["hierarchical", "superclass"]),
    "run --data birds.npz --method pro": (1, ["'pro'", "proden"]),
    "run --data birds.npz --set epoch=3": (1, ["'epoch'", "did you mean epochs"]),
    "run --data birds.npz --set epochs": (1, ["'epochs'", "key=value"]),
    "run --data birds.npz --set adapter=3": (1, ["adapter", "true or false"]),
    "run --data birds.npz --seed -1": (1, ["seed", "between 0"]),
    "run --data birds.npz --device cuda:77": (1, ["cuda"]),
    "run --data birds.npz --device gpu": (1, ["'gpu'", "auto"]),
    "run --epochs many": (2, ["--epochs", "integer", "pzsl run --help"]),
    "run --resume --force": (2, ["--resume", "--force", "choose one"]),
    "run --sed 3": (2, ["--sed", "pzsl run --help"]),
    "train": (2, ["'train'", "pzsl --help"]),
    "labels": (2, ["--run", "pzsl labels --help"]),
    "labels --run nowhere": (1, ["nowhere", "pzsl run"]),
    "predict --run nowhere": (1, ["nowhere", "pzsl run"]),
    "ablate --data birds.npz --variants 'no brain'": (1, ["no brain", "no adapter"]),
    "ablate --seeds 0": (2, ["--seeds"]),
    "run --epochs 3 --set epochs=5": (2, ["--epochs", "twice"]),
    "run --data birds.npz --descriptions said.json": (1, ["birds.npz", "descriptions", "leave it out"]),
    "pretrain": (2, ["--out"]),
    "pretrain --out birds.npz": (1, ["birds.npz", "another"]),
}


@pytest.mark.parametrize("command", BAD_WORDS)
def test_bad_words(pzsl, birds, tmp_path, command):
    complains(pzsl, tmp_path, command, *BAD_WORDS[command])


def test_what_is_found_out_late_leaves_nothing_either(pzsl, birds, tmp_path):
    before = tree(tmp_path)
    code, text, err = pzsl("run --data birds.npz --candidates uniform:1 --out a/b")
    assert (code, text) == (1, "") and "every set holds every seen class" in err.splitlines()[-1]
    assert tree(tmp_path) == before
    (tmp_path/"mine").mkdir()
    assert pzsl("run --data birds.npz --candidates uniform:1 --out mine")[0] == 1
    assert tree(tmp_path) == before | {Path("mine"): None}   # a folder that was there stays, as empty as it was


def test_a_run_that_cannot_be_replaced_stays(pzsl, birds, tmp_path):
    assert pzsl(f"run {FIXED} --epochs 2 --out a")[0] == 0
    before = tree(tmp_path)
    code, _, err = pzsl("run --data birds.npz --candidates uniform:1 --out a --force")
    assert code == 1 and "every set holds every seen class" in err.splitlines()[-1]
    assert tree(tmp_path) == before


def test_a_refused_run_leaves_the_beginning_of_another_one(pzsl, birds, tmp_path):
    assert pzsl(f"run {FIXED} --epochs 2 --out a")[0] == 0
    for path in (tmp_path/"a").iterdir():
        if path.name != "config.json": path.unlink()   # as if it had just begun
    for words in ("--data nowhere.npz --force", "--data birds.npz --candidates unifrm:0.3 --force", "--data birds.npz"):
        complains(pzsl, tmp_path, f"run {words} --out a", 1, [])


def test_others_may_read_what_a_run_has_written(pzsl, birds, tmp_path):
    before = os.umask(0o022)
    try: assert pzsl(f"run {FIXED} --epochs 2 --out a")[0] == 0
    finally: os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path/"a").iterdir() if path.is_file()} == {0o644}


@pytest.mark.parametrize("words, more", [("extract --data d --out f.npz --force", "--force"), ("run --out r --force", "--resume"),
                                         ("ablate --force --out a", "--resume"), ("compare g.yaml --force", "g.yaml")])
def test_the_command_that_goes_on(words, more, capsys):
    cli._stopped(words.split())
    said = capsys.readouterr().err
    assert said.rstrip().endswith(more) and ("--force" in said) == (more == "--force")


def test_debug_shows_the_traceback(pzsl, birds):
    code, _, err = pzsl("run --data nowhere.npz --debug")
    assert code == 1 and "Traceback (most recent call last)" in err and "PZSLError: nowhere.npz" in err.splitlines()[-1]


# What exists is kept

def test_an_existing_folder(pzsl, birds, tmp_path):
    run = f"run {FIXED} --epochs 2 --out a"
    assert pzsl(run)[0] == 0
    complains(pzsl, tmp_path, run, 1, ["a:", "exists", "--force", "--resume", "--out"])
    complains(pzsl, tmp_path, run.replace("s 2", "s 3") + " --resume", 1, ["a:", "another epochs", "was 2, now 3"])
    complains(pzsl, tmp_path, run + " --seed 5 --resume", 1, ["another seed"])
    complains(pzsl, tmp_path, run + " --resume", 1, ["a:", "finished", "--force"])
    assert pzsl(run + " --seed 5 --force")[0] == 0
    assert json.loads((tmp_path/"a"/"result.json").read_text())["seed"] == 5


def test_force_does_not_remove_what_is_no_run(pzsl, birds, tmp_path):
    (tmp_path/"thesis").mkdir()
    (tmp_path/"thesis"/"chapter.tex").write_text("years of work")
    for command in (f"run {FIXED} --epochs 1 --out thesis --force", "ablate --data birds.npz --out thesis --force",
                    "pretrain --out thesis --steps 1 --force"):
        complains(pzsl, tmp_path, command, 1, ["thesis", "another"])


# Ctrl-C

def wait_for(path, process):
    limit = time.monotonic() + 60
    while not path.exists():
        assert process.is_alive() and time.monotonic() < limit, f"{path} never appeared"
        time.sleep(.005)


def result_and_beliefs(out):
    result = json.loads((out/"result.json").read_text())
    with np.load(out/"beliefs.npz") as beliefs: arrays = {key: beliefs[key].tobytes() for key in beliefs.files}
    return result["metrics"], result["zero_shot"], arrays


def test_stopped_and_resumed_is_as_if_never_stopped(start, pzsl, birds, tmp_path):
    run = f"run {FIXED} --epochs 60"
    process = start(f"{run} --out a --force")
    wait_for(tmp_path/"a"/"checkpoint.safetensors", process)   # the first is written before the first epoch
    limit = time.monotonic() + 60
    while read_checkpoint(tmp_path/"a"/"checkpoint.safetensors")[1]["epoch"] == 0:
        assert process.is_alive() and time.monotonic() < limit
        time.sleep(.02)
    os.kill(process.pid, signal.SIGINT)
    code, text, err = process.wait()
    assert (code, text) == (130, "") and "Traceback" not in err
    told = err.splitlines()[-1].split("go on with: ")[1]
    assert told == f"pzsl {run} --out a --resume"
    assert sorted(path.name for path in (tmp_path/"a").iterdir()) == ["checkpoint.safetensors", "config.json"]
    complains(pzsl, tmp_path, "labels --run a", 1, ["a:", "not finished", "--resume"])
    code, _, bars = pzsl(shlex.split(told)[1:])
    assert code == 0 and " 0/60" not in bars   # it went on, and did not begin anew
    assert pzsl(f"{run} --out b")[0] == 0
    (*measured, resumed), (*expected, whole) = (result_and_beliefs(tmp_path/name) for name in "ab")
    for arrays in (resumed, whole): arrays["moves"] = arrays.pop("watched"), arrays.pop("epochs")
    assert resumed.pop("moves") == (b"", b"") and all(whole.pop("moves"))   # of a run that went on only its end is known
    assert (measured, resumed) == (expected, whole)


def test_stopped_before_there_is_anything_to_keep(start, pzsl, birds, tmp_path):
    run = "run --data birds.npz --candidates uniform:0.3 --epochs 20 --no-figures --no-supervised"
    process = start(f"{run} --out a")
    wait_for(tmp_path/"a"/"config.json", process)   # rehearsal, some 100 epochs, begins
    os.kill(process.pid, signal.SIGINT)
    code, _, err = process.wait()
    assert code == 130 and err.splitlines()[-1].endswith("--out a --resume")
    assert [path.name for path in (tmp_path/"a").iterdir()] == ["config.json"]
    assert pzsl(f"{run} --out a --resume")[0] == 0 and (tmp_path/"a"/"result.json").exists()


def test_stopped_while_drawing(birds, tmp_path, monkeypatch, capsys):
    "All is done but the figures, so the last line must not be a command that resumes."
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pzsl_nb.figures.draw_run", stop)
    assert cli.main(f"run {FIXED} --epochs 1 --figures --out a".split()) == 130
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "pzsl: stopped; the run in a is complete but for its figures"
    assert "frozen CLIP" in out and (tmp_path/"a"/"result.json").exists()


# Labels and predictions

@pytest.fixture
def finished(pzsl, birds):
    assert pzsl(f"run {FIXED} --epochs 4 --out a")[0] == 0


def read_csv(text):
    return list(csv.DictReader(text.splitlines()))


def test_labels(pzsl, finished, birds, tmp_path):
    "Rows of unseen classes are stepped over, so that an image's number is its row in the file."
    names, order = arrays()["names"], np.random.default_rng(1).permutation(C*12)
    shuffled = {key: arrays()[key][order] for key in ("X_train", "y_train")}
    birds(**shuffled)
    assert pzsl(f"run {FIXED} --epochs 4 --out mixed")[0] == 0
    code, text, err = pzsl("labels --run mixed")
    rows = read_csv(text)
    assert (code, err) == (0, "") and list(rows[0]) == ["image", "candidates", "label", "belief", "coverage"]
    numbers = [int(row["image"]) for row in rows]
    assert numbers == np.flatnonzero(shuffled["y_train"] < C - 2).tolist() and numbers != list(range(len(numbers)))
    truth = [names[c] for c in shuffled["y_train"][numbers]]
    for label, row in zip(truth, rows): assert {label, row["label"]} <= set(row["candidates"].split("|"))
    with np.load(tmp_path/"mixed"/"beliefs.npz") as beliefs:
        for i in (0, 17, len(rows) - 1):
            own = slice(*beliefs["indptr"][i:i + 2])
            assert rows[i]["label"] == names[beliefs["indices"][own][beliefs["weights"][own].argmax()]]
            assert rows[i]["belief"] == f"{beliefs['weights'][own].max():.4f}"
    result = json.loads((tmp_path/"mixed"/"result.json").read_text())
    right = np.mean([row["label"] == label for row, label in zip(rows, truth)])
    assert abs(right - result["metrics"]["disambiguation_accuracy"]) < 1e-6


def test_labels_need_no_data(pzsl, finished, tmp_path):
    _, text, _ = pzsl("labels --run a")
    (tmp_path/"birds.npz").unlink()
    assert pzsl("labels --run a") == (0, text, "")


def test_a_table_goes_to_a_file_whole(pzsl, finished, tmp_path):
    _, text, _ = pzsl("labels --run a")
    assert pzsl("labels --run a --out new/labels.csv") == (0, "Table: new/labels.csv\n", "")
    assert read_csv((tmp_path/"new"/"labels.csv").read_text()) == read_csv(text)
    (tmp_path/"new"/"labels.csv").write_text("corrected by hand")
    complains(pzsl, tmp_path, "labels --run a --out new/labels.csv", 1, ["labels.csv", "exists", "--force"])
    assert pzsl("labels --run a --out new/labels.csv --force")[0] == 0
    assert read_csv((tmp_path/"new"/"labels.csv").read_text()) == read_csv(text)


def test_predict_says_what_the_estimator_says(pzsl, finished, tmp_path):
    from pzsl_nb.estimator import CLIPPZSL
    est, x = CLIPPZSL.load(tmp_path/"a"/"checkpoint.safetensors"), arrays()["X_test"]
    code, text, err = pzsl("predict --run a")
    rows, p = read_csv(text), np.sort(est.predict_proba(x), axis=1)[:, ::-1]
    assert (code, err) == (0, "")
    assert list(rows[0]) == ["image", "prediction", "probability", "second", "second_probability"]
    assert [row["prediction"] for row in rows] == est.predict(x).tolist()
    assert [row["image"] for row in rows] == [str(i) for i in range(len(x))]
    said = [[float(row[key]) for key in ("probability", "second_probability")] for row in rows]
    np.testing.assert_allclose(said, p[:, :2], atol=1e-4)
    assert all(row["prediction"] != row["second"] for row in rows)


def test_predict_needs_only_test_rows(pzsl, finished, birds, tmp_path):
    _, text, _ = pzsl("predict --run a")
    np.savez(tmp_path/"new.npz", X_test=arrays()["X_test"][::-1])
    code, turned, _ = pzsl("predict --run a --data new.npz")
    assert [row["prediction"] for row in read_csv(turned)] == [row["prediction"] for row in read_csv(text)][::-1]


@pytest.mark.parametrize("table, words", [
    (np.ones((3, D + 2)), [f"{D + 2} wide", f"{D}", "encoder"]), (np.full((3, D), np.nan), ["NaN", "row 0"]),
    (np.eye(3, D) - np.eye(3, D, 0)[[1, 1, 1]], ["zeros", "row 1"]),
    (np.ones(3), ["(3,)", "one row"]), (np.array([["a"]]), ["<U1", "numbers"]),
])
def test_predict_refuses_what_does_not_fit(pzsl, finished, tmp_path, table, words):
    np.savez(tmp_path/"new.npz", X_test=table)
    complains(pzsl, tmp_path, "predict --run a --data new.npz", 1, ["new.npz", "'X_test'", *words])


def test_predict_refuses_a_table_before_it_works(pzsl, finished, tmp_path):
    (tmp_path/"p.csv").write_text("mine")
    complains(pzsl, tmp_path, "predict --run a --images nowhere --out p.csv", 1, ["p.csv", "exists already", "--force"])
    complains(pzsl, tmp_path, "labels --run a --out a --force", 1, ["a: is a folder"])
    complains(pzsl, tmp_path, "labels --run a --out p.csv/q.csv", 1, ["p.csv/q.csv", "nothing can be written in"])


def test_predict_refuses_a_feature_file_of_another_width(pzsl, finished, birds, tmp_path):
    data = arrays() | {key: np.pad(arrays()[key], ((0, 0), (0, 3)), constant_values=1.) for key in ("X_train", "X_test", "text")}
    birds("wide.npz", **{key: data[key] for key in ("X_train", "X_test", "text")})
    assert pzsl("extract --data npz:wide.npz --out wide.safetensors")[0] == 0
    complains(pzsl, tmp_path, "predict --run a --data wide.safetensors", 1, ["wide.safetensors", f"{D + 3} wide", f"features {D}"])


def test_predict_with_names_and_no_encoder(pzsl, finished, tmp_path):
    complains(pzsl, tmp_path, "predict --run a --classes okapi", 1, ["birds.npz", "--encoder"])
    complains(pzsl, tmp_path, "predict --run a --classes okapi --encoder embedded", 1, ["128 wide", f"{D}", "encoder"])


def test_new_classes_of_shapes(default_run, begin):
    folder, run = default_run[0], "--run runs/shapes-uniform-0.3-clip-pzsl-0"
    code, text, err = begin(folder, f"predict {run} --classes 'green dotted square,purple striped heart'").wait()
    rows = read_csv(text)
    assert (code, err, len(rows)) == (0, "", 52*40)
    told = {row[key] for row in rows for key in ("prediction", "second")}
    assert {"green dotted square", "purple striped heart"} <= told
    complains(lambda command: begin(folder, command).wait(), folder, f"predict {run} --classes 'red,,blue'", 2,
              ["--classes", "empty name"])
    name = class_name(default_split()[0][0])
    complains(lambda command: begin(folder, command).wait(), folder, f"predict {run} --classes {name.title().replace(' ', '_')}", 1,
              ["--classes", f"a class of the run already ({name})"])


# Ablation

def test_ablate(pzsl, birds, tmp_path):
    command = ("ablate --data birds.npz --candidates uniform:0.3 --variants 'no adapter' --out a "
               f"--set epochs=1 {BY_HAND}")
    code, text, err = pzsl(f"{command} --seeds 2")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path/"a"/"rows.jsonl").read_text().splitlines()]
    done = [(row["notes"]["variant"], row["seed"]) for row in rows]
    assert done == [(variant, seed) for seed in (0, 1) for variant in ("full", "no adapter")]
    mean = 100*np.mean([row["metrics"]["S"] for row in rows if row["notes"]["variant"] == "full"])
    line = next(line for line in text.splitlines() if line.startswith("full"))
    assert line.split()[1] == f"{mean:.1f}" and line.count("±") == 6
    right = 100*np.mean([row["metrics"]["disambiguation_accuracy"] for row in rows if row["notes"]["variant"] == "full"])
    assert line.split()[-3] == f"{right:.1f}"
    assert min(Image.open(tmp_path/"a"/"ablation.png").size) > 100
    complains(pzsl, tmp_path, f"{command} --seeds 3", 1, ["a:", "--resume", "--force"])
    complains(pzsl, tmp_path, f"{command} --set epochs=2 --seeds 3 --resume", 1, ["a:", "another epochs (epochs was 1)"])
    complains(pzsl, tmp_path, f"{command} --set folds=3 --seeds 3 --resume", 1, ["a:", "another folds (folds was 2)"])
    code, text, err = pzsl(f"{command} --seeds 1 --resume")
    assert code == 0 and "One seed, so no interval." in text, err


def test_ablate_anew_begins_when_it_is_clear_that_it_can(pzsl, birds, tmp_path):
    rows = tmp_path/"a"/"rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"config": {}, "notes": {}}\n')
    (tmp_path/"a"/"ablation.png").write_text("a picture")
    for wrong in ("--data birds.npz --variants 'no brain'", "--data bird.npz", "--data birds.npz --candidates unifrm:0.3",
                  "--data birds.npz --candidates uniform:1", "--data birds.npz --seed 2147483649"):
        code, _, err = pzsl(f"ablate {wrong} --out a --force --seeds 1 {BY_HAND}")
        assert code == 1 and rows.read_text() == '{"config": {}, "notes": {}}\n', err
    for idle, settings in (("no evidence", "--set method=cc"), ("full trust", BY_HAND), ("free beliefs", "--set method=cc"),
                           ("no apprentice", "--set start=clip")):
        complains(pzsl, tmp_path, f"ablate --data birds.npz --variants 'no adapter,{idle}' {settings} --out b", 1,
                  [f"ablation: {idle} would change nothing"])
    code, text, err = pzsl("ablate --data birds.npz --candidates uniform:0.3 --variants 'free beliefs' --out d --seeds 1 "
                           f"--set method=cc --set anchor=0.5 --set epochs=1 {BY_HAND}")
    assert code == 0 and "free beliefs" in text, err   # which it does change here
    code, text, err = pzsl(f"ablate --data birds.npz --candidates uniform:0.3 --out c --seeds 1 --set method=cc --set epochs=1 {BY_HAND}")
    assert code == 0 and "no apprentice, no evidence, free beliefs, full trust, naming by training, no calibration" in err, err
    assert "no adapter" in text and "no evidence" not in text
    code, text, err = pzsl(f"ablate --data birds.npz --candidates uniform:0.3 --variants full --out a --force --seeds 1 "
                           f"--set epochs=1 {BY_HAND}")
    assert code == 0 and len(rows.read_text().splitlines()) == 1, err


def test_ablate_without_unseen_classes(pzsl, birds, tmp_path):
    with np.load(tmp_path/"birds.npz") as file: data = dict(file)
    keep = ~data["unseen"]
    here = keep[data["y_test"]]
    number = np.cumsum(keep) - 1
    np.savez(tmp_path/"all.npz", X_train=data["X_train"], y_train=number[data["y_train"]], X_test=data["X_test"][here],
             y_test=number[data["y_test"][here]], text=data["text"][keep], unseen=np.zeros(keep.sum(), bool))
    code, text, err = pzsl(f"ablate --data all.npz --candidates uniform:0.3 --variants 'no adapter' --out a --seeds 2 "
                           f"--set epochs=1 {BY_HAND}")
    assert code == 0, err
    line = next(line.split() for line in text.splitlines() if line.startswith("full"))
    assert line.count("-") == 4 and line.count("±") == 2   # U, H, T1 and AUSUC do not apply
    np.savez(tmp_path/"none.npz", **data | {"y_test": np.full_like(data["y_test"], -1)})
    code, text, err = pzsl(f"ablate --data none.npz --candidates uniform:0.3 --variants full --out b --seeds 1 --set epochs=1 {BY_HAND}")
    assert code == 0 and "no picture: no test row has a known label" in err and "Picture:" not in text, err
    assert min(Image.open(tmp_path/"a"/"ablation.png").size) > 100


def test_check_leaves_other_folders_alone(pzsl, birds, tmp_path):
    (tmp_path/"thesis").mkdir()
    (tmp_path/"thesis"/"result.json").write_text("{}")
    complains(pzsl, tmp_path, "check --data birds.npz --out thesis", 1, ["thesis", "holds result.json", "--out"])
    for _ in range(2): assert pzsl("check --data birds.npz --out found")[0] == 0


# Pictures and annotators

@pytest.fixture
def annotated(tmp_path):
    "Pictures of six classes in a folder with a space, and what two annotators say: the truth, and often another class."
    attributes = np.concatenate(default_split())[:6]
    names, rng = [class_name(a) for a in attributes], np.random.default_rng(0)
    (tmp_path/"my photos").mkdir()
    lines = ["image,annotator_1,annotator_2"]
    for i, k in enumerate(np.arange(6).repeat(8)):
        Image.fromarray(render(attributes[k][None], seed=i)[0]).save(tmp_path/"my photos"/f"{i}.png")
        lines.append(f"my photos/{i}.png,{names[k]},{names[rng.integers(6)]}")
    (tmp_path/"said.csv").write_text("\n".join(lines) + "\n")
    return names


ANNOTATED = f"--data csv:said.csv --encoder embedded --device cpu {BY_HAND} --epochs 4 --no-figures"


def test_pictures_and_annotators_all_the_way(pzsl, annotated, tmp_path):
    code, text, err = pzsl(f"run {ANNOTATED} --out a")
    assert code == 0 and "no accuracy to tell" in text and "nan" not in text, err
    assert read_images(tmp_path/"a", 48)[:2] == ["my photos/0.png", "my photos/1.png"]
    rows = read_csv(pzsl("labels --run a")[1])
    assert [row["image"] for row in rows] == [f"my photos/{i}.png" for i in range(48)]
    assert all(row["label"] in row["candidates"].split("|") for row in rows)
    assert np.mean([row["label"] == annotated[i//8] for i, row in enumerate(rows)]) > .8
    code, text, err = pzsl("predict --run a --images 'my photos' --images 'my photos/3.png'")
    found = read_csv(text)
    assert code == 0 and len(found) == 49 and found[-1]["image"] == "my photos/3.png", err
    truth = {f"my photos/{i}.png": annotated[i//8] for i in range(48)}
    assert np.mean([row["prediction"] == truth[row["image"]] for row in found]) > .7


def test_names_of_images_may_hold_anything(pzsl, birds, tmp_path):
    "Signs at which text is cut into lines would shift all labels behind them."
    names = [f"{i} a\u2028b\x85c\nd.png" for i in range(len(arrays()["y_train"]))]
    birds(image_ids=np.array(names))
    assert pzsl(f"run {FIXED} --epochs 1 --out a")[0] == 0
    kept = [name for name, c in zip(names, arrays()["y_train"]) if c < C - 2]
    assert read_images(tmp_path/"a", len(kept)) == kept


def test_a_name_at_which_candidates_cannot_be_split(pzsl, birds, tmp_path):
    birds(names=np.array([f"bird|{c}" for c in range(C)]))
    assert pzsl(f"run {FIXED} --epochs 1 --out a")[0] == 0
    code, text, err = pzsl("labels --run a")
    assert code == 0 and "note: | is part of the name 'bird|0'" in err and text.startswith("image,")


def test_a_vote_that_too_few_gave(pzsl, annotated, tmp_path):
    "Two of two have to agree; where they do not, the row and the mend are named."
    complains(pzsl, tmp_path, f"run {ANNOTATED} --out a --min-votes 2", 1, ["said.csv", "line", "min"])


def test_check_and_extract(pzsl, annotated, tmp_path):
    code, text, _ = pzsl("check --data csv:said.csv --out checked")
    findings = json.loads((tmp_path/"checked"/"findings.json").read_text())
    assert code == 0 and findings["train"] == 48 and "48 for training" in text
    assert Image.open(tmp_path/"checked"/"samples.png").width > 300
    words = "extract --data csv:said.csv --encoder embedded --device cpu --out f.safetensors"
    assert pzsl(words)[0] == 0
    code, _, err = pzsl(f"run --data safetensors:f.safetensors {BY_HAND} --epochs 2 --no-figures --out b")
    assert code == 0, err
    assert read_images(tmp_path/"b", 48)[3] == "my photos/3.png"
    complains(pzsl, tmp_path, words, 1, ["f.safetensors", "exists", "--force"])


def test_a_broken_picture_stops_or_is_left_out(pzsl, annotated, tmp_path):
    (tmp_path/"my photos"/"5.png").write_bytes(b"GIF89a")
    (tmp_path/"looks.json").write_text(json.dumps({name: [name, "a thing"] for name in annotated}))
    code, text, err = pzsl(f"run {ANNOTATED} --out a")
    assert code == 1 and "5.png" in err.splitlines()[-1] and "skip" in err and not (tmp_path/"a").exists()
    code, text, err = pzsl(f"run {ANNOTATED} --out a --on-error skip")
    assert code == 0 and "5.png" in err
    assert "my photos/5.png" not in read_images(tmp_path/"a", 47)
    assert "warnings.warn" not in err and ".py:" not in err, err   # a line for people, as all others
    code, text, err = pzsl("extract --data csv:said.csv --encoder embedded --on-error skip --out f.safetensors")
    assert code == 0, err
    code, text, err = pzsl(f"run {ANNOTATED} --out m --on-error skip --min-votes 1 --descriptions looks.json")
    assert code == 0, err
    code, text, err = pzsl("predict --run m --data safetensors:f.safetensors")   # a run's own settings are not for other data
    assert code == 0, err
    code, text, err = pzsl("predict --run a --images 'my photos/5.png'")
    assert (code, text) == (1, "") and "none of 1 can be read" in err.splitlines()[-1] and "5.png" in err


def test_photographs_need_an_encoder_that_knows_them(pzsl, annotated, tmp_path):
    "Without --encoder a published CLIP is asked for; offline the message says what to do."
    complains(pzsl, tmp_path, "run --data csv:said.csv --out a", 1, ["ViT-B-32", "openai", "weights"])


@pytest.mark.parametrize("spec, words", [("folder:nowhere", ["nowhere"]), ("csv:none.csv", ["none.csv"]),
                                         ("xlsa17:AWA2", ["AWA2"]), ("pll:lost.mat", ["lost.mat"]),
                                         ("cifar10n:here", ["here", "cifar-10"]), ("safetensors:a b.safetensors", ["a b"])])
def test_data_that_are_not_there(pzsl, tmp_path, spec, words):
    for command in ("run", "check", "extract"): complains(pzsl, tmp_path, f"{command} --data '{spec}'", 1, words)

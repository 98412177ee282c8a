"Experiments: nothing leaks, what stops goes on, what is finished stays, and rows are whole where a measure is not."
import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch

from pzsl_nb.core import PZSLError, read_json
from pzsl_nb.estimator import CLIPPZSL
from pzsl_nb.experiment import (Config, Outcome, Watcher, fit_task, make_estimator, read_beliefs, read_run, results_table,
                                run_experiment, run_name, set_aside)
from pzsl_nb.figures import draw_run
from pzsl_nb.grid import ABLATIONS, run_ablation
from pzsl_nb.methods import unread_settings
from pzsl_nb.sources import Reading, load_task
from pzsl_nb.training import Trainer, read_checkpoint
from small_world import Stop, World, whole_checkpoint

W = World()
QUICK = {"epochs": 4, "folds": 2, "inner": 8, "heads": 2, "lr": 1e-2}
BY_HAND = QUICK | {"trust": 1., "gamma": .1}


def arrays(w=W):
    "A feature file with its own candidate sets, and twelve training rows of unseen classes among the others."
    g, unseen = np.random.default_rng(0), np.flatnonzero(~w.seen.numpy())
    y = np.concatenate([w.y.numpy(), np.repeat(unseen, 12//max(1, len(unseen)))])
    x = np.concatenate([w.x.numpy(), g.normal(size=(len(y) - len(w.y), w.x.shape[1])).astype("f4")])
    sets = [*w.sets, *([0, 1] for _ in range(len(y) - len(w.y)))]
    order = g.permutation(len(y))   # they stand among the others, not behind them
    sets = [sets[i] for i in order]
    return {"X_train": x[order], "y_train": y[order], "X_test": w.x_test.numpy(), "y_test": w.y_test.numpy(),
            "text": w.t.numpy(), "unseen": ~w.seen.numpy(), "logit_scale": 20.,
            "candidates_indices": np.concatenate(sets), "candidates_indptr": np.cumsum([0, *map(len, sets)])}


def settings_of(method):
    "Quick settings, but for those that the method fixes."
    return {key: value for key, value in QUICK.items() if (method, key) != ("zero-shot", "epochs")} | {"method": method}


@pytest.fixture
def go(tmp_path):
    "Writes a feature file and runs on it."
    def go(name, data=None, drop=(), config=None, **more):
        folder = tmp_path/name
        folder.mkdir(exist_ok=True)
        kept = {key: value for key, value in (arrays() if data is None else data).items() if key not in drop}
        np.savez(folder/"data.npz", **kept)
        config = Config(**{"data": str(folder/"data.npz")} | (QUICK if config is None else config))
        out = more.pop("out", folder/"run")
        return run_experiment(config, out, **{"device": "cpu", "progress": False, "supervised": False} | more)
    return go


def learned(outcome):
    "All that training left: checkpoint without what the truth measures, beliefs and choice."
    tensors, plain = whole_checkpoint(outcome.folder/"checkpoint.safetensors")
    for row in plain["history"]: row.pop("disambiguation_accuracy")
    return tensors, plain, outcome.estimator.beliefs_.numpy().tobytes(), outcome.result["choice"]


# Leaks

def other_test_rows(data): return {"X_test": data["X_test"][::-1] + .1}
def other_test_labels(data): return {"y_test": data["y_test"][::-1].copy()}
def fewer_test_rows(data): return {"X_test": data["X_test"][:9], "y_test": data["y_test"][:9]}


def other_truth(data):
    "Seen rows get other seen labels, whether in their set or not; the sets are the file's own and stay."
    y, seen = data["y_train"].copy(), ~data["unseen"]
    y[seen[y]] = (y[seen[y]] + 1 + np.arange(seen[y].sum()) % 5) % 6
    return {"y_train": y}


def other_unseen_rows(data):
    x, rows = data["X_train"].copy(), data["unseen"][data["y_train"]]
    x[rows] = np.random.default_rng(5).normal(size=x[rows].shape)
    return {"X_train": x}


def other_unseen_sets(data):
    "Rows of unseen classes bring other sets, one of an unseen class among them."
    pointer, rows = data["candidates_indptr"], np.flatnonzero(data["unseen"][data["y_train"]])
    indices = data["candidates_indices"].copy()
    for row in rows: indices[pointer[row]:pointer[row + 1]] = [3, 4 + row % 3]
    return {"candidates_indices": indices}


def no_unseen_rows(data):
    rows, pointer = ~data["unseen"][data["y_train"]], data["candidates_indptr"]
    sets = [data["candidates_indices"][pointer[i]:pointer[i + 1]] for i in np.flatnonzero(rows)]
    return {"X_train": data["X_train"][rows], "y_train": data["y_train"][rows],
            "candidates_indices": np.concatenate(sets), "candidates_indptr": np.cumsum([0, *map(len, sets)])}


OWN_SETS = [other_test_rows, other_test_labels, fewer_test_rows, other_truth, other_unseen_rows, other_unseen_sets,
            no_unseen_rows]


def test_what_may_not_matter_does_not(go):
    expected = learned(go("first"))
    for change in OWN_SETS:
        data = arrays() | change(arrays())
        assert learned(go(change.__name__, data)) == expected, change.__name__
    x = arrays()["X_train"].copy()
    row = np.flatnonzero(~arrays()["unseen"][arrays()["y_train"]])[0]
    x[row] += .01   # and what may matter does
    assert learned(go("other", arrays() | {"X_train": x})) != expected


@pytest.mark.parametrize("change", [other_test_rows, other_test_labels, other_unseen_rows], ids=lambda f: f.__name__)
@pytest.mark.parametrize("rule", ["uniform:0.3", "similar:0.3"])
def test_what_may_not_matter_does_not_change_drawn_sets(go, change, rule):
    drop, config = ("candidates_indices", "candidates_indptr"), BY_HAND | {"candidates": rule}
    first, other = go("first", drop=drop, config=config), go("other", arrays() | change(arrays()), drop, config)
    assert learned(first) == learned(other)
    assert torch.equal(first.task.candidates.indices, other.task.candidates.indices)


@pytest.mark.parametrize("method", ["clip-pzsl", "cc", "proden", "supervised", "zero-shot"])
def test_no_trainer_ever_holds_an_unseen_or_a_test_row(go, monkeypatch, method):
    held, begin = [], Trainer.__init__
    def spy(self, model, loss, beliefs, x, t, *more):
        held.append((x, beliefs.sets, t, model.seen))
        begin(self, model, loss, beliefs, x, t, *more)
    monkeypatch.setattr(Trainer, "__init__", spy)
    go("run", config=settings_of(method))
    rows = {row.tobytes() for row in torch.nn.functional.normalize(W.x, dim=1).numpy().round(5) + 0.}
    assert len(held) >= 1
    for x, sets, t, seen in held:
        assert {row.tobytes() for row in x.numpy().round(5) + 0.} <= rows and seen[sets.indices].all()
    assert [len(x) for x, *_ in held][-1] == len(W.x)


def test_measures_do_depend_on_the_truth(go):
    "So that the tests above are not about numbers that never move."
    one, other = go("a", config=BY_HAND), go("b", arrays() | other_truth(arrays()), config=BY_HAND)
    assert one.result["metrics"]["disambiguation_accuracy"] > other.result["metrics"]["disambiguation_accuracy"]
    third = go("c", arrays() | other_test_labels(arrays()), config=BY_HAND)
    assert one.result["metrics"]["H"] != third.result["metrics"]["H"]


# The folder

def test_stopped_and_resumed(go, monkeypatch):
    config = QUICK | {"start": "uniform"}   # favourites of the start are none of epoch 1's
    whole = go("whole", config=config)
    watch = Watcher.__call__
    def stop(self, trainer):
        if trainer.epoch == 2: raise Stop
        return watch(self, trainer)
    with monkeypatch.context() as patch:
        patch.setattr(Watcher, "__call__", stop)
        with pytest.raises(Stop): go("parts", config=config, every=1)
    folder = whole.folder.parent.parent/"parts"/"run"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.safetensors", "config.json"]
    with pytest.raises(PZSLError, match="not finished; continue it with --resume"): read_run(folder)
    with pytest.raises(PZSLError, match="--resume to continue"): go("parts", config=config)
    before = read_checkpoint(folder/"checkpoint.safetensors")[1]
    parts = go("parts", config=config, resume=True)
    assert learned(parts) == learned(whole)
    spent = before["notes"]["seconds"] + sum(row["seconds"] for row in before["history"])
    assert len(before["history"]) == 1 and parts.result["seconds"] > spent - .01 > 0   # those of both sessions
    keys = ("metrics", "zero_shot", "choice")
    assert [parts.result[key] for key in keys] == [whole.result[key] for key in keys]
    (a, wa), (b, wb) = read_beliefs(parts.folder), read_beliefs(whole.folder)
    assert torch.equal(wa, wb) and torch.equal(a.indices, b.indices)
    lines = [(outcome.folder/"history.csv").read_text().splitlines() for outcome in (parts, whole)]
    assert len(lines[0]) == len(lines[1]) == 1 + QUICK["epochs"]
    drop = lines[0][0].split(",").index("seconds")
    strip = [[line.split(",")[:drop] + line.split(",")[drop + 1:] for line in part] for part in lines]
    assert strip[0] == strip[1]   # flips of the first resumed epoch among them


def test_resume_refuses_data_that_changed(go):
    outcome = go("a", config=BY_HAND)
    (outcome.folder/"result.json").unlink()   # as if it had been stopped after training
    with pytest.raises(PZSLError, match="other images, candidate sets"):
        go("a", arrays() | {"X_train": arrays()["X_train"][:, ::-1]}, config=BY_HAND, resume=True)
    with pytest.raises(PZSLError, match=r"another lr \(lr was 0.01, now 0.02\)"):
        go("a", config=BY_HAND | {"lr": .02}, resume=True)
    assert learned(go("a", config=BY_HAND, resume=True)) == learned(outcome)


def test_a_finished_run_is_left_alone(go):
    outcome = go("a", config=BY_HAND)
    before = {path: path.read_bytes() for path in outcome.folder.iterdir()}
    for more, says in (({}, "--force"), ({"resume": True}, "finished; use --force"),
                       ({"resume": True, "force": True}, "finished")):
        with pytest.raises(PZSLError, match=says): go("a", config=BY_HAND, **more)
    (outcome.folder/"notes.txt").write_text("mine")
    with pytest.raises(PZSLError, match="holds notes.txt, which no run writes"): go("a", config=BY_HAND, force=True)
    (outcome.folder/"notes.txt").unlink()
    assert {path: path.read_bytes() for path in outcome.folder.iterdir()} == before
    (outcome.folder/"figures").mkdir()
    other = go("a", config=BY_HAND | {"seed": 4}, force=True)
    assert not (outcome.folder/"figures").exists()   # those of the run before
    assert read_run(other.folder)[0].seed == 4


def test_a_checkpoint_cut_in_the_middle(go):
    outcome = go("a", config=BY_HAND)
    (outcome.folder/"result.json").unlink()
    file = outcome.folder/"checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(PZSLError, match="checkpoint.safetensors: is not a checkpoint"):
        go("a", config=BY_HAND, resume=True)
    assert learned(go("a", config=BY_HAND, force=True)) == learned(go("b", config=BY_HAND))


def test_a_file_in_place_of_the_folder(tmp_path, go):
    (tmp_path/"a").mkdir()
    (tmp_path/"a"/"run").write_text("mine")
    for more in ({}, {"resume": True}):
        with pytest.raises(PZSLError, match="/run: there is a file in the place of the folder"):
            go("a", config=BY_HAND, **more)
    assert (tmp_path/"a"/"run").read_text() == "mine"


def test_force_on_a_file_in_place_of_the_folder(tmp_path, go):
    (tmp_path/"a").mkdir()
    (tmp_path/"a"/"run").write_text("mine")
    with pytest.raises(PZSLError): go("a", config=BY_HAND, force=True)


@pytest.mark.parametrize("method", ["zero-shot", "clip-pzsl", "cc", "proden", "supervised"])
def test_every_method_leaves_a_model_that_loads(go, method):
    outcome = go("a", config=settings_of(method))
    loaded = CLIPPZSL.load(outcome.folder/"checkpoint.safetensors")
    assert (loaded.predict_proba(W.x_test) == outcome.estimator.predict_proba(W.x_test)).all()
    if method == "zero-shot":
        assert (loaded.predict(W.x_test) == outcome.estimator.classes_[(W.x_test @ W.t.T).argmax(1).numpy()]).all()
        assert outcome.result["metrics"]["H"] == outcome.result["zero_shot"]["H"] and outcome.estimator.history_ == []
        assert set(read_json(outcome.folder/"result.json")["choice"].values()) == {0}
    assert loaded.add_classes(["late"], W.t[:1].numpy()).predict_proba(W.x_test).shape == (45, 10)


# The bound

def test_the_bound_is_trained_once_for_all_rules(go, tmp_path, monkeypatch):
    def rules(**more):
        config = QUICK | {"method": "supervised"}
        return [go("a", config=config | {"candidates": rule} | settings, force=True, out=None, **more)
                for rule, settings in (("uniform:0.2", {}), ("uniform:0.6", {}), ("uniform:0.6", {"seed": 1}))]
    alone, epochs, train = rules(), [], Trainer.train_epoch
    def counted(self):
        epochs.append(self)
        return train(self)
    monkeypatch.setattr(Trainer, "train_epoch", counted)
    once = rules(memory=tmp_path)
    for a, b in zip(alone, once):
        for key in ("metrics", "zero_shot", "choice", "curve", "task"): assert a.result[key] == b.result[key]
        assert a.estimator.beliefs_.equal(b.estimator.beliefs_) and len(b.estimator.history_) == QUICK["epochs"]
    assert len(epochs) == 2*(1 + QUICK["folds"])*QUICK["epochs"]   # the second rule's run found all, another seed none
    assert once[0].result["zero_shot"] != once[1].result["zero_shot"]   # and was measured on its own sets
    spared = [outcome.estimator.spared_ for outcome in once]
    assert spared[0] == spared[2] == 0 < sum(row["seconds"] for row in once[0].estimator.history_) < spared[1]
    assert once[1].result["seconds"] > round(spared[1], 2) - .01


def test_a_bound_on_other_label_features_is_another_one(go, tmp_path):
    "Label features may come from the candidate sets (attributes): then every rule has a bound of its own."
    config = Config(data=str(tmp_path/"a"/"data.npz"), **QUICK | {"method": "supervised"})
    go("a", config=BY_HAND)
    task = load_task(config.data, None)
    for seed in (0, 1):
        g = torch.Generator().manual_seed(seed)
        moved = torch.nn.functional.normalize(task.label_features + .3*torch.randn(task.label_features.shape, generator=g), dim=1)
        other = dataclasses.replace(task, label_features=moved)
        est, _ = fit_task(config, other, device="cpu", progress=False, memory=tmp_path)
        alone, _ = fit_task(config, other, device="cpu", progress=False)
        assert est.spared_ == 0 and (est.predict_proba(W.x_test) == alone.predict_proba(W.x_test)).all()
    assert len(list(tmp_path.glob("bound-*"))) == 2 == len(list(tmp_path.glob("bound-*.safetensors")))


# No unseen classes

def no_number(value): return value is None or math.isnan(value)


@pytest.mark.parametrize("seen", [6, 2])
def test_no_unseen_classes_at_all(go, tmp_path, seen):
    data = arrays(World(seen, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = go("a", data, supervised=True)
    for result in (outcome.result, read_run(outcome.folder)[1]):
        for row in (result["metrics"], result["zero_shot"], result["supervised"]):
            assert 0 <= row["S"] <= 1 and all(no_number(row[key]) for key in ("U", "H", "T1", "ausuc"))
        table = results_table(result)
        assert [row["model"] for row in table] == ["frozen CLIP", "clip-pzsl", "clean labels"]
        assert all(no_number(row["H"]) and no_number(row["difference"]) and row["S"] is not None for row in table)
    text = (outcome.folder/"result.json").read_text()
    assert "NaN" not in text and '"H": null' in text
    rows = run_ablation(dataclasses.replace(outcome.config, epochs=1), [0], tmp_path/"rows.jsonl",
                        variants=["full", "no mining"], device="cpu", progress=False)
    assert [row["H"] for row in rows] == [None]*3
    lines = (tmp_path/"rows.jsonl").read_text().splitlines()
    assert "NaN" not in "".join(lines) and all(json.loads(line)["metrics"]["U"] is None for line in lines)


def test_no_test_rows_of_seen_classes(go):
    "Only unseen classes are tested: then S and H are not known, and U is."
    rows = W.y_test.numpy() >= 6
    outcome = go("a", arrays() | {"X_test": W.x_test.numpy()[rows], "y_test": W.y_test.numpy()[rows]}, config=BY_HAND)
    kept = read_run(outcome.folder)[1]["metrics"]
    assert (kept["S"], kept["H"], kept["ausuc"]) == (None,)*3 and 0 <= kept["U"] <= kept["T1"]


# Configurations

CONFIGS = [Config(), *(Config(**values) for values in ABLATIONS.values()), Config(seed=2**31, lr=1),
           Config(data="a b/ü.npz", candidates="noisy:0.3,0.1", method="cc", gamma=-2)]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_configurations_come_back(config):
    text = json.dumps(config.plain(), allow_nan=False)
    back = Config.from_dict(json.loads(text))
    assert back == config and back.plain() == config.plain() and hash(back) == hash(config)
    assert config.with_settings([]) == config
    texts = [f"{key}={value}" for key, value in config.plain().items() if value is not None]
    assert Config().with_settings(texts) == config
    assert not set(run_name(config)) & set('/\\:, "*?<>|')


def test_a_configuration_comes_back_from_its_folder(go):
    outcome = go("a", config=BY_HAND | {"start": "clip", "epochs": 0, "lr": 1})
    assert read_run(outcome.folder)[0] == outcome.config
    assert outcome.estimator.get_params()["start"] == "clip"


def test_every_setting_reaches_the_estimator():
    other = {"epochs": 3, "lr": .5, "weight_decay": .5, "batch_size": 9,
             "words": .5, "pictures": .5, "apprentice": .5, "dropped": .5, "slope": .5, "start": "clip",
             "anchor": .5, "adapter": False, "self_attention": False,
             "cross_attention": False, "inner": 12, "heads": 3, "trust": .5, "gamma": .5, "folds": 5, "seed": 5,
             "negatives": 7, "averaging": False, "naming": "frozen"}
    fields = {field.name for field in dataclasses.fields(Config)}
    of_the_data = {"encoder", "descriptions", "semantics", "min_votes", "fold", "split", "on_error"}
    assert set(other) == fields - {"data", "candidates", "method"} - of_the_data
    assert of_the_data < {field.name for field in dataclasses.fields(Reading)}
    found = make_estimator(Config(**other), 12., "cpu").get_params()
    assert {key: found["random_state" if key == "seed" else key] for key in other} == other
    assert found["logit_scale"] == 12.


# Outcomes and folders

def test_an_outcome_shows_its_table_also_without_unseen_classes():
    none = dict.fromkeys(("S", "U", "H", "T1", "ausuc"))
    result = {"method": "clip-pzsl", "zero_shot": none | {"S": .5}, "metrics": none | {"S": .612, "U": math.nan}}
    outcome = Outcome(Config(data="npz:a&b.npz"), None, None, result, {})
    assert "61.2" in outcome._repr_html_() and "true label found" not in outcome._repr_html_()
    assert repr(outcome) == "Outcome(a-b-default-clip-pzsl-0: H of frozen CLIP nan, clip-pzsl nan)"
    result["metrics"]["H"], result["zero_shot"]["H"] = .5, .25
    assert "width: 10em" in outcome._repr_html_() and "50.0%" in outcome._repr_html_() and "+25.0" in outcome._repr_html_()


@pytest.mark.parametrize("error, begun, stays", [(PZSLError("no"), True, True), (MemoryError(), True, True),
                                                 (KeyboardInterrupt(), False, True), (KeyboardInterrupt(), True, False)])
def test_what_is_replaced_comes_back_unless_something_new_is_there(tmp_path, error, begun, stays):
    (tmp_path/"main").write_text("old")
    (tmp_path/"more").mkdir()
    (tmp_path/"more"/"picture").write_text("old")
    (tmp_path/"mine").write_text("mine")
    with pytest.raises(type(error)), set_aside(tmp_path, ("main", "more"), "main"):
        assert not (tmp_path/"main").exists()
        if begun: (tmp_path/"main").write_text("new")
        raise error
    kept = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == ({"main": "old", "more/picture": "old", "mine": "mine"} if stays else {"main": "new", "mine": "mine"})
    left = tmp_path/".replaced-by a kill"
    left.mkdir()
    with set_aside(tmp_path, ("main", "more"), "main"): (tmp_path/"main").write_text("newest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main", "mine"]


@pytest.mark.parametrize("method", ["eszsl", "attribute-map", "tip-adapter", "coop", "zero-shot"])
def test_figures_of_models_of_another_kind(go, method, tmp_path):
    config = {"trust": .5} | settings_of(method)
    outcome = go("other", config={key: value for key, value in config.items() if key not in unread_settings(method)})
    names = [path.stem for path in draw_run(outcome, tmp_path/"figures")]
    assert {"summary", "candidates", "confusion"} <= set(names)
    assert ("embedding" in names) == (method not in ("eszsl", "attribute-map"))   # these embed in another space


def test_numbers_of_numpy_are_numbers():
    config = Config(seed=np.arange(5)[3], epochs=np.int32(2), lr=np.float32(.5))
    assert (config.seed, config.epochs, config.lr) == (3, 2, .5) and type(config.seed) is int

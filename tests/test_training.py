"The loop: what a checkpoint holds and refuses, what an interrupt does, and inputs that are awkward."
import json
import signal
import threading
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pzsl_nb.core import PZSLError
from pzsl_nb.disambiguation import Beliefs, uniform_prior
from pzsl_nb.loss import partial_zero_shot_loss
from pzsl_nb.model import CLIPPZSLModel
from pzsl_nb.plots import live_curves
from pzsl_nb.training import Trainer, interruptible, load_checkpoint, read_checkpoint, run, save_checkpoint
from small_world import SWITCHES, World, whole_checkpoint

W = World()


def trainer(w=W, epochs=3, seed=0, x=None, batch=16, lr=1e-2, loss=None, **switches):
    torch.manual_seed(seed)
    model = CLIPPZSLModel(w.t, w.seen, 20., inner=8, heads=2, **switches)
    beliefs = Beliefs(w.sets, uniform_prior(w.sets))
    return Trainer(model, loss or partial_zero_shot_loss, beliefs, w.x if x is None else x, w.t, epochs, lr,
                   batch_size=batch, seed=seed, device="cpu")


def train(*args, **more):
    made = trainer(*args, **more)
    run(made, progress=False)
    return made


def same(a, b):
    return torch.equal(a.beliefs.weights, b.beliefs.weights) and all(
        torch.equal(value, b.model.state_dict()[name]) for name, value in a.model.state_dict().items())


def noted_sizes(batch):
    "Notes how many rows each batch has."
    sizes.append(len(batch.logits))
    return partial_zero_shot_loss(batch)


sizes = []


@pytest.mark.parametrize("batch, expected", [(16, [15, 15, 15, 15, 12]), (72, [72]), (10**6, [72]), (71, [36, 36]), (1, [1]*72)])
def test_every_image_once_an_epoch(batch, expected, monkeypatch):
    sizes.clear()
    made, visited = trainer(batch=batch, loss=noted_sizes, epochs=3), []
    asked = made.beliefs.batch
    monkeypatch.setattr(made.beliefs, "batch", lambda rows: visited.append(rows) or asked(rows))
    run(made, progress=False)
    assert sizes == 3*expected
    first, second, _ = torch.cat(visited).split(72)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(72))
    assert first.tolist() != second.tolist() != list(range(72))


def test_a_frozen_layer_keeps_its_bits_and_all_others_are_one_vector():
    model = CLIPPZSLModel(W.t, W.seen, 20., inner=8, heads=2)
    model.adapter.inward.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = Trainer(model, partial_zero_shot_loss, Beliefs(W.sets, uniform_prior(W.sets)), W.x, W.t, 3, 1e-2, device="cpu")
    run(made, progress=False)
    for name, p in model.named_parameters(): assert torch.equal(p, before[name]) != p.requires_grad, name
    trained = [p for p in model.parameters() if p.requires_grad]
    place = lambda tensor: tensor.untyped_storage().data_ptr()
    assert torch.equal(made.whole, torch.cat([p.ravel() for p in trained])) and not torch.equal(made.whole, made.aside)
    assert {place(p) for p in trained} == {place(made.whole)} and all(p.grad.any() for p in trained)


def test_any_number_of_steps():
    for epochs in range(1, 41):
        made = trainer(epochs=epochs, batch=72)
        rates = [made.schedule.get_last_lr()[0]]
        for _ in range(max(2, epochs*made.steps) - 1):
            made.optimiser.step()
            made.schedule.step()
            rates.append(made.schedule.get_last_lr()[0])
        assert rates[-1] < rates[0] < max(rates) + 1e-12, epochs


def test_the_row_of_an_epoch_is_a_mean_over_images():
    "With nothing that moves, five uneven batches tell the loss of one batch of everything."
    def loss(batch):
        return train(epochs=1, batch=batch, **dict.fromkeys(SWITCHES, False)).history[0]["loss"]
    assert loss(16) == pytest.approx(loss(72), rel=1e-4)


def test_the_global_random_state_is_no_matter_once_the_model_is_made():
    one, other = trainer(), trainer()
    torch.manual_seed(1), run(one, progress=False)
    torch.manual_seed(2), run(other, progress=False)
    assert same(one, other) and not same(one, train(seed=1))


def test_features_in_a_memory_map(tmp_path):
    stored = np.memmap(tmp_path/"x", np.float32, "w+", shape=tuple(W.x.shape))
    stored[:] = W.x.numpy()
    assert same(train(x=torch.from_numpy(stored)), train())


def test_a_loss_that_is_no_number_ends_training(tmp_path):
    def broken(batch): return {"loss": partial_zero_shot_loss(batch)["loss"]*(torch.nan if made.epoch == 2 else 1.)}
    made = trainer(loss=broken)
    with pytest.raises(PZSLError, match="nan in epoch 2; lower the learning rate"):
        run(made, checkpoint=tmp_path/"c.safetensors", every=1, progress=False)
    kept = read_checkpoint(tmp_path/"c.safetensors")[0]
    assert all(value.isfinite().all() for value in kept.values() if value.is_floating_point())   # of epoch 1


def test_a_shorter_run_took_the_steps_of_the_longer_one():
    part, whole = trainer(), trainer()
    run(part, until=2, progress=False)
    kept = []
    run(whole, on_epoch=lambda tr: kept.append(tr.beliefs.weights.clone()) or {}, progress=False)
    assert torch.equal(part.beliefs.weights, kept[1]) and len(kept) == 3
    assert run(part, until=99, progress=False)[-1]["epoch"] == 3 and same(part, whole)   # never past what was planned


def test_checkpoints_are_written_when_they_are_due(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("pzsl_nb.training.save_checkpoint", lambda tr, path: written.append(tr.epoch))
    run(trainer(epochs=7), checkpoint=tmp_path/"c", every=3, progress=False)
    run(trainer(epochs=7), checkpoint=tmp_path/"c", every=3, until=5, progress=False)
    assert written == [3, 6, 7, 3, 5]


# Checkpoints

@pytest.fixture
def file(tmp_path):
    save_checkpoint(train(), tmp_path/"c.safetensors")
    return tmp_path/"c.safetensors"


def test_everything_comes_back(file):
    made, back = train(), trainer(seed=5)
    load_checkpoint(back, file)
    assert same(made, back) and back.epoch == 3 and len(back.history) == 3
    assert torch.equal(back.generator.get_state(), made.generator.get_state())
    assert back.schedule.state_dict()["last_epoch"] == made.schedule.state_dict()["last_epoch"] == 15
    mine, theirs = (tr.optimiser.state_dict()["state"] for tr in (back, made))
    assert [mine[i]["exp_avg_sq"].shape for i in sorted(mine)] == [p.shape for p in made.model.parameters()]
    for i in mine:
        assert mine[i].keys() == theirs[i].keys() and all(torch.equal(mine[i][k], theirs[i][k]) for k in mine[i])
    assert back.optimiser.param_groups[0]["lr"] == made.optimiser.param_groups[0]["lr"]


def test_saving_what_was_loaded_is_the_same_file(file, tmp_path):
    back = trainer(seed=5)
    load_checkpoint(back, file)
    save_checkpoint(back, tmp_path/"again.safetensors")
    assert whole_checkpoint(file) == whole_checkpoint(tmp_path/"again.safetensors")


@pytest.mark.parametrize("other", [{"adapter": False}, {"cross_attention": False}, {"epochs": 4}, {"w": World(7, 3)},
                                   {"w": World(rule="uniform:0.5")}, {"w": World(width=8)}], ids=str)
def test_refuses_another_run(file, other):
    made = trainer(**other)
    before = made.beliefs.weights.clone()
    with pytest.raises(PZSLError, match="another model, other candidate sets, another number of epochs, other layers"):
        load_checkpoint(made, file)
    assert made.epoch == 0 and torch.equal(made.beliefs.weights, before)


def test_refuses_another_version(file):
    "One that kept the moments of all weights as one, and no names."
    tensors, plain = read_checkpoint(file)
    kept = {name: value for name, value in tensors.items() if not name.startswith("optimiser.")}
    del plain["trained"]
    save_file(kept | {"optimiser.exp_avg": torch.zeros(3)}, file, {"pzsl": json.dumps(plain)})
    made = trainer()
    with pytest.raises(PZSLError, match="or by another version"): load_checkpoint(made, file)
    assert same(made, trainer())


@pytest.mark.parametrize("averaging", [True, False])
def test_refuses_another_frozen_layer(tmp_path, averaging):
    "Two layers of one size, of which one is trained."
    def only(name):
        torch.manual_seed(0)
        model = CLIPPZSLModel(W.t, W.seen, 20., inner=8, heads=2)
        for other, p in model.named_parameters(): p.requires_grad_(other == name)
        return Trainer(model, partial_zero_shot_loss, Beliefs(W.sets, uniform_prior(W.sets)), W.x, W.t, 3, 1e-2,
                       device="cpu", averaging=averaging)
    made = only("adapter.inward.weight")
    run(made, until=2, checkpoint=tmp_path/"c.safetensors", progress=False)
    for other in ("mining.among_labels.query.weight", "adapter.inward.bias", ""):
        with pytest.raises(PZSLError, match="other layers trained"): load_checkpoint(only(other), tmp_path/"c.safetensors")
    back = only("adapter.inward.weight")
    load_checkpoint(back, tmp_path/"c.safetensors")
    run(back, progress=False), run(made, progress=False)
    assert same(back, made)


@pytest.mark.parametrize("averaging", [True, False])
def test_an_epoch_left_in_the_middle_is_not_continued(tmp_path, averaging):
    made = trainer()
    if not averaging: made.aside = None
    run(made, until=1, checkpoint=tmp_path/"c.safetensors", progress=False)
    asked, calls = made.loss, []
    def fails(batch):
        calls.append(batch)
        if len(calls) == 2: raise RuntimeError("the disk is full")
        return asked(batch)
    made.loss = fails
    with pytest.raises(RuntimeError, match="disk"): run(made, progress=False)
    made.loss = asked
    for again in (lambda: run(made, progress=False), lambda: save_checkpoint(made, tmp_path/"d.safetensors")):
        with pytest.raises(PZSLError, match="epoch 2 was left in the middle"): again()
    assert not (tmp_path/"d.safetensors").exists()
    load_checkpoint(made, tmp_path/"c.safetensors")
    run(made, progress=False)
    if averaging: assert same(made, train()) and len(made.history) == 3


def test_what_is_no_checkpoint(file, tmp_path):
    other, whole = tmp_path/"other.safetensors", file.read_bytes()
    cuts = [0, 1, 7, 8, 9, 100, len(whole)//2, len(whole) - 1]
    for content in [whole[:cut] for cut in cuts] + [b"x"*1000, b"\xff"*1000, whole[1:], whole + b"x"]:
        other.write_bytes(content)
        with pytest.raises(PZSLError, match="other.safetensors: is not a checkpoint of this program"):
            read_checkpoint(other)
    for header in (None, {"pzsl": "{cut"}, {"other": "{}"}):
        save_file({"a": torch.ones(2)}, other, header)
        with pytest.raises(PZSLError, match="is not a checkpoint"): read_checkpoint(other)
    with pytest.raises(PZSLError, match="is not a checkpoint"): read_checkpoint(tmp_path)
    with pytest.raises(PZSLError, match="no such checkpoint"): read_checkpoint(tmp_path/"nowhere.safetensors")


def test_a_write_that_fails_leaves_the_one_before(file, monkeypatch):
    before = file.read_bytes()
    def half(tensors, path, header):
        path.write_bytes(before[:len(before)//2])
        raise OSError("no space left on device")
    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(OSError, match="no space"): save_checkpoint(train(), file)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


# Interrupts

@pytest.fixture
def press():
    "Ctrl-C with Python's own handler, which a process started in the background does not have."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_epoch_and_keeps_it(press, tmp_path):
    made = trainer(epochs=9)
    def on_epoch(tr):
        if tr.epoch == 2: press()
        return {"note": tr.epoch}
    with pytest.raises(KeyboardInterrupt, match="stopped after epoch 2 of 9"):
        run(made, checkpoint=tmp_path/"c.safetensors", every=100, on_epoch=on_epoch, progress=False)
    plain = read_checkpoint(tmp_path/"c.safetensors")[1]
    assert plain["epoch"] == 2 and [row["note"] for row in plain["history"]] == [1, 2]


def test_the_second_ctrl_c_raises_and_the_handler_comes_back(press):
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as interrupted:
        assert not interrupted()
        press()
        assert interrupted()
        with pytest.raises(KeyboardInterrupt): press()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError), interruptible(): raise ValueError
    assert signal.getsignal(signal.SIGINT) is before


def test_training_in_a_thread():
    made = []
    thread = threading.Thread(target=lambda: made.append(train()))
    thread.start(), thread.join()
    assert same(made[0], train())


def test_no_bar_where_none_is_wanted(capfd):
    run(trainer(), progress=False)
    assert capfd.readouterr() == ("", "")
    run(trainer(), progress=True, title="a title")
    assert "a title" in capfd.readouterr().err


# What a person sees

def outputs(*sources):
    "What the cells of a notebook show, in a real kernel that has no ipywidgets."
    sources = ["import sys; sys.modules['ipywidgets'] = None", *sources]
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    here = {"metadata": {"path": str(Path(__file__).parent)}}
    nbclient.NotebookClient(page, kernel_name="python3", timeout=300, resources=here).execute()
    return [cell.outputs for cell in page.cells[1:]]


def test_every_figure_of_a_notebook_shows_itself(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)   # the notebook's own backend, whatever these tests run under
    _, first, second = outputs("from pzsl_nb.plots import plot_candidates",   # and nothing that would load the backend
                               "plot_candidates([1, 2, 3]);", "plot_candidates([1, 2, 2]);")
    for shown in (first, second): assert ["image/png" in part.data for part in shown] == [True]


def test_in_a_notebook_a_bar_is_text_and_curves_are_one_picture():
    imports, bar, silent, first, last = outputs(
        "from pzsl_nb.encoders import load_encoder\nfrom test_training import run, trainer\n"
        "from pzsl_nb.plots import live_curves",
        "_ = run(trainer())", "_ = run(trainer(), progress=False)",
        "_ = run(trainer(epochs=6), until=1, on_epoch=live_curves(), progress=False)",
        "_ = run(trainer(epochs=6), on_epoch=live_curves(every=1e9), progress=False)")
    assert imports == silent == []   # no advice to install widgets either
    said = "".join(part.text for part in bar)
    assert "IProgress" not in said and "3/3" in said and "settled" in said
    for shown in (first, last): assert [list(part.data)[0] for part in shown] == ["image/png"]
    assert first[0].data != last[0].data   # the picture after the last epoch is in the place of the first


def test_a_log_gets_whole_lines_and_without_progress_nothing(capfd):
    run(trainer(), progress=True)
    lines = capfd.readouterr().err.split("\n")
    assert len(lines) == 3 and "0/3" in lines[0] and "3/3" in lines[1] and "settled" in lines[1] and lines[2] == ""
    run(trainer(), progress=False, on_epoch=live_curves())
    assert capfd.readouterr() == ("", "")

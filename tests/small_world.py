"A world small enough for many trainings: what the tests of estimator, training, selection and experiment share."
import torch
import torch.nn.functional as F

from pzsl_nb.candidates import make_candidates
from pzsl_nb.estimator import CLIPPZSL
from pzsl_nb.training import read_checkpoint

BY_HAND = {"trust": 1., "gamma": .1}   # nothing is left for rehearsal
SWITCHES = ("adapter", "self_attention", "cross_attention")


class World:
    "Pictures that are displaced from their names: `x`, `y`, `sets` to train on, `x_test`, `y_test` of all classes."
    def __init__(self, seen=6, unseen=3, per_class=12, rule="uniform:0.3", width=16, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.t = F.normalize(torch.randn(seen + unseen, width, generator=g), dim=1)
        displaced = self.t + self.t @ torch.randn(width, 2, generator=g) @ torch.randn(2, width, generator=g)/6

        def pictures(y): return F.normalize(displaced[y] + .3*torch.randn(len(y), width, generator=g), dim=1)
        self.seen = torch.arange(seen + unseen) < seen
        self.y, self.y_test = torch.arange(seen).repeat_interleave(per_class), torch.arange(seen + unseen).repeat(5)
        self.x, self.x_test = pictures(self.y), pictures(self.y_test)
        self.sets = make_candidates(rule, self.y, self.seen, seed=seed)


def estimator(**settings):
    return CLIPPZSL(**({"epochs": 4, "folds": 2, "inner": 8, "heads": 2, "logit_scale": 20., "lr": 1e-2,
                        "device": "cpu"} | settings))


def whole_checkpoint(path):
    "All tensors of a checkpoint as bytes, and all of its plain values that are not times."
    tensors, plain = read_checkpoint(path)
    history = [{key: value for key, value in row.items() if key != "seconds"} for row in plain["history"]]
    notes = {key: value for key, value in plain["notes"].items() if key != "seconds"}
    plain |= {"history": history, "notes": notes}
    return {name: value.numpy().tobytes() for name, value in tensors.items()}, plain


class Stop(Exception): "Whatever ends a process in the middle of training."


def stop_at(epoch):
    "To be called after each epoch: raises before the checkpoint of this one is written."
    def on_epoch(trainer):
        if trainer.epoch == epoch: raise Stop
        return {}
    return on_epoch

"Tensors of a training stay together on whatever device it runs, and what is kept is back on the CPU."
import numpy as np
import pytest
import torch

from pzsl_nb.estimator import CLIPPZSL
from pzsl_nb.methods import METHODS, method_settings
from second_device import Far, second_device
from small_world import BY_HAND, World, estimator

W = World()
ATTRIBUTES = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))


def test_the_stand_in_is_as_strict_as_a_gpu():
    near, rows = torch.arange(6.).view(3, 2), torch.tensor([2, 0])
    with second_device():
        far = near.to("cuda")
        assert isinstance(far, Far) and far.device.type == "cuda" and (far + 1).device.type == "cuda"
        assert far[rows].tolist() == far[rows.to("cuda")].tolist() == near[rows].tolist()
        for mixed in (lambda: far + near, lambda: near @ far.T, lambda: near[rows.to("cuda")], lambda: far.index_select(0, rows),
                      lambda: torch.cat([near, far]), lambda: far.index_put_((rows,), near[:2])):
            with pytest.raises(RuntimeError, match="all tensors to be on the same device"): mixed()
        far[0] = 7.
        assert type(far.cpu()) is torch.Tensor and far.cpu().tolist() == [[7, 7], [2, 3], [4, 5]]
        leaf = torch.nn.Parameter(near.to("cuda"))
        (leaf.index_select(0, rows.to("cuda"))**2).sum().backward()
        assert leaf.grad.device.type == "cuda" and leaf.grad.tolist() == [[0, 2], [0, 0], [8, 10]]
    with pytest.raises((RuntimeError, AssertionError)): near.to("cuda:7")   # outside it is gone


def both(tmp_path, attributes=None, **settings):
    "The same training on the CPU and on the second device."
    def fit(device):
        est = estimator(device=device, **({"epochs": 2} | settings))
        return est.fit(W.x, W.sets, W.t, seen=W.seen, attributes=attributes, checkpoint=tmp_path/f"{device}.safetensors")
    near = fit("cpu")
    with second_device(): far = fit("cuda")
    return near, far


def assert_alike(near, far, tmp_path):
    torch.testing.assert_close(far.beliefs_, near.beliefs_, atol=1e-3, rtol=0)
    kept = [*far.model_.state_dict().values(), far.beliefs_, far.coverage_, far.candidates_.indices, far.seen_]
    assert all(type(value.data) is torch.Tensor for value in kept)
    loaded = CLIPPZSL.load(tmp_path/"cuda.safetensors", architecture=far.architecture)
    assert (loaded.predict(W.x_test) == far.predict(W.x_test)).all()
    np.testing.assert_allclose(far.predict_proba(W.x_test), near.predict_proba(W.x_test), atol=2e-2)


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name, tmp_path):
    attributes = ATTRIBUTES if name in ("eszsl", "attribute-map") else None
    assert_alike(*both(tmp_path, attributes, **{**method_settings(name), **BY_HAND}), tmp_path)


@pytest.mark.parametrize("settings", [{}, {"negatives": 2, "batch_size": 2}, {"start": "clip"}, {"start": "uniform"},
                                      {"anchor": 1.}, {"anchor": .5}, {"start": "clip", "anchor": .5}], ids=lambda settings: ",".join(settings) or "default")
def test_ours_with_evidence_and_rehearsal(settings, tmp_path):
    assert_alike(*both(tmp_path, **settings), tmp_path)


def test_inputs_that_are_on_the_device():
    near = estimator(**BY_HAND, device="cpu").fit(W.x, W.sets, W.t, seen=W.seen)
    with second_device():
        mask = W.sets.to_mask().to("cuda")
        for sets in (W.sets.to("cuda"), mask):
            far = estimator(**BY_HAND, device="cuda").fit(W.x.to("cuda"), sets, W.t, seen=W.seen)
            assert (far.predict(W.x_test.to("cuda")) == far.predict(W.x_test)).all()
            p = far.predict_proba(W.x_test.to("cuda"))
    np.testing.assert_allclose(p, near.predict_proba(W.x_test), atol=2e-2)


def test_images_go_to_the_device_once():
    big, went = World(per_class=40), []
    with second_device():
        real = torch.Tensor.to
        def to(self, *where, **more):
            whole = self.device.type == "cpu" and self.shape == big.x.shape
            if whole and where[0] != "meta": went.append(where)   # "meta" is the stand-in's own doing
            return real(self, *where, **more)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "to", to)
            estimator(device="cuda").fit(big.x, big.sets, big.t, seen=big.seen)
    assert len(went) == 1, went


def test_the_random_state_of_gpus_is_left_alone(monkeypatch):
    asked = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", asked.append)
    estimator(**BY_HAND, device="cpu").fit(W.x, W.sets, W.t, seen=W.seen)
    assert not asked

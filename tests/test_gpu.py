"On a GPU layers run in bfloat16: nearly what the CPU finds, and everything that is kept is back on the CPU."
import pytest
import torch

from pzsl_nb.estimator import CLIPPZSL
from pzsl_nb.metrics import gzsl_metrics
from small_world import BY_HAND, World, estimator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")


@pytest.mark.parametrize("settings", [BY_HAND, {}], ids=["by hand", "rehearsed"])
def test_cuda_and_cpu_agree(tmp_path, settings):
    w = World(12, 6, 40)
    fitted = {device: estimator(device=device, **settings).fit(w.x, w.sets, w.t, checkpoint=tmp_path/device)
              for device in ("cpu", "cuda")}
    H = {name: gzsl_metrics(est.top_scores(w.x_test), w.y_test, w.seen, est.choice_.gamma)["H"]
         for name, est in fitted.items()}
    assert abs(H["cpu"] - H["cuda"]) < .1
    assert all(value.device.type == "cpu" for value in fitted["cuda"].model_.state_dict().values())
    assert fitted["cuda"].beliefs_.device.type == fitted["cuda"].candidates_.indices.device.type == "cpu"
    if settings:   # the same choice, so that numbers can be compared one by one
        torch.testing.assert_close(fitted["cuda"].beliefs_, fitted["cpu"].beliefs_, atol=.1, rtol=0)
    loaded = CLIPPZSL.load(tmp_path/"cuda")
    assert (loaded.predict(w.x_test) == fitted["cuda"].predict(w.x_test)).all()


def test_frozen_clip_has_all_its_digits_on_cuda():
    w = World()
    est = estimator(device="cuda", epochs=0).fit(w.x, w.sets, w.t)
    expected = (20*w.x_test @ w.t.T).double().softmax(1)
    torch.testing.assert_close(torch.tensor(est.predict_proba(w.x_test)), expected, atol=1e-5, rtol=0)

"Loading, extraction and cache where they meet bad input or odd files."
import contextlib
import json
import shutil

import numpy as np
import open_clip
import pandas
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pzsl_nb.core import PZSLError
from pzsl_nb.encoders import EMBEDDED, label_features, load_encoder
from pzsl_nb.extract import extract_features, extract_label_features, image_key
from pzsl_nb.shapes import render

WEIGHTS = EMBEDDED / "open_clip_model.safetensors"
# the architecture of the embedded CLIP under the standard vocabulary, so that open_clip can know it by a name
TINY = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}}


@pytest.fixture(scope="module")
def encoder(): return load_encoder(device="cpu")


@pytest.fixture
def folder(tmp_path):
    "A copy of the embedded CLIP that a test may damage."
    return shutil.copytree(EMBEDDED, tmp_path / "clip")


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    "A tiny architecture registered with open_clip, and a file of weights for it."
    home = tmp_path_factory.mktemp("named")
    (home / "ViT-tiny-test.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(home)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-tiny-test").state_dict(), home / "weights.pt")
    return home / "weights.pt"


def test_architecture_by_name_with_a_file(named):
    as_pretrained = load_encoder("ViT-tiny-test", str(named), device="cpu")
    as_weights = load_encoder("ViT-tiny-test", weights=named, device="cpu")
    assert as_pretrained.fingerprint == as_weights.fingerprint
    x = extract_features(as_weights, [Image.new("RGB", (50, 40), "red")], dtype=torch.float32, progress=False).features
    t = label_features(as_weights, ["red thing", "blue thing"])
    assert x.shape == (1, 16) and t.shape == (2, 16)
    torch.testing.assert_close(torch.cat([x, t]).norm(dim=1), torch.ones(3))
    assert not as_weights.model.training and not any(p.requires_grad for p in as_weights.model.parameters())


def test_file_for_another_architecture(named):
    with pytest.raises(PZSLError, match="do not fit"): load_encoder("ViT-tiny-test", weights=WEIGHTS, device="cpu")


def test_file_that_is_no_file(named, tmp_path):
    with pytest.raises(PZSLError, match="no weights file"): load_encoder("ViT-tiny-test", weights=tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(PZSLError, match="cannot be read"): load_encoder("ViT-tiny-test", weights=tmp_path / "text.pt")


def test_names_that_are_not_there():
    with pytest.raises(PZSLError, match="no open_clip_config.json"): load_encoder("local-dir:nowhere")
    with pytest.raises(PZSLError, match="no such architecture"): load_encoder("hf-hub:somebody/something")
    with pytest.raises(PZSLError, match="brings its own weights"): load_encoder("embedded", "openai")
    with pytest.raises(PZSLError, match="device"): load_encoder(device="abacus")


def test_a_package_that_is_not_installed():
    "Said before anything is fetched."
    with contextlib.suppress(ImportError):
        import transformers; pytest.skip(f"transformers {transformers.__version__} is installed")
    with pytest.raises(PZSLError, match="pip install transformers"): load_encoder("ViT-B-16-SigLIP", "webli")


def test_names_of_any_kind(encoder):
    names = ["red star", "blue moon"]
    for given in (np.array(names), pandas.Series(names), [[name] for name in names]):
        assert torch.equal(label_features(encoder, given), label_features(encoder, names))


@pytest.mark.parametrize("names", ["red star", [], [""], [["red star", 3]], [1, 2], ["a", None], iter(["a"])])
def test_names_that_are_no_names(encoder, names):
    with pytest.raises(PZSLError, match="class names"): label_features(encoder, names)


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_truncated_weights(folder, size):
    (folder / WEIGHTS.name).write_bytes(WEIGHTS.read_bytes()[:size])
    with pytest.raises(PZSLError, match="cannot be read or do not fit"):
        load_encoder(f"local-dir:{folder}", device="cpu")


def test_folder_without_weights(folder):
    "open_clip would go on with random weights."
    (folder / WEIGHTS.name).unlink()
    with pytest.raises(PZSLError): load_encoder(f"local-dir:{folder}", device="cpu")


def test_broken_configuration(folder):
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(PZSLError): load_encoder(f"local-dir:{folder}", device="cpu")


def test_fingerprint_sees_what_weights_do_not_show(folder, encoder):
    "The activation function and the number of heads leave the weights as they are."
    config = json.loads((folder / "open_clip_config.json").read_text())
    prints = {encoder.fingerprint}
    for change in ({"quick_gelu": True}, {"vision_cfg": {**config["model_cfg"]["vision_cfg"], "head_width": 32}}):
        other = {**config, "model_cfg": {**config["model_cfg"], **change}}
        (folder / "open_clip_config.json").write_text(json.dumps(other))
        prints.add(load_encoder(f"local-dir:{folder}", device="cpu").fingerprint)
    assert len(prints) == 3


def test_another_vocabulary_is_another_key(folder, encoder, tmp_path):
    "Same weights, same words, other tokens: the cached label features must not be used."
    other = load_encoder(f"local-dir:{folder}", device="cpu")
    other.tokenizer.encoder = {**other.tokenizer.encoder, "star</w>": other.tokenizer.encoder["ring</w>"]}
    cache = tmp_path / "cache"
    assert other.fingerprint == encoder.fingerprint
    a, b = (extract_label_features(e, ["red star"], cache_dir=cache) for e in (encoder, other))
    assert len(list(cache.iterdir())) == 2 and not torch.equal(a, b)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_pictures_of_every_mode(encoder, mode, tmp_path):
    image = Image.fromarray(render([(0, 0, 3)], seed=0, size=48)[0])
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    image.save(path := tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png"))
    x = extract_features(encoder, [path], progress=False).features
    assert x.shape == (1, 128) and x.isfinite().all()


def test_unreadable_pictures(encoder, tmp_path):
    good, cut = tmp_path / "good.png", tmp_path / "cut.png"
    Image.fromarray(render([(0, 0, 3)], seed=0)[0]).save(good)
    cut.write_bytes(good.read_bytes()[:300])
    with pytest.raises(PZSLError, match="image 1: .*cut.png"): extract_features(encoder, [good, cut], progress=False)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(PZSLError, match="image 1: .*gone.png: there is no such file"):
            extract_features(encoder, [good, tmp_path / "gone.png"], cache, progress=False)


@pytest.mark.parametrize("images", [[], np.zeros((0, 32, 32, 3), np.uint8), np.zeros((2, 3, 32, 32), np.uint8), [3, 4]])
def test_what_is_not_a_list_of_pictures(encoder, images):
    with pytest.raises(PZSLError, match="images"): extract_features(encoder, images, progress=False)


def test_a_failing_encoder_leaves_no_file(encoder, tmp_path):
    def explode(*_): raise RuntimeError("out of memory")
    broken = load_encoder(device="cpu")
    broken.model.encode_image = explode
    with pytest.raises(RuntimeError, match="out of memory"):
        extract_features(broken, render([(0, 0, 0)], seed=0), tmp_path, progress=False)
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {"lock"}


def test_key_tells_pictures_apart(encoder):
    "Colours and shape count, not the bytes alone; nor does it matter how the same colours are kept."
    flat, tall = Image.new("L", (8, 2)), Image.new("L", (2, 8))
    assert len({image_key(encoder, [i]) for i in (flat, tall, flat.convert("P"), flat.convert("RGB"))}) == 2
    a = render([(0, 0, 0), (1, 1, 1)], seed=0)
    assert image_key(encoder, a) != image_key(encoder, a[:1])


def test_weights_are_half_precision_and_small():
    tensors = load_file(WEIGHTS)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert sum(f.stat().st_size for f in EMBEDDED.iterdir()) < 5e6
    assert all(t.isfinite().all() for t in tensors.values())

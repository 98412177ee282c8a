"The ground: devices, whole files, JSON, and fingerprints that see every difference."
import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from pzsl_nb.core import (PZSLError, atomic_path, content_hash, listing, peak_memory_mb, pick_device, read_json,
                          read_npz, seed_everything, write_json)


def test_importing_it_does_not_import_torch_or_numpy():
    code = "import sys, pzsl_nb.core; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_seeds_reach_every_library():
    def draws(): return random.random(), np.random.rand(), float(torch.rand(()))
    seed_everything(3)
    first = draws()
    generator = seed_everything(np.int64(3))
    assert draws() == first and generator.initial_seed() == 3
    for bad in (-1, 2**32, 1.5, True, "3"):
        with pytest.raises(PZSLError, match="seed: "): seed_everything(bad)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:1", "cuda:99", "auto:0", "cuda:-1"])
def test_devices_that_do_not_exist_are_refused(name):
    with pytest.raises(PZSLError, match="device: "): pick_device(name)


def test_a_missing_gpu_is_an_error_and_not_the_cpu():
    if torch.cuda.is_available(): pytest.skip("this machine has a GPU")
    with pytest.raises(PZSLError, match="cuda is not available on this machine; use one of auto, "): pick_device("cuda")
    assert pick_device(torch.device("cpu")) == torch.device("cpu") and pick_device("cpu:0").type == "cpu"


def test_a_file_is_whole_or_absent(tmp_path):
    target = tmp_path / "deep" / "file.bin"
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        1/0
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".bin"
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole" and len(list(target.parent.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_a_plain_complaint(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PZSLError, match="its folder cannot be made"), atomic_path(tmp_path / "file" / "x.json"): pass


def test_json_keeps_names_of_files_that_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.png")
    write_json(tmp_path/"a.json", {name: [name, "\U0001f600 \\udce9"]})
    assert read_json(tmp_path/"a.json") == {name: [name, "\U0001f600 \\udce9"]}
    with pytest.raises(PZSLError, match="a.json.x: two of its keys are written alike"):
        write_json(tmp_path/"a.json", {"x": {1: "a", "1": "b"}})


def test_json_keeps_order_and_turns_what_is_not_finite_into_null(tmp_path):
    path = tmp_path / "result.json"
    value = {"z": np.float32(.5), "a": [math.nan, -math.inf, np.int64(3)], "t": torch.tensor(2.), "n": None,
             "b": np.bool_(True), "p": tmp_path, "u": "é"}
    write_json(path, value)
    assert list(json.loads(path.read_text("utf-8"))) == list(value) and "NaN" not in path.read_text("utf-8")
    assert read_json(path) == {"z": .5, "a": [None, None, 3], "t": 2., "n": None, "b": True,
                               "p": os.fspath(tmp_path), "u": "é"}
    with pytest.raises(PZSLError, match=r"result.json.deep\[0\]: a set has no place"): write_json(path, {"deep": [{1}]})
    assert read_json(path)["u"] == "é"   # the old file is untouched


@pytest.mark.parametrize("content", [b"", b"{", b"{\"a\": }", b"\xff\xfe\x00"])
def test_bad_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(PZSLError, match="bad.json: "): read_json(tmp_path / "bad.json")
    with pytest.raises(PZSLError, match="absent.json: no such file"): read_json(tmp_path / "absent.json")
    with pytest.raises(PZSLError, match="cannot be read"): read_json(tmp_path)


def test_npz_reads_what_is_asked_for(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.ones(2))
    assert list(read_npz(tmp_path / "a.npz", ["x"], ["z"])) == ["x"] and read_npz(tmp_path / "a.npz") == {}


def test_fingerprints_see_every_difference(tmp_path):
    file, folder = tmp_path / "one", tmp_path / "folder"
    folder.mkdir()
    for path in (file, folder / "one"): path.write_bytes(b"content")
    values = [0, 0., False, "0", b"0", None, -0., (), [], {}, "", b"", [[]], [()], ["a", "b"], ["ab"], ("a", "b"),
              {"a": "b"}, math.nan, math.inf, 2**70, file, folder, "content", b"content", np.array(["a"]),
              np.zeros(2), np.zeros((2, 1)), np.zeros((1, 2)), np.zeros(2, "f4"), np.zeros(2, "i8"),
              torch.zeros(2), torch.zeros(2).half(), torch.zeros(2).bfloat16(), torch.zeros(())]
    keys = [content_hash(value) for value in values]
    assert len(set(keys)) == len(keys) and all(len(key) == 64 for key in keys)
    assert len({content_hash(*parts) for parts in [(1, 2), (2, 1), ([1, 2],), ((1, 2),), (1, 2, None)]}) == 5


def test_fingerprints_see_nothing_but_content(tmp_path):
    grid = np.arange(6, dtype="<f4").reshape(2, 3)
    for same in (grid.astype(">f4"), np.asfortranarray(grid), grid[:, ::-1][:, ::-1]):
        assert content_hash(same) == content_hash(grid)
    tensor = torch.arange(6.).reshape(2, 3)
    for same in (tensor.T.contiguous().T, tensor.clone().requires_grad_()):
        assert content_hash(same) == content_hash(tensor)
    assert content_hash(np.float64(.5)) == content_hash(.5) and content_hash(np.int32(3)) == content_hash(3)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"1" * 3_000_000)
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "other")
    (tmp_path / "other" / "weights").write_bytes(b"1" * 2_999_999 + b"2")
    assert content_hash(tmp_path / "one") != content_hash(tmp_path / "other")


def test_fingerprints_are_the_same_in_every_process():
    code = "from pzsl_nb.core import content_hash; print(content_hash({'b': [1, 2.5, None], 'a': 'é'}, b'x', True))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env=os.environ | {"PYTHONHASHSEED": seed}).stdout.strip() for seed in ("1", "2")]
    assert runs[0] == runs[1] == content_hash({"a": "é", "b": [1, 2.5, None]}, b"x", True)


@pytest.mark.parametrize("value", [{1}, object(), np.array([None]), 1j, len])
def test_what_has_no_content_has_no_fingerprint(value):
    with pytest.raises(PZSLError, match="content_hash: "): content_hash(value)


def test_a_path_that_is_not_there_has_no_fingerprint(tmp_path):
    with pytest.raises(PZSLError, match="absent: cannot be read"): content_hash(tmp_path / "absent")


def test_lists_in_complaints_are_short():
    assert listing([]) == "" and listing("abcde") == "a, b, c, d, e" and listing("abcdef") == "a, b, c, d, e and 1 more"


def test_peak_memory_is_of_this_process_alone():
    code = "from pzsl_nb.core import peak_memory_mb; print(peak_memory_mb())"
    block = np.ones(2**24)   # 128 MiB here must not show there
    small = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak_memory_mb() > 128 and (math.isnan(small) or small < 100) and block[0] == 1

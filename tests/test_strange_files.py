"Files with anything in them: every loader gives a task or a PZSLError of one line, soon, and nothing else."
import json
import struct
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from pzsl_nb.core import PZSLError
from pzsl_nb.features_files import load_features_npz, load_features_safetensors
from pzsl_nb.matlab_files import load_pll, load_xlsa17, with_attribute_features
from pzsl_nb.task import CandidateSets
from test_matlab_files import benchmark, faces, mat, packed, piece, table

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def strange_arrays():
    "Arrays of any kind, small, with values from the edges of their kind."
    kinds = st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u2", "u8", "?", "c8", "U3", "S2", "M8[s]"])
    shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple) | st.sampled_from([(24,), (24, 5), (6,), (6, 5), (25,)])
    return st.tuples(kinds, shapes, st.integers(0, 2**32 - 1)).map(lambda form: strange_array(*form))


def strange_array(kind, shape, seed):
    rng = np.random.default_rng(seed)
    if kind[0] in "?M": return rng.integers(0, 2, shape).astype(kind)
    edges = {"f": [0, 1, -1, .5, 5, 24, np.nan, np.inf, -np.inf], "c": [0, 1j, np.nan], "U": ["", "a", "b\n", "cat"],
             "S": [b"", b"a", b"\xff", b"cat"]}.get(kind[0], [0, 1, 2, 5, 6, 24])
    if kind[0] in "iu": edges = [*edges, np.iinfo(kind).max, np.iinfo(kind).min]
    if kind[0] == "f": edges = [*edges, np.finfo(kind).max, np.finfo(kind).tiny]
    return np.array(edges, dtype=kind)[rng.integers(0, len(edges), shape)]


def features_file(seed=0):
    "The arrays of a sound feature file with everything in it."
    rng, y = np.random.default_rng(seed), np.arange(6).repeat(4)
    x, sets = rng.normal(size=(24, 5)), np.stack([y % 4, (y + 1) % 4], 1)
    return {"X_train": x.astype("f4"), "y_train": y, "X_test": x.astype("f2"), "y_test": y, "X_val": x, "y_val": y,
            "text": rng.normal(size=(6, 5)).astype("f4"), "unseen": np.arange(6) >= 4, "superclass": np.arange(6) % 2,
            "logit_scale": np.float64(10.), "attributes": rng.random((6, 3)), "candidates_indptr": np.arange(0, 49, 2),
            "candidates_indices": sets.ravel()}


def loads_or_says(load, *args):
    "A task, or a PZSLError of one line; no warnings, and within seconds."
    begin = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = load(*args)
    except PZSLError as error:
        assert "\n" not in str(error) and ": " in str(error), str(error)
        found = None
    assert time.monotonic() - begin < 5
    return found


def write_safetensors(path, arrays, metadata=None):
    codes = {"f2": "F16", "f4": "F32", "f8": "F64", "i1": "I8", "i4": "I32", "i8": "I64", "u1": "U8", "u2": "U16",
             "u8": "U64", "b1": "BOOL", "c8": "C64"}
    header, body = {} if metadata is None else {"__metadata__": metadata}, b""
    for key, array in arrays.items():
        if array.dtype.str[1:] not in codes: continue
        header[key] = {"dtype": codes[array.dtype.str[1:]], "shape": array.shape,
                       "data_offsets": [len(body), len(body) + array.nbytes]}
        body += array.tobytes()
    text = json.dumps(header).encode()
    text += b" "*(-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


changes_of = lambda keys: st.dictionaries(st.sampled_from(sorted(keys)), strange_arrays() | st.none(), max_size=3)


def changed(arrays, changes):
    return {key: value for key, value in (arrays | changes).items() if value is not None}


@quick
@given(changes_of([*features_file(), "names", "image_ids", "notes"]))
def test_strange_feature_files(tmp_path, changes):
    arrays = changed(features_file(), changes)
    np.savez(tmp_path / "a.npz", **arrays)
    task = loads_or_says(load_features_npz, tmp_path / "a.npz")
    assert task is not None or changes
    other = loads_or_says(load_features_safetensors, write_safetensors(tmp_path / "a.safetensors", arrays))
    if all(array.dtype.kind not in "USM" and key in features_file() for key, array in arrays.items()):
        assert (task is None) == (other is None)
        if task is not None:
            torch.testing.assert_close(task.features, other.features.float())
            assert task.facts() == other.facts()


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(values, lambda inner: st.lists(inner, max_size=3)
                        | st.dictionaries(st.text(max_size=3), inner, max_size=3))


@quick
@given(st.dictionaries(st.sampled_from(["names", "image_ids", "test_ids", "notes", "other"]),
                       anything | st.lists(st.text(max_size=3), min_size=6, max_size=6), max_size=3)
       | anything | st.sampled_from(["[" * 100_000, '{"names": ["\\ud800", "b", "c", "d", "e", "f"]}']))
def test_strange_texts_in_safetensors(tmp_path, texts):
    text = texts if isinstance(texts, str) else json.dumps(texts)
    path = write_safetensors(tmp_path / "a.safetensors", features_file(), {"pzsl": text})
    task = loads_or_says(load_features_safetensors, path)
    if task is not None: repr(task).encode()


entries = st.fixed_dictionaries({"dtype": st.sampled_from(["F16", "F8_E4M3", "BF16", "I64", "F99"]),
                                 "shape": st.lists(st.integers(-1, 2**62), max_size=3),
                                 "data_offsets": st.lists(st.integers(-1, 2**63), min_size=2, max_size=2)})


@quick
@given(st.dictionaries(st.sampled_from(["X_train", "text", "__metadata__", "x"]), anything | entries, max_size=4),
       st.binary(max_size=64), st.none() | st.integers(0, 2**64 - 1))
def test_strange_headers_of_safetensors(tmp_path, header, body, length):
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    assert loads_or_says(load_features_safetensors, tmp_path / "a.safetensors") is None


def writers(tmp_path):
    "A sound file of each kind, and how it is loaded."
    arrays, (table_, lists) = features_file(), benchmark()
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    write_safetensors(tmp_path / "a.safetensors", arrays, {"pzsl": json.dumps({"names": list("abcdef")})})
    savemat(tmp_path / "faces.mat", faces())
    savemat(tmp_path / "packed.mat", faces(), do_compression=True)
    savemat(tmp_path / "att_splits.mat", lists)
    savemat(tmp_path / "res101.mat", table_, do_compression=True)
    def folder(path): return load_xlsa17(path.parent)
    return {"a.npz": load_features_npz, "b.npz": load_features_npz, "a.safetensors": load_features_safetensors,
            "faces.mat": load_pll, "packed.mat": load_pll, "att_splits.mat": folder, "res101.mat": folder}


accidents = st.sampled_from(["flip", "cut", "insert", "drop", "zero", "ones"])
places = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), accidents, st.binary(min_size=1, max_size=8)),
                  min_size=1, max_size=4)


def damaged(content, places):
    content = bytearray(content)
    for place, how, extra in places:
        at = int(place*len(content))
        if not content: break
        if how == "flip": content[at] ^= extra[0] or 1
        elif how == "cut": del content[at:]
        elif how == "insert": content[at:at] = extra
        elif how == "drop": del content[at:at + len(extra)]
        else: content[at:at + 4] = (b"\0" if how == "zero" else b"\xff")*len(content[at:at + 4])
    return bytes(content)


@pytest.mark.parametrize("name", ["a.npz", "b.npz", "a.safetensors", "faces.mat", "packed.mat", "att_splits.mat",
                                  "res101.mat"])
def test_damaged_files(tmp_path, name):
    load = writers(tmp_path)[name]
    whole = (tmp_path / name).read_bytes()
    assert load(tmp_path / name) is not None

    @quick
    @given(places)
    def check(places):
        (tmp_path / name).unlink()   # mapped arrays of the last one keep their file
        (tmp_path / name).write_bytes(damaged(whole, places))
        loads_or_says(load, tmp_path / name)
    check()


kinds = st.sampled_from([1, 2, 5, 6, 9, 13, 14, 15, 16, 17, 99])
elements = st.recursive(
    st.builds(piece, kinds, st.binary(max_size=24)),
    lambda inner: st.lists(inner, max_size=4).map(lambda parts: piece(14, b"".join(parts)))
    | st.lists(inner, max_size=3).map(lambda parts: packed(b"".join(parts))), max_leaves=12)
sizes = st.sampled_from([-2**31, -1, 0, 1, 2, 3, 2**31 - 1])
tables = st.builds(table, st.sampled_from([b"features", b"p_labels", b"logitlabels", b"tr", b"te"]),
                   st.tuples(sizes, sizes), st.none() | st.binary(max_size=48), st.integers(0, 20),
                   st.sampled_from([1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14, 16, 17, 18]))


@quick
@given(st.lists(elements | tables | tables.map(packed), max_size=6), st.sampled_from(["<", ">"]))
def test_strange_elements_of_matlab_files(tmp_path, parts, order):
    (tmp_path / "a.mat").unlink(missing_ok=True)
    loads_or_says(load_pll, mat(tmp_path / "a.mat", *parts, order=order))


def for_matlab(changes):
    return {key: value.astype("i8") if value is not None and value.dtype.kind == "M" else value
            for key, value in changes.items()}


@quick
@given(changes_of(faces()), st.integers(-1, 5))
def test_strange_partial_labels(tmp_path, changes, fold):
    (tmp_path / "a.mat").unlink(missing_ok=True)
    savemat(tmp_path / "a.mat", changed(faces(), for_matlab(changes)))
    assert loads_or_says(load_pll, tmp_path / "a.mat", fold) is not None or changes or not 0 <= fold < 5


@quick
@given(changes_of(benchmark()[0]), changes_of(benchmark()[1]))
def test_strange_benchmarks(tmp_path, features, splits):
    for name, arrays, changes in zip(("res101.mat", "att_splits.mat"), benchmark(), (features, splits)):
        (tmp_path / name).unlink(missing_ok=True)
        savemat(tmp_path / name, changed(arrays, for_matlab(changes)))
    task = loads_or_says(load_xlsa17, tmp_path)
    assert task is not None or features or splits
    if task is not None:
        sets = CandidateSets.from_pairs(torch.arange(len(task.labels)), task.labels, len(task.labels), task.n_classes)
        loads_or_says(with_attribute_features, task, sets)

"Grids of runs: what stops goes on, nothing is run twice, and a file that holds something else is refused."
import dataclasses
import json
import math
import subprocess
import sys

import pytest

from pzsl_nb.core import PZSLError
from pzsl_nb.experiment import Config, Outcome
from pzsl_nb.grid import ABLATIONS, data_note, read_grid, read_rows, run_ablation, run_grid
from small_world import Stop


class Runs(list):
    "Stands for `run_experiment`: takes no time, notes what it was asked for, and fails for one seed while told to."
    fails = None

    def __call__(self, config, **more):
        if config.seed == self.fails: raise Stop
        self.append(config)
        return Outcome(config, None, None, {"metrics": {"H": config.seed/7}, "zero_shot": {"U": math.nan}}, {})


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.setattr("pzsl_nb.grid.run_experiment", made := Runs())
    return made


def test_a_grid_goes_on_and_never_repeats(runs, tmp_path):
    configs, path = [Config(seed=seed) for seed in (3, 1, 13, 2, 1)], tmp_path/"rows.jsonl"
    def grid(wanted=configs, **more): return run_grid(wanted, path, progress=False, **more)
    runs.fails = 13
    with pytest.raises(Stop): grid()
    assert runs == configs[:2] and len(path.read_text().splitlines()) == 2
    runs.fails = None
    rows = grid()
    assert runs == configs[:4]   # the last one is the second again
    assert [row["config"]["seed"] for row in rows] == [3, 1, 13, 2, 1] and rows[1] == rows[4]
    content = path.read_bytes()
    assert grid() == rows and grid(configs[::-1]) == rows[::-1] and path.read_bytes() == content and len(runs) == 4
    grid(configs[:1], notes=[{"variant": "other"}])   # the same configuration under another name is another row
    assert len(runs) == 5 and grid([dataclasses.replace(configs[0], lr=1e-4)]) and len(runs) == 6
    assert "NaN" not in path.read_text() and rows[0]["zero_shot"]["U"] is None


def test_a_grid_without_a_file(runs, tmp_path):
    rows = run_grid([Config(seed=1), Config(seed=1), Config(start="clip")], progress=False)
    assert len(runs) == 2 and len(rows) == 3 and not list(tmp_path.iterdir())


def test_a_grid_that_stopped_in_the_middle_of_a_line(runs, tmp_path):
    path = tmp_path/"rows.jsonl"
    run_grid([Config(seed=1), Config(seed=2)], path, progress=False)
    path.write_text(path.read_text()[:-30])
    run_grid([Config(seed=1), Config(seed=2), Config(seed=3)], path, progress=False)
    assert [config.seed for config in runs] == [1, 2, 2, 3]
    assert [json.loads(line)["config"]["seed"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_row_of_another_version(runs, tmp_path):
    path = tmp_path/"rows.jsonl"
    run_grid([Config(seed=1), Config(seed=2)], path, progress=False)
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + second.replace('"epochs"', '"momentum": 0.1, "epochs"') + "\n")
    with pytest.raises(PZSLError, match=r"rows.jsonl, row 2: another version.*'momentum'.*choose another place"):
        run_grid([Config(seed=1), Config(seed=2)], path, progress=False)


def test_a_grid_that_stopped_behind_a_brace(runs, tmp_path):
    path = tmp_path/"rows.jsonl"
    run_grid([Config(seed=1), Config(seed=2)], path, progress=False)
    path.write_text(path.read_text().rstrip()[:-1].rsplit("}", 1)[0] + "}")
    for _ in range(2): run_grid([Config(seed=1), Config(seed=2)], path, progress=False)
    assert [config.seed for config in runs] == [1, 2, 2]   # the broken row once more, and then nothing
    assert [json.loads(line)["config"]["seed"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_line_in_the_middle_that_is_no_json(runs, tmp_path):
    path = tmp_path/"rows.jsonl"
    run_grid([Config(seed=1)], path, progress=False)
    path.write_text("{cut\n" + path.read_text())
    with pytest.raises(PZSLError, match="rows.jsonl: line 1 is not JSON"):
        run_grid([Config(seed=1)], path, progress=False)


@pytest.mark.parametrize("content", [b'{"a": 1}\n', b"[1]\n", b"3\n", b"\xff\xfe\n"])
def test_a_file_that_holds_something_else(runs, tmp_path, content):
    (tmp_path/"rows.jsonl").write_bytes(content)
    with pytest.raises(PZSLError, match="rows.jsonl"): run_grid([Config(seed=1)], tmp_path/"rows.jsonl", progress=False)


def test_an_ablation_changes_one_thing(runs, tmp_path):
    rows = run_ablation(Config(lr=.5), [1, 2], tmp_path/"rows.jsonl", progress=False)
    assert len(runs) == 2*len(ABLATIONS) and len(rows) == 2*len(ABLATIONS) + 2
    assert runs == [Config(lr=.5, seed=seed, **variant) for seed in (1, 2) for variant in ABLATIONS.values()]
    with pytest.raises(PZSLError, match="'no mine'|no mine"): run_ablation(Config(), [1], variants=["no mine"])


def test_every_run_has_its_note():
    with pytest.raises(PZSLError, match="1 notes for 2 runs"): read_grid([Config(), Config(seed=1)], "none.jsonl", [{}])
    with pytest.raises(PZSLError, match="3 notes for 1 runs"): run_grid([Config()], notes=[{}]*3, progress=False)


def test_rows_of_a_file_that_was_replaced_are_made_again(runs, tmp_path):
    "An ablation that goes on with other data under the same name would have one mean of both."
    file, path = tmp_path/"birds.npz", tmp_path/"rows.jsonl"
    file.write_bytes(b"old")
    config, two = Config(data=f"npz:{file}"), ["full", "no mining"]
    run_ablation(config, [0], path, variants=two, progress=False)
    run_ablation(config, [0, 1], path, variants=two, progress=False)
    assert len(runs) == 4
    file.write_bytes(b"new")
    with pytest.warns(UserWarning, match="holds 4 rows of the same runs on data that have changed"):
        run_ablation(config, [0, 1], path, variants=two, progress=False)
    assert len(runs) == 8 and len({row["notes"]["sha256"] for row in read_rows(path)}) == 2


def test_a_file_that_is_replaced_meanwhile(monkeypatch, tmp_path):
    "The rows before are kept, the one that may be of either file is not written, and the next call goes on."
    file, path = tmp_path/"birds.npz", tmp_path/"rows.jsonl"
    file.write_bytes(b"old")
    configs = [Config(data=f"npz:{file}", seed=seed) for seed in range(3)]
    events = {0: file.touch, 1: lambda: file.write_bytes(b"new"), 2: file.unlink}   # touched: another time, the same bytes

    class Meanwhile(Runs):
        def __call__(self, config, **more):
            if not len(self) > 1: events[config.seed]()
            return super().__call__(config, **more)
    monkeypatch.setattr("pzsl_nb.grid.run_experiment", made := Meanwhile())
    with pytest.raises(PZSLError, match=r"birds.npz: was replaced while runs were reading it; rows of the old file are kept"):
        run_grid(configs, path, notes=[data_note(configs[0].data)]*3, progress=False)
    assert [row["config"]["seed"] for row in read_rows(path)] == [0] and len(made) == 2
    rows = run_grid(configs, path, notes=[data_note(configs[0].data)]*3, progress=False)
    assert len({row["notes"]["sha256"] for row in rows}) == 1 and len(read_rows(path)) == 4
    made.clear()
    with pytest.raises(PZSLError, match="birds.npz: was replaced"):
        run_grid([dataclasses.replace(configs[2], lr=.5)], path, notes=[data_note(configs[0].data)], progress=False)
    assert data_note("shapes") == data_note(f"folder:{tmp_path}") == {}


def test_a_place_that_cannot_be_written_to_is_told_before_a_run(runs, tmp_path):
    (tmp_path/"file").touch()
    with pytest.raises(PZSLError, match="file: the folder cannot be made"):
        run_grid([Config()], tmp_path/"file"/"rows.jsonl", progress=False)
    with pytest.raises(PZSLError, match="file: the folder cannot be made"):
        run_grid([Config()], errors=tmp_path/"file"/"errors.jsonl", progress=False)
    assert not runs
    run_grid([Config()], errors=tmp_path/"new"/"errors.jsonl", progress=False)
    assert (tmp_path/"new").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="signals have no masks there")
def test_ctrl_c_stays_away_from_processes_that_are_being_started():
    "Python's tracker of resources, which the first process starts, lets Ctrl-C through again."
    program = """if True:
        import signal
        from multiprocessing import resource_tracker
        from pzsl_nb.grid import _ctrl_c_waits
        with _ctrl_c_waits():
            resource_tracker.ensure_running()
            assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:
            with _ctrl_c_waits():
                signal.raise_signal(signal.SIGINT)
                raise EOFError("the process that was being started is gone")
        except KeyboardInterrupt: print("told as what it is")"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout == "told as what it is\n", ended.stderr

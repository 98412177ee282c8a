"""`pzsl compare` with real processes: kills, failures, half lines; and its tables against numbers made otherwise."""
import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from pzsl_nb import comparison, grid
from pzsl_nb.compare import (compare_table, long_table, missing_text, overall_text, paired_values, plot_curves, plot_levels,
                             rank_table, runs_table, setting_tables, write_comparison)
from pzsl_nb.comparison import Comparison, comparison_configs
from pzsl_nb.core import PZSLError
from pzsl_nb.experiment import Config
from pzsl_nb.grid import _ctrl_c_waits, read_grid, run_grid
from pzsl_nb.report import write_report
from small_world import World

RULES, METHODS = ("uniform:0.2", "uniform:0.5"), ("zero-shot", "cc", "proden", "supervised")
WORDS = ["--data", "npz:birds.npz", "--candidates", RULES[0], "--candidates", RULES[1], "--methods", ",".join(METHODS),
         "--seeds", "2", "--set", "epochs=2", "--set", "trust=1", "--set", "gamma=0",
         "--set", "lr=0.05", "--set", "inner=8", "--set", "heads=2", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Where a small world lies."
    place, world = tmp_path_factory.mktemp("compare"), World()
    np.savez(place/"birds.npz", X_train=world.x, y_train=world.y, X_test=world.x_test, y_test=world.y_test, text=world.t,
             unseen=~world.seen.numpy(), names=[f"bird {c}" for c in range(len(world.t))], logit_scale=20.)
    return place


def begin(folder, *words, **more):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PZSL_CACHE": str(folder/"cache")}
    return subprocess.Popen([sys.executable, "-m", "pzsl_nb.cli", "compare", *words], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def pzsl(folder, *words):
    process = begin(folder, *words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def lines(path): return path.read_text().splitlines() if path.exists() else []


def read_rows(out): return [json.loads(line) for line in lines(out/"results.jsonl")]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(.02)


def asked(row): return row["config"]["candidates"], row["config"]["method"], row["config"]["seed"]


@pytest.fixture(scope="module")
def done(folder):
    "A comparison that was killed in the middle of its first half, and then finished."
    out, process = folder/"out", begin(folder, *WORDS, "--out", "out", "--jobs", "2")
    wait_for(lambda: len(lines(out/"results.jsonl")) >= 3 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = (out/"results.jsonl").read_bytes()
    assert 3 <= before.count(b"\n") < 16, "the grid was faster than the kill"
    (out/"results.jsonl").write_bytes(before + before.splitlines()[0][:200])   # and the power went in the middle of a line
    code, text, err = pzsl(folder, *WORDS, "--out", "out")
    assert code == 0, err
    return out, before, text


def test_a_kill_neither_repeats_nor_loses_a_row(done):
    out, before, _ = done
    assert (out/"results.jsonl").read_bytes().startswith(before)
    rows = read_rows(out)
    assert sorted(map(asked, rows)) == sorted((rule, method, seed) for rule in RULES for method in METHODS for seed in (0, 1))
    assert not (out/"errors.jsonl").exists()


def test_a_row_tells_how_it_was_made(done):
    rows = read_rows(done[0])
    for row in rows:
        assert row["versions"]["threads"] == 1 and row["versions"]["device"] == "cpu" and row["versions"]["torch"]
        assert Config.from_dict(row["config"]).plain() == row["config"] and row["peak_memory_mb"] > 50
        u, s = row["curve"]["U"], row["curve"]["S"]
        assert len(u) == len(s) <= 41 and u == sorted(u) and s == sorted(s, reverse=True) and u[0] == s[-1] == 0
        assert np.trapezoid(s, u) == pytest.approx(row["metrics"]["ausuc"], abs=.01)
        assert u[-1] == pytest.approx(row["metrics"]["T1"], abs=1e-4)


def test_what_is_there_is_not_run_but_drawn(done, folder):
    out, _, text = done
    content, table = (out/"results.jsonl").read_bytes(), (out/"table.txt").read_text()
    (out/"table.txt").unlink()
    (out/"figures"/"levels_H.png").unlink()
    code, again, err = pzsl(folder, "out/compare.yaml", "--out", "out")
    assert code == 0, err
    assert again == text and (out/"results.jsonl").read_bytes() == content and (out/"table.txt").read_text() == table
    assert (out/"figures"/"levels_H.png").read_bytes()[:4] == b"\x89PNG"
    assert not (out/"figures"/"ranks.png").exists() and "three settings" in err   # two settings are no ranking


def test_a_kill_while_a_file_is_written_does_not_lock_the_folder(done, folder):
    out = done[0]
    for name in (".compare.4aec00000000.yaml", ".table.0123456789ab.txt"): (out/name).write_text("half")
    content = (out/"results.jsonl").read_bytes()
    code, _, err = pzsl(folder, *WORDS, "--out", "out")
    assert code == 0 and (out/"results.jsonl").read_bytes() == content, err
    assert [path.name for path in out.glob(".*")] == [".lock"]
    (out/"thesis.tex").touch()
    code, _, err = pzsl(folder, *WORDS, "--out", "out", "--force")
    (out/"thesis.tex").unlink()
    assert code == 1 and "holds thesis.tex" in err and (out/"results.jsonl").read_bytes() == content


def test_a_command_that_cannot_work_forces_nothing_away(done, folder):
    out, content = done[0], (done[0]/"results.jsonl").read_bytes()
    for words in (["--data", "nowhere.npz"], ["--data", "npz:birds.npz", "--candidates", "given"]):
        assert pzsl(folder, *words, "--out", "out", "--force", "--device", "cpu")[0] == 1
        assert (out/"results.jsonl").read_bytes() == content and (out/"table.txt").exists()


def test_force_makes_everything_anew(folder):
    words = ["--data", "npz:birds.npz", "--candidates", RULES[0], "--methods", "zero-shot,cc", "--seeds", "1", "--set", "trust=1",
             "--set", "gamma=0", "--device", "cpu", "--out", "anew"]
    assert pzsl(folder, *words, "--set", "epochs=1")[0] == 0
    (folder/"anew"/"report.html").write_text("about the old rows")
    before = {path.name: path.stat().st_mtime_ns for path in (folder/"anew").glob("table.*")}
    code, _, err = pzsl(folder, *words, "--set", "epochs=2", "--force")
    assert code == 0, err
    made = [json.loads(line) for line in lines(folder/"anew"/"results.jsonl")]
    assert len(made) == 2 and [row["config"]["epochs"] for row in made if row["method"] == "cc"] == [2]
    after = {path.name: path.stat().st_mtime_ns for path in (folder/"anew").glob("table.*")}
    assert after.keys() == before.keys() and all(after[name] > before[name] for name in after)
    assert not (folder/"anew"/"report.html").exists()


def test_two_commands_in_one_folder(done, folder):
    with comparison._alone(done[0]):
        code, _, err = pzsl(folder, *WORDS, "--out", "out")
    assert code == 1 and "another process is comparing" in err and err.count("\n") == 1


def test_data_that_are_replaced_get_new_rows(folder, tmp_path):
    words = ["--data", "birds.npz", "--methods", "zero-shot", "--methods", "cc", "--candidates", "uniform:.3", "--candidates",
             "uniform:0.30", "--seeds", "1", *WORDS[WORDS.index("--set"):], "--out", "out"]
    (tmp_path/"birds.npz").write_bytes((folder/"birds.npz").read_bytes())
    assert pzsl(tmp_path, *words)[0] == 0
    first = lines(tmp_path/"out"/"results.jsonl")
    assert len(first) == 2   # one rule in two spellings, two methods by two options
    world = World(seed=5)
    np.savez(tmp_path/"birds.npz", X_train=world.x, y_train=world.y, X_test=world.x_test, y_test=world.y_test, text=world.t,
             unseen=~world.seen.numpy(), names=[f"bird {c}" for c in range(len(world.t))], logit_scale=20.)
    code, text, err = pzsl(tmp_path, *words)
    assert code == 0 and "2 rows of the same runs on data files that have changed" in err, err
    then = lines(tmp_path/"out"/"results.jsonl")
    assert then[:2] == first and len(then) == 4
    value = 100*json.loads(then[2])["zero_shot"]["H"]
    assert json.loads(then[0])["zero_shot"]["H"] != json.loads(then[2])["zero_shot"]["H"] and f"{value:.1f}" in text
    assert pzsl(tmp_path, *words)[0] == 0 and lines(tmp_path/"out"/"results.jsonl") == then


def test_tables_parse(done):
    out = done[0]
    names = {"cc", "proden", "frozen CLIP", "clean labels (bound)"}
    with open(out/"table.csv", newline="") as file: found = list(csv.DictReader(file))
    assert {line["method"] for line in found} == set(METHODS) and {line["rule"] for line in found} == set(RULES)

    class Cells(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.texts, self.heads = [], [], []
        def handle_starttag(self, tag, _): self.open += [tag] if tag not in ("meta", "br") else []
        def handle_endtag(self, tag): assert self.open.pop() == tag
        def handle_data(self, text):
            self.texts += [text] if self.open[-1:] == ["td"] else []
            self.heads += [text] if self.open[-1:] == ["th"] else []
    cells = Cells()
    cells.feed((out/"table.html").read_text())
    cells.close()
    assert cells.open == [] and names < set(cells.texts)
    assert cells.heads.count("method") == len(list(setting_tables(read_rows(out)))) + 1 and "rule" not in cells.heads
    tex = (out/"table.tex").read_text()
    bodies = tex.split(r"\midrule")[1:]
    head = tex.split(r"\toprule")[1].split(r"\\")[0]
    assert len(bodies) > 4 and tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == len(bodies)
    first = [row for row in bodies[0].split(r"\bottomrule")[0].split(r"\\") if row.strip()]
    assert {row.count("&") for row in first} == {head.count("&")} and {row.split("&")[0].strip() for row in first} == names
    table = [line for line in lines(out/"table.md") if line.startswith("|")]
    assert len({line.count("|") for line in table[:6]}) == 1 and names == {line.split("|")[1].strip() for line in table[2:6]}


def test_numbers_of_the_tables(done):
    rows = read_rows(done[0])
    h = {asked(row): row["metrics"]["H"] for row in rows}
    for line in long_table(rows).query("measure == 'H'").to_dict("records"):
        a, b = ([h[line["rule"], method, seed] for seed in (0, 1)] for method in (line["method"], "zero-shot"))
        assert line["mean"] == pytest.approx(np.mean(a)) and line["n"] == 2
        low, high = stats.t.interval(.95, 1, np.mean(a), stats.sem(a) or 1.)
        assert [line["low"], line["high"]] == pytest.approx([low, high] if np.ptp(a) else a)
        assert line["frozen_p"] == pytest.approx(1. if a == b else stats.ttest_rel(a, b).pvalue)
    table = compare_table(rows)
    ranked = [method for method in METHODS if method != "supervised"]
    assert len(set(h.values())) > 7   # nothing is learned from methods that are all alike
    mean = {(rule, method): np.mean([h[rule, method, seed] for seed in (0, 1)]) for rule in RULES for method in METHODS}
    for method in ranked:
        place = [stats.rankdata([-mean[rule, m] for m in ranked])[ranked.index(method)] for rule in RULES]
        assert table.loc[method, "rank"] == pytest.approx(np.mean(place))
        d = np.array([h[rule, method, seed] - h[rule, "zero-shot", seed] for rule in RULES for seed in (0, 1)])
        assert table.loc[method, "frozen_mean"] == pytest.approx(d.mean(), abs=1e-12)
    assert np.isnan(table.loc["supervised", "rank"]) and table.index[-1] == "supervised" not in set(table["rival"])


def test_jobs_do_not_change_a_number(done, folder, monkeypatch):
    "One at a time in processes that are new interpreters, as on systems that cannot fork."
    monkeypatch.chdir(folder)
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    rows = read_rows(done[0])
    row = next(row for row in rows if row["config"]["method"] == "cc")
    again, = run_grid([Config.from_dict(row["config"])], jobs=1, device="cpu", progress=False)
    assert again["metrics"] == row["metrics"] and again["curve"] == row["curve"]


def test_ctrl_c_waits_also_where_another_thread_hears_it():
    "A bar has a thread, to which the signal may come; a process that is started meanwhile would find nothing to read."
    over, after, before = threading.Event(), [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=over.wait, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt), _ctrl_c_waits():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(.2)
            after.append("the block is complete")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)
    assert after


def test_ctrl_c_ends_everything_and_leaves_a_look(folder):
    process = begin(folder, *WORDS, "--out", "stopped", "--jobs", "1", start_new_session=True)
    wait_for(lambda: len(lines(folder/"stopped"/"results.jsonl")) >= 2 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)   # as a terminal does: to every process of the command
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "go on with: pzsl compare" in err and "Traceback" not in err
    assert (folder/"stopped"/"table.txt").exists()
    wait_for(lambda: not alive(process.pid), 20)


def alive(group): return [path for path in Path("/proc").glob("[0-9]*") if in_group(path, group)]


def in_group(path, group):
    "Is the process one of the group, and not dead already?"
    try: state, _, its_group = (path/"stat").read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError): return False
    return int(its_group) == group and state != "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="counts processes by /proc")
def test_no_run_outlives_its_command(folder):
    words = ["--data", "npz:birds.npz", "--methods", "cc", "--seeds", "1", "--set", "epochs=1000000", "--device", "cpu"]
    process = begin(folder, *words, "--set", "trust=1", "--set", "gamma=0", "--out", "orphan", start_new_session=True)
    try:
        def stay(): return len(alive(process.pid)) >= 4   # the command, tracker, fork server, run; others come and go
        wait_for(lambda: stay() and (time.sleep(1) or stay()) or process.poll() is not None)
        assert len(alive(process.pid)) >= 4
        process.kill()
        process.wait()
        wait_for(lambda: not alive(process.pid), 20)
    finally:
        if alive(process.pid): os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_run_that_fails_is_told_and_the_others_go_on(folder):
    words = ["--data", "npz:birds.npz", "--methods", "zero-shot,cc", "--seeds", "1", "--set", "epochs=2", "--set", "batch_size=7",
             "--set", "trust=1", "--set", "gamma=0", "--set", "heads=3",
             "--set", "inner=9", "--device", "cpu", "--candidates", "uniform:0.3", "--candidates", "hierarchical:0.3"]
    code, out, err = pzsl(folder, *words, "--out", "failing")   # the data have no superclasses
    assert code == 1 and "2 of 4 runs failed" in err and "birds-hierarchical-0.3-cc-0" in err and "errors.jsonl" in err
    errors = [json.loads(line) for line in lines(folder/"failing"/"errors.jsonl")]
    assert [error["config"]["candidates"] for error in errors] == ["hierarchical:0.3"]*2
    assert all("superclass" in error["error"] and "Traceback" in error["traceback"] for error in errors)
    assert len(lines(folder/"failing"/"results.jsonl")) == 2 and "frozen CLIP" in out


def test_a_run_whose_process_is_killed(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(folder)
    context = grid._context()
    monkeypatch.setattr(grid, "_context", lambda: Deadly(context))
    good, bad = (Config(data="npz:birds.npz", method="zero-shot", candidates="uss", seed=seed) for seed in (0, 1))
    rows = run_grid([bad, good], tmp_path/"rows.jsonl", jobs=1, errors=tmp_path/"e.jsonl", device="cpu", progress=False)
    assert rows[0] is None and rows[1]["config"] == good.plain() and read_grid([bad, good], tmp_path/"rows.jsonl") == rows
    assert "-9" in json.loads(lines(tmp_path/"e.jsonl")[0])["error"]
    with pytest.raises(PZSLError, match="birds-uss-zero-shot-1: the process"):
        run_grid([bad, good], tmp_path/"none.jsonl", jobs=1, device="cpu", progress=False)
    assert not (tmp_path/"none.jsonl").exists()


class Deadly:
    "A context whose processes of seed 1 are killed as soon as they are started."
    def __init__(self, context): self.context, self.Pipe = context, context.Pipe

    def Process(self, target, args, daemon):
        process = self.context.Process(target=target, args=args, daemon=daemon)
        return Killed(process) if args[1].seed == 1 else process


class Killed:
    def __init__(self, process): self.process = process
    def __getattr__(self, name): return getattr(self.process, name)

    def start(self):
        self.process.start()
        self.process.kill()


@pytest.mark.parametrize("words, told", [
    (["--methods", "cc,prodenn"], ["prodenn", "proden"]), (["--candidates", "unifrm:0.3"], ["unifrm", "uniform"]),
    (["--data", "npz:nowhere.npz"], ["nowhere.npz"]), (["--set", "epoch=3"], ["epoch", "epochs"]),
    (["--set", "seed=3"], ["seed=3"]), (["empty.yaml"], ["methods is empty"]), (["nothing.yaml"], ["nothing.yaml"]),
    (["typo.yaml"], ["typo.yaml", "method", "methods"]),
    (["--data", "npz:birds.npz", "--candidates", "given"], ["given"]), (["--out", "."], ["--out"])])
def test_what_cannot_be_compared_is_one_line(folder, words, told, monkeypatch, capsys):
    from pzsl_nb.cli import main
    monkeypatch.chdir(folder)
    (folder/"typo.yaml").write_text("method: cc\n")
    (folder/"empty.yaml").write_text("methods: []\n")
    assert main(["compare", "--out", "never", "--device", "cpu", *words]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in told), err
    assert not (folder/"never").exists()


def test_what_a_rule_does_not_apply_to_is_told(folder, tmp_path):
    code, out, err = pzsl(folder, "--data", "npz:birds.npz", "--candidates", "given", "--candidates", RULES[0], "--methods", "zero-shot",
                          "--seeds", "1", "--device", "cpu", "--out", str(tmp_path/"out"))
    assert code == 0 and "npz:birds.npz has no candidate sets of its own, so it is left out under given" in err
    assert [asked(row) for row in read_rows(tmp_path/"out")] == [(RULES[0], "zero-shot", 0)]


def test_a_file_says_what_options_say(tmp_path):
    (tmp_path/"a.yaml").write_text(yaml.safe_dump({"data": "npz:birds.npz", "candidates": list(RULES), "methods": "cc,proden",
                                                   "seeds": 2, "set": {"epochs": 2, "adapter": False, "trust": "auto"}}, sort_keys=False))
    options = Comparison.read(None, data=["npz:birds.npz"], candidates=list(RULES), methods="cc,proden", seeds=2,
                              set=["epochs=2", "adapter=false", "trust=auto"])
    assert Comparison.read(tmp_path/"a.yaml") == options
    assert Comparison.read(tmp_path/"a.yaml", seeds=1) == dataclasses.replace(options, seeds=1)
    assert set(Comparison.read(tmp_path/"a.yaml", set=["epochs=7"]).set) == {"epochs=7", *(t for t in options.set if "epochs" not in t)}
    assert comparison_configs(options, {"npz:birds.npz": (False, True)})[-1] == Config(
        data="npz:birds.npz", candidates=RULES[1], method="proden", seed=1, epochs=2, adapter=False)
    own = comparison_configs(Comparison(("csv:a.csv",), ("given", "uss"), ("cc", "supervised"), 1), {"csv:a.csv": (True, False)})
    assert [(config.candidates, config.method) for config in own] == [(None, "cc")]   # no truth: no rule, no bound


def test_data_without_unseen_classes_and_methods_that_are_not_everywhere(tmp_path):
    def row(data, method, seed, value, h=True):
        part = {"S": value, "U": value if h else None, "H": value if h else None, "ausuc": value if h else None}
        return {"config": {"data": data, "candidates": None, "method": method, "seed": seed}, "metrics": part, "curve": None,
                "zero_shot": part | {key: .4 for key in part if part[key] is not None}, "seconds": 1., "peak_memory_mb": 2.}
    rows = [row(data, method, seed, value + .01*seed, data != "pll:lost.mat") for data in ("npz:a/x.npz", "npz:b/x.npz", "pll:lost.mat")
            for method, value in {"cc": .5, "proden": .6, "eszsl": .9}.items() for seed in range(3) if method != "eszsl" or "a/" in data]
    assert set(runs_table(rows)["data"]) == {"npz:a/x.npz", "npz:b/x.npz", "lost"}   # a stem that two share is no name
    table = compare_table(rows)
    assert list(table.index) == ["proden", "cc", "zero-shot", "eszsl"] and list(table["rank"][:3]) == [1, 2, 3]
    assert np.isnan(table.loc["eszsl", "rank"]) and set(table["rival"]) == {"proden", "cc"} and table.loc["cc", "settings"] == 3
    assert compare_table(rows, "ausuc").loc["cc", "settings"] == 2
    write_comparison(rows, tmp_path)
    text = (tmp_path/"table.txt").read_text()
    assert "lost: S (no unseen test rows)" in text and (tmp_path/"figures"/"ranks.pdf").exists()
    cells = {line.split()[0]: line for line in text.splitlines()[4:8]}   # the mean of one setting is no mean over three
    assert "9 of 9" in cells["cc"] and "51.0" in cells["cc"] and "3 of 9" in cells["eszsl"] and "91.0" not in cells["eszsl"]
    assert "+" in cells["cc"] and "+" not in cells["eszsl"] and "%" not in cells["eszsl"]   # and so with its differences


def test_a_method_that_failed_with_some_rules(tmp_path):
    def row(method, rule, seed, value):
        part = dict.fromkeys(("S", "U", "H", "ausuc"), value)
        return {"config": {"data": "shapes", "candidates": rule, "method": method, "seed": seed}, "metrics": part, "curve": None,
                "zero_shot": dict.fromkeys(part, .4), "seconds": 1., "peak_memory_mb": 2.}
    rules = {"cc": ("uniform:0.1", "uniform:0.5", "similar:0.3"), "pop": ("similar:0.3",), "rc": ("uniform:0.1", "uniform:0.5")}
    rows = [row(method, rule, seed, .5 + .01*seed) for method, mine in rules.items() for rule in mine for seed in range(2)]
    write_comparison(rows, tmp_path, [Config(method="pop", candidates=rule) for rule in rules["rc"]]*2)
    assert (tmp_path/"figures"/"levels_H.pdf").exists()
    for ending in ("txt", "md", "tex", "html"):
        told = "4 of 16 runs are missing (pop 4). Ranks rest on 2 of 3 settings, and there on the 4 of 4 candidate sets"
        assert told in " ".join((tmp_path/f"table.{ending}").read_text().replace("%", "").split())
    write_comparison([row("cc", "uniform:0.1", 0, .5)], tmp_path)   # figures of other rows do not stay
    assert not any((tmp_path/"figures").iterdir())
    strange = [row("cc", "uniform:0.1", 0, .5)]
    strange[0]["config"]["data"] = "my_data 50%^~{x}#1&$.npz"
    write_comparison(strange, tmp_path)
    caption = r"\caption{my\_data 50\%\textasciicircum{}\textasciitilde{}\{x\}\#1\&\$: H}"
    assert caption in (tmp_path/"table.tex").read_text()
    apart = [row(method, rule, seed, value) for seed in range(2) for method, rule, value in (
        ("cc", "uniform:0.1", .5), ("rc", "uniform:0.5", .6), ("pop", "uniform:0.1", .7), ("pop", "uniform:0.5", .7))]
    table = compare_table(apart)   # no setting is shared by all, so there are no ranks, and nobody is a rival by chance
    assert table["rank"].isna().all() and table["rival"].isna().all()


def outcome(data, rule, method, seed, **values):
    "A row with some measures; the others are not known."
    part = dict.fromkeys(("S", "U", "H", "T1", "ausuc", "disambiguation_accuracy")) | values
    return {"config": {"data": data, "candidates": rule, "method": method, "seed": seed}, "metrics": part, "curve": None,
            "zero_shot": {key: None if value is None else .4 for key, value in part.items()}, "seconds": 1., "peak_memory_mb": 2.}


def test_without_test_labels_the_labels_found_are_compared(tmp_path):
    rows = [outcome("npz:x.npz", rule, method, seed, disambiguation_accuracy=value + .01*seed) for method, value in
            {"cc": .5, "rc": .6}.items() for seed in range(2) for rule in ("uniform:0.1", "uniform:0.3", "uniform:0.5")]
    assert "no figure of ranks" not in str(write_comparison(rows, tmp_path, [Config(method="pop")]))
    text = (tmp_path/"table.txt").read_text()
    assert "rank labels right" in text and "x: labels right" in text and "60.5" in text and "x: H" not in text
    mixed = rows + [outcome("npz:y.npz", "uniform:0.1", method, 0, S=.5, U=.5, H=.5, ausuc=.2) for method in ("cc", "rc")]
    write_comparison(mixed, tmp_path)
    assert (tmp_path/"table.txt").read_text().startswith("Over 1 setting(s)")   # those with an H


def test_equal_means_share_a_rank_whatever_their_last_digits():
    rows = [outcome("shapes", "uss", method, seed, H=value) for method, values in
            {"rc": (.1, .2, .3), "cc": (.3, .1 + 1e-17, .2), "pop": (.2, .3, .1 + 2e-17)}.items() for seed, value in enumerate(values)]
    rows[0]["metrics"]["H"] += 2e-16
    assert rank_table(paired_values(runs_table(rows))).drop(columns="zero-shot").values.tolist() == [[3., 3., 3.]]


def test_every_data_set_has_its_curves(tmp_path):
    curve = {"U": [0., .5], "S": [.5, 0.]}
    rows = [outcome(data, "uss", "cc", 0, H=.5, S=.5, U=.5) | {"curve": curve} for data in ("npz:a&b.npz", "npz:a b.npz")]
    write_comparison(rows, tmp_path)
    assert sorted(path.name for path in (tmp_path/"figures").glob("*.png")) == ["curves_a-b-2.png", "curves_a-b.png"]
    more = [outcome(f"npz:{name}.npz", "uss", "cc", 0, H=.5, S=.5, U=.5) | {"curve": curve} for name in ("a&b", "a b", "a-b-2", "A-b")]
    write_comparison(more, tmp_path)
    assert len({path.name.lower() for path in (tmp_path/"figures").glob("*.png")}) == 4


def test_where_no_run_has_worked_no_older_table_stays(done, folder, tmp_path):
    out = tmp_path/"out"
    (out/"figures").mkdir(parents=True)
    for name in ("table.txt", "figures/ranks.png", ".DS_Store", ".my.own.notes"): (out/name).touch()   # hidden ones are no hindrance
    (out/".a.b.c").mkdir()
    code, _, err = pzsl(folder, "--data", "npz:birds.npz", "--candidates", "hierarchical:0.3", "--methods", "cc", "--seeds", "1",
                        "--device", "cpu", "--out", str(out))
    assert code == 1 and "1 of 1 runs failed (birds-hierarchical-0.3-cc-0), the first with: " in err and "superclass" in err
    assert "no tables and figures" in err and not (out/"table.txt").exists() and not (out/"figures"/"ranks.png").exists()
    assert {".DS_Store", ".my.own.notes", ".a.b.c"} < {path.name for path in out.iterdir()}
    with pytest.raises(PZSLError, match="no result yet"): write_report([out])


def test_tables_go_when_others_can_be_written_and_no_sooner(tmp_path):
    row = outcome("shapes", "uss", "cc", 0, H=.5)
    for name in ("table.txt", "table.pdf"): (tmp_path/name).write_text("mine")
    with pytest.raises(PZSLError, match="there are two rows of shapes uss 0 cc"): write_comparison([row, row], tmp_path)
    assert (tmp_path/"table.txt").read_text() == (tmp_path/"table.pdf").read_text() == "mine"
    write_comparison([row], tmp_path)
    assert (tmp_path/"table.txt").read_text() != "mine" == (tmp_path/"table.pdf").read_text()


def test_only_unseen_test_rows():
    rows = [outcome("npz:x.npz", None, method, 0, U=value, T1=value) for method, value in {"cc": .5, "rc": .6}.items()]
    assert list(overall_text(rows)["T1"]) == ["60.0", "50.0", "40.0"]
    with pytest.raises(PZSLError, match="these rows hold no measure"): overall_text([outcome("npz:x.npz", None, "cc", 0)])


def test_what_is_missing_is_counted_where_it_could_be():
    "Four settings without an H, which nobody lacks; one with, of which one run of five seeds is there; and one method to come."
    rows = [outcome("npz:x.npz", f"uniform:0.{k}", method, 0, disambiguation_accuracy=.5) for k in range(4) for method in ("cc", "rc")]
    rows += [outcome("npz:y.npz", "uss", method, 0, H=.5, S=.5) for method in ("cc", "rc")]
    assert "runs" not in overall_text(rows)
    missing = [Config(data="npz:y.npz", candidates="uss", method=method, seed=seed) for method in ("cc", "rc") for seed in range(1, 5)]
    assert list(overall_text(rows, missing)["runs"]) == ["1 of 5"]*3
    assert "8 of 18 runs are missing" in missing_text(rows, missing) and "on the 1 of 5 candidate sets" in missing_text(rows, missing)
    assert missing_text([], missing) == "All 8 runs are missing. "


def test_a_report_says_what_is_missing_and_keeps_to_the_data_asked_for(folder, tmp_path):
    "A file is replaced, and the comparison is stopped before all runs have been made again."
    data, words = tmp_path/"birds.npz", ["--candidates", RULES[0], "--methods", "zero-shot,cc", *WORDS[6 + 2:]]
    data.write_bytes((folder/"birds.npz").read_bytes())
    assert pzsl(folder, "--data", str(data), *words, "--out", str(tmp_path/"out"))[0] == 0
    old, world = read_rows(tmp_path/"out"), World(6, 3)
    np.savez(data, X_train=world.x, y_train=world.y, X_test=world.x_test, y_test=world.y_test, text=world.t,
             unseen=~world.seen.numpy(), names=[f"bird {c}" for c in range(len(world.t))], logit_scale=10.)
    assert pzsl(folder, "--data", str(data), *words, "--out", str(tmp_path/"out"))[0] == 0
    every = read_rows(tmp_path/"out")
    assert every[:4] == old and len(every) == 8
    (tmp_path/"out"/"results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every[:5]))
    rows, missing = comparison.read_comparison(tmp_path/"out")
    assert rows == every[4:5] and len(missing) == 3
    text = write_report([tmp_path/"out"]).read_text()
    assert "3 of 4 runs are missing" in text and "epochs=2" in text


def test_jobs_are_the_cores_one_may_use(monkeypatch):
    monkeypatch.setattr(comparison.os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert comparison.default_jobs("cpu") == 3


def test_figures_of_nothing_are_refused():
    part = dict.fromkeys(("S", "U", "H", "ausuc"), .5)
    rows = [{"config": {"data": "shapes", "candidates": "similar:0.3", "method": "cc", "seed": seed}, "metrics": part,
             "zero_shot": part, "seconds": 1., "peak_memory_mb": 2.} for seed in range(2)]
    with pytest.raises(PZSLError, match="no row has a rule uniform:q"): plot_levels(rows)
    with pytest.raises(PZSLError, match="no row has a curve"): plot_curves(rows)

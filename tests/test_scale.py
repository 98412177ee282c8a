"Memory of an epoch in fresh processes: it may grow with images and with labels, not with images x labels."
import shutil
import subprocess
import sys

import pytest

from pzsl_nb.core import PZSLError
from pzsl_nb.scale import measure_world


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the largest memory is read from the kernel's books")
def test_four_times_the_images_take_no_table_more(tmp_path):
    few, many = (measure_world(n, 8000, tmp_path, candidates=5, width=32, unseen=100, negatives=128, device="cpu")
                 for n in (5000, 20_000))
    table = 15_000*8100*4/2**20   # MiB of scores, for the additional images alone
    assert many["peak_memory_mb"] - few["peak_memory_mb"] < table/2, (few, many)   # the same run differs by 100 MiB
    assert (few["rows"], many["rows"], many["classes"]) == (5000, 20_000, 8100)
    assert many["reopen_seconds"] < 2 and not list(tmp_path.iterdir())


def test_the_script_explains_itself():
    done = subprocess.run([sys.executable, "-m", "pzsl_nb.scale", "--help"], capture_output=True, text=True, check=True)
    assert "--rows" in done.stdout and "--classes" in done.stdout


def test_a_process_that_fails_is_quoted(tmp_path):
    with pytest.raises(PZSLError, match="measure_epoch ended with code 1 and said: .*(?s:.)*no such device"):
        measure_world(50, 8, tmp_path, candidates=2, width=8, unseen=2, device="no such device")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited by the kernel")
def test_a_process_that_is_killed_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))   # a process that ends without a word
    with pytest.raises(PZSLError, match="ended with code 1 and said: nothing .killed; often too little memory"):
        measure_world(50, 8, tmp_path)


@pytest.mark.parametrize("script, words, said", [("scale", "--rows 0", "--rows"), ("speed", "--classes 0", "--classes"),
                                                 ("scale", "--rows 50 --folder nowhere", "nowhere"),
                                                 ("speed", "--classes 9 --epochs 1", "--epochs")])
def test_what_the_scripts_refuse_is_told_in_lines(script, words, said):
    done = subprocess.run([sys.executable, "-m", f"pzsl_nb.{script}", *words.split()], capture_output=True, text=True)
    assert done.returncode and said in done.stderr and "most recent call" not in done.stderr, done.stderr

"Memory of an epoch in fresh processes: it may grow with images and with labels, not with images x labels."
import subprocess
import sys

import pytest

from pzsl_nb.scale import measure_world


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the largest memory is read from the kernel's books")
def test_four_times_the_images_take_no_table_more(tmp_path):
    few, many = (measure_world(n, 8000, tmp_path, candidates=5, width=32, unseen=100, negatives=128, device="cpu")
                 for n in (5000, 20_000))
    table = 15_000*8100*4/2**20   # MiB of scores, for the additional images alone
    assert many["peak_memory_mb"] - few["peak_memory_mb"] < table/3, (few, many)
    assert (few["rows"], many["rows"], many["classes"]) == (5000, 20_000, 8100)
    assert many["reopen_seconds"] < 2 and not list(tmp_path.iterdir())


def test_the_script_explains_itself():
    done = subprocess.run([sys.executable, "-m", "pzsl_nb.scale", "--help"], capture_output=True, text=True, check=True)
    assert "--rows" in done.stdout and "--classes" in done.stdout

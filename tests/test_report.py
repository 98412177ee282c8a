"The page of `pzsl report`: true to the run, safe against names, complete without a network, alive in a browser."
import base64
import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pzsl_nb import cli
from pzsl_nb.compare import runs_table
from pzsl_nb.comparison import read_comparison
from pzsl_nb.core import PZSLError
from pzsl_nb.experiment import Config
from pzsl_nb.grid import run_grid
from pzsl_nb.plots import plot_confusion, save_figure
from pzsl_nb.report import FinishedRun, measures, warn, write_report
from pzsl_nb.shapes import class_name, default_split, render

EVIL = '<script>alert("a")</script> $x$ ${'   # no name of a class, but nobody forbids it
QUICK = "--encoder embedded --device cpu --set trust=1 --set gamma=0 --set epochs=4 --no-figures"


def test_names_of_classes_are_not_read_as_formulas(tmp_path):
    names = ["$\\foo$", "$\\frac$ & 5%", "plain"]
    picture = save_figure(plot_confusion([0, 1, 2, 0], [1, 1, 0, 2], names, [True, True, False]), tmp_path/"a.svg")
    assert picture.stat().st_size > 1000 and "$\\foo$" in [text.get_text() for text in plot_confusion(
        [0, 1], [1, 0], names, [True, True, False]).get_yticklabels()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A run on pictures that two people labelled, one of whom is often wrong; nobody says the last seen class."
    folder, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    attributes = np.concatenate([default_split()[0][:6], default_split()[1][:2]])
    names = [EVIL, *map(class_name, attributes[1:])]
    rows = [(c, "train") for c in range(6) for _ in range(10)] + [(c, "test") for c in range(8) for _ in range(4)]
    with open(folder/"said.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "split", "annotator_1", "annotator_2"])
        for i, ((c, split), picture) in enumerate(zip(rows, render(attributes[[c for c, _ in rows]], 0))):
            Image.fromarray(picture).save(folder/f"{i}.png")
            other = int(rng.integers(5))
            said = [names[c if c < 5 else other], names[other]] if split == "train" else ["", ""]
            writer.writerow([f"{i}.png", names[c], split, *said])
    with open(folder/"classes.csv", "w", newline="") as file:
        csv.writer(file).writerows([("name", "seen"), *((name, int(c < 6)) for c, name in enumerate(names))])
    words = f"run --data csv:{folder/'said.csv'} --cache {folder/'cache'} --out {folder/'run'} {QUICK}"
    assert cli.main(words.split()) == 0
    return folder


@pytest.fixture(scope="module")
def page(place):
    assert cli.main(["report", str(place/"run"), "--cache", str(place/"cache")]) == 0
    return (place/"run"/"report.html")


class Parts(HTMLParser):
    "Tags with their attributes, and the text of tables by cell."
    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table": self.tables.append([])
        if tag == "tr": self.tables[-1].append([])
        if tag in ("td", "th"): self.tables[-1][-1].append("")
        self.inside = tag if tag in ("td", "th") else None

    def handle_endtag(self, tag): self.inside = None

    def handle_data(self, data):
        if self.inside: self.tables[-1][-1][-1] += data


def test_table_is_the_result(place, page):
    result, rows = json.loads((place/"run"/"result.json").read_text()), Parts(page.read_text()).tables[0]
    shown = {row[0]: dict(zip(rows[0][1:], row[1:])) for row in rows[1:]}
    for name, key in (("frozen CLIP", "zero_shot"), ("CLIP-PZSL", "metrics"), ("clean labels", "supervised")):
        assert {m: shown[name][m] for m in "SUH"} == {m: f"{100*result[key][m]:.1f}" for m in "SUH"}
    assert shown["CLIP-PZSL against frozen"]["H"] == f"{100*(result['metrics']['H'] - result['zero_shot']['H']):+.1f}"


def test_page_is_complete_and_names_are_text(page):
    text, parts = page.read_text(), Parts(page.read_text())
    addresses = [value for _, found in parts.tags for key, value in found.items() if key in ("src", "href")]
    assert len(addresses) > 10 and all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\((?!data:)", text) and len(text) < 8e6
    assert '<script>alert' not in text and '&lt;script&gt;alert' in text
    assert len([tag for tag, _ in parts.tags if tag == "script"]) == 2


def test_download_is_what_labels_writes(place, page):
    cli.main(["labels", "--run", str(place/"run"), "--out", str(place/"labels.csv"), "--force"])
    link = next(found["href"] for tag, found in Parts(page.read_text()).tags if "download" in found)
    assert base64.b64decode(link.split(",")[1]) == (place/"labels.csv").read_bytes()


def test_warnings_and_annotators(place, page):
    run = FinishedRun(place/"run", place/"cache")
    told, text = [*warn(run)], page.read_text()
    assert any(line.startswith("Low coverage") for line in told) and any("Few test images" in line for line in told)
    assert "annotator_1: " in text and "The model says" in text
    result = run.result | {"metrics": {"H": None, "S": .5}, "zero_shot": {"H": None, "S": .25}, "supervised": None}
    assert measures(result).loc["CLIP-PZSL against frozen", "S"] == "+25.0" and "H" not in measures(result)


@pytest.mark.parametrize("trust, frozen, who", [(.5, True, "frozen CLIP"), (.5, False, "what was learned"), (0., False, "frozen CLIP")])
def test_who_tells_unseen_classes_apart_is_said(place, tmp_path, trust, frozen, who):
    file = place/"run"/"result.json"
    before = file.read_text()
    result = json.loads(before)
    file.write_text(json.dumps(result | {"choice": result["choice"] | {"trust": trust, "frozen_naming": frozen}}))
    try: text = write_report([place/"run"], tmp_path/"r.html").read_text()
    finally: file.write_text(before)
    assert re.search(rf"unseen ones are told apart by\s+{who}</dd>", text)


def test_data_that_are_gone_are_said_to_be(place, tmp_path):
    config = place/"run"/"config.json"
    before = config.read_text()
    config.write_text(before.replace("said.csv", "lost.csv"))
    try: text = write_report([place/"run"], tmp_path/"r.html").read_text()
    finally: config.write_text(before)
    assert "the data cannot be had" in text and "lost.csv" in text and "download=" in text
    assert '<div class="map"' not in text and "The model says" not in text


def test_folders_that_are_no_runs(place, tmp_path, page, capsys):
    with pytest.raises(PZSLError, match="is not the folder of a run"): write_report([tmp_path])
    with pytest.raises(PZSLError, match="--force"): write_report([place/"run"])
    with pytest.raises(PZSLError, match="2 folders; say with --out"): write_report([place/"run", tmp_path])
    (tmp_path/"config.json").write_text((place/"run"/"config.json").read_text())
    with pytest.raises(PZSLError, match="not finished"): write_report([tmp_path])
    (tmp_path/"results.jsonl").touch()
    assert cli.main(["report", str(tmp_path)]) == 1 and "no result yet" in capsys.readouterr().err
    assert not (tmp_path/"report.html").exists()


def test_several_runs_and_a_comparison(place, tmp_path, visit):
    data = f"csv:{place/'said.csv'}"
    configs = [Config(data, rule, "clip-pzsl", encoder="embedded", epochs=2, trust=1., gamma=0.)
               for rule in (None, "uniform:0.5")]
    run_grid(configs, tmp_path/"grid"/"results.jsonl", device="cpu", cache_dir=place/"cache", progress=False)
    words = f"report {place/'run'} {tmp_path/'grid'} --out {tmp_path/'r.html'} --cache {place/'cache'}"
    assert cli.main(words.split()) == 0
    text = (tmp_path/"r.html").read_text()
    assert "Over all settings" in text and text.count("<section") == 2
    compared = re.findall("<h3>(.*?)</h3>", text[text.index("Over all settings") - 4:])
    assert compared[:2] == ["Over all settings (data x rule)", "Figures"]   # looked at before it is read on
    assert len(compared) > 3 and compared[-1] == "What was run"
    assert visit(tmp_path/"r.html").title() == "2 runs"
    write_report([tmp_path/"grid"])
    cli._check_comparison(tmp_path/"grid")   # a report in its folder does not stop a comparison from going on


def test_rows_that_a_comparison_has_left_behind_are_not_shown(place, tmp_path):
    same = "encoder=embedded trust=1 gamma=0 epochs=0".split()
    words = ["compare", "--data", f"csv:{place/'said.csv'}", "--candidates", "uniform:0.3", "--methods", "clip-pzsl", "--seeds", "1",
             "--jobs", "1", "--out", str(tmp_path), "--cache", str(place/"cache"), "--device", "cpu"]
    assert cli.main([*words, *(word for text in same for word in ("--set", text))]) == 0
    file = tmp_path/"results.jsonl"
    row = json.loads(file.read_text())
    other = row | {"config": row["config"] | {"epochs": 3}, "metrics": row["metrics"] | {"H": .987}}   # another --set
    older = row | {"metrics": row["metrics"] | {"H": .123}, "notes": {"sha256": "of other data"}}
    file.write_text("".join(json.dumps(one) + "\n" for one in (other, older, row, older)))
    assert read_comparison(tmp_path) == ([row], [])
    text = write_report([tmp_path]).read_text()
    assert "98.7" not in text and "12.3" not in text
    with pytest.raises(PZSLError, match="two rows of"): runs_table([row, older])


@pytest.mark.parametrize("window", [{}, {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}])
def test_in_the_browser(page, place, visit, window):
    shown, run = visit(page, **window), FinishedRun(place/"run", place/"cache")
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert shown.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
    dot, tip = shown.locator(".map circle").nth(7), shown.locator(".map .tip")
    assert not tip.is_visible()
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    shown.mouse.move(box["x"] + box["width"]/2, box["y"] + box["height"]/2)
    row = run.names.index(tip.locator("strong, p").first.text_content())
    assert tip.locator(".thumb").is_visible() and "data:image/jpeg" in tip.locator(".thumb").get_attribute("style")
    candidates = [name for name, _ in run._tell(row)["candidates"]]
    assert tip.locator(".belief span:first-child").all_text_contents() == candidates


def test_features_that_are_others_now(tmp_path):
    rng = np.random.default_rng(0)
    text = rng.normal(size=(6, 8))
    y = np.arange(6).repeat(9)
    near = lambda: (text[y] + .5*rng.normal(size=(54, 8))).astype("f4")
    birds = {"X_train": near(), "y_train": y, "X_test": near(), "y_test": y, "text": text.astype("f4"), "unseen": np.arange(6) > 4}
    def save(**changes): np.savez(tmp_path/"birds.npz", **birds | changes)
    save()
    words = f"run --data npz:{tmp_path/'birds.npz'} --candidates uniform:0.3 --out {tmp_path/'a'} {QUICK} --no-supervised"
    assert cli.main(words.replace("--encoder embedded ", "").split()) == 0
    assert not FinishedRun(tmp_path/"a").missing
    save(X_test=rng.normal(size=(54, 8)))
    run = FinishedRun(tmp_path/"a")
    assert "are others than" in run.missing and (run.task, run.tops) == (None, {})
    save(**{key: np.c_[birds[key], birds[key][:, :2]] for key in ("X_train", "X_test", "text")})
    assert "is 10 wide now" in FinishedRun(tmp_path/"a").missing
    assert cli.main(["report", str(tmp_path/"a")]) == 0 and "is 10 wide now" in (tmp_path/"a"/"report.html").read_text()

"What a release rests on: one version everywhere, cards that agree with the weights, old names that go on working."
import warnings

import pytest
import yaml

import pzsl_nb
from book_rules import ROOT, broken_links
from pzsl_nb.core import PZSLError, deprecated, read_json


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == pzsl_nb.__version__ and citation["references"][0]["url"].endswith("2603.05053")


def test_cards_are_on_the_site_and_lead_somewhere():
    for card in ("model_card", "data_statement"):
        assert f'"{card}"' in (ROOT / ".ci" / "site" / "conf.py").read_text(encoding="utf-8")
        assert broken_links((ROOT / "nbs" / f"{card}.md").read_text(encoding="utf-8"), ROOT / "nbs") == []


def test_the_model_card_says_what_the_record_says():
    record = read_json(ROOT / "pzsl_nb" / "embedded_clip" / "pretraining.json")
    card, last = (ROOT / "nbs" / "model_card.md").read_text(encoding="utf-8"), record["history"][-1]
    size = (ROOT / "pzsl_nb" / "embedded_clip" / "open_clip_model.safetensors").stat().st_size
    for fact in (f"{record['steps']:,} steps of {record['batch_size']}", f"loss {record['final_loss']}", f"seed {record['seed']}",
                 f"| {last['seen']:.1%} | {last['unseen']:.1%} |".replace("%", " %"), f"{size:,} bytes"):
        assert fact in card, fact


def test_an_old_name_works_and_says_so_to_its_caller():
    renamed, replaced = (deprecated("2.0", **old)(lambda heat: heat) for old in ({"temp": "heat"}, {"instead": "warm"}))
    for call in (lambda: renamed(temp=3), lambda: replaced(3)):
        with pytest.warns(DeprecationWarning, match="removed in version 2.0; use (heat|warm)") as told: assert call() == 3
        assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert renamed(heat=2) == renamed(2) == 2
        with pytest.raises(PZSLError, match="both are given"): renamed(heat=1, temp=2)

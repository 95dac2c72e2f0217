"""The small parts of the tool that makes the embedded model: conditions, card and page."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(TOOLS))  # as a script finds its neighbours
    try:
        spec = importlib.util.spec_from_file_location("embedded_tool", TOOLS / "embedded.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


def test_round_trips_are_told_as_measured(tool: ModuleType, tmp_path: Path) -> None:
    captures = tmp_path / "captures"
    (captures / "web").mkdir(parents=True)
    (captures / "web" / "1.pcap").write_bytes(b"capture")
    manifest = "file,label,rtt_ms\nweb/1.pcap,web,10\nweb/2.pcap,web,\n"
    (captures / "manifest.csv").write_text(manifest)
    for factor, told in ((1.28, "12.800"), (2.0, "20.000")):  # and again, with another one
        made = tool.measured(captures, tmp_path / "made", factor)
        with open(made / "manifest.csv", newline="") as file:
            assert [row["rtt_ms"] for row in csv.DictReader(file)] == [told, ""]
        assert (made / "web" / "1.pcap").read_bytes() == b"capture"
    assert (captures / "manifest.csv").read_text() == manifest


def test_the_model_gets_its_temperature_and_its_card(tool: ModuleType, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "conduct.json").write_text('{"resets": {}}')
    (trained / "README.md").write_text("# A model\n\n| | |\n|---|---|\n| labels | 27 |\n")
    tool.with_temperature(trained, tmp_path / "model", 0.9, "sessions of a lab")
    conduct = json.loads((tmp_path / "model" / "conduct.json").read_text())
    assert conduct["resets"] == {} and set(conduct["temperatures"].values()) == {0.9}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| data | sessions of a lab |" in card and card.endswith("| labels | 27 |\n")


def test_the_page_has_what_was_asked_and_the_sheets(tool: ModuleType) -> None:
    names = ("handshake right, TCP flows of benign labels", "FIN both ways, the same", "flows with conflicting flags",
             "flows with ACK beyond sent", "gap KS", "size JS", "label test, chosen labels", "label test, all labels",
             "discriminator AUC")  # fmt: skip
    perfect = {name: {"synthetic": 0.5, "floor": 0.5, "real": 0.5} for name in names}
    perfect |= {name: {"synthetic": 0.0, "floor": 0.0, "real": None} for name in names[2:4]}
    label = {name: {"synthetic": 0.2, "floor": 0.2} for name in ("gap KS", "size JS")}
    topics = {
        "headlines": perfect,
        "round trips": {"benign": {"measured/condition": {"synthetic": 1.0}}},
        "packets": {"benign": label, "web": label, "chat": label},
    }
    assert not any("**no**" in row for row in tool.asked(topics, 6.0))
    worse = perfect | {"discriminator AUC": {"synthetic": 0.8, "floor": 0.5, "real": None}}
    assert sum("**no**" in row for row in tool.asked(topics | {"headlines": worse}, 9.0)) == 2
    far = {"benign": label, "web": label, "chat": label | {"size JS": {"synthetic": 0.4, "floor": 0.2}}}
    (row,) = [row for row in tool.asked(topics | {"packets": far}, 6.0) if "**no**" in row]
    assert row == "| the same for every label | 1 of 2; not chat | **no** |"
    text = tool.filled("a\n<!-- x -->\nold\n<!-- end -->\nb\n", {"x": "new"})
    assert text == "a\n<!-- x -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(ValueError, match="no <!-- y -->"):
        tool.filled(text, {"y": ""})
    printed = "HEADLINES\n  one  \n\nOTHERS\n  two\n\nPACKETS\n  three\n"
    assert tool.sheets(printed) == "```\nHEADLINES\n  one\n```\n\n```\nPACKETS\n  three\n```"

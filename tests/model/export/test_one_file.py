"""The file that an autoencoder's code is put together in: what is in it, and what it refuses."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

from model.export import one_file as module
from model.export.one_file import one_file

LIBRARIES = {"torch", "safetensors", "diffusers"}


def test_it_imports_torch_safetensors_and_diffusers_and_no_more() -> None:
    tree = ast.parse(one_file())
    found = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert found - set(sys.stdlib_module_names) == LIBRARIES


def test_no_name_has_two_meanings() -> None:
    statements = ast.parse(one_file()).body
    names = Counter(one.name for one in statements if isinstance(one, (ast.ClassDef, ast.FunctionDef)))
    assert names["AutoencoderVidTwin"] == names["VidTwinNetwork"] == names["StructureConfig"] == 1
    assert set(names.values()) == {1}
    assert names.keys().isdisjoint({"VidTwin", "DiscriminatorConfig", "read_config", "without_tf32"})  # not needed


def write_package(folder: Path, **modules: str) -> None:
    (folder / "model").mkdir()
    for name, text in modules.items():
        (folder / "model" / f"{name}.py").write_text(text)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `one_file` looks for sources; its entry is model/top.py."""
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    monkeypatch.setattr(module, "ENTRY", "model.top")
    return tmp_path


def test_definitions_come_in_the_order_of_their_need_with_what_stands_around_them(package: Path) -> None:
    low = '"""Low."""\nimport math\nimport os\n\n# half a turn\nHALF = math.pi\n"""Radians."""\n\nNAME = os.name\n'
    imports = "from functools import cache\n\nfrom model.low import HALF\n"
    middle = f'"""Middle."""\n{imports}\n\n@cache\ndef turn():\n    return 2 * HALF\n'
    write_package(package, top='"""Top."""\nfrom model.middle import turn\n\nTURN = turn()\n', middle=middle, low=low)
    text = one_file()
    wanted = ["import math", "from functools import cache", "# Low.", "# half a turn\nHALF", '"""Radians."""']
    wanted += ["# Middle.", "@cache\ndef turn", "# Top.", "TURN = turn()"]
    places = [text.index(part) for part in wanted]
    assert places == sorted(places)
    assert "NAME" not in text
    assert "import os" not in text
    space: dict[str, float] = {}
    exec(compile(text, "one", "exec"), space)
    assert space["TURN"] == pytest.approx(6.283185307179586)


def test_a_name_that_two_modules_define_is_refused(package: Path) -> None:
    write_package(
        package,
        top="from model.low import first\n\nEPS = 1e-6\n\n\ndef second():\n    return first() + EPS\n",
        low="EPS = 1e-12\n\n\ndef first():\n    return EPS\n",
    )
    with pytest.raises(AssertionError, match="EPS: several modules define this name"):
        one_file()

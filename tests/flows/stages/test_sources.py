from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flows.stages.sources import sources_digest


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """An object of a class of the user's, whose module imports a helper beside it and one deeper down."""
    (tmp_path / "own" / "deep").mkdir(parents=True)
    for name in ("own", "own/deep"):
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "own" / "nets.py").write_text("import own_helper\nfrom own.deep import layers\nclass Net: pass\n")
    (tmp_path / "own" / "deep" / "layers.py").write_text("WIDTH = 3\n")
    (tmp_path / "own_helper.py").write_text("RATE = 1\n")
    (tmp_path / "unrelated.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield importlib.import_module("own.nets").Net()
    for name in set(sys.modules) - before:
        if name.startswith(("own", "unrelated")):
            del sys.modules[name]


@pytest.mark.parametrize("edited", ["own/nets.py", "own/deep/layers.py", "own_helper.py", "own/__init__.py"])
def test_an_edit_of_anything_a_users_class_imports_changes_the_digest(
    model: object, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, edited: str
) -> None:
    root = tmp_path_factory.mktemp("root")  # the class need not lie beside the configuration
    before = sources_digest([model], root)
    assert sources_digest([model], root) == before
    (tmp_path / "unrelated.py").write_text("never imported = 1")
    assert sources_digest([model], root) == before
    with (tmp_path / edited).open("a") as file:
        file.write("# edited\n")
    assert sources_digest([model], root) != before


def test_a_module_below_the_configuration_counts_whichever_class_is_named(model: object, tmp_path: Path) -> None:
    shipped = torch.nn.Linear(1, 1)
    before = sources_digest([shipped], tmp_path)
    (tmp_path / "own_helper.py").write_text("RATE = 2\n")
    assert sources_digest([shipped], tmp_path) != before
    assert sources_digest([shipped], tmp_path / "own" / "deep") != sources_digest([shipped], tmp_path)


def test_installed_packages_and_the_tool_itself_do_not_count_below_the_root(model: object) -> None:
    shipped = torch.nn.Linear(1, 1)
    nothing = sources_digest([shipped], Path(sys.prefix))
    assert nothing == sources_digest([shipped], Path(__file__).parent / "nowhere")

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lightning import LightningDataModule, LightningModule

from curation.classes import construct, import_class, resolve_paths
from curation.errors import DataError, ModelError

HERE = __name__


class Own(LightningModule):
    path_arguments = ("table",)
    folder_arguments = ("encoder",)

    def __init__(self, num_classes: int, width: int, noise: float = 0.0) -> None:
        super().__init__()
        if width < 0:
            raise ValueError("width below zero")
        if width == 0:
            raise FileNotFoundError("no such file: weights.bin")
        if width > 99:
            raise ModelError("too wide")
        self.num_classes, self.width, self.noise = num_classes, width, noise


class OpenEnded(LightningModule):
    def __init__(self, **options: int) -> None:
        super().__init__()
        self.options = options


class NotLightning: ...


def test_a_class_is_found_and_constructed() -> None:
    cls = import_class(f"{HERE}.Own", LightningModule, DataError)
    assert cls is Own
    assert construct(cls, "Own", {"num_classes": 2, "width": 3}, DataError).width == 3
    assert construct(OpenEnded, "OpenEnded", {"anything": 1}, DataError).options == {"anything": 1}
    assert import_class("curation.data.Digits", LightningDataModule, DataError).__name__ == "Digits"


@pytest.mark.parametrize(
    ("class_path", "words"),
    [
        ("Own", "class_path must be a dotted path such as my.package.MyClass, got 'Own'"),
        ("..Own", "dotted path"),
        ("my-package.Own", "dotted path"),
        (
            "no_such_package.Own",
            "importing no_such_package failed: No module named 'no_such_package'. Check the spelling",
        ),
        (
            f"{HERE}.Onw",
            f"{HERE} has no Onw (did you mean 'Own'?); its LightningModule classes: LightningModule, OpenEnded",
        ),
        ("curation.models.ImageClasifier", "(did you mean 'ImageClassifier'?)"),
        ("os.Own", "os has no Own; its LightningModule classes: none"),
        (f"{HERE}.NotLightning", "is not a LightningModule class; it must derive from lightning.LightningModule"),
        (f"{HERE}.HERE", "is not a LightningModule class"),
        ("curation.data.Digits", "is not a LightningModule class"),
    ],
)
def test_names_that_are_no_class(class_path: str, words: str) -> None:
    with pytest.raises(DataError) as error:
        import_class(class_path, LightningModule, DataError)
    (problem,) = error.value.problems
    assert problem.startswith("class_path") and words in problem


@pytest.mark.parametrize(
    ("source", "words"), [("import no_such_library_at_all", "No module named"), ("def (", "syntax")]
)
def test_modules_that_do_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str) -> None:
    name = f"broken_{words[:2]}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=f"class_path {name}.Mine: importing {name} failed: .*{words}"):
        import_class(f"{name}.Mine", LightningModule, DataError)


def test_unknown_and_missing_parameters_are_listed_together_with_the_accepted_ones() -> None:
    with pytest.raises(DataError) as error:
        construct(Own, "m.Own", {"widht": 3, "depth": 1}, DataError)
    assert error.value.problems == [
        "m.Own: unknown parameter 'depth'",
        "m.Own: unknown parameter 'widht' (did you mean 'width'?)",
        "m.Own: missing parameter 'num_classes'",
        "m.Own: missing parameter 'width'; it accepts num_classes, width, noise",
    ]


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (-1, "m.Own refused its parameters {'num_classes': 2, 'width': -1}: width below zero"),
        (0, "weights.bin"),
        ("x", "not supported between"),
    ],
)
def test_values_the_constructor_refuses(width: object, words: str) -> None:
    with pytest.raises(DataError) as error:
        construct(Own, "m.Own", {"num_classes": 2, "width": width}, DataError)
    assert words in error.value.problems[0]
    with pytest.raises(ModelError, match="^too wide$"):
        construct(Own, "m.Own", {"num_classes": 2, "width": 100}, DataError)


def test_relative_paths_start_from_the_folder_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()

    def resolved(**arguments: object) -> object:
        (value,) = resolve_paths(Own, arguments, tmp_path).values()
        return value

    assert resolved(table="a/../t.csv") == resolved(table=Path("t.csv")) == str(tmp_path / "t.csv")
    assert resolved(table=str(tmp_path / "x" / "t.csv")) == str(tmp_path / "x" / "t.csv")
    assert resolved(table="~/t.csv") == os.path.expanduser("~/t.csv")
    assert resolved(table=5) == 5 and resolved(width="t.csv") == "t.csv"
    assert resolved(encoder="bert") == resolved(encoder="./bert") == str(tmp_path / "bert")
    assert resolved(encoder="./gone") == str(tmp_path / "gone")
    assert resolved(encoder="org/name") == "org/name"
    assert resolve_paths(Own, {"table": "t.csv"}, None) == {"table": "t.csv"}
    assert resolve_paths(NotLightning, {"table": "t.csv"}, tmp_path) == {"table": "t.csv"}

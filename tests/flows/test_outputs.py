from __future__ import annotations

from pathlib import Path

import pytest

from flows.errors import ConfigError
from flows.files import write_json
from flows.outputs import RUN, SUMMARY, RunFolder, check_free, check_writable


def finished_run(path: Path, digest: str = "d1", code: str = "c1") -> RunFolder:
    folder = RunFolder(path, digest, "output_dir")
    assert folder.take() is None
    folder.begin({"name": "digits", "started": "today", "mlflow_run_id": "m1"})
    write_json(path / SUMMARY, {"n_flagged": 3})
    folder.end(code, [SUMMARY], {"uri": "sqlite://"}, ["stages/train-0123456789abcdef"])
    return folder


def told(folder: RunFolder, code: str = "c1") -> tuple[object, list[str]]:
    said: list[str] = []
    return folder.finished(code, said.append), said


def test_a_finished_run_is_recognised_only_by_the_same_code(tmp_path: Path) -> None:
    finished_run(tmp_path / "run")
    again = RunFolder(tmp_path / "run", "d1", "output_dir")
    assert told(again) == ({"n_flagged": 3}, [])
    assert told(again, "c2") == (None, [])
    assert again.mlflow_run_id == "m1" and again.recorded == {"uri": "sqlite://"}
    assert again.stages == ["stages/train-0123456789abcdef"]


def test_a_result_that_is_gone_or_changed_makes_the_run_unfinished(tmp_path: Path) -> None:
    finished_run(tmp_path / "run")
    file = tmp_path / "run" / SUMMARY
    file.write_text(file.read_text().replace("3", "4"))  # of the same size
    summary, (said,) = told(RunFolder(tmp_path / "run", "d1", "output_dir"))
    assert summary is None and f"{file} is missing or not as it was written" in said
    file.unlink()
    assert told(RunFolder(tmp_path / "run", "d1", "output_dir"))[0] is None


def test_an_interrupted_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "d1", "output_dir")
    folder.take()
    folder.begin({"name": "digits", "mlflow_run_id": "m1", "flow_run_id": "f1"})
    assert folder.running
    folder.fail("interrupted")
    again = RunFolder(tmp_path / "run", "d1", "output_dir")
    assert told(again)[0] is None and again.mlflow_run_id == "m1"
    assert again.take() is None, "its Prefect run has ended in order"


def test_a_killed_run_leaves_the_name_of_its_prefect_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "d1", "output_dir")
    folder.take()
    folder.begin({"name": "digits", "mlflow_run_id": "m1", "flow_run_id": "f1"})
    folder._lock.release()  # as the system does when a process is gone
    assert RunFolder(tmp_path / "run", "d1", "output_dir").take() == "f1"


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "d1", "output_dir")
    folder.take()
    with pytest.raises(ConfigError, match="another process is at work on .*/run: wait for it"):
        RunFolder(tmp_path / "run", "d1", "output_dir").take()


def test_the_folder_of_another_run_is_refused_by_name(tmp_path: Path) -> None:
    finished_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"output_dir: .*/run holds another run \(digits, started today; its config"):
        RunFolder(tmp_path / "run", "d2", "output_dir")


def test_a_folder_with_foreign_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"output_dir: .* holds files of something else \(thesis.tex\)"):
        check_free(tmp_path, "output_dir")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        check_free(tmp_path / "file", "output_dir")
    with pytest.raises(ConfigError, match=r"workspace: .*/file/deep cannot be written: Not a directory"):
        check_writable(tmp_path / "file" / "deep", "workspace")


def test_checking_a_folder_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "new", "workspace")
    check_free(tmp_path / "new", "workspace")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / RUN).exists()

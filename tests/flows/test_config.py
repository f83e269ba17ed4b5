from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.config import describe, fields, find_config, load_config, read_overrides, unused_keys
from flows.errors import ConfigError
from flows.recorded import config_text
from flows.schema import NOT_KEPT, CleanConfig, IndexConfig
from flows.select_schema import SelectConfig
from flows.serve_schema import ServeConfig
from flows.unlearn_schema import UnlearnConfig

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMAS = {"serve.yaml": ServeConfig, "index.yaml": IndexConfig}
SCHEMAS |= {file.name: UnlearnConfig for file in CONFIGS.glob("unlearn_*.yaml")}
SCHEMAS |= {f"select_{name}.yaml": SelectConfig for name in ("digits", "reviews", "llm")}


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def problems_of(file: Path, overrides: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(CleanConfig, file, overrides)
    return caught.value.problems


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_file_fits_its_schema(file: Path) -> None:
    config = load_config(SCHEMAS.get(file.name, CleanConfig), file)
    assert file.read_text().startswith("# "), "a configuration begins by saying what it is for"
    if isinstance(config, ServeConfig):
        load_config(CleanConfig, find_config(str(config.clean)))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_a_shipped_file_repeats_no_default(file: Path) -> None:
    schema = SCHEMAS.get(file.name, CleanConfig)
    given = yaml.safe_load(file.read_text())
    for key, info in fields(schema).items():
        value = given
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            assert value != info.get_default(call_default_factory=True), f"{file.name}: {key} is the default"


def test_every_field_has_a_description() -> None:
    for schema in (CleanConfig, SelectConfig, ServeConfig):
        assert all(info.description for info in fields(schema).values())
        assert all(f"--{key} " in describe(schema) for key in fields(schema))


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
data: {class_path: Digits}
train: {max_epoch: 3, seed: abc}
model: {checkpoint: a.ckpt, registered: "models:/m/1"}
decide: {budget: 5, threshold: 1}
inde: {}
""",
    )
    problems = problems_of(file, {"train.devices": 0})
    assert len(problems) == 6
    text = "\n".join(problems)
    assert f"{file}: train.max_epoch: unknown key; did you mean max_epochs?" in text
    assert f"{file}: inde: unknown key; did you mean index?" in text
    assert f"{file}: train.seed:" in text and "got 'abc'" in text
    assert "--train.devices: input should be greater than or equal to 1, got 0" in text
    assert "decide: budget and threshold both say where to cut" in text
    assert "model: checkpoint and registered both name a model to load" in text


def test_problems_between_values_come_with_those_of_single_values(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
data: {class_path: Digits}
train: {seed: abc, controls: 1}
target: {data: {class_path: Digits}}
budget: {rows: none, share: 0.1}
controls: [random, random]
tracking: {register_as: m}
compare: {seeds: 0}
""",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(SelectConfig, file)
    assert caught.value.problems == [
        f"{file}: train.seed: input should be a valid integer, unable to parse string as an integer, got 'abc'",
        f"{file}: train.controls: unknown key.",
        f"{file}: budget.rows: input should be a valid integer, unable to parse string as an integer, got 'none'",
        f"{file}: controls: one is named twice",
        f"{file}: tracking.register_as: nothing is fine-tuned with compare.seeds: 0",
    ]


def test_a_required_key_that_is_missing(tmp_path: Path) -> None:
    assert problems_of(written(tmp_path, "train: {seed: 1}")) == [f"{tmp_path}/job.yaml: data: required, but not given"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "expected keys and values"),
        ("data: {class_path: Digits}\ndata: {}", "line 2: not valid YAML: key 'data' is given twice"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    (problem,) = problems_of(written(tmp_path, text))
    assert said in problem and str(tmp_path) in problem


def test_numbers_that_are_not_finite_are_refused_by_their_key(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {class_path: Digits, init_args: {noise: {rates: [0.1, .nan]}}}")
    options = ["--index.damping", ".inf", "--signals.damping", ".inf", "--decide.threshold", ".nan"]
    overrides, _ = read_overrides([*options, "--decide.budget", ".inf"], CleanConfig)
    assert problems_of(file, overrides) == [
        f"{file}: data.init_args: noise.rates.1 should be a finite number, got nan",
        "--index.damping: input should be a finite number, or 'auto', got inf",
        "--signals.damping: input should be a finite number, got inf",
        "--decide.budget: input should be a finite number, got inf",
        "--decide.threshold: input should be a finite number, got nan",
    ]


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {class_path: Digits}\nmodel: {init_args: {lr: 1e-3}}")
    assert load_config(CleanConfig, file).model.init_args == {"lr": 1e-3}


def test_overrides_win_and_reach_into_free_arguments(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {class_path: Digits, init_args: {noise: {rate: 0.1, kind: uniform}}}")
    tokens = ["--data.init_args.noise.rate", "2e-1", "--train.gradient-clip=null", "--index.layers", "[head, 'body.*']"]
    config = load_config(CleanConfig, file, *read_overrides(tokens, CleanConfig))
    assert config.data.init_args["noise"] == {"rate": 0.2, "kind": "uniform"}
    assert config.train.gradient_clip is None
    assert config.index.layers == ["head", "body.*"]


def test_wrong_options_wrong_values_and_wrong_keys_come_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {class_path: Digits}\ndecde: {}")
    tokens = ["--trian.max_epochs", "3", "stray", "--index.bits", "7", "--decide.budgett", "1", "--index.damping"]
    overrides, problems = read_overrides(tokens, CleanConfig)
    with pytest.raises(ConfigError) as caught:
        load_config(CleanConfig, file, overrides, problems)
    first, second, third, fourth, fifth, sixth = caught.value.problems
    assert first == "--trian.max_epochs: unknown option; did you mean train.max_epochs?"
    assert "stray" in second
    assert third.endswith("did you mean decide.budget?")
    assert fourth == "--index.damping: expected a value after it"
    assert fifth == "--index.bits: input should be 32, 16, 8, 4, 2 or 1, got 7"
    assert sixth.endswith("decde: unknown key; did you mean decide?")
    with pytest.raises(ConfigError, match="unknown option; did you mean train.seed"):
        load_config(
            CleanConfig,
            written(tmp_path, "data: {class_path: Digits}"),
            *read_overrides(["--train.sed=1"], CleanConfig),
        )


def test_words_that_only_yaml_1_1_takes_for_booleans_are_text(tmp_path: Path) -> None:
    text = "data: {class_path: TableData, init_args: {label: on, features: [yes, No, OFF, true]}}\nretrain: no"
    config = load_config(CleanConfig, written(tmp_path, text))
    assert config.data.init_args == {"label": "on", "features": ["yes", "No", "OFF", True]}
    assert config.retrain is False, "an option of the schema knows what is meant"
    assert read_overrides(["--data.init_args.label", "no"], CleanConfig) == ({"data.init_args.label": "no"}, [])


def test_an_index_takes_the_configuration_of_a_clean_job_without_what_it_has_no_use_for(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {class_path: Digits}\ndecide: {action: review}\nretrain: false\nindx: {}")
    unused = unused_keys(file, IndexConfig, CleanConfig)
    assert unused == ["decide", "retrain"]
    with pytest.raises(ConfigError, match="indx: unknown key; did you mean index") as caught:
        load_config(IndexConfig, file, unused=unused)
    assert len(caught.value.problems) == 1


def test_bytes_are_numbers_or_have_a_unit(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {class_path: Digits}\nindex: {memory_limit: 500 MB}")
    assert load_config(IndexConfig, file).index.memory_limit == 500_000_000
    assert load_config(IndexConfig, file, {"index.memory_limit": 2**20}).index.memory_limit == 2**20
    (problem,) = problems_of(file, {"index.memory_limit": "much"})
    assert "index.memory_limit" in problem


def test_nothing_to_register_is_said_before_the_run(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {class_path: Digits}\nmodel: {checkpoint: a.ckpt}\nretrain: false")
    (problem,) = problems_of(file, {"tracking.register_as": "mine"})
    assert "tracking.register_as: no model is trained" in problem


def test_paths_start_from_the_file_and_on_the_command_line_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("CURATE_WORKSPACE", "elsewhere")
    file = written(tmp_path, "data: {class_path: TableData}\nmodel: {checkpoint: a.ckpt}\nindex: {path: old}")
    tokens = ["--data.init_args.path", "mine.csv", "--index.path", "new"]
    config = load_config(CleanConfig, file, *read_overrides(tokens, CleanConfig))
    assert config.model.checkpoint == tmp_path / "a.ckpt"
    assert config.index.path == str(here / "new")
    assert config.data.init_args == {"path": str(here / "mine.csv")}
    assert config.root == tmp_path and config.name == "job"
    assert config.workspace == here / "elsewhere"


def test_a_configuration_is_found_by_path_by_name_and_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("clean_digits") == CONFIGS / "clean_digits.yaml"
    assert find_config("configs/clean_digits.yaml") == CONFIGS / "clean_digits.yaml"
    own = tmp_path / "clean_digits.yaml"
    own.write_text("data: {class_path: Digits}")
    assert find_config("clean_digits") == own
    with pytest.raises(
        ConfigError, match=r"no such configuration file; did you mean clean_text\? Shipped: .*serve.yaml"
    ):
        find_config("clean_txt")
    with pytest.raises(ConfigError, match="found a folder"):
        find_config(str(tmp_path))


def test_what_the_schema_holds_survives_json() -> None:
    config = load_config(CleanConfig, CONFIGS / "clean_digits.yaml")
    assert CleanConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("unset", [False, True])
def test_a_planned_index_survives_the_file_a_run_writes(unset: bool, tmp_path: Path) -> None:
    """With its defaults written out, and as it is sent to a server."""
    file = written(tmp_path, "data: {class_path: Digits}\nindex: {bytes_per_example: 400}\n")
    config = load_config(CleanConfig, file)
    assert CleanConfig.model_validate(config.model_dump(mode="json", exclude_unset=unset)) == config
    assert load_config(CleanConfig, written(tmp_path, config_text(config))) == config
    said = "bytes_per_example plans projection_factor, factor_rank, storage, bits: leave factor_rank and bits out"
    assert said in str(problems_of(file, {"index.bits": 8, "index.factor_rank": 2}))


def test_the_file_a_run_writes_asks_no_more_of_an_index_that_is_given(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {class_path: Digits}\nindex: {path: made, bits: 16}\n")
    config = load_config(CleanConfig, file)
    again = load_config(CleanConfig, written(tmp_path, config_text(config)))
    assert again == config and again.index.path == str(tmp_path / "made")
    assert again.index.model_fields_set - NOT_KEPT == {"bits"}
    assert CleanConfig.model_validate(config.model_dump(mode="json", exclude_unset=True)) == config


def test_a_class_named_on_the_command_line_is_not_taken_for_a_file():
    options = ["--data.class_path", "TableData", "--model.class_path", "my.Net", "--model.checkpoint", "a.ckpt"]
    found, _ = read_overrides(options, CleanConfig)
    assert found["data.class_path"] == "TableData" and found["model.class_path"] == "my.Net"
    assert Path(found["model.checkpoint"]).is_absolute()


def test_what_is_wrong_between_sections_is_said_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {class_path: People}\nrequest: {ids: [a], ids_file: b.txt}")
    with pytest.raises(ConfigError) as caught:
        load_config(UnlearnConfig, file)
    assert f"{file}: request" in str(caught.value)
    assert ": :" not in str(caught.value)


def test_each_command_has_an_experiment_of_its_own() -> None:
    kinds = (CleanConfig, SelectConfig, UnlearnConfig)
    found = [kind.model_fields["tracking"].default.experiment for kind in kinds]
    assert found == ["clean", "select", "unlearn"]

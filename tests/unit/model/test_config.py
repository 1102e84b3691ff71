from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.config import (
    SETTINGS,
    JobConfig,
    flatten,
    load_config_file,
    parse_assignments,
    redact,
    with_environment,
)
from rayflow.model.errors import ConfigError


def test_the_defaults_are_those_of_the_contract() -> None:
    config = JobConfig.from_flat({})
    assert (config.checkpoint_interval_ms, config.checkpoint_timeout_ms) == (60_000, 60_000)
    assert (config.restart_max_attempts, config.restart_window_ms) == (10, 600_000)
    assert (config.batch_rows, config.batch_linger_ms) == (65_536, 20)
    assert config.source_rate_limit is None


def test_checkpoints_are_off_in_a_local_run_unless_asked_for() -> None:
    assert JobConfig.from_flat({}, local=True).checkpoint_interval_ms is None
    assert JobConfig.from_flat({"checkpoint.interval": "1s"}, local=True).checkpoint_interval_ms == 1_000
    assert JobConfig.from_flat({"checkpoint.interval": "off"}).checkpoint_interval_ms is None


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'checkpoint.intervall'.*'checkpoint.interval'"):
        JobConfig.from_flat({"checkpoint.intervall": "1s"})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("checkpoint.timeout", "10", "duration with a unit"),
        ("checkpoint.max_concurrent", "0", "at least 1"),
        ("batch.rows", "many", "number"),
        ("batch.rows", "nan", "whole number"),
        ("memory.cutoff", "1.5", "fraction"),
        ("checkpoint.mode", "fast", "'aligned'"),
        ("source.rate_limit", "-1", "rows per second"),
        ("memory.process", "16MiB", "no room"),
        ("heartbeat.timeout", "1s", "longer than heartbeat.interval"),
    ],
)
def test_a_bad_value_names_key_and_expectation(key: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JobConfig.from_flat({key: value})
    assert key in str(caught.value)
    assert expected in str(caught.value)


def test_the_memory_formula_is_the_worked_example() -> None:
    config = JobConfig.from_flat({"memory.process": "8g"})
    assert config.network_bytes == int(614.4 * 2**20)
    assert config.managed_bytes == pytest.approx(4423.68 * 2**20, abs=1)
    assert JobConfig.from_flat({}).network_bytes == int(76.8 * 2**20)
    assert JobConfig.from_flat({"memory.process": "64g"}).network_bytes == 1 << 30


def test_a_toml_file_may_nest_or_dot_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('batch.rows = 10\n[checkpoint]\ninterval = "5s"\nretained = 2\n[s3]\nregion = "x"\n')
    flat = load_config_file(file)
    assert flat == {"batch.rows": 10, "checkpoint.interval": "5s", "checkpoint.retained": 2, "s3.region": "x"}


@pytest.mark.parametrize("text", ["checkpoint = [", "[checkpoint]\ninterval = 5", "nonsense.key = 1"])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_config_file(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config_file(tmp_path / "nowhere.toml")


def test_assignments_need_key_and_value() -> None:
    assert parse_assignments(["batch.rows=5", "batch.rows=6"]) == {"batch.rows": "6"}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_assignments(["batch.rows"])


def test_what_belongs_together_may_come_from_the_file_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text("heartbeat.timeout = '60s'\nmemory.network = 0.5\n")
    merged = {
        **load_config_file(file),
        **parse_assignments(["heartbeat.interval=10s", "memory.process=80MiB"]),
    }
    assert JobConfig.from_flat({**merged, "memory.process": "1g"}).heartbeat_interval_ms == 10_000
    with pytest.raises(ConfigError, match=r"memory\.process"):
        JobConfig.from_flat(merged)
    with pytest.raises(ConfigError, match=r"heartbeat.timeout must be longer"):
        JobConfig.from_flat(parse_assignments(["heartbeat.interval=10s"]))


def test_credentials_come_from_the_environment_only_as_a_whole() -> None:
    environ = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "r",
        "AWS_ENDPOINT_URL": "http://e",
    }
    assert with_environment({}, environ) == {
        "s3.access_key": "a",
        "s3.secret_key": "b",
        "s3.region": "r",
        "s3.endpoint": "http://e",
    }
    given_keys = {"s3.access_key": "mine", "s3.secret_key": "own", "s3.region": "q"}
    assert with_environment(given_keys, environ) == {**given_keys, "s3.endpoint": "http://e"}


def test_secrets_are_hidden_when_printed() -> None:
    given = {
        "s3.secret_key": "hush",
        "s3.access_key": "AKIA",
        "checkpoint.storage": "s3://AKIA:hush@b/p?secret_key=hush&region=r",
    }
    printed = str(redact(given))
    assert "hush" not in printed
    assert "AKIA" not in printed
    assert "region=r" in printed
    assert redact({"other": 1}) == {"other": 1}


@given(
    st.recursive(
        st.integers(),
        lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=4),
        max_leaves=8,
    ).filter(lambda tree: isinstance(tree, dict))
)
def test_flattening_keeps_every_leaf_under_its_path(tree: dict[str, object]) -> None:
    for path, leaf in flatten(tree).items():
        node: object = tree
        for step in path.split("."):
            assert isinstance(node, dict)
            node = node[step]
        assert node == leaf


@given(
    st.sampled_from(sorted(SETTINGS)),
    st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()),
)
def test_any_value_is_taken_or_refused_with_a_config_error(key: str, value: object) -> None:
    try:
        config = JobConfig.from_flat({key: value})
    except ConfigError as error:
        named = key in str(error)
    else:
        named = config == JobConfig.from_flat({key: value})
    assert named


def test_every_attribute_has_its_key() -> None:
    attributes = {setting.attribute for setting in SETTINGS.values()} | {"storage_options"}
    assert attributes == {field.name for field in dataclasses.fields(JobConfig)}


def test_a_backend_that_there_is_not_is_refused() -> None:
    assert JobConfig.from_flat({"state.backend": "disk"}).state_backend == "disk"
    with pytest.raises(ConfigError, match="'memory' or 'disk'"):
        JobConfig.from_flat({"state.backend": "rocksdb"})


@pytest.mark.parametrize(
    "unaligned", [{"checkpoint.mode": "unaligned"}, {"checkpoint.alignment_timeout": "1s"}]
)
def test_checkpoints_that_may_be_unaligned_are_taken_one_at_a_time(unaligned: dict[str, str]) -> None:
    JobConfig.from_flat(unaligned)
    with pytest.raises(ConfigError, match="max_concurrent"):
        JobConfig.from_flat({**unaligned, "checkpoint.max_concurrent": 2})

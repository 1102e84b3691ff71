from __future__ import annotations

from pathlib import Path
from typing import Literal, Optional

import click
import pytest
from click.testing import CliRunner

from rayflow.cli.job_options import job_options, job_values
from rayflow.model.errors import PlanError

TWO_TAGS = ["x", "y"]
NO_PORTS: list[int] = []


def parse(build, *args, own=()):
    """The keyword arguments that `build` would get from the command line `args`."""
    got = {}
    command = click.Command(
        "run", params=job_options(build, {flag: None for flag in own}), callback=got.update
    )
    result = CliRunner().invoke(command, args, catch_exceptions=False)
    return job_values(got) if result.exit_code == 0 else result


def test_every_scalar_is_typed_by_its_annotation():
    def build(env, *, name: str = "a", count: int = 1, rate: float = 1.0, folder: Path = Path("x")): ...

    values = parse(build, "--name", "7", "--count", "7", "--rate", "7", "--folder", "7")
    assert values == {"name": "7", "count": 7, "rate": 7.0, "folder": Path("7")}
    assert [type(v) for v in values.values()][:3] == [str, int, float]


def test_defaults_are_those_of_the_function():
    def build(
        env,
        *,
        name: str = "a",
        tags: list[str] = TWO_TAGS,
        flag: bool = True,
        none: int | None = None,
    ): ...

    assert parse(build) == {"name": "a", "tags": ["x", "y"], "flag": True, "none": None}


def test_snake_case_becomes_kebab_case():
    def build(env, *, min_visibility_km: float): ...

    assert parse(build, "--min-visibility-km", "2.5") == {"min_visibility_km": 2.5}


def test_bool_is_a_flag_with_its_negation():
    def build(env, *, dry_run: bool = False, verbose: bool = True): ...

    assert parse(build, "--dry-run", "--no-verbose") == {"dry_run": True, "verbose": False}


def test_literal_is_a_choice_and_keeps_its_type():
    def build(env, *, format: Literal["csv", "json"] = "csv", level: Literal[1, 2] = 1): ...

    assert parse(build, "--format", "json", "--level", "2") == {"format": "json", "level": 2}
    refused = parse(build, "--format", "xml")
    assert refused.exit_code == 2
    assert "'csv', 'json'" in refused.output


def test_list_repeats_the_option():
    def build(env, *, port: list[int] = NO_PORTS): ...

    assert parse(build, "--port", "1", "--port", "2") == {"port": [1, 2]}
    assert parse(build) == {"port": []}


def test_optional_is_its_inner_type():
    def build(env, *, limit: Optional[int] = None, name: str | None = None):  # noqa: UP045
        ...

    assert parse(build, "--limit", "3") == {"limit": 3, "name": None}


def test_a_parameter_without_annotation_takes_the_type_of_its_default():
    def build(env, *, count=3, name=None): ...

    assert parse(build, "--count", "4", "--name", "5") == {"count": 4, "name": "5"}


def test_a_parameter_without_default_is_required():
    def build(env, *, input: str): ...

    refused = parse(build)
    assert refused.exit_code == 2
    assert "Missing option '--input'" in refused.output


def test_clash_with_an_own_option_names_the_parameter_and_its_line():
    def build(env, *, parallelism: int = 2): ...

    with pytest.raises(
        PlanError, match=r"'parallelism'.*--parallelism is an option of rayflow.*\n.*test_job_options"
    ):
        job_options(build, {"--parallelism": None})


def test_unknown_annotation_says_what_is_possible():
    def build(env, *, when: complex = 1j): ...

    with pytest.raises(PlanError, match=r"'when' of type complex.*expected str, int, float, bool, Literal"):
        job_options(build, {})


def test_build_must_take_the_environment_and_name_its_options():
    def no_env(*, input: str = ""): ...

    def anything(env, **options): ...

    with pytest.raises(PlanError, match=r"environment first"):
        job_options(no_env, {})
    with pytest.raises(PlanError, match=r"name each option"):
        job_options(anything, {})


def test_annotation_that_cannot_be_resolved_is_the_authors_error():
    def build(env, *, input: Nowhere = ""): ...  # noqa: F821

    with pytest.raises(PlanError, match=r"cannot resolve the annotations.*Nowhere"):
        job_options(build, {})

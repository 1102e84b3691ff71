from __future__ import annotations

import json

import pyarrow as pa
import pytest
from click.testing import CliRunner

from rayflow.cli.errors import exit_code_of
from rayflow.cli.state_commands import state_group
from rayflow.state.files import encode_table, sha256_hex
from rayflow.state.manifest import Manifest, SplitState, StateFile, publish_manifest
from rayflow.state.storage import open_store

COUNTS = pa.table({"word": ["be", "to"], "count": [2, 3]})


@pytest.fixture
def storage(tmp_path):
    """A checkpoint storage that holds checkpoints 1 and 2 of job `words-1`."""
    store = open_store(str(tmp_path), {})
    data = encode_table(COUNTS)
    for number in (1, 2):
        directory = f"words-1/chk-{number}"
        store.write(f"{directory}/count-0.arrow", data)
        file = StateFile(
            path="count-0.arrow",
            uid="count",
            part="accumulators",
            kind="list",
            subtask_index=0,
            nbytes=len(data),
            sha256=sha256_hex(data),
            rows=2,
        )
        split = SplitState(split='{"id": "README.md", "payload": {}}', position="17")
        publish_manifest(
            store,
            directory,
            Manifest(
                job_id="words-1",
                attempt=1,
                checkpoint_id=number,
                time_ms=1_700_000_000_000,
                max_parallelism=128,
                operators={"read": 1, "count": 1, "write": 1},
                files=(file,),
                sources={"read": (split,)},
            ),
        )
    return tmp_path


def state(*args):
    return CliRunner().invoke(state_group, [str(a) for a in args], catch_exceptions=False)


def test_ls_of_a_storage_lists_its_checkpoints(storage):
    rows = json.loads(state("ls", storage, "--json").output)
    assert [(row["job_id"], row["id"], row["kind"]) for row in rows] == [
        ("words-1", 1, "checkpoint"),
        ("words-1", 2, "checkpoint"),
    ]
    assert rows[0]["path"].endswith("words-1/chk-1")
    assert "words-1" in state("ls", storage).output


def test_ls_of_a_checkpoint_lists_its_files(storage):
    output = json.loads(state("ls", storage / "words-1" / "chk-1", "--json").output)
    assert [(f["operator"], f["part"], f["rows"]) for f in output["files"]] == [("count", "accumulators", 2)]
    assert "count-0.arrow" in state("ls", storage / "words-1" / "chk-1").output


def test_read_prints_an_operators_state_as_a_table(storage):
    output = state("read", storage / "words-1" / "chk-1", "--operator", "count").output
    assert "count / accumulators: 2 rows" in output
    assert "be        2" in output
    assert "README.md" not in output


def test_read_of_a_jobs_folder_means_its_newest_checkpoint_and_shows_source_positions(storage):
    output = state("read", storage / "words-1").output
    assert "checkpoint 2 of job words-1" in output
    assert "README.md        17  no" in output


def test_read_as_json_has_all_rows_whatever_the_limit(storage):
    output = json.loads(state("read", storage / "words-1", "--limit", 0, "--json").output)
    assert output["operators"]["count"]["accumulators"] == COUNTS.to_pylist()
    assert output["sources"]["read"] == [{"split": "README.md", "position": 17, "finished": False}]


def test_limit_says_how_many_rows_are_not_shown(storage):
    assert "… 1 more rows" in state("read", storage / "words-1", "--limit", 1).output


def test_unknown_operator_names_the_nearest(storage, capsys):
    assert exit_code_of(state_group, ["read", str(storage / "words-1"), "--operator", "cuont"]) == 2
    assert "did you mean 'count'?" in capsys.readouterr().err


def test_corrupt_state_file_is_named(storage, capsys):
    (storage / "words-1" / "chk-1" / "count-0.arrow").write_bytes(b"rubbish")
    assert exit_code_of(state_group, ["read", str(storage / "words-1" / "chk-1")]) == 1
    assert "count-0.arrow is corrupt" in capsys.readouterr().err


def test_folder_without_a_checkpoint_says_what_was_looked_for(tmp_path, capsys):
    for command in ("ls", "read"):
        assert exit_code_of(state_group, [command, str(tmp_path)]) == 1
        assert "no" in (message := capsys.readouterr().err)
        assert str(tmp_path) in message
        assert "Traceback" not in message

"""What every test folder may use, and what keeps tests to themselves: no user's data, cluster or credentials."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.mariadb import MariaDb, running_mariadb
from tests.postgres import Postgres, running_postgres
from tests.s3 import S3Server, running_s3

# A busy machine is no failure: examples have no deadline. A failing one prints how to reproduce it.
settings.register_profile("rayflow", deadline=None, print_blob=True)
settings.load_profile("rayflow")


@pytest.fixture(scope="session", autouse=True)
def _hermetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A data folder for this run; no cluster, credentials or settings of whoever runs the tests."""
    foreign = ("RAY_ADDRESS", "RAYFLOW_DEBUG", *(name for name in os.environ if name.startswith("AWS_")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYFLOW_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name in foreign:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """moto's server, started once per run."""
    with running_s3() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, started once per run; skips where it is not installed."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """A MariaDB server, started once per run; skips where it is not installed."""
    with running_mariadb() as server:
        yield server

"""Hypothesis profiles, tests/support on the path, registries' databases, Triton's interpreter where no GPU is."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

# Triton reads this when it is imported, which transformers does.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidiactl").exists() else "1")

_quiet = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": False}
_quiet["phases"] = [Phase.explicit, Phase.generate, *([] if os.environ.get("NOSHRINK") else [Phase.shrink])]
settings.register_profile("ci", derandomize=True, database=None, **_quiet)
settings.register_profile("deep", **_quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server: that of LORATORY_TEST_POSTGRES, or one started from installed programs."""
    import postgres

    if given := os.environ.get("LORATORY_TEST_POSTGRES"):
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="loratory-postgres-"))
    try:
        yield postgres.start(folder)
    except postgres.NoServerError as error:
        pytest.skip(f"{error}; install a server, or give its URL in LORATORY_TEST_POSTGRES")
    finally:
        postgres.stop(folder)


@pytest.fixture
def postgres_registry(postgres_url: str) -> Iterator[str]:
    """The URL of an empty registry in PostgreSQL: a schema of its own."""
    from schemas import own_schema

    with own_schema(postgres_url) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty registry can be made: a file, then a PostgreSQL schema."""
    if request.param == "sqlite":
        return str(tmp_path / "registry.db")
    url: str = request.getfixturevalue("postgres_registry")
    return url

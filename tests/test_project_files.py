"""Files that a public project has: licence, notice, citation, workflow, hooks; each agrees with the code."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_licence_is_apache_2_0_word_for_word() -> None:
    """The digest is that of LICENSE-2.0.txt, as the Apache Software Foundation publishes it."""
    text = (ROOT / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert PROJECT["license"] == "Apache-2.0"


def test_the_notice_names_every_table_and_profile_that_ships() -> None:
    kinds = ("scenarios/**/*.csv", "scenarios/profiles/*.json", "executor/**/*.json")
    shipped = {str(path.relative_to(ROOT)) for kind in kinds for path in ROOT.glob(kind)}
    named = re.findall(r"^[\w/.-]+\.(?:csv|json)$", (ROOT / "NOTICE").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(shipped)

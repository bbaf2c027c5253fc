"""The audit of dependencies fails for what is known, excepts only until a day, and is not fooled by silence."""

from __future__ import annotations

import importlib.util
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import audio_assets

ROOT = Path(audio_assets.__file__).parents[1]
TODAY = date(2026, 6, 1)
FOUND = {
    "name": "spam",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fix_versions": ["1.1"]}],
}
FINE = {"name": "eggs", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "ham", "skip_reason": "Dependency not found on PyPI and could not be audited: ham (1.0)"}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("dependencies", "exceptions", "status", "says"),
    [
        ([FINE], {}, 0, "1 packages audited"),
        ([FINE, FOUND], {}, 1, "spam 1.0: PYSEC-2026-1, fixed in 1.1"),
        ([FOUND], {"CVE-2026-1": {"until": "2026-06-01", "reason": "only on Windows"}}, 0, "only on Windows"),
        ([FOUND], {"CVE-2026-1": {"until": "2026-05-31", "reason": "only on Windows"}}, 1, "ran out on 2026-05-31"),
        ([FINE, UNKNOWN], {}, 0, "1 unknown to the index"),
        ([UNKNOWN, UNKNOWN], {}, 2, "NOT AUDITED"),
        ([], {}, 2, "NOT AUDITED"),
        ([FINE], {"CVE-2020-1": {"until": "2027-01-01", "reason": "?"}}, 0, "unneeded exception CVE-2020-1"),
    ],
)
def test_findings_are_judged(
    audit: ModuleType, dependencies: list[dict[str, Any]], exceptions: dict[str, Any], status: int, says: str
) -> None:
    lines, found = audit.judge(dependencies, exceptions, TODAY)
    assert found == status
    assert says in "\n".join(lines)


def test_every_version_that_is_pinned_for_any_python_is_asked_about(audit: ModuleType) -> None:
    one = "spam==1.0 ; python_version < '3.11' \\\n    --hash=sha256:00\nspam==2.0 ; python_version >= '3.11' \\\n"
    other = "eggs[all]==3.1 \\\n    --hash=sha256:00\nspam==2.0 \\\n"
    assert audit.rounds([one, other]) == [["eggs==3.1", "spam==1.0"], ["spam==2.0"]]


def test_ci_audits_strictly() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "make lint" in workflow
    assert ".ci/audit.py --strict" in workflow
    assert "make audit" in (ROOT / ".ci" / "run").read_text()


def test_whatever_is_installed_is_locked_with_hashes() -> None:
    """Every place that installs packages does so from a lock file, and says so."""
    for name in ("Makefile", "Dockerfile", ".ci/run", ".github/workflows/ci.yml"):
        for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
            installs = "PIP_INSTALL) " in line or "pip install" in line
            if installs and "PIP_INSTALL :=" not in line:
                for command in line.split("&&"):
                    if "install" in command and ("pip" in command.lower()):
                        assert "--require-hashes" in command or "--no-deps" in command, f"{name}: {line}"
    for path in ROOT.glob("requirements*.txt"):
        text = path.read_text()
        pinned = [line for line in text.splitlines() if line[:1].isalnum()]
        assert pinned and all("==" in line for line in pinned), path.name
        assert text.count("--hash=sha256:") >= len(pinned), path.name

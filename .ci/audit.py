"""Known vulnerabilities of everything that the lock files name; ``--strict`` fails where nobody could be asked.

Exit status: 0 nothing known that is not excepted, 1 something is known or an exception has run out, 2 nobody could be
asked (with ``--strict``). Exceptions stand in ``audit-exceptions.json`` beside this file, each with its reason and its
last day: {"PYSEC-2026-1": {"until": "2026-12-31", "reason": "only on Windows"}}.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NOBODY_ASKED = 2
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)


def judge(
    dependencies: Sequence[Mapping[str, Any]], exceptions: Mapping[str, Mapping[str, str]], today: date
) -> tuple[list[str], int]:
    """What to say of pip-audit's findings, and the exit status."""
    lines, status, seen = [], 0, set()
    for found in dependencies:
        for vulnerability in found.get("vulns") or ():
            names = [str(vulnerability["id"]), *map(str, vulnerability.get("aliases") or ())]
            seen.update(names)
            excepted = next((exceptions[name] for name in names if name in exceptions), None)
            fixed = ", ".join(vulnerability.get("fix_versions") or ()) or "nowhere yet"
            text = f"{found['name']} {found.get('version')}: {names[0]}, fixed in {fixed}"
            if excepted is None:
                lines.append(f"FOUND    {text}; refresh the lock files (make lock)")
                status = 1
            elif date.fromisoformat(excepted["until"]) < today:
                lines.append(f"FOUND    {text}; its exception ran out on {excepted['until']}: {excepted['reason']}")
                status = 1
            else:
                lines.append(f"excepted {text}; until {excepted['until']}: {excepted['reason']}")
    lines += [f"unneeded exception {name}: nothing has it" for name in exceptions if name not in seen]
    asked = [found for found in dependencies if "skip_reason" not in found]
    if not asked:
        lines.append("NOT AUDITED: the package index answers without advisories, or not at all; this says nothing")
        return lines, NOBODY_ASKED
    skipped = len(dependencies) - len(asked)
    lines.append(f"{len(asked)} packages audited" + (f", {skipped} unknown to the index" if skipped else ""))
    return lines, status


def rounds(texts: Iterable[str]) -> list[list[str]]:
    """What lock files pin, for any Python and system, as lists in which no package has two versions."""
    versions: dict[str, set[str]] = {}
    for text in texts:
        for name, version in _PIN.findall(text):
            versions.setdefault(name.lower(), set()).add(version)
    most = max(map(len, versions.values()), default=0)
    ordered = {name: sorted(found) for name, found in sorted(versions.items())}
    return [[f"{name}=={found[n]}" for name, found in ordered.items() if n < len(found)] for n in range(most)]


def audited() -> list[dict[str, Any]]:
    """pip-audit's findings for all lock files; nothing where it could ask nobody."""
    dependencies: list[dict[str, Any]] = []
    for pins in rounds(file.read_text() for file in sorted(HERE.parent.glob("requirements*.txt"))):
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "requirements.txt"
            file.write_text("\n".join(pins))
            done = subprocess.run(  # noqa: S603 - the command is ours, word by word
                [
                    *(sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--format", "json"),
                    *("--progress-spinner", "off", "--timeout", "30", "-r", str(file)),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
        try:
            dependencies += json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError):
            sys.stderr.write(done.stderr.strip()[-2000:] + "\n")
    return dependencies


def main() -> int:
    """Audit, and say what was found."""
    lines, status = judge(audited(), json.loads((HERE / "audit-exceptions.json").read_text()), date.today())
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if status == NOBODY_ASKED and "--strict" not in sys.argv else status


if __name__ == "__main__":
    sys.exit(main())

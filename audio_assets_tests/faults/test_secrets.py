"""Canaries in every secret setting are found in nothing that a run, good or bad, leaves or says."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from audio_assets.settings import Home, Settings
from audio_assets_tests.faults.campaign import tried
from audio_assets_tests.faults.test_kills import RUN, keys, settings, victims  # noqa: F401
from audio_assets_tests.faults.victims import Victims
from audio_assets_tests.speech.conftest import FaultServer, fault_server, reply  # noqa: F401

SECRETS = {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
OF_THE_SERVER = "R2_SECRET_ACCESS_KEY"
"""The one that must be right; the server made it up at random."""


def holders(root: Path, canary: str) -> list[Path]:
    """Files under ``root`` that hold ``canary``, packed or not."""
    found = []
    for path in root.rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        if canary.encode() in data:
            found.append(path)
    return found


@pytest.mark.parametrize(
    "trouble", ["none", "401", "no bucket", "wrong endpoint", pytest.param("html", marks=pytest.mark.slow)]
)
def test_no_canary_is_found_anywhere(
    trouble: str,
    tmp_path: Path,
    victims: Victims,  # noqa: F811
    settings: dict[str, str],  # noqa: F811
    fault_server: FaultServer,  # noqa: F811
    keys: set[str],  # noqa: F811
    request: pytest.FixtureRequest,
) -> None:
    home = Home(tmp_path / "home")
    canaries = {name: f"canary-{name.lower().replace('_', '-')}-7f3a" for name in SECRETS - {OF_THE_SERVER}}
    canaries["AUDIO_ASSETS_WEBHOOK_URL"] = "https://canary-webhook-7f3a.invalid/hook"
    here = settings | canaries | {"AUDIO_ASSETS_HOME": str(home.root)}
    if trouble == "401":
        fault_server.answers = [reply(401, {"error": {"message": "bad key", "code": "invalid_api_key"}})]
    elif trouble == "html":
        fault_server.answers = [reply(200, b"<html>blocked</html>", "text/html")]
    elif trouble == "no bucket":
        here["R2_BUCKET"] = "nobody-has-this"
    elif trouble == "wrong endpoint":
        here["R2_ENDPOINT_URL"] = "http://127.0.0.1:9"

    said = []
    for command in ((*RUN, "--verbose"), ("doctor",), ("verify",), ("report",), ("plan",)):
        ended = victims.run(*command, settings=here)
        assert ended.returncode in (0, 1, 3, 4, 5), (command, ended)
        said.append(ended.output)

    canaries[OF_THE_SERVER] = settings[OF_THE_SERVER]
    for name, canary in canaries.items():
        assert not [text for text in said if canary in text], name
        assert holders(home.root, canary) == [], name
    tried(request, len(canaries))

"""The program as its container runs it: a user without rights, everything read-only but the home and the scratch.

No container engine is needed: a mount namespace shows what the program does, not that the image is built well.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import audio_assets
from audio_assets.demo import demo_objects

ROOT = Path(audio_assets.__file__).parents[1]
USER = 10001

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(600)]

NAMESPACE = """
set -e
mount --make-rprivate /
# The interpreter may lie in a home that other users cannot enter.
if [ -n "$CLOSED" ]; then
    mkdir -p "$SCRATCH/python"
    mount --bind "$PYTHON_ROOT" "$SCRATCH/python"
    mount -t tmpfs -o mode=755 tmpfs "$CLOSED"
    mkdir -p "$PYTHON_ROOT"
    mount --bind "$SCRATCH/python" "$PYTHON_ROOT"
    mount -o remount,ro,bind "$PYTHON_ROOT"
fi
chown -R "$USER_ID:$USER_ID" "$SCRATCH/data"
for writable in "$SCRATCH/data" /var/tmp; do mount --bind "$writable" "$writable"; done
mount --bind "$PROJECT" "$PROJECT"
mount -o remount,ro,bind "$PROJECT"
mount -o remount,ro,bind /
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
cd "$PROJECT"
exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups --bounding-set=-all --no-new-privs \
    env -i PATH="$BIN:$PATH" HOME=/home/nobody TMPDIR=/var/tmp MPLCONFIGDIR=/var/tmp/matplotlib PYTHONUNBUFFERED=1 \
    AUDIO_ASSETS_HOME="$SCRATCH/data" DAGSTER_HOME="$SCRATCH/data/dagster" HF_HUB_OFFLINE=1 WHISPER_ENGINE=local \
    PORT="$PORT" sh -c "$COMMAND"
"""

COMMAND = """
id -u; touch here 2>&1; touch "$(dirname "$(command -v python)")/here" 2>&1
set -e
python -m audio_assets.dagster_home
audio-assets run --skip-ingestion --output-format parquet --output-format sqlite --output-format duckdb
audio-assets verify
audio-assets doctor
dagster definitions validate -w workspace.yaml 2>&1 | tail -1
dagster dev -h 127.0.0.1 -p $PORT -w workspace.yaml >/var/tmp/dev.log 2>&1 &
for try in $(seq 120); do
    sleep 1
    if python -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:$PORT/server_info').status)" 2>/dev/null
    then break; fi
done
grep -i "read-only\\|permission denied" /var/tmp/dev.log || true
"""


def closed_to_others(path: Path) -> Path | None:
    """The first folder on the way to ``path`` that other users cannot enter."""
    return next((p for p in [*reversed(path.parents), path] if not p.stat().st_mode & 0o001), None)


def test_a_user_without_rights_can_run_everything_from_read_only_files(tmp_path: Path) -> None:
    # pytest's own folders are closed to other users.
    scratch = Path(tempfile.mkdtemp(prefix="audio-assets-read-only-"))
    audio = scratch / "data" / "audio" / "calls"
    scratch.chmod(0o755)
    audio.mkdir(parents=True)
    try:
        for item in demo_objects()[:2]:
            (audio / item.key.rpartition("/")[2]).write_bytes(item.body)
        python_root = Path(sys.base_prefix).resolve()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", NAMESPACE],
            env={
                "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
                "BIN": str(Path(sys.prefix) / "bin"),
                "SCRATCH": str(scratch),
                "PROJECT": str(ROOT),
                "PYTHON_ROOT": str(python_root),
                "CLOSED": str(closed_to_others(python_root) or ""),
                "USER_ID": str(USER),
                "PORT": str(port),
                "COMMAND": COMMAND,
            },
            capture_output=True,
            text=True,
            timeout=500,
        )
        if "unshare" in done.stderr or (done.returncode and not done.stdout):
            pytest.skip(f"no mount namespace can be made here: {done.stderr.strip()[:200]}")
        told = done.stdout + done.stderr
        assert done.returncode == 0, told[-3000:]
        assert done.stdout.splitlines()[0] == str(USER)
        assert len(re.findall(r"cannot touch .*Read-only file system", told)) == 2
        assert "2 ok" in told
        assert "everything agrees" in told
        assert "All code locations passed validation" in told
        assert "\n200\n" in told, "Dagster's UI answers"
        assert "ermission denied" not in told
    finally:
        subprocess.run(["rm", "-rf", str(scratch)], check=True)

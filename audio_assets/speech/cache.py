"""Finished transcripts by content: SHA-256 of the audio bytes, then fingerprint of engine and options.

    <root>/<sha256[:2]>/<sha256>/<fingerprint>.json           a finished file
    <root>/<sha256[:2]>/<sha256>/<fingerprint>.windows.jsonl  the windows of a file in progress, one a line
    <root>/<sha256[:2]>/<sha256>/<fingerprint>.lock           held by whoever transcribes the file

Every entry carries a checksum. A damaged entry is a miss, never an error: the file is transcribed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from audio_assets.storage import atomic


class Hold:
    """The sole right to transcribe something, among all processes that share the cache."""

    def __init__(self, lock: FileLock):
        self._lock = lock

    def release(self) -> None:
        """Give it back."""
        # Removed while it is held: who has opened it meanwhile sees that it is gone, and makes a new one.
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


class TranscriptCache:
    """The cache under one directory, which is made when first written. Safe to use from threads and processes."""

    def __init__(self, root: Path):
        self.root = root

    def path_for(self, sha256: str, fingerprint: str) -> Path:
        """Where the finished transcript of these bytes lies."""
        return self.root / sha256[:2] / sha256 / f"{fingerprint}.json"

    def has(self, sha256: str, fingerprint: str) -> bool:
        """Whether there is a stored transcript that can be read."""
        return self.get(sha256, fingerprint) is not None

    def get(self, sha256: str, fingerprint: str) -> dict[str, Any] | None:
        """The stored transcript, or None if there is none or it is damaged."""
        path = self.path_for(sha256, fingerprint)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        if path.with_suffix(".lock").exists():
            self._clear_lock(sha256, fingerprint)
        return unseal(text)

    def put(self, sha256: str, fingerprint: str, result: dict[str, Any]) -> None:
        """Store a finished transcript, complete or not at all, and forget the windows that led to it."""
        path = self.path_for(sha256, fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, seal(result).encode("utf-8"))
        # What a run left that was killed while it wrote this.
        atomic.remove_stale_temps(path.parent)
        self._windows_path(sha256, fingerprint).unlink(missing_ok=True)

    def get_windows(self, sha256: str, fingerprint: str) -> dict[str, dict[str, Any]]:
        """The windows of an unfinished file that were stored, by name. Damaged lines are left out."""
        try:
            data = self._windows_path(sha256, fingerprint).read_bytes()
        except OSError:
            return {}
        found: dict[str, dict[str, Any]] = {}
        for line in data.split(b"\n"):
            entry = unseal(line.decode("utf-8", "replace"))
            if entry is not None and isinstance(entry.get("window"), str):
                found[entry["window"]] = entry
        return found

    def put_window(self, sha256: str, fingerprint: str, window: str, result: dict[str, Any]) -> None:
        """Store the result of one window; on disk when this returns."""
        path = self._windows_path(sha256, fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A leading newline ends a line that a killed writer left half-written.
        line = b"\n" + seal({**result, "window": window}).encode("utf-8") + b"\n"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)

    def drop_windows(self, sha256: str, fingerprint: str) -> None:
        """Forget the windows of a file that is to be transcribed anew."""
        self._windows_path(sha256, fingerprint).unlink(missing_ok=True)

    def drop(self, sha256: str) -> int:
        """Remove everything that is stored of these bytes, for every engine and option; returns how many files.

        Raises:
            OSError: the disk refused.
        """
        count = self.count(sha256)
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root / sha256[:2] / sha256)
        return count

    def count(self, sha256: str) -> int:
        """How many files are stored of these bytes, for every engine and option."""
        directory = self.root / sha256[:2] / sha256
        return len(list(directory.iterdir())) if directory.is_dir() else 0

    def hold(self, sha256: str, fingerprint: str) -> Hold | None:
        """The sole right to transcribe these bytes; None while another run or process has it.

        It ends with `Hold.release`, or with the process: what a killed one leaves behind holds nobody up.
        """
        path = self.path_for(sha256, fingerprint).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another thread than the one that took it may give it back.
        lock = FileLock(path, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        return Hold(lock)

    def _clear_lock(self, sha256: str, fingerprint: str) -> None:
        """Remove the lock file of a run that was killed when it had stored its result, but not one that is held."""
        with suppress(OSError):
            left = self.hold(sha256, fingerprint)
            if left is not None:
                left.release()
                atomic.remove_stale_temps(self.path_for(sha256, fingerprint).parent)

    def _windows_path(self, sha256: str, fingerprint: str) -> Path:
        return self.path_for(sha256, fingerprint).with_suffix(".windows.jsonl")


def seal(result: dict[str, Any]) -> str:
    """An entry as text, with a checksum."""
    body = json.dumps(result, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return json.dumps({"checksum": _checksum(body), "result": result}, ensure_ascii=False, sort_keys=True)


def unseal(text: str) -> dict[str, Any] | None:
    """What `seal` made a text of; None when it is damaged."""
    try:
        entry = json.loads(text)
        result = entry["result"]
        body = json.dumps(result, ensure_ascii=False, sort_keys=True, allow_nan=False)
        return result if isinstance(result, dict) and entry["checksum"] == _checksum(body) else None
    except (ValueError, KeyError, TypeError):
        return None


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()

"""The mirror: the bucket's tree on the local disk, file by file, and what is known of each.

A key's path is the key itself wherever a file system can hold it. What it cannot hold is written as ``%XX``, so that
every key has one path, every such path one key, and none lies outside the mirror:

* components ``.`` and ``..``, control characters, NUL included, and ``\\`` are escaped character by character;
* empty components (a leading ``/``, ``//``, a trailing ``/``) become ``%2F``, one per component;
* a component over 255 bytes goes on in the next directory; the cut is marked by ``%2F`` at its end;
* a folder named like an audio file (``a.wav/b.wav``) gets ``%2E`` for its dot: a file ``a.wav`` may lie beside it;
* a ``%`` is escaped only where it would read as one of these escapes: ``100%.wav`` and ``a%20b.wav`` stay as they are;
* of two names that a file system may take for one (``A.wav`` and ``a.wav``, NFC and NFD) one is spelled out (`twins`).

State lies beside the tree in ``.state/``: one small JSON file per object, named by the hash of its key.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
import unicodedata
from collections.abc import Collection, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from audio_assets.errors import FileFailed
from audio_assets.ingest.disk_budget import dropped_files, forget
from audio_assets.ingest.listing import AUDIO_EXTENSIONS, RemoteObject, is_audio
from audio_assets.ingest.twins import MARK, SpelledOut, escaped, fold_path, folders_of, read_out, spell_out, twins_among
from audio_assets.storage.atomic import is_abandoned

STATE_DIRECTORY = ".state"

_NAME_MAX_BYTES = 255  # POSIX file systems; also what a component may have before it is cut
_CUT_BYTES = 240
_EMPTY = "%2F"
_STALE_PART_S = 24 * 3600
_READ_BYTES = 1 << 20

_PART_OF_PROCESS = re.compile(r"(\d+)-[0-9a-f]{16}\.part")
_open_parts: set[str] = set()
"""Names of the temporary files that this process writes."""

_ESCAPE = re.compile(r"%(?:[01][0-9A-F]|7F|25|2E|2F|5C)|%ED%[AB][0-9A-F]%[89AB][0-9A-F]")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")

_DIFFERS = re.compile(
    r"[%\\\x00-\x1f\x7f\ud800-\udfff]|//|^/|(^|/)\.\.?/|(" + "|".join(map(re.escape, AUDIO_EXTENSIONS)) + ")/",
    re.IGNORECASE,
)
"""What a key may hold where its path is not the key itself."""


@dataclass(frozen=True)
class ObjectState:
    """What is known of one file of the mirror.

    ``etag`` is None when the file did not come from a bucket. ``mtime_ns`` is the file's own modification time when
    ``sha256`` was computed: as long as it and the size stay, so does the hash.
    """

    key: str
    etag: str | None
    size_bytes: int
    sha256: str
    last_modified: datetime | None
    content_type: str | None
    metadata: dict[str, str]
    mtime_ns: int


@dataclass(frozen=True)
class Part:
    """A file that is being written, and later takes its place: its path, and the descriptor it is open under.

    The descriptor reads and writes, and stands at the start of the file; whoever gave it closes it.
    """

    path: str
    handle: int


class Mirror:
    """The tree under ``root``. Cheap to make; nothing is written until something is stored."""

    def __init__(self, root: Path, spelled_out: frozenset[str] | None = None) -> None:
        self.root = Path(root).absolute()
        self._spelled_out = spelled_out
        self._parts = self.root / STATE_DIRECTORY / "parts"
        self._objects = self.root / STATE_DIRECTORY / "objects"

    @property
    def spelled_out(self) -> frozenset[str]:
        """Keys, and folders with a ``/`` at their end, whose names are spelled out, since a twin has the plain name."""
        if self._spelled_out is None:
            self._spelled_out = SpelledOut(self._twins_path).load()
        return self._spelled_out

    def path_for(self, key: str) -> Path:
        """The absolute path of ``key``: inside the mirror whatever the key is."""
        return Path(self._place(key))

    def _place(self, key: str) -> str:
        # A string: for each of many small objects a `Path` costs as much as its hash.
        return "/".join([str(self.root), *_encode(key, self.spelled_out)])

    def settle_twins(self, new: Collection[str], others: Collection[str]) -> None:
        """See to it that no two keys can share a file, on whatever file system the mirror lies or is copied to.

        Of names that such a system takes for one, the first keeps its name and the others are spelled out from here on.
        Names that lie side by side already stay as they are.

        Args:
            new: keys that are about to be stored.
            others: keys whose files may be there.

        Raises:
            FileFailed: the disk refuses.
        """
        folders = {folder for key in new for folder in folders_of(key)}
        siblings = {folder: self._siblings(folder) for folder in sorted(folders, key=len)}
        known = {folder for path in {key.rpartition("/")[0] for key in others} for folder in folders_of(path + "/")}
        met = twins_among(folders, [*known, *(s for each in siblings.values() for s in each)])
        keys = twins_among(new, others)
        if not met and not keys:
            return

        def choose(there: frozenset[str]) -> set[str]:
            chosen = set(there)
            taken: set[str] = set()
            for name in [*sorted(met, key=lambda folder: (folder.count("/"), folder)), *sorted(keys)]:
                if name in chosen:
                    continue
                here = _folded_path(name, chosen)
                rivals = {r for r in (met.get(name) or keys[name]) if _folded_path(r, chosen) == here}
                # Of several that are new, the first in order takes the plain name.
                old = {rival for rival in rivals if rival not in folders and rival not in keys}
                if (old or taken & rivals) and not self._lies(name):
                    chosen.add(name)
                else:
                    taken.add(name)
            return chosen

        self._spelled_out = SpelledOut(self._twins_path).add(choose)

    def _siblings(self, folder: str) -> list[str]:
        """The folders on the disk that a file system may take for ``folder``."""
        parent, name = _split(folder)
        return [
            parent + other + "/"
            for other in self._names(parent)
            if other != name and fold_path(other) == fold_path(name)
        ]

    def _lies(self, name: str) -> bool:
        """Whether a file or folder lies under this very name, not one that only reads the same."""
        plain = _encode(name + "x")[-2] if name.endswith("/") else _encode(name)[-1]
        return plain in self._names(_split(name)[0])

    def _names(self, folder: str) -> list[str]:
        directory = self.root.joinpath(*_encode(folder + "x", self.spelled_out)[:-1])
        try:
            return [path.name for path in directory.iterdir()]
        except OSError:
            return []

    @property
    def _twins_path(self) -> Path:
        return self.root / STATE_DIRECTORY / "twins.json"

    def key_for(self, path: Path) -> str:
        """The key of a path, absolute or relative to the mirror; the inverse of `path_for`.

        Raises:
            ValueError: ``path`` is outside the mirror, or is not the path of any key.
        """
        path = Path(path)
        relative = path.relative_to(self.root) if path.is_absolute() else path
        key = _decode(relative.parts)
        if tuple(_encode(key, self.spelled_out)) != relative.parts:
            raise ValueError(
                f"{relative} is not the path of an object; the mirror would keep {key!r} at {self.path_for(key)}"
            )
        return key

    def state(self, key: str) -> ObjectState | None:
        """What was last recorded for ``key``; None when nothing was, or when the record is damaged."""
        try:
            fields = json.loads(Path(self._state_path(key)).read_bytes())
            modified = fields.pop("last_modified")
            found = ObjectState(**fields, last_modified=datetime.fromisoformat(modified) if modified else None)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return found if found.key == key else None

    def record(self, state: ObjectState) -> None:
        """Remember ``state``, replacing what was known of its key.

        Raises:
            FileFailed: the disk refuses.
        """
        fields: dict[str, Any] = dict(vars(state))
        fields["last_modified"] = state.last_modified.isoformat() if state.last_modified else None
        content = json.dumps(fields).encode()
        path = self._state_path(state.key)
        # No fsync: a record lost in a power cut, or cut short by a crash, reads as damaged, and the file is hashed or
        # fetched once more.
        try:
            try:
                handle = _created(path)
            except FileExistsError:
                with self._part() as part:
                    write_all(part.handle, content)
                    _move(part.path, path)
                return
            try:
                write_all(handle, content)
            finally:
                os.close(handle)
        except OSError as error:
            raise FileFailed(f"{path} cannot be written ({error.strerror or error}); check the disk") from error

    def holds(self, found: RemoteObject) -> bool:
        """Whether the mirror has the bytes that the listing tells of: same ETag and size, and the file untouched."""
        state = self.state(found.key)
        if state is None or state.etag is None or state.etag != found.etag or state.size_bytes != found.size_bytes:
            return False
        now = self.inspect(found.key)
        return now is not None and now.etag == found.etag

    def inspect(self, key: str) -> ObjectState | None:
        """The state of the file as it lies; None when there is no such file.

        The hash comes from memory while size and modification time stay; otherwise the file is read. A file whose
        bytes are no longer those that were fetched has no ETag.

        Raises:
            FileFailed: the file cannot be read.
        """
        path = self.path_for(key)
        try:
            status = path.stat()
            known = self.state(key)
            if known and known.size_bytes == status.st_size and known.mtime_ns == status.st_mtime_ns:
                return known
            sha256 = _sha256(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FileFailed(f"{path} cannot be read ({error.strerror}); check its permissions") from error
        same = known is not None and known.sha256 == sha256
        state = ObjectState(
            key=key,
            etag=known.etag if known and same else None,
            size_bytes=status.st_size,
            sha256=sha256,
            last_modified=known.last_modified if known and same else None,
            content_type=known.content_type if known and same else None,
            metadata=known.metadata if known and same else {},
            mtime_ns=status.st_mtime_ns,
        )
        self.record(state)
        return state

    def scan(self, prefix: str, *, recursive: bool = True) -> dict[str, tuple[int, int]]:
        """Files below ``prefix`` by key, with size in bytes and modification time in µs since 1970.

        One look at the tree. Only files whose name is their key, unescaped; of the others nothing is said.
        """
        found: dict[str, tuple[int, int]] = {}
        waiting = list(dict.fromkeys([prefix, unicodedata.normalize("NFD", prefix)]))
        waiting = [folder for folder in waiting if not _DIFFERS.search(folder)]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(self.root / folder) as entries:
                    for entry in entries:
                        key = folder + entry.name
                        if entry.is_dir():
                            if recursive and key.lower() != STATE_DIRECTORY and not _DIFFERS.search(key + "/"):
                                waiting.append(key + "/")
                        elif not _DIFFERS.search(entry.name):
                            status = entry.stat()
                            found[key] = (status.st_size, status.st_mtime_ns // 1000)
            except OSError:
                # Not there, or not to be read: whoever asks for one of its files is told why.
                continue
        return found

    def files(self, prefix: str = "") -> Iterator[str]:
        """Keys of the audio files that lie in the mirror and start with ``prefix``, unordered, however they came there.

        NFC and NFD spellings of ``prefix`` count as the same.
        """
        wanted = unicodedata.normalize("NFC", prefix)
        for path in self._audio_files(prefix):
            try:
                key = self.key_for(path)
            except ValueError:
                continue
            if unicodedata.normalize("NFC", key).startswith(wanted):
                yield key

    def misnamed(self) -> Iterator[str]:
        """Audio files that lie in the mirror under a name that is no object's: paths relative to the mirror.

        Such a name is not UTF-8, or contains what the mirror reads as an escape.
        """
        for path in self._audio_files(""):
            try:
                self.key_for(path)
            except ValueError:
                name = path.relative_to(self.root).as_posix()
                yield os.fsencode(name).decode("utf-8", "replace")

    @contextmanager
    def storing(self, key: str, identity: str | None = None) -> Iterator[Part]:
        """A file to write the bytes of ``key`` to; on success they are synced and put in place by one rename.

        With an ``identity``, which says what bytes they will be, what was written stays there after a failure, and is
        there again for the next who comes with the same one. Of two at once, one starts with nothing.

        Raises:
            FileFailed: another key's file is in the way, or the disk refuses.
        """
        target = self._place(key)
        try:
            with self._part() if identity is None else self._lasting_part(key, identity) as part:
                yield part
                os.fsync(part.handle)
                # The folder is not synced: a rename lost in a power cut is a missing file, which the next run notices
                # and fetches; a file that is there has its bytes.
                _move(part.path, target)
        except OSError as error:
            raise FileFailed(f"{target} cannot be written ({error.strerror or error}); check the disk") from error

    def has_part(self, key: str, identity: str) -> bool:
        """Whether `storing` has kept something of these bytes of ``key`` from a failure."""
        return os.path.exists(f"{self._parts}/{_part_name(key, identity)}")  # noqa: PTH110  as in `_place`

    def remove(self, key: str) -> bool:
        """Remove the file of ``key`` and what is known of it, and folders that become empty; whether there was one.

        Raises:
            OSError: the disk refuses.
        """
        path = self.path_for(key)
        there = path.is_file()
        path.unlink(missing_ok=True)
        Path(self._state_path(key)).unlink(missing_ok=True)
        forget(self.root, key)
        for folder in path.parents:
            if folder == self.root or not folder.is_relative_to(self.root):
                break
            try:
                folder.rmdir()
            except OSError:
                break
        return there

    def parts_bytes(self, besides: RemoteObject | None = None) -> int:
        """Bytes of downloads under way, and of broken ones, those of the object ``besides`` left out."""
        total = 0
        left_out = _part_name(besides.key, identity_of(besides)) if besides is not None else None
        for part in self._parts.glob("*.part"):
            with suppress(FileNotFoundError):
                total += part.stat().st_size if part.name != left_out else 0
        return total

    def remove_idle_part(self, besides: RemoteObject | None = None) -> bool:
        """Remove the oldest broken download, but for that of the object ``besides``; whether there was one."""
        spared = _part_name(besides.key, identity_of(besides)) if besides is not None else None
        ages: list[tuple[float, Path]] = []
        for part in self._parts.glob("*.part"):
            with suppress(FileNotFoundError):
                if part.name != spared and not _PART_OF_PROCESS.fullmatch(part.name):
                    ages.append((part.stat().st_mtime, part))
        return any(_taken_away(part) for _, part in sorted(ages))

    def dropped(self, prefix: str = "") -> dict[str, tuple[str | None, int]]:
        """ETag and size of the files that were dropped to keep within a disk budget; the bucket still has them.

        Those of a ``prefix`` are all among what is given for it.
        """
        return dropped_files(self.root, prefix)

    def remove_stale_parts(self) -> int:
        """Remove what dead processes left behind, and downloads that broke off more than a day ago; returns how many.

        What a broken download has of its object stays a day, for whoever goes on with it.
        """
        removed = 0
        oldest = time.time() - _STALE_PART_S
        for part in self._parts.glob("*.part"):
            try:
                if _is_left_behind(part):
                    part.unlink()
                    removed += 1
                # Not when its bytes are from: a whole download has the time of its object before it is put in place.
                elif part.stat().st_ctime < oldest:
                    removed += _taken_away(part)
            except FileNotFoundError:
                continue
        return removed

    @contextmanager
    def _part(self) -> Iterator[Part]:
        # All temporary files in one place on the same disk: the tree itself never shows a half-written one.
        name = f"{os.getpid()}-{secrets.token_hex(8)}.part"
        part = f"{self._parts}/{name}"
        _open_parts.add(name)
        try:
            handle = _opened(part)
            try:
                with suppress(OSError):  # some network file systems have no locks; the process id still protects it
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield Part(part, handle)
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise
            finally:
                os.close(handle)
        finally:
            _open_parts.discard(name)

    @contextmanager
    def _lasting_part(self, key: str, identity: str) -> Iterator[Part]:
        part = f"{self._parts}/{_part_name(key, identity)}"
        handle = _opened(part)
        try:
            if not _locked(handle, part):
                with self._part() as other:
                    yield other
                return
            try:
                yield Part(part, handle)
            except BaseException:
                # A file that was put in place keeps its bytes: the path is no longer that of this part.
                with suppress(FileNotFoundError):
                    if Path(part).stat().st_size == 0:
                        Path(part).unlink()
                raise
        finally:
            os.close(handle)

    def _state_path(self, key: str) -> str:
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self._objects}/{name[:2]}/{name}.json"

    def _audio_files(self, prefix: str) -> Iterator[Path]:
        folder, slash, _ = prefix.rpartition("/")
        # What is not ASCII may be spelled in NFC or NFD on disk: then only a look at every file tells.
        start = (
            self.root.joinpath(*_encode(folder + "/x", self.spelled_out)[:-1])
            if slash and folder.isascii()
            else self.root
        )
        for directory, folders, names in os.walk(start):
            if Path(directory) == self.root and STATE_DIRECTORY in folders:
                folders.remove(STATE_DIRECTORY)
            for name in names:
                path = Path(directory, name)
                if is_audio(name) and path.is_file():
                    yield path


def _encode(key: str, spelled_out: Set[str] = frozenset()) -> list[str]:
    components = key.split("/")
    encoded: list[str] = []
    empty = end = 0
    for i, component in enumerate(components):
        end += len(component) + 1
        if component == "":
            empty += 1
            continue
        encoded += _empties(empty)
        empty = 0
        is_out = bool(spelled_out) and key[:end] in spelled_out
        encoded += _encode_component(component, is_folder=i < len(components) - 1, is_first=not encoded, is_out=is_out)
    return encoded + _empties(empty)


def _folded_path(name: str, spelled_out: Set[str]) -> str:
    """What a file system may take the path of a key or a folder for."""
    return fold_path("/".join(_encode(name + "x" if name.endswith("/") else name, spelled_out)))


def _split(name: str) -> tuple[str, str]:
    """The folder that a key or a folder lies in, and its own name."""
    parent, slash, own = name.removesuffix("/").rpartition("/")
    return parent + slash, own


def _empties(count: int) -> list[str]:
    most = _CUT_BYTES // len(_EMPTY)
    return [_EMPTY * min(most, count - start) for start in range(0, count, most)]


def _encode_component(component: str, *, is_folder: bool, is_first: bool, is_out: bool) -> list[str]:
    text = _ESCAPE.sub(lambda match: "%25" + match[0][1:], component)
    text = _UNSAFE.sub(lambda match: escaped(match[0]), text)
    if text[:3].upper() == MARK:
        text = "%25" + text[1:]
    if is_out:
        text = spell_out(component)
        if is_folder and component.lower().endswith(AUDIO_EXTENSIONS):
            text = "%2E".join(text.rsplit(".", 1))
    elif component in (".", "..") or (is_first and component.lower() == STATE_DIRECTORY):
        text = text.replace(".", escaped("."))
    elif is_folder and component.lower().endswith(AUDIO_EXTENSIONS):
        stem, _, extension = text.rpartition(".")
        text = f"{stem}{escaped('.')}{extension}"
    if len(text.encode()) <= _NAME_MAX_BYTES:
        return [text]
    pieces = _cut(text)
    last = pieces.pop()
    if last in (".", ".."):
        last = last.replace(".", escaped("."))
    return [piece + _EMPTY for piece in pieces] + [last]


def _cut(text: str) -> list[str]:
    """``text`` in pieces of at most `_CUT_BYTES` bytes, no character split."""
    pieces, start, size = [], 0, 0
    for i, character in enumerate(text):
        width = len(character.encode())
        if size + width > _CUT_BYTES:
            pieces.append(text[start:i])
            start, size = i, 0
        size += width
    return [*pieces, text[start:]]


def _decode(parts: tuple[str, ...]) -> str:
    components: list[str] = []
    open_text = ""
    for part in parts:
        if not open_text and part and part.replace(_EMPTY, "") == "":
            components += [""] * (len(part) // len(_EMPTY))
        elif part.endswith(_EMPTY):
            open_text += part[: -len(_EMPTY)]
        else:
            components.append(_decode_component(open_text + part))
            open_text = ""
    if open_text:
        components.append(_decode_component(open_text))
    return "/".join(components)


def _decode_component(text: str) -> str:
    return read_out(text) if text.startswith(MARK) else _ESCAPE.sub(lambda match: _unpercent(match[0]), text)


def _unpercent(escape: str) -> str:
    return bytes.fromhex(escape.replace("%", "")).decode("utf-8", "surrogatepass")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` where an open file stands.

    Raises:
        OSError: the disk refused, some of it may be written.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _move(part: str, target: str) -> None:
    try:
        os.replace(part, target)  # noqa: PTH105  as in `Mirror._place`
    except FileNotFoundError:
        _make_folder_of(target)
        Path(part).replace(target)


def _make_folder_of(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)


def identity_of(found: RemoteObject) -> str:
    """What tells the bytes of an object from those of its other versions, for `Mirror.storing`."""
    return f"{found.etag} {found.size_bytes}"


def _part_name(key: str, identity: str) -> str:
    name = hashlib.sha256(f"{key}\0{identity}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name}.part"


def _is_left_behind(part: Path) -> bool:
    """Whether the process that made a temporary file, and that alone would go on with it, is gone."""
    made = _PART_OF_PROCESS.fullmatch(part.name)
    return made is not None and part.name not in _open_parts and is_abandoned(part, int(made[1]))


def _taken_away(part: Path) -> bool:
    """Remove a temporary file that nobody has locked; whether it is gone."""
    try:
        handle = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        part.unlink()
        return True
    finally:
        os.close(handle)


def _created(path: str) -> int:
    """A file to write that was not there, and its folder with it."""
    return _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)


def _opened(part: str) -> int:
    """A file to read and write, which is made when it is not there, and its folder with it."""
    return _open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        _make_folder_of(path)
        return os.open(path, flags, 0o666)


def _locked(handle: int, path: str) -> bool:
    """Take the lock of an open file; False when another has it, or has just moved the file away."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), Path(path).stat())
    except OSError:
        return False

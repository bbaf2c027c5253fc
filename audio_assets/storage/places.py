"""Where partition files lie: a directory of this machine, or a folder of a bucket.

Both offer the same few operations on paths of the form ``<table>/<file name>``. A write is seen whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from audio_assets import settings
from audio_assets.errors import SettingsError, StorageError, SupersededError
from audio_assets.storage import atomic
from audio_assets.storage.bucket_client import Pieces, points_elsewhere, whole, without_redirects

_BUCKET_THREADS = 16
"""Requests in flight to a bucket. On a local disk the number of cores is the limit."""

_WHOLE_BYTES = 4 * 2**20

_FENCE = "fence"
"""Name of the metadata that says which run wrote an object."""

_DENIED = ("403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Unauthorized")
PRECONDITION = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
"""What a server says of a condition that does not hold; AWS, of two requests at once, of one of them."""

MISSING = ("404", "NoSuchKey", "NotFound")


class Place(Protocol):
    """A root for partition files."""

    shown: str
    threads: int

    def uri(self, path: str) -> str:
        """The full name of ``path`` for people and for Dagster's UI, without credentials."""
        ...

    def list(self, table: str) -> list[tuple[str, str, int]]:
        """Name, identity and size in bytes of each Parquet file of ``table``, in no order."""
        ...

    def open(self, path: str) -> contextlib.AbstractContextManager[Any]:
        """Open for random reads; `FileNotFoundError` when it is not there."""
        ...

    def fragment(self, path: str) -> Any:
        """The Parquet file at ``path`` as a part of a `pyarrow.dataset.FileSystemDataset`, for reading it later."""
        ...

    def write(self, path: str, produce: Callable[[Any], None], fence: int | None = None) -> tuple[str, int]:
        """Replace ``path`` by what ``produce`` writes to the sink it is given; return identity and size.

        With a ``fence`` only if nobody with a greater one has written there; without, the one that is there stays.
        """
        ...

    def find(self, path: str) -> tuple[str, int] | None:
        """Identity and size in bytes of the file at ``path``; None when there is none."""
        ...

    def number(self, path: str) -> int:
        """The ``fence`` that the file at ``path`` was written with; 0 when there is none."""
        ...

    def delete(self, path: str) -> bool:
        """Remove ``path``; False when it was not there."""
        ...


def place_for(root: str | Path) -> Place:
    """The place that ``root`` names: a path, ``file://``, ``s3://`` or ``r2://``.

    Raises:
        SettingsError: the URL has another scheme or no bucket.
    """
    if isinstance(root, Path) or "://" not in root:
        return Directory(Path(root).expanduser().absolute())
    scheme = root.partition("://")[0].lower()
    if scheme == "file":
        return Directory(Path(unquote(urlsplit(root).path)))
    if scheme in ("s3", "r2"):
        return Bucket(_location(root))
    raise SettingsError(
        f"{scheme}:// is no place for tables; use a directory, s3://bucket/folder or r2://bucket/folder"
    )


class Directory:
    """A directory of this machine. An identity is inode, size and a modification time that `write` makes unique."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shown = str(root)
        self.threads = min(4, os.cpu_count() or 1)
        self._cleaned: set[str] = set()

    def uri(self, path: str) -> str:
        """The full name of ``path``, without credentials."""
        return str(self.root / path)

    def list(self, table: str) -> list[tuple[str, str, int]]:
        """Name, identity and size in bytes of each Parquet file of ``table``, in no order."""
        directory = self.root / table
        found: list[tuple[str, str, int]] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not entry.name.endswith(".parquet") or entry.name.startswith("."):
                        continue
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        continue
                    found.append((entry.name, _identity(status), status.st_size))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(
                f"{directory}: cannot be listed: {_reason(error)}; check the disk and its permissions"
            ) from error
        return found

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Any]:
        """Open ``path`` for random reads."""
        import pyarrow as pa

        target = self.root / path
        try:
            source = pa.OSFile(str(target))
        except OSError:
            if target.is_dir():
                raise StorageError(f"{target}: a directory where a file should be; move it elsewhere") from None
            raise
        with source:
            yield source

    def fragment(self, path: str) -> Any:
        """The Parquet file at ``path`` as a part of a dataset."""
        from pyarrow import dataset, fs

        return dataset.ParquetFileFormat().make_fragment(str(self.root / path), fs.LocalFileSystem())

    def write(self, path: str, produce: Callable[[Any], None], fence: int | None = None) -> tuple[str, int]:
        """Replace ``path`` by what ``produce`` writes; return identity and size in bytes.

        Runs on one machine take turns under a lock, so a ``fence`` says nothing here.
        """
        target = self.root / path
        try:
            if target.parent.name not in self._cleaned:
                atomic.remove_stale_temps(target.parent)
                self._cleaned.add(target.parent.name)
            with atomic.replacing(target, crash_name="partition") as temp:
                produce(str(temp))
                # Kernels stamp files by a clock of some milliseconds; the exact time makes each write's stamp its own.
                now = time.time_ns()
                os.utime(temp, ns=(now, now))
                status = temp.stat()
        except OSError as error:
            raise StorageError(
                f"{target}: cannot be written: {_reason(error)}; what was there before is untouched."
                " Free some space or correct the permissions, then run again"
            ) from error
        return _identity(status), status.st_size

    def find(self, path: str) -> tuple[str, int] | None:
        """Identity and size in bytes of the file at ``path``; None when there is none."""
        target = self.root / path
        try:
            status = target.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{target}: cannot be read: {_reason(error)}; check its permissions") from error
        return _identity(status), status.st_size

    def number(self, path: str) -> int:
        """0: nothing is fenced here."""
        return 0

    def delete(self, path: str) -> bool:
        """Remove ``path``; False when it was not there."""
        target = self.root / path
        try:
            target.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"{target}: cannot be deleted: {_reason(error)}; check its permissions") from error
        atomic.sync(target.parent)
        return True


def _reason(error: OSError) -> str:
    # pyarrow puts words of its own in the place of the system's.
    return os.strerror(error.errno) if error.errno else str(error)


def _identity(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


@dataclass(frozen=True)
class Location:
    """A folder of a bucket and how to reach it."""

    scheme: str
    bucket: str
    folder: str
    endpoint_url: str | None = None
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)


def _location(url: str) -> Location:
    parts = _parts(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = query.keys() - {"endpoint_override", "scheme", "region"}
    if unknown:
        raise SettingsError(
            f"{parts.scheme}://{parts.hostname}: an unknown option; use endpoint_override, scheme, region"
        )
    netloc = parts.netloc.rpartition("@")[2]
    if parts.scheme == "r2":
        read = settings.load()
        purpose = "tables are to be kept in R2"
        return Location(
            "r2",
            netloc,
            parts.path.strip("/"),
            settings.r2_endpoint(),
            "auto",
            settings.require(read.r2_access_key_id, "R2_ACCESS_KEY_ID", purpose),
            settings.require(read.r2_secret_access_key, "R2_SECRET_ACCESS_KEY", purpose),
        )
    return Location(
        "s3",
        netloc,
        parts.path.strip("/"),
        _s3_endpoint(query),
        query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
    )


def _parts(url: str) -> SplitResult:
    """The parts of a bucket's address. Where it cannot be read, no error repeats it: it may hold a secret."""
    scheme = url.partition("://")[0].lower()
    try:
        parts = urlsplit(url)
        bucket = parts.netloc.rpartition("@")[2]
        # A secret with a `/`, `?` or `#` in it ends the part that it belongs to, and lies in the rest.
        rest = f"{parts.path}{parts.query}{parts.fragment}"
    except ValueError:
        bucket, rest = "", ""
    if not bucket or ":" in bucket or "@" in rest:
        raise SettingsError(
            f"the {scheme}:// address names no bucket, or holds a key or a secret as it is: write {scheme}://bucket/folder,"
            " and set keys by their variables, or with quote() of urllib.parse (`/` is %2F, `@` is %40)"
        )
    return parts


def _s3_endpoint(query: dict[str, str]) -> str | None:
    """The address of the server; None for AWS.

    Raises:
        SettingsError: it is neither https nor this machine's, or holds a password.
    """
    host = query.get("endpoint_override")
    if host:
        return settings.secure_url(
            host if "://" in host else f"{query.get('scheme', 'https')}://{host}", "endpoint_override"
        )
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if found := os.environ.get(variable):
            return settings.secure_url(found, variable)
    return None


def _number(head: dict[str, Any] | None) -> int:
    told = "" if head is None else head.get("Metadata", {}).get(_FENCE, "")
    return int(told) if told.isdecimal() else 0


class Bucket:
    """A folder of an S3 or R2 bucket. An identity is the object's ETag, which every write makes unique."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self.shown = f"{location.scheme}://{location.bucket}/{location.folder}".rstrip("/")
        self.threads = _BUCKET_THREADS
        self._s3: Any = None

    def uri(self, path: str) -> str:
        """The full name of ``path``, without credentials."""
        return f"{self.shown}/{path}"

    def list(self, table: str) -> list[tuple[str, str, int]]:
        """Name, identity and size in bytes of each Parquet file of ``table``, in no order."""
        folder = self.key(table) + "/"
        found: list[tuple[str, str, int]] = []
        with self.errors(table):
            pages = (
                self.client()
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self._location.bucket, Prefix=folder, Delimiter="/")
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    name = item["Key"][len(folder) :]
                    if name.endswith(".parquet"):
                        found.append((name, item["ETag"].strip('"'), int(item["Size"])))
        return found

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Any]:
        """Open ``path`` for random reads."""
        import pyarrow as pa

        size, etag, content = self._begin(path)
        if content is not None:
            yield pa.BufferReader(content)
            return
        with pa.PythonFile(self._pieces(path, size, etag), "r") as source:
            yield source

    def fragment(self, path: str) -> Any:
        """The Parquet file at ``path`` as a part of a dataset."""
        import pyarrow as pa
        from pyarrow import dataset

        with self.errors(path):
            head = self._head(path)
        if head is None:
            raise self._no_such(path)
        source = pa.PythonFile(self._pieces(path, int(head["ContentLength"]), head["ETag"]), "r")
        return dataset.ParquetFileFormat().make_fragment(source)

    def _begin(self, path: str) -> tuple[int, str, bytes | None]:
        """Size and ETag of an object, and its bytes where they are few: one request instead of one for each column."""
        from botocore.exceptions import ClientError

        def ask() -> tuple[int, str, bytes | None]:
            found = self.client().get_object(Bucket=self._location.bucket, Key=self.key(path))
            with contextlib.closing(found["Body"]) as body:
                size = int(found["ContentLength"])
                return size, found["ETag"], body.read() if size <= _WHOLE_BYTES else None

        with self.errors(path):
            try:
                return whole(ask)
            except ClientError as error:
                if error.response["Error"].get("Code") in MISSING:
                    raise self._no_such(path) from None
                raise

    def _pieces(self, path: str, size_bytes: int, etag: str) -> Pieces:
        """The object for random reads, as long as it is the one with this ETag."""

        def fetch(begin: int, count: int) -> bytes:
            piece = {"Range": f"bytes={begin}-{begin + count - 1}", "IfMatch": etag}

            def ask() -> bytes:
                found = self.client().get_object(Bucket=self._location.bucket, Key=self.key(path), **piece)
                with contextlib.closing(found["Body"]) as body:
                    return bytes(body.read())

            with self.errors(path):
                return whole(ask)

        return Pieces(self.uri(path), size_bytes, fetch)

    def _no_such(self, path: str) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.uri(path))

    def write(self, path: str, produce: Callable[[Any], None], fence: int | None = None) -> tuple[str, int]:
        """Replace ``path`` by what ``produce`` writes; return identity and size in bytes.

        The bucket decides between two. Without a ``fence`` the number that is there stays: what is written takes the
        place of that run's rows, and gives way to no older one's.

        Raises:
            SupersededError: somebody with a greater ``fence`` has written there.
        """
        import pyarrow as pa
        from botocore.exceptions import ClientError

        buffer = pa.BufferOutputStream()
        produce(buffer)
        body = buffer.getvalue()
        atomic.crash_point("partition:before-rename")
        where = {"Bucket": self._location.bucket, "Key": self.key(path)}
        with self.errors(path):
            while True:
                there = self._head(path)
                number = _number(there) if fence is None else fence
                if _number(there) > number:
                    raise SupersededError(
                        f"{self.uri(path)}: a newer run has published this since the run began; its rows stand, those"
                        " of this run are dropped. Nothing is to be done"
                    )
                condition = {"IfNoneMatch": "*"} if there is None else {"IfMatch": there["ETag"]}
                try:
                    done = self.client().put_object(
                        **where, Body=body.to_pybytes(), Metadata={_FENCE: str(number)}, **condition
                    )
                    break
                except ClientError as error:
                    if error.response["Error"].get("Code") not in (*PRECONDITION, *MISSING):
                        raise
        atomic.crash_point("partition:after-rename")
        return done["ETag"].strip('"'), body.size

    def find(self, path: str) -> tuple[str, int] | None:
        """Identity and size in bytes of the file at ``path``; None when there is none."""
        with self.errors(path):
            head = self._head(path)
        return None if head is None else (head["ETag"].strip('"'), int(head["ContentLength"]))

    def number(self, path: str) -> int:
        """The ``fence`` that the file at ``path`` was written with; 0 when there is none."""
        with self.errors(path):
            return _number(self._head(path))

    def delete(self, path: str) -> bool:
        """Remove ``path``; False when it was not there."""
        if self.find(path) is None:
            return False
        with self.errors(path):
            self.client().delete_object(Bucket=self._location.bucket, Key=self.key(path))
        return True

    def _head(self, path: str) -> dict[str, Any] | None:
        """What the bucket says of ``path``, with the errors of its client; None when it is not there."""
        from botocore.exceptions import ClientError

        try:
            head: dict[str, Any] = self.client().head_object(Bucket=self._location.bucket, Key=self.key(path))
        except ClientError as error:
            if error.response["Error"].get("Code") in MISSING:
                return None
            raise
        return head

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._location.bucket

    def key(self, path: str) -> str:
        """The whole key of ``path``."""
        return f"{self._location.folder}/{path}" if self._location.folder else path

    def client(self) -> Any:
        """A boto3 client; safe to share between threads."""
        # Not pyarrow's own client of S3: it follows a redirection with the body, and has no option against that.
        if self._s3 is None:
            import boto3
            from botocore.config import Config

            where = self._location
            client = boto3.session.Session().client(
                "s3",
                endpoint_url=where.endpoint_url,
                region_name=where.region or "us-east-1",
                aws_access_key_id=where.access_key,
                aws_secret_access_key=where.secret_key,
                config=Config(
                    s3={"addressing_style": "path"} if where.endpoint_url else None,
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    connect_timeout=10,
                    read_timeout=60,
                    max_pool_connections=2 * _BUCKET_THREADS,
                    retries={"mode": "standard", "max_attempts": 4},
                ),
            )
            settings.require_secure(client.meta.endpoint_url, "endpoint_url of AWS's configuration")
            self._s3 = without_redirects(client)
        return self._s3

    @contextlib.contextmanager
    def errors(self, path: str) -> Iterator[None]:
        """Turn the errors of the client into ours."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
        from botocore.parsers import ResponseParserError

        prefix = "R2" if self._location.scheme == "r2" else "AWS"
        try:
            yield
        except NoCredentialsError as error:
            raise SettingsError(
                f"{self.shown}: no credentials; set {prefix}_ACCESS_KEY_ID and {prefix}_SECRET_ACCESS_KEY"
            ) from error
        except FileNotFoundError:
            raise
        except (OSError, Boto3Error, BotoCoreError, ClientError, ResponseParserError) as error:
            response = error.response if isinstance(error, ClientError) else {}
            code = str(response.get("Error", {}).get("Code", ""))
            if code in _DENIED:
                raise SettingsError(
                    f"{self.shown}: access denied ({code}); check {prefix}_ACCESS_KEY_ID and {prefix}_SECRET_ACCESS_KEY"
                ) from error
            if code == "NoSuchBucket":
                raise SettingsError(f"{self.shown}: there is no bucket {self._location.bucket!r}; create it") from error
            if points_elsewhere(response):
                where = "R2_ENDPOINT_URL" if prefix == "R2" else "AWS_REGION, and the endpoint if one is set,"
                raise SettingsError(
                    f"{self.shown}: the server points elsewhere ({code}), and no redirection is followed; set {where}"
                    " to where the bucket is"
                ) from error
            raise StorageError(
                f"{self.uri(path)}: the bucket refused: {' '.join(str(error).split())[:300]}; what was there before is"
                " untouched. Run again"
            ) from error

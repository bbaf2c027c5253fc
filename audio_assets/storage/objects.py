"""Objects in a bucket that many machines read and write: replaced whole, and only if nobody else did meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audio_assets.errors import SettingsError
from audio_assets.storage.bucket_client import whole
from audio_assets.storage.places import MISSING, PRECONDITION, Bucket, place_for


class Objects:
    """The objects below a folder of a bucket. A name is a path relative to it.

    Args:
        url: ``s3://bucket/folder`` or ``r2://bucket/folder``, as for `PartitionStore`.

    Raises:
        SettingsError: the URL names no bucket.
    """

    def __init__(self, url: str) -> None:
        place = place_for(url)
        if not isinstance(place, Bucket):
            raise SettingsError(f"{place.shown} is in no bucket; write s3://bucket/folder or r2://bucket/folder")
        self._place = place
        self.shown = place.shown

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Bytes and ETag; None when there is no such object.

        Raises:
            SettingsError: the bucket refuses.
            StorageError: it failed in another way.
        """
        from botocore.exceptions import ClientError

        with self._place.errors(name):
            try:
                return whole(lambda: self._ask(name))
            except ClientError as error:
                if error.response["Error"].get("Code") in MISSING:
                    return None
                raise

    def _ask(self, name: str) -> tuple[bytes, str]:
        found = self._place.client().get_object(Bucket=self._place.bucket, Key=self._place.key(name))
        return found["Body"].read(), found["ETag"]

    def put(self, name: str, body: bytes, *, replaces: str | None = None, is_new: bool = False) -> str | None:
        """Store an object; its ETag, or None when a condition does not hold and nothing was done.

        Args:
            name: where.
            body: what.
            replaces: only if the object has this ETag.
            is_new: only if there is no such object.

        Raises:
            SettingsError: the bucket refuses.
            StorageError: it failed in another way.
        """
        from botocore.exceptions import ClientError

        condition = {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"} if is_new else {}
        with self._place.errors(name):
            try:
                done = self._place.client().put_object(
                    Bucket=self._place.bucket, Key=self._place.key(name), Body=body, **condition
                )
                return str(done["ETag"])
            except ClientError as error:
                code = error.response["Error"].get("Code")
                if condition and (code in PRECONDITION or (replaces and code in MISSING)):
                    return None
                raise

    def names(self, folder: str) -> Iterator[str]:
        """The names below ``folder``."""
        return (name for name, _, _ in self.listed(folder))

    def listed(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """Name, size in bytes and time of writing (seconds since the epoch) of each object below ``folder``."""
        start = self._place.key(folder.rstrip("/") + "/")
        cut = len(self._place.key(""))
        with self._place.errors(folder):
            pages = (
                self._place.client().get_paginator("list_objects_v2").paginate(Bucket=self._place.bucket, Prefix=start)
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    yield item["Key"][cut:], int(item["Size"]), item["LastModified"].timestamp()

    def delete(self, *names: str) -> None:
        """Remove objects; those that are not there are not missed."""
        for name in names:
            with self._place.errors(name):
                self._place.client().delete_object(Bucket=self._place.bucket, Key=self._place.key(name))

    def upload(self, path: Path, name: str) -> None:
        """Store a file, of any size."""
        # `upload_file` hides why the bucket refused.
        with self._place.errors(name), path.open("rb") as file:
            self._place.client().upload_fileobj(file, self._place.bucket, self._place.key(name))

    def download(self, name: str, path: Path) -> None:
        """Fetch an object to a file: the caller puts it in place."""
        with self._place.errors(name):
            self._place.client().download_file(self._place.bucket, self._place.key(name), str(path))

    def next_number(self, name: str, above: int = 0) -> int:
        """A number greater than ``above`` and than all that anybody was given under this ``name``: a fencing token.

        A counter that is lost or damaged begins anew, so ``above`` is what was published with its numbers.
        """
        while True:
            found = self.get(name)
            number = max(counted(found), above) + 1
            body = json.dumps({"number": number}).encode()
            if self.put(name, body, replaces=found[1] if found else None, is_new=found is None) is not None:
                return number


def counted(found: tuple[bytes, str] | None) -> int:
    """The number that an object holds; 0 when it is not there or damaged."""
    counter = read_json(found)
    number = counter.get("number") if isinstance(counter, dict) else None
    return number if isinstance(number, int) else 0


def read_json(found: tuple[bytes, str] | None) -> Any:
    """What an object holds, if it is there and whole."""
    try:
        return None if found is None else json.loads(found[0])
    except ValueError:
        return None

"""What is published in a bucket: the warehouse, built by one and downloaded by many; whose report and exports stand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from audio_assets.errors import StorageError, SupersededError
from audio_assets.storage import atomic
from audio_assets.storage.objects import Objects, counted, read_json

LATEST = "warehouse/latest.json"
"""Names the file that is current, and by which publisher: the greater number wins."""


_CLAIMS = "fences/published"
"""Who published a folder last, by its number: an object for each."""


def claim(objects: Objects, folder: str, number: int) -> None:
    """Make sure that nobody with a greater ``number`` publishes ``folder``, and let nobody with a smaller one after it.

    Raises:
        SupersededError: somebody with a greater number does; what they publish stands.
    """
    name = f"{_CLAIMS}/{folder}.json"
    while True:
        found = objects.get(name)
        if counted(found) > number:
            raise SupersededError(f"{objects.shown}/{folder}: a newer run publishes it; what this one made is dropped")
        body = json.dumps({"number": number}).encode()
        if counted(found) == number or objects.put(
            name, body, replaces=found[1] if found else None, is_new=found is None
        ):
            return


def claimed(objects: Objects) -> int:
    """The greatest number that a folder was published with; 0 when none was."""
    return max((counted(objects.get(name)) for name in objects.names(_CLAIMS)), default=0)


def number(objects: Objects) -> int:
    """The number of the publisher of the current warehouse; 0 when none is published."""
    return int((read_json(objects.get(LATEST)) or {}).get("number", 0))


def is_published(objects: Objects) -> bool:
    """Whether there is a current warehouse."""
    return read_json(objects.get(LATEST)) is not None


def publish(objects: Objects, database: Path, number: int) -> str:
    """Make ``database`` the current one; returns its name.

    It is put under the name of its content and then named by `LATEST`, so a reader never meets half of it. ``number``
    was taken by `Objects.next_number` before the database was brought up to date.

    Raises:
        SupersededError: a publisher with a greater number was there first; what it published stands.
    """
    sha256 = _sha256(database)
    name = f"warehouse/{sha256[:32]}.duckdb"
    uploaded = False
    while True:
        found = objects.get(LATEST)
        latest = read_json(found) or {}
        if int(latest.get("number", 0)) > number:
            if uploaded and name not in (latest.get("file"), latest.get("before")):
                objects.delete(name)
            raise SupersededError(f"{objects.shown}/{LATEST}: a newer warehouse is published; this one is dropped")
        if latest.get("file") != name:
            objects.upload(database, name)
            uploaded = True
        old = latest.get("file")
        body = json.dumps({"file": name, "sha256": sha256, "number": number, "before": old}).encode()
        if objects.put(LATEST, body, replaces=found[1] if found else None, is_new=found is None) is not None:
            break
    before = latest.get("before")
    if before and before not in (name, old):
        # The last but one: nobody begins to read it any more.
        objects.delete(before)
    return name


def outdated(objects: Objects) -> list[str]:
    """Databases that were published and are not current: earlier ones, and those of publishers that were superseded.

    One that is being published is among them, until `LATEST` names it.
    """
    current = (read_json(objects.get(LATEST)) or {}).get("file")
    return [name for name in objects.names("warehouse") if name.endswith(".duckdb") and name != current]


def fetch(objects: Objects, database: Path) -> bool:
    """Bring the current warehouse to ``database``, whole or not at all; False when it is there or none is published.

    Raises:
        StorageError: it came damaged, or no file can be made at ``database``.
    """
    latest = read_json(objects.get(LATEST))
    if latest is None or (database.exists() and _sha256(database) == latest["sha256"]):
        return False
    try:
        with atomic.replacing(database) as temp:
            objects.download(latest["file"], temp)
            if _sha256(temp) != latest["sha256"]:
                raise StorageError(f"{objects.shown}/{latest['file']}: came damaged; try again")
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        # What lies above it is a file, or a directory in which the system lets nobody make one, such as /proc.
        raise StorageError(
            f"{database}: no file can be made there ({error.strerror}); give a path in an ordinary directory"
        ) from error
    return True


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

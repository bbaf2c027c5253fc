"""R2 prefix <-> Dagster partition key, and the one partitions definition.

A partition is a prefix of the bucket: the first ``depth`` folders of an object's key, with the trailing ``/``, or
``""`` for objects at the root. Its partition key is the same text without the trailing ``/``, made safe to carry:

* ``calls/2024/`` -> ``calls/2024``
* ``""`` (the root) -> ``_root_``
* letters and digits of every script, ``-_+=@.`` and inner spaces stand as they are; any other character, ``%``
  included, becomes ``%XX`` per UTF-8 byte, and so do dots that touch each other (Dagster reads ``a...b`` as a range).

The mapping is reversible for every NFC string. NFC and NFD spellings of a key are one object on R2, so a prefix is
brought to NFC first; the object's own key is never changed.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import unquote

from audio_assets.errors import PartitionKeyError

if TYPE_CHECKING:
    from dagster import DynamicPartitionsDefinition

    prefix_partitions: DynamicPartitionsDefinition

PARTITIONS_NAME = "r2_prefix"
ROOT_PARTITION = "_root_"
SLASH_PARTITION = "%2F"
"""Partition key of the prefix ``/``: objects whose key begins with a slash."""

_PLAIN = frozenset("-_+=@/")
_DOTS = re.compile(r"\.{2,}")


def prefix_of(key: str, depth: int) -> str:
    """The prefix that the object ``key`` belongs to: at most ``depth`` folders, in NFC, ending in ``/`` unless root.

    >>> prefix_of("calls/2024/01/a.wav", 1)
    'calls/'
    >>> prefix_of("calls/a.wav", 2)
    'calls/'
    >>> prefix_of("a.wav", 1)
    ''

    Raises:
        ValueError: ``depth`` is negative.
    """
    if depth < 0:
        raise ValueError(
            f"prefix depth {depth} is negative; use 0 for one partition, 1 for the first folder, and so on"
        )
    folders = unicodedata.normalize("NFC", key).split("/")[:-1][:depth]
    return "/".join(folders) + "/" if folders else ""


def partition_key_for(prefix: str) -> str:
    """The Dagster partition key of an R2 prefix.

    Raises:
        ValueError: ``prefix`` neither is empty nor ends in ``/``.
    """
    if prefix == "":
        return ROOT_PARTITION
    if not prefix.endswith("/"):
        raise ValueError(f"prefix {prefix!r} must end in '/'; use {prefix + '/'!r}")
    body = unicodedata.normalize("NFC", prefix)[:-1]
    if body == "":
        return SLASH_PARTITION
    if body == ROOT_PARTITION:
        return "%5Froot_"
    dots = {i for match in _DOTS.finditer(body) for i in range(*match.span())}
    last = len(body) - 1
    return "".join(_escape(c, i in dots or (c == " " and i in (0, last))) for i, c in enumerate(body))


def prefix_for(partition_key: str) -> str:
    """The R2 prefix of a Dagster partition key; the inverse of `partition_key_for`.

    Raises:
        PartitionKeyError: ``partition_key`` is not one that `partition_key_for` makes.
    """
    if partition_key == ROOT_PARTITION:
        return ""
    prefix = "/" if partition_key == SLASH_PARTITION else unquote(partition_key, errors="surrogatepass") + "/"
    if not partition_key or partition_key_for(prefix) != partition_key:
        hint = f". Did you mean {partition_key_for(prefix)!r}?" if partition_key else ""
        raise PartitionKeyError(
            f"{partition_key!r} is not a partition key of a prefix; r2_prefixes registers those of the bucket{hint}"
        )
    return prefix


def _escape(character: str, force: bool) -> str:
    if not force:
        if character in _PLAIN or character in ". ":
            return character
        # Letters, marks and numbers of every script: keys stay readable.
        if unicodedata.category(character)[0] in "LMN":
            return character
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _definition() -> DynamicPartitionsDefinition:
    from dagster import DynamicPartitionsDefinition

    return DynamicPartitionsDefinition(name=PARTITIONS_NAME)


def __getattr__(name: str) -> object:
    # Stages use the codec without importing dagster; only the assets ask for the definition.
    if name == "prefix_partitions":
        globals()[name] = _definition()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

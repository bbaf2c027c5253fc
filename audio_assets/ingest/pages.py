"""Pages of a bucket's listing, read without the detour over boto3's dictionaries.

boto3 signs, sends, retries and judges each request; what costs it most of the time of a large listing is to turn the
XML into one dictionary per object, times parsed and all. The pages here are columns instead.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from audio_assets.errors import AudioAssetsError
from audio_assets.ingest.remote_errors import translated

_ROOT = "ListBucketResult"
_PAGE = "AudioAssetsPage"
_FULL_PAGE = 1000
"""Entries of a page behind which there may be more."""
_MOST_BYTES = (1 << 63) - 1
"""The greatest size that a table can hold."""
_START_BYTES = 1000
"""Within which a page says that it is one."""
_NOTHING_LEFT = f"<{_ROOT}/>".encode()

_wanted = threading.local()
"""Whether this thread's listing wants a ``page``: the client may be shared with callers that want dictionaries.

``broken`` says what was wrong with the page that came last.
"""

_registering = threading.Lock()


@dataclass(frozen=True)
class Page:
    """One page, at most 1,000 objects: columns of equal length, in the order of the listing.

    ``etags`` have no quotes, ``modified`` are the texts that the server sent. ``folders`` are the common prefixes that
    a delimiter leaves. ``next_token`` is None on the last page.
    """

    keys: list[str]
    etags: list[str]
    sizes: list[int]
    modified: list[str]
    folders: list[str]
    next_token: str | None


def list_pages(
    client: Any, bucket: str, prefix: str = "", *, delimiter: str = "", start_after: str = ""
) -> Iterator[Page]:
    """Every page of the objects whose keys start with ``prefix``. That it ends means that nothing is missing.

    Args:
        client: a boto3 S3 client; may be shared between threads.
        bucket: name of the bucket.
        prefix: any string.
        delimiter: ``"/"`` gives folders below ``prefix`` as `Page.folders` instead of what is in them.
        start_after: a key; what comes up to it in the order of the listing, itself included, is left out.

    Raises:
        SettingsError: the bucket, the credentials or the endpoint are wrong.
        AudioAssetsError: the server failed, or ended the listing half-way.
    """
    _register(client)
    arguments = {"Bucket": bucket, "Prefix": prefix}
    if delimiter:
        arguments["Delimiter"] = delimiter
    if start_after:
        arguments["StartAfter"] = start_after
    asked: set[str] = set()
    while True:
        with translated(client, bucket, "list the bucket"):
            page = _one(client, arguments)
        yield page
        if page.next_token is None:
            return
        if page.next_token in asked:
            raise AudioAssetsError(f"the listing of {bucket!r} goes in circles: the server repeats a page; try again")
        asked.add(page.next_token)
        arguments["ContinuationToken"] = page.next_token


def _one(client: Any, arguments: dict[str, str]) -> Page:
    _wanted.page, _wanted.broken = True, None
    try:
        answer = client.list_objects_v2(**arguments)
    except Exception as error:
        if _wanted.broken is None:
            raise
        # The client has tried again, and takes it for an answer of no S3 server.
        raise AudioAssetsError(
            f"a page of the listing of {arguments['Bucket']!r} cannot be read ({_wanted.broken}): it broke off, or a "
            "key has control characters, which this server does not encode; try again, or rename such keys"
        ) from error
    finally:
        _wanted.page = False
    page = answer.get(_PAGE)
    if not isinstance(page, Page):
        raise AudioAssetsError(
            f"the listing of {arguments['Bucket']!r} is not what an S3 server answers; check R2_ENDPOINT_URL"
        )
    return page


def _register(client: Any) -> None:
    with _registering:
        client.meta.events.register("before-parse.s3.ListObjectsV2", _read, unique_id="audio-assets-list-pages")


_collector = threading.Lock()
_kept_out, _was_on = 0, True


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector out for some milliseconds.

    A page is thousands of elements at once, none of them garbage before all are. Each page would have the collector go
    through all that the process holds, at about the cost of reading the page.
    """
    global _kept_out, _was_on
    # Of several threads the first and the last count: one that saw it off and went last would leave it off for good.
    with _collector:
        if not _kept_out:
            _was_on = gc.isenabled()
            gc.disable()
        _kept_out += 1
    try:
        yield
    finally:
        with _collector:
            _kept_out -= 1
            if not _kept_out and _was_on:
                gc.enable()


def _read(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Take the page out of a response before botocore parses it; what is no page is left for botocore to judge."""
    if not getattr(_wanted, "page", False):
        return
    _wanted.broken = None
    body = response_dict["body"]
    if response_dict["status_code"] == 200:
        page = parse_page(body)
        if page is not None:
            customized_response_dict[_PAGE] = page
            response_dict["body"] = _NOTHING_LEFT
    elif f"<{_ROOT}".encode() in body[:_START_BYTES]:
        # botocore has judged already that it is no XML.
        try:
            ElementTree.fromstring(body)  # noqa: S314
        except ElementTree.ParseError as error:
            _wanted.broken = error


def bare_etag(told: str) -> str:
    """An ETag without its quotes, and without the mark of a weak one.

    A proxy may weaken the ETag of what it passes on; the object is the same.

    >>> bare_etag('W/"9b2c"'), bare_etag('"9b2c"'), bare_etag("9b2c")
    ('9b2c', '9b2c', '9b2c')
    """
    return told.removeprefix("W/").strip('"')


def parse_page(body: bytes) -> Page | None:
    """A page from its XML; None when it is not the XML of a page.

    Raises:
        AudioAssetsError: it is a page, but an entry is incomplete, or the token of the next page is missing.
    """
    with _uncollected():
        return _parsed(body)


def _parsed(body: bytes) -> Page | None:
    try:
        # Expat, as in botocore: entities that expand without end are refused by it.
        root = ElementTree.fromstring(body)  # noqa: S314
    except ElementTree.ParseError:
        return None
    if not root.tag.endswith(_ROOT):
        return None
    space = root.tag[: -len(_ROOT)]

    def column(name: str) -> list[str]:
        return [element.text or "" for element in root.iter(space + name)]

    keys, etags, sizes, modified = (column(name) for name in ("Key", "ETag", "Size", "LastModified"))
    if not len(keys) == len(etags) == len(sizes) == len(modified):
        raise AudioAssetsError("a page of the listing has entries without key, ETag, size or time; try again")
    folders = [e.findtext(space + "Prefix") or "" for e in root.iter(space + "CommonPrefixes")]
    if root.findtext(space + "EncodingType") == "url":
        keys, folders = _unquoted(keys), _unquoted(folders)
    token = _next_token(
        root.findtext(space + "IsTruncated"), root.findtext(space + "NextContinuationToken"), len(keys) + len(folders)
    )
    return Page(keys, list(map(bare_etag, etags)), _numbers(sizes), modified, folders, token)


def _next_token(is_truncated: str | None, token: str | None, entries: int) -> str | None:
    """The token of the next page; None when there is none. What is taken for the last page decides what vanished."""
    told = (is_truncated or "").strip().lower()
    if told == "false":
        return None
    if token:
        return token
    if told or entries >= _FULL_PAGE:
        raise AudioAssetsError("the server ended the listing half-way: it names no next page; try again")
    return None


def _numbers(sizes: list[str]) -> list[int]:
    try:
        numbers = [int(size) for size in sizes]
    except ValueError:
        numbers = [-1]
    if min(numbers, default=0) < 0 or max(numbers, default=0) > _MOST_BYTES:
        raise AudioAssetsError("a page of the listing has a size that is none; try again")
    return numbers


def _unquoted(texts: list[str]) -> list[str]:
    # Some servers quote the slash, which every key has: the one escape worth a short cut.
    plain = [text.replace("%2F", "/") if "%" in text else text for text in texts]
    return [unquote_plus(text) if "%" in text or "+" in text else text for text in plain]

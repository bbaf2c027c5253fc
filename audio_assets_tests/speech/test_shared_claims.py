"""Claims in a shared cache: what is given back stays given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from audio_assets.speech import shared_cache
from audio_assets.speech.shared_cache import SharedTranscriptCache


class SlowBucket:
    """A bucket in which a renewal takes until it is let through, and is written whatever happened meanwhile."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.renewing, self.go_on = threading.Event(), threading.Event()

    def get(self, name: str) -> tuple[bytes, str] | None:
        return (self.stored[name], "etag") if name in self.stored else None

    def put(self, name: str, body: bytes, *, is_new: bool = False, replaces: str | None = None) -> str | None:
        if replaces is not None:
            self.renewing.set()
            assert self.go_on.wait(30)
        self.stored[name] = body
        return "etag"

    def names(self, folder: str) -> Iterator[str]:
        return iter([name for name in self.stored if name.startswith(folder)])

    def delete(self, *names: str) -> None:
        for name in names:
            self.stored.pop(name, None)


def test_a_claim_that_is_given_back_while_it_is_renewed_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_cache, "_RENEW_S", 0.01)
    bucket = SlowBucket()
    held = SharedTranscriptCache(bucket).hold("ab" * 32, "key")
    assert held is not None and len(bucket.stored) == 1
    assert bucket.renewing.wait(30)
    giving_back = threading.Thread(target=held.release)
    giving_back.start()
    time.sleep(0.2)
    bucket.go_on.set()
    giving_back.join(30)
    time.sleep(0.2)
    assert bucket.stored == {}

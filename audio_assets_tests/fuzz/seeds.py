"""Makes the corpus that fuzzing starts from: ``python -m audio_assets_tests.fuzz.seeds``. Sounds are sines."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

from audio_assets_tests.fuzz.targets import ACCOUNT, BUCKET
from audio_assets_tests.speech.conftest import encode

CORPUS = Path(__file__).parent / "corpus"

KEYS = (
    "calls/2024/07/a.mp3",
    "../../etc/passwd",
    "//a/./b/../c.wav",
    "Zo\u00eb/a.wav",
    "Zoe\u0308/A.WAV",
    "a%2Fb%20c.wav",
    "_root_/x.wav",
    "%5Froot_",
    "\U0001f399\ufe0f/'; DROP TABLE x; --.ogg",
    "a\n\r\x00b\\c:d.flac",
    "x" * 300 + "/" + "\u00e9" * 200,
    ".state/a.wav",
    " lead/ trail /a .wav",
    "CON/aux.wav.",
    "a.part",
)


def event_of(**changes: object) -> dict[str, object]:
    """A notification of the bucket."""
    told: dict[str, object] = {
        "account": ACCOUNT,
        "bucket": BUCKET,
        "action": "PutObject",
        "object": {"key": "calls/a.wav", "size": 4096, "eTag": "c846ff7a18f28c2e262116d6e8719ef0"},
        "eventTime": "2026-05-24T19:36:44.379Z",
    }
    return told | changes


EVENTS = (
    event_of(),
    event_of(action="LifecycleDeletion", object={"key": "calls/a.wav"}),
    event_of(action="Rename"),
    event_of(bucket="another"),
    event_of(object={"key": "", "size": -1, "eTag": None}),
    event_of(object={"key": "a/\ud800.wav", "size": True, "eTag": 7}),
    event_of(object=[1, {"key": "x"}]),
)

_ENTRY = (
    "<Contents><Key>calls%2Fa.wav</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
    "<ETag>&quot;c846ff7a18f28c2e262116d6e8719ef0&quot;</ETag><Size>4096</Size></Contents>"
)
PAGES = tuple(
    f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</ListBucketResult>'
    for inside in (
        f"<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{_ENTRY}",
        f"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>{_ENTRY}{_ENTRY}",
        "<IsTruncated>true</IsTruncated>",
        "<IsTruncated>false</IsTruncated><CommonPrefixes><Prefix>calls/</Prefix></CommonPrefixes>",
        "<Contents><Key>a</Key></Contents>",
    )
)

SCRIPTS = (
    b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    b"<html><body>403 Forbidden</body></html>",
    b"RIFF\xff\xff\xff\xffWAVEfmt \x10\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00data",
)


def main() -> None:
    """Write every seed, named by what it is."""
    bodies: dict[str, dict[str, bytes]] = {
        "key-codec": {f"{n:02}": key.encode() for n, key in enumerate(KEYS)},
        "event": {f"{n:02}": json.dumps(told).encode() for n, told in enumerate(EVENTS)},
        "page": {f"{n:02}": told.encode() for n, told in enumerate(PAGES)},
        "decoder": {f"script-{n}": script for n, script in enumerate(SCRIPTS)},
    }
    bodies["event"]["base64"] = base64.b64encode(json.dumps(EVENTS[0]).encode())
    for name, files in bodies.items():
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        for file, body in files.items():
            (CORPUS / name / file).write_bytes(body)
    times = np.arange(1600) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
    for suffix in (".wav", ".mp3", ".flac", ".m4a", ".opus", ".webm", ".aac", ".ogg"):
        encode(CORPUS / "decoder" / f"tone{suffix}", tone)
    encode(CORPUS / "decoder" / "stereo.wav", np.stack([tone[:400], -tone[:400]]), rate=8000)


if __name__ == "__main__":
    main()

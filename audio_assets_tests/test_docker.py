"""What the image is built from is there, and a user's .env does not undo what the image sets."""

import re
import shlex
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()


def copied() -> list[str]:
    """What COPY takes from the checkout."""
    lines = [shlex.split(line)[1:] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    own = [line for line in lines if not any(word.startswith("--from=") for word in line)]
    return [word.removeprefix("./") for line in own for word in line[:-1] if not word.startswith("--")]


def reaches_the_build(path: str) -> bool:
    """Whether .dockerignore lets a path of the top folder through: the last line that matches it says so."""
    said = [line.startswith("!") for line in IGNORED if fnmatchcase(path, line.removeprefix("!"))]
    return said[-1] if said else True


def test_everything_that_the_image_copies_reaches_the_build() -> None:
    sources = copied()
    assert "requirements.txt" in sources
    assert [source for source in sources if not reaches_the_build(source) or not (ROOT / source).exists()] == []


def test_every_requirements_file_that_an_image_is_made_of_reaches_the_build() -> None:
    compose = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    named = re.findall(r"REQUIREMENTS[=:]\s*(\S+)", DOCKERFILE + compose)
    assert set(named) == {"requirements.txt", "requirements-cluster.txt"}
    assert set(named) <= set(copied())


def test_secrets_and_data_do_not_reach_the_build() -> None:
    assert [name for name in (".env", ".git", "data", ".venv") if reaches_the_build(name)] == []


def test_a_copy_of_the_example_file_leaves_alone_what_the_image_sets() -> None:
    # `docker run --env-file` hands over every line, empty values too, and goes before ENV.
    [environment] = [line for line in DOCKERFILE.splitlines() if line.startswith("ENV ")]
    set_by_the_image = {word.partition("=")[0] for word in shlex.split(environment)[1:]}
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert "AUDIO_ASSETS_HOME" in set_by_the_image
    assert set_by_the_image & set(re.findall(r"^([A-Z][A-Z0-9_]+)=", example, re.MULTILINE)) == set()

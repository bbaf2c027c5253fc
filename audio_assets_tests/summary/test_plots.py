"""Pictures for the Dagster UI: small, readable, and honest about fonts."""

import io
import random
import threading
from pathlib import Path

import pytest
from PIL import Image

from audio_assets.summary import plots

RANDOM = random.Random(1)
WORDS = {
    f"{a}{b}": RANDOM.randint(1, 400) for a in ("time", "city", "best", "worst") for b in ("", "s", "ing", "ed", "er")
}
PICTURES = {
    "durations": lambda: plots.duration_histogram([RANDOM.lognormvariate(2, 0.6) for _ in range(500)]),
    "words": lambda: plots.words_histogram([RANDOM.randint(0, 300) for _ in range(500)]),
    "confidence": lambda: plots.confidence_histogram([-RANDOM.random() for _ in range(500)]),
    "top": lambda: plots.top_tokens(sorted(WORDS.items(), key=lambda w: -w[1])),
    "cloud": lambda: plots.word_cloud({f"word{i}": 400 - i for i in range(400)}),
    "no durations": lambda: plots.duration_histogram([]),
    "no words": lambda: plots.words_histogram([]),
    "no confidence": lambda: plots.confidence_histogram([]),
    "no top": lambda: plots.top_tokens([]),
    "no cloud": lambda: plots.word_cloud({}),
    "one word": lambda: plots.word_cloud({"one": 1}),
    "mathematics": lambda: plots.top_tokens([("$x_1$", 3), ("$", 2), ("\\frac", 1)]),
}


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_fits_the_event_log(name: str):
    png = PICTURES[name]()
    image = opened(png)

    assert image.format == "PNG"
    assert len(png) <= 100_000
    assert image.width >= 600
    # Something is drawn on the light ground.
    assert len(image.convert("RGB").getcolors(1 << 16) or []) > 2


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fonts but matplotlib's own, which has Latin, Greek, Cyrillic and Arabic, and nothing of China."""
    monkeypatch.setattr(plots, "_installed_fonts", lambda: ())


def test_words_that_lack_a_font_are_said_to(bare_machine: None):
    def corner(png: bytes) -> set[int]:
        image = opened(png).convert("L")
        return set(image.crop((4, image.height - 18, 200, image.height)).tobytes())

    # matplotlib warns of a missing shape, and a warning fails a test.
    assert max(corner(plots.top_tokens([("слово", 3), ("λόγος", 2)]))) == min(corner(plots.top_tokens([("слово", 3)])))
    assert min(corner(plots.top_tokens([("слово", 3), ("我们", 2)]))) < 200


def test_a_word_cloud_names_how_many_words_lack_a_font(bare_machine: None):
    complete = opened(plots.word_cloud({"time": 3, "city": 2}))
    lacking = opened(plots.word_cloud({"time": 3, "city": 2, "我们": 1}))

    assert lacking.height > complete.height


def test_each_word_of_a_cloud_gets_a_font_that_has_it(monkeypatch: pytest.MonkeyPatch):
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    words = {"time": 3, "слово": 3, "λόγος": 2, "我们": 1}
    monkeypatch.setattr(plots, "_default_font", lambda: fonts / "cmr10.ttf")
    monkeypatch.setattr(plots, "_installed_fonts", lambda: (("DejaVu Sans", fonts / "DejaVuSans.ttf"),))

    assert plots._font_for("time") == fonts / "cmr10.ttf"
    assert plots._font_for("слово") == fonts / "DejaVuSans.ttf"
    assert plots._font_for("我们") is None
    # One line of the note below: only the Chinese word is left out.
    assert opened(plots.word_cloud(words)).height == 340
    del words["我们"]
    assert opened(plots.word_cloud(words)).height == 320


def test_a_cloud_of_nothing_but_words_without_a_font_says_so(bare_machine: None):
    assert opened(plots.word_cloud({"我们": 1})).height == 340


def test_the_layout_of_a_cloud_keeps_words_apart_and_inside():
    words = plots.cloud_words({f"word{i}": 100 - i for i in range(40)}, 800, 300)

    assert len(words) > 20
    assert words[0].size == max(w.size for w in words)
    for i, word in enumerate(words):
        left, top, right, bottom = word.box
        assert 0 <= left < right <= 800
        assert 0 <= top < bottom <= 300
        assert top <= word.baseline
        for other in (w.box for w in words[i + 1 :]):
            assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top


def test_the_same_words_give_the_same_cloud():
    assert plots.word_cloud(WORDS) == plots.word_cloud(dict(WORDS))


def test_pictures_can_be_drawn_in_threads_at_once():
    values = list(range(1, 200))
    expected = plots.words_histogram(values)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(plots.words_histogram(values))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [expected] * 4

"""Pictures for the Dagster UI: small, readable, and honest about fonts."""

import io
import random
import threading
from pathlib import Path

import pytest
from PIL import Image

from audio_assets.summary import fonts, plots
from audio_assets.summary.cloud import cloud_words

RANDOM = random.Random(1)
WORDS = {
    f"{a}{b}": RANDOM.randint(1, 400) for a in ("time", "city", "best", "worst") for b in ("", "s", "ing", "ed", "er")
}
PICTURES = {
    "durations": lambda: plots.duration_histogram([RANDOM.lognormvariate(2, 0.6) for _ in range(500)]),
    "words": lambda: plots.words_histogram([RANDOM.randint(0, 300) for _ in range(500)]),
    "confidence": lambda: plots.confidence_histogram([RANDOM.random() for _ in range(500)]),
    "rate": lambda: plots.rate_histogram([RANDOM.gauss(140, 25) for _ in range(500)]),
    "score": lambda: plots.score_histogram([RANDOM.random() for _ in range(500)]),
    "growth": lambda: plots.vocabulary_growth([(100 * n, int(20 * n**0.6)) for n in range(1, 40)], (9.0, 0.6)),
    "no growth": lambda: plots.vocabulary_growth([]),
    "dark": lambda: plots.top_tokens(sorted(WORDS.items()), theme=plots.DARK),
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
    # Something is drawn on the ground.
    assert len(image.convert("RGB").getcolors(1 << 16) or []) > 2


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fonts but matplotlib's own, which has Latin, Greek, Cyrillic and Arabic, and nothing of China."""
    monkeypatch.setattr(fonts, "installed_fonts", lambda: ())


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

    carried = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    words = {"time": 3, "слово": 3, "λόγος": 2, "我们": 1}
    monkeypatch.setattr(fonts, "default_font", lambda: carried / "cmr10.ttf")
    monkeypatch.setattr(fonts, "installed_fonts", lambda: (("DejaVu Sans", carried / "DejaVuSans.ttf"),))

    assert fonts.font_for("time") == carried / "cmr10.ttf"
    assert fonts.font_for("слово") == carried / "DejaVuSans.ttf"
    assert fonts.font_for("我们") is None
    # One line of the note below: only the Chinese word is left out.
    assert opened(plots.word_cloud(words)).height == 340
    del words["我们"]
    assert opened(plots.word_cloud(words)).height == 320


def test_a_cloud_of_nothing_but_words_without_a_font_says_so(bare_machine: None):
    assert opened(plots.word_cloud({"我们": 1})).height == 340


def test_the_layout_of_a_cloud_keeps_words_apart_and_inside():
    words = cloud_words({f"word{i}": 100 - i for i in range(40)}, 800, 300)

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


def luminance(color: str) -> float:
    """Relative luminance, by WCAG 2.2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", plots.THEMES)
def test_every_theme_can_be_read(name: str):
    theme = plots.THEMES[name]

    for text in (theme.ink, theme.muted, theme.rest, *theme.cloud):
        assert contrast(text, theme.ground) >= 4.5, text
    assert contrast(theme.bar, theme.ground) >= 3
    assert contrast(plots.LIGHT.ground, plots.DARK.ground) > 12


# What is left of red, green and blue without one kind of cones, on linear light: Machado, Oliveira and Fernandes 2009,
# severity 1.
WITHOUT = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


@pytest.mark.parametrize("eyes", WITHOUT)
@pytest.mark.parametrize("name", plots.THEMES)
def test_colour_blind_people_tell_the_open_bar_from_the_others(name: str, eyes: str):
    def seen(color: str) -> list[float]:
        linear = [(int(color[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
        mixed = [sum(w * c for w, c in zip(row, linear, strict=True)) for row in WITHOUT[eyes]]
        return [255 * min(max(c, 0.0), 1.0) ** (1 / 2.2) for c in mixed]

    theme = plots.THEMES[name]
    distance = sum((a - b) ** 2 for a, b in zip(seen(theme.bar), seen(theme.rest), strict=True)) ** 0.5

    assert distance > 80


SCRIPTS = {"Han": "時間", "kana": "ありがとう", "Devanagari": "समय", "Thai": "เวลา"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_other_scripts_are_drawn_where_a_font_is_installed(script: str):
    word = SCRIPTS[script]
    if fonts.font_for(word) is None:
        pytest.skip(f"no font for {script}; apt-get install fonts-droid-fallback fonts-lohit-deva fonts-thai-tlwg")
    other = word[::-1]

    _, [label, _], lacking = fonts.drawable([word, other])
    cloud = opened(plots.word_cloud({word: 2}))

    # Boxes would look the same, whatever the word. matplotlib warns of them, and a warning fails a test.
    assert (label, lacking) == (word, False)
    assert plots.top_tokens([(word, 2)]) != plots.top_tokens([(other, 2)])
    assert cloud.height == 320 and cloud.tobytes() != opened(plots.word_cloud({other: 2})).tobytes()


def test_a_word_without_a_font_is_named_by_its_script_not_drawn_as_boxes(bare_machine: None):
    shown = ["(CJK word)", "(Hangul word)", "(emoji)", "time"]
    assert fonts.drawable(["我们", "한국", "👩", "time"])[1:] == (shown, True)


def test_a_font_that_is_new_on_the_machine_is_found(monkeypatch: pytest.MonkeyPatch):
    from matplotlib import font_manager

    known = [entry for entry in font_manager.fontManager.ttflist if "cmr10" not in entry.fname]
    [new] = {entry.fname for entry in font_manager.fontManager.ttflist} - {entry.fname for entry in known}
    monkeypatch.setattr(font_manager.fontManager, "ttflist", known)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [new])

    found = fonts.installed_fonts.__wrapped__()

    assert Path(new) in [path for _, path in found]

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mstag.show import plots

PNG = b"\x89PNG\r\n\x1a\n"


def entry(tag: str, value: float | None) -> dict[str, object]:
    interval = None if value is None else [value - 0.05, min(1.0, value + 0.03)]
    return {"tag": tag, "positives": 7, "roc_auc": value, "roc_auc_ci": interval}


@given(
    arrays(
        np.float16,
        st.tuples(st.integers(1, 200), st.integers(1, 700)),
        elements=st.sampled_from([-46.0, 0.0, 3.0, np.nan, np.inf]),
    ),
    st.sampled_from([None, 18.4]),
)
def test_a_thumbnail_is_a_small_png_of_any_values(mel: np.ndarray, span: float | None) -> None:
    png = plots.thumbnail(mel, span=span)
    pixels = matplotlib.image.imread(io.BytesIO(png))
    assert pixels.shape[0] <= plots.MAX_ROWS and pixels.shape[1] <= plots.MAX_COLUMNS
    assert len(png) < 20_000


def test_a_thumbnail_shows_high_bands_on_top() -> None:
    mel = np.full((8, 12), -46.0)
    mel[0, 5] = 3.0
    pixels = matplotlib.image.imread(io.BytesIO(plots.thumbnail(mel, span=20.0)))[:, :, :3]
    brightest = np.unravel_index(pixels.sum(axis=2).argmax(), (8, 12))
    assert brightest == (7, 5) and pixels[0, 0].sum() < 0.05


def test_every_plot_is_a_png_and_the_same_for_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2):
        mel = np.full((64, 100), -46.0)
        mel[:20] = rng.standard_normal((20, 100))
        made = [
            plots.spectrogram(mel, frame_s=0.0464, title="a clip"),
            plots.tag_bars([entry("guitar", 0.9), entry("flute", 0.6), entry("sax", None)]),
            plots.curves([plots.Panel({"a": ([1, 2, 3], [3, 2, 1])}, "epoch", "loss")]),
            plots.taggram(rng.random((9, 30)), [f"t{i}" for i in range(30)], window_s=3.0),
        ]
        assert all(png.startswith(PNG) and len(png) > 3000 for png in made)


@pytest.mark.parametrize(
    "make",
    [
        lambda: plots.tag_bars([]),
        lambda: plots.tag_bars([entry("sax", None)]),
        lambda: plots.spectrogram(np.full((8, 12), -46.0), frame_s=0.1),
        lambda: plots.curves([plots.Panel({"a": ([], [])}, "x", "y")]),
        lambda: plots.taggram(np.zeros((1, 1)), ["t"], window_s=1.0),
    ],
)
def test_empty_and_constant_input_gives_a_plot(make: object) -> None:
    assert make().startswith(PNG)  # type: ignore[operator]


def test_tags_are_no_formulas() -> None:
    name = "$\\frac"
    assert plots.tag_bars([entry(name, 0.9)]).startswith(PNG)
    lines = {name: ([0.0, 1.0], [0.0, 1.0]), "b": ([0.0, 1.0], [1.0, 0.0])}
    assert plots.curves([plots.Panel(lines, "x", "y")]).startswith(PNG)
    shares = np.full((2, 2), 0.5)
    made = plots.heat_map(shares, [name, f"{name}$"], xlabel="x", ylabel="y", label="l")
    assert made.startswith(PNG)

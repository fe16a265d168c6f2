"""Cards of tagged pieces: what they say, and the numbers and pictures in them."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence

import numpy as np
import pytest
from html_pages import Checker
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from mstag.show import piece
from mstag.show.piece import (
    Tagged,
    about,
    card,
    clock,
    failed_card,
    scores_in_words,
    summary,
    waiting_card,
)

NAMES = ["guitar", "slow", "rock & <roll>", *(f"tag {number}" for number in range(12))]
RNG = np.random.default_rng(0)


def make_piece(name: str = "a.wav", *, duration_s: float = 30.0, num_parts: int = 8) -> Tagged:
    return Tagged(
        name,
        duration_s,
        NAMES,
        RNG.permutation(len(NAMES)).astype(np.float32) / len(NAMES),
        RNG.random((num_parts, len(NAMES)), dtype=np.float32),
        dict.fromkeys(NAMES, 0.5),
        "gradio_api/file=/a%20b.wav",
        '{"path": "a.wav"}\n',
    )


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def data_of(link: str) -> str:
    found = re.search(r'href="data:application/json;base64,([^"]*)"', link)
    assert found
    return base64.b64decode(found[1]).decode()


def test_bars_are_sorted_and_those_above_their_threshold_differ() -> None:
    tagged = make_piece()
    text = card(tagged, "p0")
    checked(text)
    order = np.argsort(-tagged.scores)
    bars = re.findall(
        r'<li class="(\w+)" title="[^"]*"><span class="tag">([^<]*)</span>'
        r'<span class="bar" style="--score:([\d.]+)" aria-hidden="true">',
        text,
    )
    assert [name for _, name, _ in bars] == [
        NAMES[n].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for n in order
    ]
    assert [float(score) for _, _, score in bars] == pytest.approx(tagged.scores[order], abs=1e-4)
    assert [kind for kind, _, _ in bars] == [
        "fits" if s >= 0.5 else "below" for s in tagged.scores[order]
    ]
    assert text.count('<ol class="bars">') == 2, "the rest is in a fold"
    assert "<summary>3 more tags</summary>" in text


def test_pictures_and_data_hold_the_scores_over_time() -> None:
    tagged = make_piece()
    text = card(tagged, "p0")
    order = np.argsort(-tagged.scores)
    masks = re.findall(r"--mask:url\('data:image/png;base64,([^']*)'\)", text)
    data = re.findall(r'data-scores="([^"]*)" data-parts="8"', text)
    for mask, scores, tags in zip(masks, data, (order[:12], order[12:]), strict=True):
        expected = tagged.over_time[:, tags].T
        image = Image.open(io.BytesIO(base64.b64decode(mask)))
        assert image.mode == "LA"
        np.testing.assert_allclose(np.asarray(image)[:, :, 1] / 255, expected, atol=0.003)
        stored = np.frombuffer(base64.b64decode(scores), np.uint8).reshape(expected.shape)
        np.testing.assert_allclose(stored / 100, expected, atol=0.0051)


@given(arrays(np.float32, (3, 5), elements=st.floats(0, 1, width=32)))
def test_shades_keep_values(values: np.ndarray) -> None:
    image = np.asarray(Image.open(io.BytesIO(piece.shades_png(values))))
    np.testing.assert_allclose(image[:, :, 1] / 255, values, atol=0.002)


@pytest.mark.parametrize("name", ['<u>"x"</u>.wav', "a\udcff.mp3", "'\n.flac", ".wav"])
def test_no_name_breaks_out_of_the_page(name: str) -> None:
    for text in (
        card(make_piece(name), "p0"),
        waiting_card(name, "p0", 0.5),
        waiting_card(name, "p0", None),
        failed_card(name, "p0", name),
    ):
        assert "u" not in checked(text).tags
        text.encode()
    assert data_of(card(make_piece(name), "p0")) == '{"path": "a.wav"}\n'


def test_a_card_is_usable_without_eyes_or_mouse() -> None:
    text = card(make_piece("my song.wav", duration_s=75.25), "p7")
    assert (
        '<article class="piece tagged" aria-labelledby="p7-name" data-duration-s="75.250">' in text
    )
    assert '<h2 id="p7-name">my song.wav</h2>' in text
    assert '<audio controls preload="metadata" aria-label="my song.wav"' in text
    assert 'role="slider" tabindex="0" aria-label="Place in my song.wav" aria-valuemin="0" ' in text
    assert 'aria-valuemax="75.2"' in text
    assert '<p class="quiet">1:15 ' in text


@pytest.mark.parametrize(
    ("duration_s", "labels"),
    [
        (0.3, ["0:00"]),
        (29.1, ["0:00", "0:10", "0:20"]),
        (200.0, ["0:00", "1:00", "2:00", "3:00"]),
        (3600.0, ["0:00", "15:00", "30:00", "45:00"]),
        (11_000.0, ["0:00", "1:00:00", "2:00:00"]),
    ],
)
def test_the_axis_has_round_times(duration_s: float, labels: Sequence[str]) -> None:
    axis = re.findall(
        r'<div class="axis" aria-hidden="true">(.*?)</div>',
        card(make_piece(duration_s=duration_s), "p"),
    )
    ticks = re.findall(r'<span style="left:([\d.]+)%">([\d:]+)</span>', axis[0])
    assert [label for _, label in ticks] == list(labels)
    assert all(float(left) < 95 for left, _ in ticks)


def test_the_summary_counts_and_offers_all_results() -> None:
    assert summary(0, 0, 0, []) == ""
    assert summary(1, 2, 3, []) == "<p>1 piece tagged, 2 not, 3 to go.</p>"
    assert "href" not in summary(1, 0, 0, ['{"a": 1}']), "its card has it"
    lines = data_of(summary(2, 0, 0, ['{"a": 1}', '{"a": 2}'])).splitlines()
    assert [json.loads(line) for line in lines] == [{"a": 1}, {"a": 2}]


def test_times_read_as_on_a_player() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3600, 36_061)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "10:01:01",
    ]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            {"epoch": 1, "valid": {"roc_auc": 0.75, "pr_auc": 0.5}},
            "ROC-AUC 0.750 and PR-AUC 0.500 on its valid",
        ),
        ({"valid": {"roc_auc": 0.9}, "test": {"roc_auc": 0.8}}, "ROC-AUC 0.800 on its test split"),
        ({"split": "valid", "roc_auc": 0.5}, "ROC-AUC 0.500 on its valid split"),
        ({"epoch": 1, "valid": {"roc_auc": None}}, "nothing is recorded"),
        ({}, "nothing is recorded"),
    ],
)
def test_scores_are_said_whatever_a_bundle_holds(scores: dict[str, object], words: str) -> None:
    assert scores_in_words(scores).startswith(words)


def test_the_top_of_the_page_says_model_worth_and_limits() -> None:
    text = about("runs/<x>", 5, {"name": "mine", "kind": "table"}, {}, max_mb=7)
    checked(text)
    for words in ("runs/&lt;x&gt;", "5 tags", "trained on mine", piece.LIMITS, "up to 7 MB"):
        assert words in text
    assert piece.DEMO_LIMITS in about("m", 5, {"name": "x", "kind": "demo"}, {}, max_mb=7)

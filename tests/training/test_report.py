"""The page as a whole: what it says, what it survives, and how a browser shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from html_pages import assert_fits, assert_not_blank, checked, in_a_browser, measured
from report_runs import make_data, make_run

from mstag.training import report_clips
from mstag.training.report import write_report

SECTIONS = ["Score", "Loss", "Tags", "Listen", "Speed", "Data", "Settings"]
EVIL = '<script>touched = true</script> & "x"'


def written(runs: list[Path], **places: Path) -> str:
    """The text of a page that is sound HTML and asks for nothing from elsewhere."""
    out = runs[0].parent / "page.html"
    write_report(runs, out, **places)
    return checked(out.read_text(encoding="utf-8")).text


def test_a_page_has_every_section_and_what_belongs_there(tmp_path: Path) -> None:
    shards = make_data(tmp_path)
    run = make_run(tmp_path / "one", shards)
    out = tmp_path / "deep" / "page.html"
    assert write_report([run], out, data=tmp_path / "audio", shards=shards) == []
    html = out.read_text(encoding="utf-8")
    page = checked(html)
    assert [f"{name}</a>" in html for name in SECTIONS] == [True] * len(SECTIONS)
    report = json.loads((run / "eval-test.json").read_text())
    for words in (
        f"{report['roc_auc']:.3f} ({report['roc_auc_ci'][0]:.3f} to {report['roc_auc_ci'][1]:.3f})",
        "No test clip has its track, album or artist in train",
        "above the oracle",
        "valid, epoch 3",
        "train/odd <key>",
        "rock & <roll>",
        "Calibration",
        "Confusions",
        "Taggram",
        "9.0 clips/s (median)",
        report["dataset_digest"][:12],
        "2.94 M weights, 2.14 GFLOP to score a clip",
        "cuda:0, bf16, 2 ranks",
        "commit 0123456789ab and changes to it",
        "mstag 1.0, torch 2.11",
        "580 clips seen, 5 left out",
        "train.epochs",
    ):
        assert words in page.text, words
    assert page.tags.count("audio") >= report_clips.MOST_CLIPS - 1
    assert page.tags.count("svg") > 10
    assert html.count("data:image/png") == report_clips.MOST_CLIPS
    write_report([run], out, data=tmp_path / "audio", shards=shards)
    assert out.read_text(encoding="utf-8") == html, "the same page again"


def test_several_runs_are_compared_with_the_first(tmp_path: Path) -> None:
    shards = make_data(tmp_path)
    one = make_run(tmp_path / "one", shards)
    worse = make_run(
        tmp_path / "worse", shards, seed=1, noise=4.0, settings="[train]\nepochs = 5\n"
    )
    text = written([one, worse], shards=shards)
    assert "less the first's" in text and "1 setting of 1: where the runs differ" in text
    aucs = [json.loads((run / "eval-test.json").read_text())["roc_auc"] for run in (one, worse)]
    assert f"{aucs[1] - aucs[0]:+.3f} (-" in text, "worse, by more than chance"
    assert "Given by worse" in text and "other data" not in text
    (worse / "eval-test.json").unlink()
    text = written([one, worse], shards=shards)
    assert "not scored" in text and "worse has no test scores" in text
    # Two folders of one name are told apart.
    twin = make_run(tmp_path / "other" / "one", shards)
    assert str(Path("other") / "one") in written([one, twin])
    with pytest.raises(ValueError, match="named twice"):
        written([one, one])


def test_a_leaking_split_is_said_first(tmp_path: Path) -> None:
    shards = make_data(tmp_path)
    run, other = make_run(tmp_path / "one", shards), make_run(tmp_path / "two", shards)
    report = json.loads((run / "eval-test.json").read_text())
    report |= {"leaks": {"test": {"track": 0.96}}, "oracle_roc_auc": 0.88, "split_rule": "random"}
    (run / "eval-test.json").write_text(json.dumps(report))
    text = written([run])
    assert "This split leaks! Of the test clips, 96% have their track in train too" in text
    assert text.index("This split leaks!") < text.index(f"{report['roc_auc']:.3f} (")
    assert f"{report['roc_auc'] - 0.88:+.3f} above it" in text
    text = written([run, other])
    assert "random - it leaks!" in text and "two: scored on other data than one" in text


def test_a_training_that_goes_on_and_bare_runs_have_a_page(tmp_path: Path) -> None:
    shards = make_data(tmp_path)
    run = make_run(tmp_path / "one", shards)
    for name in ("eval-test.json", "scores-test.npz", "finished.json"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"clips_seen": 99, "tra')
    text = written([run])
    assert "going on, or was cut short" in text and "0.8000, epoch 3" in text
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text("")
    text = written([bare])
    assert "Nothing was logged yet" in text and "Nothing is scored yet" in text
    assert "no config.toml that could be read" in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("eval-test.json", b"{", "eval-test.json: damaged"),
        ("eval-test.json", b"[1]", "not an object"),
        ("eval-test.json", b'{"clips": 3}', "run eval.py --split test again"),
        ("scores-test.npz", b"PK\x03\x04 no zip", "scores-test.npz: damaged"),
        ("config.toml", b"= 1", "config.toml: damaged"),
        ("config.toml", b"\xff", "config.toml: damaged"),
        ("best/tagger.json", b"\xff", "tagger.json: damaged"),
        ("about.json", b"[]", "about.json: damaged"),
    ],
)
def test_what_is_damaged_is_said_instead_of_shown(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    shards = make_data(tmp_path)
    run = make_run(tmp_path / "one", shards)
    (run / name).write_bytes(content)
    notes = write_report([run], tmp_path / "p.html", shards=shards)
    assert len(notes) == 1 and words in notes[0]
    text = checked((tmp_path / "p.html").read_text(encoding="utf-8")).text
    assert words in text and "Speed" in text


def test_numbers_from_elsewhere_do_not_break_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / EVIL.replace("/", "_"), make_data(tmp_path))
    rows = [
        {"epoch": 1, "train/loss": float("nan"), "valid/roc_auc": "high", EVIL: 1, "big": 10**400},
        {"epoch": 2, "train/loss": float("inf"), "valid/roc_auc": True, EVIL: 2, "big": 10**400},
        {"train/loss": None, "epoch": [1]},
    ]
    about = {"network": "big", "git": [1], "ranks": "two", "device": {EVIL: 1}, "versions": 3}
    (run / "about.json").write_text(json.dumps(about))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = json.loads((run / "eval-test.json").read_text())
    for tag in report["per_tag"]:
        tag["tag"] += EVIL
    report |= {"split_rule": EVIL, "dataset": "../.." + EVIL, "loss": None}
    (run / "eval-test.json").write_text(json.dumps(report))
    text = written([run])
    assert EVIL in text


def test_what_is_not_a_run_or_no_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run"):
        write_report([tmp_path], tmp_path / "r.html")
    run = make_run(tmp_path / "one", make_data(tmp_path))
    with pytest.raises(ValueError, match=r"ends in \.html"):
        write_report([run], run / "finished.json")
    with pytest.raises(ValueError, match="--data"):
        write_report([run], tmp_path / "r.html", data=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no such folder"):
        write_report([run], tmp_path / "r.html", shards=tmp_path / "nowhere")
    (run / "metrics.jsonl").write_text('{"epoch": 1\n{"epoch": 2}\n')
    with pytest.raises(ValueError, match="line 1 is damaged"):
        write_report([run], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@in_a_browser
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_the_page_on_phones_and_screens(tmp_path: Path, is_dark: bool) -> None:
    shards = make_data(tmp_path, partial=True)
    one = make_run(tmp_path / "one", shards)
    other = make_run(tmp_path / f"a-rather-long-name-{'x' * 40}", shards, seed=1, noise=3.0)
    report = json.loads((one / "eval-test.json").read_text())
    report["per_tag"][0]["tag"] = "very-long-tag-name" * 4 + EVIL
    report["per_tag"][1]["roc_auc"] = None
    (one / "eval-test.json").write_text(json.dumps(report))
    page = tmp_path / "page.html"
    write_report([other, one], page, data=tmp_path / "audio", shards=shards)
    content = page.read_text(encoding="utf-8")
    assert_fits(measured(tmp_path, content, is_dark=is_dark), is_dark=is_dark)
    assert_not_blank(tmp_path, page, is_dark=is_dark)

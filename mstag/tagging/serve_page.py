"""What is on the page of `mstag serve`, in Gradio's words; it needs the package gradio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

if TYPE_CHECKING:
    from mstag.tagging.desk import Desk

KEEP_S = 24 * 3600
"""Files of a page that is never closed are removed after this."""
MOST_AT_WORK, MOST_IN_LINE = 16, 64
"""Drops whose cards are kept up to date, and that wait; Gradio refuses further ones in words."""
SCRIPT_FILE = Path(__file__).with_name("serve.js")


def page(desk: Desk, intro: str, max_mb: int) -> gr.Blocks:
    """The page: what it is, where to drop files, and their cards.

    Args:
        desk: where files go, and cards come from.
        intro: HTML, see :func:`mstag.show.piece.about`.
        max_mb: largest upload, in 10^6 bytes.
    """

    def tag(
        uploads: list[tuple[str, Path]], request: gr.Request
    ) -> Iterator[tuple[None, dict[str, Any]]]:
        for shown in desk.tag(str(request.session_hash), uploads):
            yield None, shown

    def clear(request: gr.Request) -> dict[str, Any]:
        return desk.clear(str(request.session_hash))

    def leave(request: gr.Request) -> None:
        desk.leave(str(request.session_hash))

    blocks: gr.Blocks = gr.Blocks(
        title="mstag: tag your music", analytics_enabled=False, delete_cache=(600, KEEP_S)
    )
    with blocks:
        gr.HTML(intro, elem_id="about", apply_default_css=False, js_on_load=None)
        drop = gr.File(
            label="Music",
            show_label=False,
            file_count="multiple",
            elem_id="drop",
            height=150,
        )
        # Gradio's own hands on what its files are called, and not what the visitor calls them.
        # (It writes into the source folder of whoever makes a subclass.)
        drop.preprocess = _names_and_paths  # type: ignore[method-assign,assignment]
        cards = gr.HTML(
            {"summary": "", "cards": []},
            html_template='<div class="status" role="status"></div>'
            '<div class="status refusals" role="alert"></div><div class="pieces"></div>',
            js_on_load=SCRIPT_FILE.read_text(encoding="utf-8"),
            apply_default_css=False,
            elem_id="cards",
            max_mb=max_mb,
        )
        button = gr.Button("Clear the list, remove the files", size="sm", elem_id="clear")
        drop.upload(
            tag,
            drop,
            [drop, cards],
            api_name="tag",
            show_progress="hidden",
            trigger_mode="multiple",
            concurrency_limit=MOST_AT_WORK,
        )
        button.click(clear, None, cards, api_visibility="private", show_progress="hidden")
        blocks.unload(leave)
    blocks.queue(max_size=MOST_IN_LINE, api_open=False)
    return blocks


def _names_and_paths(uploads: Any) -> list[tuple[str, Path]]:
    """What Gradio has of an upload; that the files are uploads, it has checked before."""
    found = [] if uploads is None else list(uploads)
    return [(file.orig_name or Path(file.path).name, Path(file.path)) for file in found]

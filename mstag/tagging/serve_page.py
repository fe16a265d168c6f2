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
        try:
            for shown in desk.tag(str(request.session_hash), uploads):
                yield None, shown  # the place to drop files is free again
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

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
        # In an app that is mounted, and not launched, Gradio 6 copies whatever file of this machine
        # or address a forged request names to where it can be read. Here nothing is copied, and
        # the desk takes uploads only.
        drop.async_move_resource_to_block_cache = _in_place  # type: ignore[method-assign,assignment]
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
            api_visibility="private",
            show_progress="hidden",
            trigger_mode="multiple",
            concurrency_limit=MOST_AT_WORK,
        )
        button.click(clear, None, cards, api_visibility="private", show_progress="hidden")
        blocks.unload(leave)
    blocks.queue(max_size=MOST_IN_LINE, api_open=False)
    return blocks


def _names_and_paths(uploads: Any) -> list[tuple[str, Path]]:
    """(name, file) of each upload."""
    found = [] if uploads is None else list(uploads)
    return [(file.orig_name or Path(file.path).name, Path(file.path)) for file in found]


async def _in_place(path: str | Path | None) -> str | None:
    return None if path is None else str(path)

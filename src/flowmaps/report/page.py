"""One page that holds everything: HTML with its style and pictures inside, which asks the network for nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, final

from .style import plain, png_bytes, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --page: #ffffff; --card: #f6f8fa;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --line: #30363d; --page: #0d1117;
  --card: #161b22; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; margin: 3.2rem 0 0.6rem; padding-top: 1.4rem;
  border-top: 1px solid var(--line); }
p { margin: 0 0 1rem; max-width: 44rem; }
.lead { font-size: 1.15rem; color: var(--soft); }
figure { margin: 1.6rem 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff; border-radius: 8px; }
figure .paper { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px; }
figcaption { margin-top: 0.7rem; font-size: 0.9rem; line-height: 1.5; color: var(--soft); max-width: 44rem; }
.clips { display: flex; flex-wrap: wrap; gap: 12px 20px; }
.clips label { font-size: 0.9rem; color: var(--soft); }
.clips audio { display: block; width: 260px; height: 36px; margin-top: 2px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 0.9rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th { background: var(--card); font-weight: 600; color: var(--soft); }
td.number, th.number { text-align: right; }
tr.strong td { font-weight: 650; color: var(--accent); }
ul { margin: 0 0 1rem; padding-left: 1.2rem; max-width: 44rem; }
"""


_STRONG = ' class="strong"'


@final
@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        image: A figure, a PIL image, or PNG bytes.
        caption: One or two sentences on what one sees; also what a screen reader reads.
        width: Width on the page in CSS pixels; None is the picture's own, at most the page's.
    """

    image: Figure | Image | bytes
    caption: str
    width: int | None = None

    def html(self) -> str:
        data = self.image if isinstance(self.image, bytes) else png_bytes(self.image)
        code, text = base64.b64encode(data).decode("ascii"), escape(self.caption)
        width = "" if self.width is None else f' style="width:{self.width:d}px"'
        image = f'<img alt="{text}" src="data:image/png;base64,{code}"{width}>'
        return f'<figure><div class="paper">{image}</div><figcaption>{text}</figcaption></figure>'


@final
@dataclass(frozen=True)
class Sound:
    """Clips that the page plays, in a row.

    Attributes:
        clips: Wav files by their titles.
        caption: What one hears.
    """

    clips: Mapping[str, bytes]
    caption: str

    def html(self) -> str:
        players = "".join(
            f'<label>{escape(title)}<audio controls preload="none" '
            f'src="data:audio/wav;base64,{base64.b64encode(wav).decode("ascii")}"></audio></label>'
            for title, wav in self.clips.items()
        )
        return f'<figure><div class="clips">{players}</div><figcaption>{escape(self.caption)}</figcaption></figure>'


@final
@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        head: Names of the columns.
        rows: Cells, text or numbers; numbers are set right, in figures of equal width.
        caption: What the table says.
        strong: Rows to point out.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    caption: str = ""
    strong: frozenset[int] = frozenset()

    def html(self) -> str:
        right = [bool(self.rows) and _is_number(cell) for cell in (self.rows or [[]])[0]]
        right += [False] * (len(self.head) - len(right))
        mark = [' class="number"' if each else "" for each in right]
        head = "".join(f"<th{m}>{escape(c)}</th>" for m, c in zip(mark, self.head, strict=True))
        body = "".join(
            f"<tr{_STRONG if i in self.strong else ''}>{''.join(map(_cell, row))}</tr>"
            for i, row in enumerate(self.rows)
        )
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'<figure><div class="scroll">{table}</div>{caption}</figure>'


@final
@dataclass(frozen=True)
class Section:
    """A part of the page: a heading and blocks in order; a string is a paragraph, a tuple of strings a list."""

    heading: str
    blocks: Sequence[str | tuple[str, ...] | Picture | Sound | Grid]

    def html(self) -> str:
        return (
            f"<section><h2>{escape(self.heading)}</h2>{''.join(map(_block, self.blocks))}</section>"
        )


def write_page(path: Path | str, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write a self-contained page, atomically. All text is escaped; the same content gives the same bytes.

    Args:
        path: Where; folders are made.
        title: The heading, and the name of the tab.
        lead: What the page says, in two or three sentences.
        sections: The parts.

    Returns:
        The path.
    """
    body = "\n".join(section.html() for section in sections)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</main>\n</body>\n</html>\n'
    )
    return write_atomically(Path(path), page.encode())


def _block(block: str | tuple[str, ...] | Picture | Sound | Grid) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if isinstance(block, tuple):
        return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in block)}</ul>"
    return block.html()


def _is_number(cell: str | float) -> bool:
    return not isinstance(cell, str)


def _cell(cell: str | float) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    return f'<td class="number">{plain(cell)}</td>'

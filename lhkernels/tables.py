"""Every table that is printed, in one style: rich's, on terminals, in strings and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 80
"""Columns of text that no terminal wraps: the width of tables in strings."""

UNBOUNDED = 100_000


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    left: Sequence[int] = (0,),
    bold: Sequence[int] = (),
    gap: int = 2,
    markdown: bool = False,
) -> Table:
    """A rich table; its cells are text as it stands, without rich's markup.

    Args:
        columns: their heads.
        rows: a cell a column each; None is empty.
        title: a line above.
        left: positions of the columns that are flush left, as words are; numbers are flush right.
        bold: positions of the rows that stand out.
        gap: blanks between columns, at least 1.
        markdown: for :func:`to_markdown`.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="",
        box=box.MARKDOWN if markdown else box.SIMPLE_HEAD,
        header_style="" if markdown else "bold",
        pad_edge=markdown,
        padding=(0, 1) if markdown else (0, gap - 1, 0, 0),
        show_edge=markdown,
    )
    for position, head in enumerate(columns):
        made.add_column(Text(head), justify="left" if position in left else "right")
    for number, row in enumerate(rows):
        cells = [Text("" if cell is None else str(cell)) for cell in row]
        made.add_row(*cells, style="bold" if number in bold and not markdown else None)
    return made


def to_text(*renderables: Any, width: int | None = WIDTH) -> str:
    """What rich prints, as a string without colours or trailing blanks.

    Args:
        width: columns at most; None for as many as it takes, so that nothing is wrapped or cut.
    """
    from rich.console import Console

    console = Console(
        width=width or UNBOUNDED, color_system=None, highlight=False, markup=False, emoji=False
    )
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


def to_markdown(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    left: Sequence[int] = (0,),
    bold: Sequence[int] = (),
) -> str:
    """A Markdown table, a line a row however long. A ``|`` in a cell is escaped."""

    def cell(value: object) -> str:
        return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")

    cells = [[cell(value) for value in row] for row in rows]
    for number in bold:
        cells[number] = [f"**{text}**" if text else "" for text in cells[number]]
    heads = [cell(head) for head in columns]
    text = to_text(table(heads, cells, left=left, markdown=True), width=None).strip()
    return text if title is None else f"**{title}**\n\n{text}"


def show(*renderables: Any) -> None:
    """Print to standard output, as wide as the terminal is (80 columns where there is none)."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for renderable in renderables:
        console.print(renderable)

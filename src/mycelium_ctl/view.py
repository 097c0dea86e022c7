# SPDX-License-Identifier: Apache-2.0
"""Output to a terminal, and to a pipe.

On a terminal: colour (none with NO_COLOR), wrapped to its width, through rich, which is imported
only when something is drawn. In a pipe: one fact per line, never wrapped, and words in place of
signs. What is untrusted (names of pods, files, peers) is shown with its control characters escaped,
in both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Mark = Literal["ok", "warn", "fail", "skip"]

SIGNS: Final[dict[Mark, tuple[str, str]]] = {
    "ok": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "bold red"),
    "skip": ("-", "dim"),
}
LONGEST: Final = 2000  # characters
LABEL: Final = 15  # columns: the longest name of a check


def visible(text: str) -> str:
    """The text with unprintable characters escaped: no escape sequence reaches a terminal.

    So are bytes of a link or file name that are not UTF-8, which Python keeps as lone surrogates.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def readable(text: str) -> str:
    """The same, cut to what a person reads: an untrusted name may have megabytes."""
    if len(text) > LONGEST:
        return f"{visible(text[:LONGEST])}… ({len(text)} characters)"
    return visible(text)


def worst(marks: Sequence[Mark]) -> Mark:
    """The one mark for several; "ok" for none."""
    return "fail" if "fail" in marks else "warn" if "warn" in marks else "ok"


def count(number: int, one: str, many: str = "") -> str:
    """`1 pod`, `2 pods`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def amount(count: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Page:
    """A command's output, in order, to a terminal or to a pipe."""

    def __init__(self) -> None:
        self._console: Console | None = None
        if sys.stdout.isatty():
            from rich.console import Console

            self._console = Console(highlight=False, emoji=False)

    def heading(self, text: str) -> None:
        if self._console:
            from rich.text import Text

            self._console.print(Text(f"\n{readable(text)}", style="bold"))
        else:
            print(f"# {readable(text)}")

    def say(self, text: str) -> None:
        """A sentence."""
        if self._console:
            from rich.text import Text

            self._console.print(Text(readable(text)))
        else:
            print(readable(text))

    def block(self, text: str) -> None:
        """Lines to be copied: never wrapped, and never changed but for control characters."""
        for line in text.splitlines():
            if self._console:
                from rich.text import Text

                self._console.print(Text(f"  {visible(line)}"), soft_wrap=True)
            else:
                print(visible(line))

    def fact(self, mark: Mark, label: str, text: str, *below: tuple[str, str]) -> None:
        """A marked line, with lines below it as (label, text)."""
        if not self._console:
            print(f"{mark:4}  {label:{LABEL}}  {readable(text)}")
            for name, more in below:
                print(f"      {name:{LABEL}}  {readable(more)}")
            return
        from rich.table import Table
        from rich.text import Text

        sign, style = SIGNS[mark]
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=1, no_wrap=True)
        grid.add_column(width=LABEL, no_wrap=True)
        grid.add_column(overflow="fold")
        shade = "dim" if mark == "skip" else ""
        grid.add_row(Text(sign, style), Text(label, shade or "bold"), Text(readable(text), shade))
        for name, more in below:
            command = name == "run"
            grid.add_row("", Text(name, "dim"), Text(readable(more), "cyan" if command else "dim"))
        self._console.print(grid)

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[tuple[Mark, Sequence[str]]],
        *,
        right: Sequence[str] = (),
    ) -> None:
        """Rows with a mark each; the columns named in `right` hold numbers."""
        if self._console:
            self._console.print(_table(headers, rows, right, self._console.width))
            return
        lines = [["", *headers]] + [[mark, *map(readable, row)] for mark, row in rows]
        widths = [max(len(line[n]) for line in lines) for n in range(len(headers) + 1)]
        for line in lines:
            cells = [
                cell.rjust(width) if title in right else cell.ljust(width)
                for cell, width, title in zip(line, widths, ["", *headers], strict=True)
            ]
            print("  ".join(cells).rstrip())

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show on a terminal that the body runs; nothing in a pipe."""
        if self._console:
            with self._console.status(text):
                yield
        else:
            yield

    def watch(self, draw: Draw, every_s: float, *, right: Sequence[str] = ()) -> None:
        """Show what `draw` returns again and again, until Ctrl-C."""
        import time

        if self._console is None:
            while True:
                self.table(*draw(), right=right)
                sys.stdout.flush()
                time.sleep(every_s)
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False, screen=True) as live:
            while True:
                headers, rows = draw()
                shown = _table(headers, rows, right, self._console.width)
                live.update(shown, refresh=True)
                time.sleep(every_s)


def _table(
    headers: Sequence[str],
    rows: Sequence[tuple[Mark, Sequence[str]]],
    right: Sequence[str],
    width: int,
) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    shown = [(mark, [readable(cell) for cell in row]) for mark, row in rows]
    widths = [
        max([len(title), *(len(row[n]) for _, row in shown)]) for n, title in enumerate(headers)
    ]
    # All side by side if there is room, else two and two below each other, else all in a column.
    pairs = [tuple(range(n, min(n + 2, len(headers)))) for n in range(0, len(headers), 2)]
    layout: list[tuple[int, ...]] = [(n,) for n in range(len(headers))]
    if sum(widths) + 2 * len(widths) + 2 > width:
        layout = pairs
    stacked = sum(max(widths[n] for n in cell) + 2 for cell in layout) + 2 > width

    table = Table(
        box=None, padding=(0, 1), pad_edge=False, header_style="dim", show_header=not stacked
    )
    table.add_column("", width=1, no_wrap=True)
    for cell in [(0,)] if stacked else layout:
        title = "\n".join(headers[n] for n in cell)
        justify = "right" if headers[cell[0]] in right else "left"
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for mark, row in shown:
        sign, style = SIGNS[mark]
        texts = ["\n".join(row[n] for n in cell) for cell in layout]
        if stacked:
            named = [
                f"{title} {cell}" if cell and title in right else cell
                for title, cell in zip(headers, row, strict=True)
            ]
            lines = []
            for pair in pairs:
                words = [named[n] for n in pair if named[n]]
                fits = len("  ".join(words)) + 4 <= width
                lines += ["  ".join(words)] if fits else words
            texts = ["\n".join(filter(None, lines))]
        table.add_row(Text(sign, style), *map(Text, texts))
    return table


if TYPE_CHECKING:
    from collections.abc import Callable

    Draw = Callable[[], tuple[Sequence[str], Sequence[tuple[Mark, Sequence[str]]]]]

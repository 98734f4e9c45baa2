"""What objects look like in a notebook, and progress bars in notebooks and terminals."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape

OnStep = Callable[[int], None]
"""Called with the number of checkpoints done."""


def html_table(caption: str, rows: Sequence[Sequence[object]], *, heads: Sequence[str] = ()) -> str:
    """An HTML table with every text escaped; the first cell of a row is its header."""
    top = "".join(f"<th>{escape(str(head))}</th>" for head in heads)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return (
        f'<table><caption style="text-align: left">{escape(caption)}</caption>'
        + (f"<thead><tr>{top}</tr></thead>" if heads else "")
        + f"<tbody>{body}</tbody></table>"
    )


def _cells(row: Sequence[object]) -> str:
    first, *others = (escape(str(cell)) for cell in row)
    style = 'style="text-align: left"'
    return f"<th {style}>{first}</th>" + "".join(f"<td {style}>{cell}</td>" for cell in others)


@contextmanager
def progress_bar(
    n_checkpoints: int, description: str, on_step: OnStep | None = None
) -> Iterator[OnStep]:
    """A function that moves a progress bar when it is told how many checkpoints are done; or
    ``on_step``, where the caller shows progress in its own way. The bar is drawn in notebooks and
    terminals only; without ipywidgets a notebook shows it as text.
    """
    if on_step:
        yield on_step
        return
    from tqdm.auto import tqdm

    # A notebook's output is no terminal, which None would take for a file.
    disable = False if in_notebook() else None
    with tqdm(total=n_checkpoints, desc=description, unit="checkpoint", disable=disable) as bar:

        def moved_to(n_done: int) -> None:
            bar.update(n_done - bar.n)

        yield moved_to


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel.zmqshell" in sys.modules

"""Pages from templates: the words stand there, the numbers are filled in."""

import contextlib
import functools
import os
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jinja2

from experiments.configs._methods import TITLES, at
from experiments.report import numbers, tables
from experiments.report.plots import PLOTS
from experiments.report.plots.figures import save
from experiments.report.results import NETWORKS, Absent, Missing, Results
from experiments.training import records

_TEMPLATES = pathlib.Path(__file__).with_name("templates")
_SUFFIX = ".md.j2"

PAGES = tuple(
    path.relative_to(_TEMPLATES).as_posix().removesuffix(_SUFFIX)
    for path in sorted(_TEMPLATES.rglob(f"[!_]*{_SUFFIX}"))
)
"""Names of all pages, where they are written under the results: `cifar10/bits`."""


class Page(NamedTuple):
    """A page's text, and the plots it shows, by their names in `PLOTS`."""

    text: str
    plots: tuple[str, ...]


def render(name: str, load: Callable[[str], Results]) -> Page:
    """Fill a template.

    Args:
      name: One of `PAGES`.
      load: Reads results by where they lie: `cifar10/bits`.

    Raises:
      Absent: Results that are not there at all.
      Missing: A number that is not in the results, a run that has diverged, or words
        that the results no longer bear out; with the page's name.
    """
    plots: dict[str, None] = {}
    folder = pathlib.PurePosixPath(name).parent

    def plot(target: str) -> str:
        if target not in PLOTS:
            raise Missing(f"no plot {target}: {', '.join(PLOTS)}")
        plots[target] = None
        return pathlib.Path(os.path.relpath(f"{target}.png", folder)).as_posix()

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        x.__name__: x
        for x in (numbers.fixed, numbers.percent, numbers.thousands, numbers.half)
    }
    shown = (numbers.gap, numbers.half, numbers.mean, numbers.best)
    shown += (tables.header, tables.row, tables.rates, tables.validated)
    shown += (tables.measured, claim)
    environment.globals |= {x.__name__: x for x in shown}
    environment.globals |= {
        "results": load,
        "plot": plot,
        "TITLES": TITLES,
        "NETWORKS": NETWORKS,
        "BENCHMARK": tables.BENCHMARK,
        "at": at,
    }
    with _named(name):
        text = environment.get_template(name + _SUFFIX).render()
    return Page(_wrapped(text), tuple(plots))


def claim(words: str, *holds: bool) -> str:
    """Words that tell what results show; an error once they do not.

    Raises:
      Missing: Not all of `holds` are true.
    """
    if not all(holds):
        raise Missing(f"the results no longer show this: {words}")
    return words


@contextlib.contextmanager
def _named(page: str) -> Iterator[None]:
    """Errors with the page's name."""
    try:
        yield
    except Absent:
        raise
    except (jinja2.TemplateError, Missing) as error:
        raise Missing(f"{page}.md: {error}") from error


def _wrapped(text: str) -> str:
    """Paragraphs and items of lists in lines of 88; numbers have made them ragged."""
    blocks = []
    for block in re.split(r"(\n\n+|\n(?=- ))", text):
        if not block.startswith(("|", "#", "!", "    ", "- `", "\n")):
            indent = "  " if block.startswith("- ") else ""
            # A line that began with "4. " or "- " would be an item: glued to the last.
            words = re.sub(r" (?=(\d+\.|[-+*]) )", "\0", " ".join(block.split()))
            block = textwrap.fill(
                words,
                88,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            ).replace("\0", " ")
        blocks.append(block)
    return f"{''.join(blocks).strip()}\n"


def build(
    folder: pathlib.Path,
    pages: Iterable[str] = PAGES,
    tell: Callable[[str], None] = print,
) -> list[str]:
    """Write pages, and the plots they show, beside the results they are made from.

    Args:
      folder: Of the results.
      pages: Of `PAGES`.
      tell: Called with a line for every file.

    Returns:
      Of pages that are left out why, and what makes their results.

    Raises:
      Missing: As of `render`.
    """
    load = functools.cache(functools.partial(Results, folder))
    drawn, absent = set(), []
    for name in pages:
        try:
            page = render(name, load)
            with _named(name):
                figures = {x: PLOTS[x](load) for x in page.plots if x not in drawn}
        except Absent as error:
            absent.append(f"{name}.md: {error}")
            continue
        path = folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_text(path, page.text)
        tell(f"{name}.md")
        for plot, figure in figures.items():
            save(figure, folder / f"{plot}.png")
            tell(f"{plot}.png")
        drawn |= figures.keys()
    return absent

"""`ssvq report`: a packed file as a page to look at."""

import pathlib
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.cli.terminal import Flag, check_target, progress
from ssvq_jax.export.container import replacing
from ssvq_jax.page import page, read_steps, require_extras


def report(
    file: Positional[pathlib.Path],
    *,
    html: pathlib.Path,
    against: pathlib.Path | None = None,
    log: pathlib.Path | None = None,
    quiet: Flag = False,
) -> int:
    """Write a page about a packed file: where its bytes are, and what its weights are.

    One HTML file that needs no network: totals, bytes by kind, a table of all tensors
    to sort and filter, and for each that is compressed its weights and its codewords,
    by how often they are used. Needs `pip install 'ssvq_jax[report]'`.

    Args:
      file: Packed file.
      html: Page to write, *.html.
      against: The checkpoint that it came from: for errors, and the weights before.
      log: metrics.jsonl of a training run: for the signs over its steps.
      quiet: Print nothing but errors.
    """
    require_extras()
    packed = Checkpoint(file)
    original = None if against is None else Checkpoint(against)
    logs = [] if log is None else [str(log)]
    check_target([*packed.files, *(original.files if original else ()), *logs], html)
    steps = [] if log is None else read_steps(log)
    with progress(quiet) as bar:

        def track(names: Iterable[str]) -> Iterable[str]:
            return bar.track(list(names), description="Drawing")

        text = page(packed, original, steps, track)
    with replacing(html) as target:
        target.write(text.encode())
    if not quiet:
        told = f"{html}: {html.stat().st_size:,} bytes, {len(packed)} tensors."
        Console().print(Text(told))
    return 0

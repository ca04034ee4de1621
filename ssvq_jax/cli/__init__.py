"""The command `ssvq`: packed files for people without a Flax model at hand.

Exit status: 0 where all went well; 1 where `verify` finds wrong values or `diff`
differences; 2 for options that cannot be, and files that cannot be opened, as damaged
headers; 128 and the number of a signal that ended it.
`ssvq --tyro-print-completion bash` (zsh, tcsh) prints the completion of a shell.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator

import tyro
from rich.console import Console
from rich.text import Text
from safetensors import SafetensorError

from ssvq_jax.cli.compress import compress
from ssvq_jax.cli.decode import decode
from ssvq_jax.cli.inspect import diff, info, verify
from ssvq_jax.cli.report import report
from ssvq_jax.cli.simulate import simulate
from ssvq_jax.tree.paths import printable


def main() -> None:
    """Run the command line; errors in what was asked end it with status 2."""
    app = tyro.extras.SubcommandApp()
    for command in (compress, info, decode, verify, diff, report, simulate):
        app.command(command)
    try:
        with _ended_by_signals():
            status = app.cli(prog="ssvq", description=__doc__)
    # RuntimeError: a platform that JAX does not have, memory of a device.
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        message = Text.assemble(("error: ", "bold red"), printable(str(error)))
        Console(stderr=True).print(message, soft_wrap=True)
        status = 2
    except KeyboardInterrupt:
        status = 130  # as shells have it
    sys.exit(status)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the process as errors do: temporary files are removed.

    What ignores them, such as `nohup`, goes on to.
    """

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)  # as shells have it

    names = ("SIGTERM", "SIGHUP")  # Windows has the first alone
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    changed = [n for n in numbers if signal.getsignal(n) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)

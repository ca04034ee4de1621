"""The command `ssvq`: packed files for people without a Flax model at hand."""

import sys

import tyro
from rich.console import Console
from rich.text import Text
from safetensors import SafetensorError

from ssvq_jax.cli.compress import compress
from ssvq_jax.cli.decode import decode
from ssvq_jax.cli.inspect import diff, info, verify
from ssvq_jax.cli.simulate import simulate
from ssvq_jax.tree.paths import printable


def main() -> None:
    """Run the command line; errors in what was asked end it with status 2."""
    app = tyro.extras.SubcommandApp()
    for command in (compress, info, decode, verify, diff, simulate):
        app.command(command)
    try:
        status = app.cli(prog="ssvq", description=__doc__)
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        message = Text.assemble(("error: ", "bold red"), printable(str(error)))
        Console(stderr=True).print(message, soft_wrap=True)
        status = 2
    except KeyboardInterrupt:
        status = 130  # as shells have it
    sys.exit(status)

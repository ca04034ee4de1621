"""`python -m ssvq_jax.cli` is the command `ssvq`."""

from ssvq_jax.cli import main

if __name__ == "__main__":
    main()

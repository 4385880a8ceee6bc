"""The command `python -m toast_jax.parity FILE...`; see `toast_jax.testing.parity`."""

from toast_jax.errors import command
from toast_jax.testing.parity import main

if __name__ == "__main__":
    command(main)

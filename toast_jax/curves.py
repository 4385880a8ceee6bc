"""The command `python -m toast_jax.curves`; see `toast_jax.analysis.curves`."""

from toast_jax.analysis.curves import main
from toast_jax.errors import command

if __name__ == "__main__":
    command(main)

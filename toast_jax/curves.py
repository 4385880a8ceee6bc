"""The command `python -m toast_jax.curves`; see `toast_jax.analysis.curves`."""

import sys

from toast_jax.analysis.curves import main
from toast_jax.errors import InputError

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as message:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

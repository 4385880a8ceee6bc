"""The command `python -m toast_jax.parity FILE...`; see `toast_jax.testing.parity`."""

import sys

from toast_jax.errors import InputError
from toast_jax.testing.parity import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as message:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

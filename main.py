"""Run a task from a clone of the repository; the command `toast` of the installed package does the same."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (pip installs years-old packages on an older Python without a word)
    sys.exit("error: toast_jax needs Python 3.11 or newer; this is " + sys.version.split()[0] + ".")

from toast_jax.cli import cli

if __name__ == "__main__":
    cli()

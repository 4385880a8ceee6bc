"""A process that answers requests: a line of text in, a line of JSON out."""

import json
import subprocess


class Process:
    """Runs a module of this folder until `close`, with the arguments that follow its name; its errors are printed."""

    def __init__(self, python: str, module: str, *arguments: str):
        command = [python, "-m", f"benchmarks.{module}", *arguments]
        self._module = module
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: str):
        """Send a request and return its answer.

        Raises:
          SystemExit: the process has ended.
        """
        assert self._process.stdin and self._process.stdout
        print(request, file=self._process.stdin, flush=True)
        if not (answer := self._process.stdout.readline()):
            raise SystemExit(f"The process of {self._module} has ended; its output is above.")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()  # closes its input and waits

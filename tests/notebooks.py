"""Run the cells of a notebook without Jupyter: `python -m tests.notebooks FILE` stores what they show in the file.

Cells that install packages, which begin with %pip, are left out.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

_COLORS = 96  # of a stored picture, so that the file stays small


def cells(file):
    """The cells of a notebook, each with its source as text."""
    return [{**cell, "source": "".join(cell["source"])} for cell in json.loads(Path(file).read_text())["cells"]]


def run(file, replaced=()):
    """Execute the code cells in one scope, in the current folder; return that scope, and the outputs of each cell.

    `replaced` are pairs of a part of the code and what stands for it.
    """
    scope, outputs = {"__name__": "__main__"}, []
    for number, cell in enumerate(cells(file)):
        code = cell["source"]
        if cell["cell_type"] != "code" or "%pip" in code:
            outputs.append([])
            continue
        for old, new in replaced:
            code = code.replace(old, new)
        outputs.append(_output(code, scope, f"cell {number}"))
    return scope, outputs


def _output(code, scope, name):
    """What a cell prints and shows; an expression at its end is shown, too."""
    shown, printed = [], io.StringIO()
    scope["display"] = lambda *values: shown.extend(map(_shown, values))
    *statements, last = ast.parse(code).body
    body = statements if isinstance(last, ast.Expr) else [*statements, last]
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), name, "exec"), scope)
        if isinstance(last, ast.Expr) and (value := eval(compile(ast.Expression(last.value), name, "eval"), scope)) is not None:
            shown.append(_shown(value))
    text = printed.getvalue()
    return [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}] * bool(text) + shown


def _shown(value):
    data = {"text/plain": [f"<{value.width} x {value.height} pixels>" if isinstance(value, Image.Image) else repr(value)]}
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.convert("RGB").quantize(_COLORS).save(file, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(file.getvalue()).decode()
    return {"output_type": "display_data", "data": data, "metadata": {}}


def main(file):
    path = Path(file).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _, outputs = run(path)
    notebook = json.loads(path.read_text())
    count = 0
    for cell, shown in zip(notebook["cells"], outputs, strict=True):
        if cell["cell_type"] == "code":
            count += 1
            cell["outputs"], cell["execution_count"] = shown, count
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

"""Pages and tables: what goes in comes out, and text cannot break the page."""

import base64
import io
import re

import numpy as np
from PIL import Image

from toast_jax.analysis import report

HEADER, ROWS = ("method", "tuned"), [("linear", "650"), ("a<b>&c", "1,234")]


def test_text_is_escaped():
    page = report.page("A & B", report.heading("<h>"), report.paragraph("x < y"), report.table(HEADER, ROWS))
    assert "<title>A &amp; B</title>" in page and "&lt;h&gt;" in page and "x &lt; y" in page and "a&lt;b&gt;&amp;c" in page


def test_page_is_self_contained():
    page = report.page("title", report.pictures(("a",), [[report.picture(np.zeros((2, 2, 3), np.uint8), "b")]]))
    assert not re.search(r'(src|href)="(?!data:)', page) and "width=device-width" in page


def test_picture_holds_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    cell = report.picture(pixels, "two <words>")
    data = re.search(r"base64,([^\"]+)\"", cell)[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
    assert cell.endswith("two &lt;words&gt;") and 'width="7" height="5"' in cell


def test_steps_show_one_part_at_a_time_and_need_nothing_else():
    steps = report.steps(["<b>first</b>", "<i>second</i>"], "scene <k>")
    assert "scene &lt;k&gt; <output>1</output> of 2" in steps and 'min="1" max="2"' in steps
    assert steps.index("<div><b>first</b></div>") < steps.index("<div><i>second</i></div>") < steps.index("<script>")
    assert not re.search(r"(src|href)=", steps)


def test_shaded_text_keeps_its_words_spaces_and_signs():
    made = report.shaded([("a <b>", 0.25, 'x"'), ("\n", 1.0, ""), ("", 0.0, ""), ("\0\t\x7f", 0.0, "")])
    assert '<span style="background: rgb(255 140 0 / 0.250)" title="x&quot;">a &lt;b&gt;</span>' in made
    assert re.findall(r">([^<]*)</span>", made)[1:] == ["\u21b5\n", "·", "\u2400\u21e5\t\u2421"]
    assert ".shaded { white-space: pre-wrap" in report.page("t", made)


def test_columns_are_aligned():
    assert report.columns(HEADER, ROWS).splitlines() == ["method  tuned", "linear    650", "a<b>&c  1,234"]


def test_markdown():
    assert report.markdown(HEADER, ROWS[:1]).splitlines() == ["| method | tuned |", "| --- | --: |", "| linear | 650 |"]

"""page.py: everyone can read the page, and text stays text."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import page
from page import Series, tag

NASTY = "<script>alert('x')</script> & \"q\" \udcff 한글"


class Checker(HTMLParser):
    """Collects tags, ids and text; fails on tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.ids, self.words = [], [], [], []

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        self.ids += [value for key, value in attributes if key == "id"]
        if name not in ("meta", "img", "br"):
            self.stack.append(name)

    def handle_endtag(self, name):
        assert self.stack.pop() == name

    def handle_data(self, data):
        self.words.append(data)


def checked(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.stack == [] and len(set(checker.ids)) == len(checker.ids)
    return checker


def test_every_text_is_escaped_in_markup_and_in_attributes():
    series = [Series(NASTY, [1, 2], [0.1, 0.2]), Series("b", [1, 2], [0.3, float("nan")])]
    parts = [
        page.table([NASTY, "n"], [[NASTY, page.Bar(NASTY, 0.5)], [NASTY, NASTY]], NASTY),
        page.line_chart(NASTY, series, NASTY, mark=(1, NASTY), about=NASTY),
        page.heat_table(np.ones((2, 2), int), [NASTY, "b"], NASTY),
        page.cards([(NASTY, NASTY, NASTY)]),
        page.folded(NASTY, NASTY),
    ]
    text = page.document(NASTY, [(NASTY, part) for part in parts], NASTY)
    text.encode("utf-8")  # the byte that is not valid text has become a visible escape
    checker = checked(text)
    assert "script" not in {name for name, _ in checker.tags}
    assert "<script>alert('x')</script> & \"q\" \\udcff 한글" in checker.words


def test_without_the_escape_a_name_would_be_markup():
    """The control: Html is not escaped."""
    assert "script" in {name for name, _ in checked(tag("p", page.Html("<script></script>"))).tags}


def test_a_warning_is_a_box_with_escaped_paragraphs_and_without_texts_nothing():
    box = page.warning(["a < b", "c"])
    assert box == '<div class="warning" role="note"><b>Warning</b><p>a &lt; b</p><p>c</p></div>'
    assert page.warning([]) == "" and ".warning{" in page.STYLE


def test_the_page_forbids_scripts_and_requests_and_has_none():
    text = page.document("x", [("y", tag("p", "z"))])
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text.replace("&#x27;", "'")
    assert not re.search(r"<(script|link|iframe|object)|\bon\w+=|url\(|@import|src=(?!\"data:)", text)


@pytest.mark.parametrize("low, high", [(0, 1), (0.113, 0.117), (-3, 5), (1, 2), (0, 12345), (1e-7, 5e-3), (99.9, 100)])
def test_ticks_are_few_round_and_inside(low, high):
    found = page.ticks(low, high)
    assert 2 <= len(found) <= 8 and low - 1e-9 <= found[0] and found[-1] <= high + 1e-9
    assert np.allclose(np.diff(found), found[1] - found[0])
    assert f"{found[1] - found[0]:.0e}"[0] in "125"


@pytest.mark.parametrize(
    "tick, text",
    [(0, "0"), (0.25, "0.25"), (1000, "1000"), (1e5, "1e5"), (0.00099, "9.9e-4"), (-2e-7, "-2e-7"), (1e30, "1e30")],
)
def test_numbers_of_an_axis_are_short(tick, text):
    assert page.tick_text(tick) == text and float(text) == tick


@pytest.mark.parametrize("y", [[0.00099, 0.00104], [0.0123456, 0.0123461], [-12345.5, 3.0]])
def test_numbers_of_the_axes_stay_inside_the_drawing(y):
    text = page.line_chart("c", [Series("a", [1, 1000], y)], "update", mark=(1000, "best epoch: 1000"))
    found = re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="(end|mid)">([^<]*)<', text)
    assert {kind for _, kind, _ in found} == {"end", "mid"} and "1000" in {label for _, _, label in found}
    for x, kind, label in found:
        length = page.LETTER * len(label)
        left = float(x) - length * (1 if kind == "end" else 0.5)
        assert left >= -0.01 and left + length <= page.WIDTH + 0.01, label


def test_the_label_of_the_mark_is_above_the_curves():
    text = page.line_chart("c", [Series("a", [1, 2], [0.1, 0.9])], "epoch", mark=(2, "best epoch: 2"))
    y, highest = re.search(r'y="([\d.]+)">best epoch: 2<', text).group(1), min(re.findall(r'cy="([\d.]+)"', text))
    assert float(y) < page.TOP <= float(highest)


@pytest.mark.parametrize("C, named", [(page.NAMED, True), (page.NAMED + 1, False)])
def test_the_columns_of_a_small_matrix_have_names_and_of_a_large_one_numbers(C, named):
    text = page.heat_table(np.eye(C, dtype=int), [f"class {c}" for c in range(C)], "c")
    head = text.split("</thead>")[0]
    assert (f"<bdi>class {C - 1}</bdi>" in head) == named and ("<abbr" in head) == (not named)


def test_the_picture_of_a_large_matrix_has_the_numbers_of_classes_on_both_axes():
    text = page.heat_picture(np.eye(200, dtype=int), "c")
    assert re.findall(r">(\d+)</text>", text) == [str(c) for c in range(0, 200, 20) for _ in range(2)]


def test_an_axis_maps_its_ends_and_a_logarithm_halves():
    axis = page.Axis(np.array([1.0, 100.0]), 0, 200, log=True)
    assert [axis(1), axis(10), axis(100)] == [0, 100, 200] and axis.ticks == [1, 10, 100]
    axis = page.Axis(np.array([1.0, 11.0]), 50, 0, integers=True)
    assert [axis(1), axis(6), axis(11)] == [50, 25, 0]


@pytest.mark.parametrize("y", [[0.5], [0.5, 0.5], [float("nan")] * 2, [float("inf"), 1.0], [], [0.0, 0.0], [1e30, 1.0]])
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_of_odd_numbers_is_still_drawn(y, log):
    text = page.line_chart("x", [Series("a", list(range(1, len(y) + 1)), y)], "epoch", log_x=log, log_y=log)
    assert "nan" not in text and "inf" not in text
    checked(text)


def test_nan_breaks_a_line_and_a_single_line_has_no_legend():
    text = page.line_chart("x", [Series("a", [1, 2, 3, 4], [1, 2, float("nan"), 4])], "epoch")
    line = re.search(r'<path d="(M[^"]*L[^"]*)" class="line', text).group(1)
    assert line.count("M") == 2 and line.count("L") == 1 and "legend" not in text


def test_more_stands_higher_and_later_stands_further_right():
    text = page.line_chart("x", [Series("a", [1, 2], [0.1, 0.9])], "epoch")
    (x1, y1), (x2, y2) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text)
    assert float(x1) < float(x2) and float(y1) > float(y2)


def test_the_heat_of_a_cell_is_its_share_of_the_row():
    text = page.heat_table(np.array([[90, 10], [500, 500]]), ["a", "b"], "c")
    assert re.findall(r'<td class="h(\d)', text) == ["9", "1", "5", "5"]


def test_28_lines_all_look_different():
    assert len({page.line_style(i) for i in range(28)}) == 28


def test_bars_and_numbers_stand_right_and_text_left():
    text = page.table(["a", "b", "c"], [["x", page.Bar("7", 1.7), "no"], ["y", "-3", page.text("2")]], "caption")
    assert 'style="--v:100.0%"' in text and '<td class="n">-3</td>' in text and "<td>2</td>" in text
    assert '<th scope="col">a</th><th scope="col" class="n">b</th><th scope="col">c</th>' in text


def test_the_heat_picture_is_clear_where_nothing_is_and_deeper_where_more_is():
    counts = np.array([[0, 1, 15], [8, 8, 0], [0, 0, 16]])
    data = re.search(r"base64,([^\"]+)", page.heat_picture(counts, "c")).group(1)
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))[..., 3].astype(int)
    assert ((alpha == 0) == (counts == 0)).all()
    assert alpha[0, 2] > alpha[1, 0] == alpha[1, 1] > alpha[0, 1] and alpha[2, 2] == 255


# --- colours ---------------------------------------------------------------------------------------------------------


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    rgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    """WCAG 2.1."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def schemes():
    blocks = re.findall(r":root\{([^}]*)\}", page.STYLE)
    return [dict(re.findall(r"--(\w+):(#\w+)", block)) for block in blocks]


def test_text_and_lines_stand_out_in_the_light_and_in_the_dark():
    assert len(schemes()) == 2
    for scheme in schemes():
        for name in ("fg", "dim", "link"):
            assert contrast(scheme[name], scheme["bg"]) >= 4.5 and contrast(scheme[name], scheme["card"]) >= 4.5
        assert contrast(scheme["fg"], scheme["bar"]) >= 4.5
        assert contrast(scheme["c1"], scheme["card"]) >= 4.5  # the word Warning
        for i in range(page.COLOURS):
            assert contrast(scheme[f"c{i}"], scheme["bg"]) >= 3


def test_the_numbers_on_every_heat_step_can_be_read_and_the_steps_are_in_order():
    rules = re.findall(r"\.h(\d)\{background:(#\w+);color:(#\w+)\}", page.STYLE)
    assert [int(step) for step, _, _ in rules] == 2 * list(range(1, 10))
    assert all(contrast(background, colour) >= 4.5 for _, background, colour in rules)
    light, dark = [[luminance(b) for _, b, _ in part] for part in (rules[:9], rules[9:])]
    assert light == sorted(light, reverse=True) and dark == sorted(dark)

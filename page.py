# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Tables, line charts, heat maps and pictures in one HTML file that needs no other file.

    chart = line_chart("Loss", [Series("training", [1, 2, 3], [0.9, 0.5, 0.4])], "epoch")
    print(document("My run", [("Curves", chart)]))

Charts are inline SVG, pictures are PNG inside the file. There are no scripts, fonts or requests, and the page forbids
them (Content-Security-Policy). The page is light or dark like the reader's system. The page can be read without
colours: lines also differ in dashes, and cells contain their number. Text is escaped unless it is Html.

    python page.py > page.html      # a page that shows every element
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# ---------------------------------------------------------------------------------------------------------------------
# Elements
# ---------------------------------------------------------------------------------------------------------------------


class Html(str):
    """Text that is already HTML: it is not escaped again."""


def escaped(value: Any) -> str:
    """The value as HTML text. Bytes of a file name that are not valid text become visible escapes."""
    if isinstance(value, Html):
        return value
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def text(value: Any) -> Html:
    """The value as HTML text. In a table cell it is left-aligned, even if it looks like a number."""
    return Html(escaped(value))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An HTML element. class_ means class, aria_label means aria-label; an attribute that is None is left out."""
    pairs = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    start = f"<{name}" + "".join(f' {key}="{escaped(value)}"' for key, value in pairs.items()) + ">"
    return Html(start if name in ("img", "meta", "br") else f"{start}{''.join(map(escaped, children))}</{name}>")


def join(parts: Iterable[Any]) -> Html:
    return Html("".join(map(escaped, parts)))


def cards(entries: Iterable[tuple[str, str, str]]) -> Html:
    """Key figures as large numbers: (name, value, remark)."""
    parts = ((tag("dt", name), tag("dd", tag("b", value), " ", tag("small", more))) for name, value, more in entries)
    return tag("dl", *(tag("div", *part) for part in parts), class_="cards")


def warning(texts: Iterable[Any]) -> Html:
    """A box that catches the eye, with one paragraph per text. Without texts, nothing."""
    parts = [tag("p", text) for text in texts]
    return tag("div", tag("b", "Warning"), *parts, class_="warning", role="note") if parts else Html("")


def folded(summary: str, *children: Any) -> Html:
    """Content that is hidden until the reader opens it."""
    return tag("details", tag("summary", summary), *children)


def named(c: int, names: Sequence[str]) -> Html:
    """The number and name of class c. A name that is written from right to left does not reorder the other text."""
    return join([f"{c} ", tag("bdi", names[c])])


@dataclass
class Bar:
    """A table cell with a bar behind its text. The bar fills `share` (0 to 1) of the cell's width."""

    text: str
    share: float


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> Html:
    """The first cell of a row is its heading. Numbers and bars are right-aligned, text is left-aligned."""
    lines, is_right = [], [False] * len(head)
    for first, *rest in rows:
        cells = [tag("th", first, scope="row")]
        for i, cell in enumerate(rest, 1):
            if isinstance(cell, Bar):
                share = 0 if math.isnan(cell.share) else min(max(cell.share, 0), 1)
                cells.append(tag("td", cell.text, class_="n bar", style=f"--v:{100 * share:.1f}%"))
                is_right[i] = True
            elif not isinstance(cell, Html) and str(cell)[:1] in tuple("0123456789+-."):
                cells.append(tag("td", cell, class_="n"))
                is_right[i] = True
            else:
                cells.append(tag("td", cell))
        lines.append(tag("tr", *cells))
    titles = (tag("th", name, scope="col", class_="n" if is_right[i] else None) for i, name in enumerate(head))
    return scrolling_table(titles, lines, caption)


def scrolling_table(titles: Iterable[Html], lines: Iterable[Html], caption: str, class_: str | None = None) -> Html:
    """A table from th and tr elements. If it is wider than the page, it scrolls, also by keyboard, and has a shadow."""
    label, head = caption, tag("thead", tag("tr", *titles))
    caption = tag("caption", tag("span", caption))  # the span stays in view when the table scrolls
    content = tag("table", caption, head, tag("tbody", *lines), class_=class_)
    return tag("div", content, class_="wide", tabindex="0", role="region", aria_label=label)


def picture(image: Image.Image, alt: str, **attributes: Any) -> Html:
    """The image as PNG inside the page."""
    return tag("img", src=source_of(image), alt=alt, width=image.width, height=image.height, **attributes)


def source_of(image: Image.Image, **options: Any) -> str:
    """The image as the source of an element: a PNG in a data URL. `options` are those of Pillow's PNG writer."""
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


# ---------------------------------------------------------------------------------------------------------------------
# Charts
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Series:
    """A line, or only dots. NaN is a gap in the line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    titles: Sequence[str] | None = None  # tooltip of each dot (default: its numbers)


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 250, 48, 12, 20, 38
LETTER = 7.6  # width of a digit in a wide font
COLOURS = 7  # in the style sheet; with 4 kinds of dashes, 28 lines look different


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """About `most` round numbers in [low, high], in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_text(tick: float) -> str:
    """A short text of an axis' number: 0.01, 1000, 9.9e-4, 1e5."""
    if tick == 0 or 1e-3 <= abs(tick) < 1e5:
        return f"{tick:g}"
    exponent = math.floor(math.log10(abs(tick)) + 1e-9)
    return f"{tick / 10.0**exponent:g}e{exponent}"


class Axis:
    """Maps values to positions from `start` to `end` in the drawing, linear or logarithmic.

    `integers`: the axis begins and ends exactly at the values, and has ticks only at integers.
    """

    def __init__(self, values: np.ndarray, start: float, end: float, log: bool = False, integers: bool = False):
        values = values[np.isfinite(values) & ((values > 0) | (not log))]
        low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 2.0)
        self.log, self.start, self.end = log, start, end
        if log:
            self.low = math.floor(math.log10(low))
            self.high = max(math.ceil(math.log10(high)), self.low + 1)
            self.ticks = [10.0**i for i in range(self.low, self.high + 1)]
        else:
            margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
            self.low, self.high = (low, max(high, low + 1)) if integers else (low - margin, high + margin)
            if low >= 0 > self.low:
                self.low = 0.0
            self.ticks = [tick for tick in ticks(self.low, self.high) if not integers or tick == round(tick)]

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def line_chart(
    caption: str,
    series: Sequence[Series],
    x_label: str,
    log_x: bool = False,
    log_y: bool = False,
    mark: tuple[float, str] | None = None,
    about: str = "",
    with_legend: bool = True,
) -> Html:
    """A figure with a legend.

    Args:
        mark: (x, label) of a vertical line.
        about: a description of the chart, shown below it and read by screen readers.
    """
    all_x = np.array([x for one in series for x in one.x], dtype=float)
    all_y = np.array([y for one in series for y in one.y], dtype=float)
    to_y = Axis(all_y, HEIGHT - BOTTOM, TOP, log_y)
    left = max(LEFT, 12 + math.ceil(LETTER * max(len(tick_text(tick)) for tick in to_y.ticks or [0])))
    to_x = Axis(all_x, left, WIDTH - RIGHT, log_x, integers=not log_x and bool((all_x == all_x.round()).all()))
    parts = []
    for tick in to_y.ticks:
        y = to_y(tick)
        parts.append(tag("path", d=f"M{left} {y}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(tag("text", tick_text(tick), x=left - 6, y=y + 4, class_="end"))
    for tick in to_x.ticks:
        x = min(to_x(tick), WIDTH - LETTER * len(tick_text(tick)) / 2)  # the last number stays inside the drawing
        parts.append(tag("text", tick_text(tick), x=x, y=HEIGHT - BOTTOM + 16, class_="mid"))
    parts.append(tag("text", x_label, x=(left + WIDTH - RIGHT) / 2, y=HEIGHT - 4, class_="mid"))
    if mark:
        x = to_x(mark[0])
        parts.append(tag("path", d=f"M{x} {TOP}V{HEIGHT - BOTTOM}", class_="mark"))
        parts.append(tag("text", mark[1], x=beside(x, mark[1]), y=TOP - 6))  # above the curves
    drawn = [_draw(one, line_style(i), to_x, to_y, one.dots or len(all_x) <= 400) for i, one in enumerate(series)]
    parts += [part for k in (0, 1) for lines_and_dots in drawn for part in lines_and_dots[k]]  # dots over all lines
    description = f"{caption}. {about}" if about else caption
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=description)
    names = legend([one.name for one in series]) if with_legend and len(series) > 1 else ""
    return tag("figure", tag("figcaption", caption), names, svg, tag("p", about, class_="about") if about else "")


def beside(x: float, text: str) -> float:
    """Where a text begins whose middle is at x, or as near to it as the drawing allows."""
    length = LETTER * len(text)
    return round(max(min(x - length / 2, WIDTH - length), 0), 1)


def line_style(i: int) -> str:
    """CSS classes of the i-th line: its colour and dashes."""
    return f"s{i % COLOURS} d{i % 4}"


def legend(names: Sequence[str]) -> Html:
    """Names of the lines, for one chart or for several charts with the same lines."""
    samples = (tag("path", d="M0 5H22", class_=f"line {line_style(i)}") for i in range(len(names)))
    keys = (tag("svg", sample, viewBox="0 0 22 10", class_="key", aria_hidden="true") for sample in samples)
    return tag("ul", *(tag("li", key, name) for key, name in zip(keys, names, strict=True)), class_="legend")


def _draw(one: Series, style: str, to_x: Axis, to_y: Axis, with_dots: bool) -> tuple[list[Html], list[Html]]:
    """The line of a series, broken at gaps, and a dot at each point. Pointing at a dot, or a tap, shows its values."""
    path, dots, command = [], [], "M"  # M moves the pen, L draws a line
    for i, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
        if not (math.isfinite(x) and math.isfinite(y)) or (to_x.log and x <= 0) or (to_y.log and y <= 0):
            command = "M"
            continue
        path.append(f"{command}{to_x(x)} {to_y(y)}")
        command = "L"
        if with_dots:
            values, at = one.titles[i] if one.titles else f"{one.name}, {x:g}: {y:.4g}", (to_x(x), to_y(y))
            tip = tag("text", values, x=beside(at[0], values), y=at[1] - 9 if at[1] > TOP + 9 else at[1] + 18)
            circle = tag("circle", cx=at[0], cy=at[1], r=3.5 if one.dots else 2, class_=style)
            dots.append(tag("g", circle, tip, class_="dot", tabindex="-1"))
    return [] if one.dots else [tag("path", d="".join(path), class_=f"line {style}")], dots


def strip(scale: Sequence[float], dots: Sequence[float], alt: str, interval: tuple[float, float] | None = None) -> Html:
    """A small picture for a table cell: dots, and an interval if given, on an axis from min(scale) to max(scale).

    A dotted line marks zero if it is between them. `alt` is the text for screen readers.
    """
    to_x = Axis(np.array(scale), 4, 156)
    parts = [tag("path", d=f"M{to_x(0)} 0V20", class_="mark")] if min(scale) < 0 < max(scale) else []
    if interval:
        parts.append(tag("path", d=f"M{to_x(interval[0])} 10H{to_x(interval[1])}", class_="line s0 thick"))
    parts += [tag("circle", cx=to_x(dot), cy=10, r=4, class_="s1") for dot in dots]
    return tag("svg", *parts, viewBox="0 0 160 20", class_="strip", role="img", aria_label=alt)


# ---------------------------------------------------------------------------------------------------------------------
# Heat maps
# ---------------------------------------------------------------------------------------------------------------------


NAMED = 20  # at most this many columns of a heat map have names


def heat(text: str, share: float, title: str | None = None, diagonal: bool = False) -> Html:
    """A table cell. A larger `share` (0 to 1) gives a stronger colour, in ten steps."""
    step = 0 if share <= 0 else min(1 + int(share * 9), 9)
    return tag("td", text, class_=f"h{step}" + (" on" if diagonal else ""), title=title)


def heat_table(counts: np.ndarray, names: Sequence[str], caption: str, rows: Sequence[int] | None = None) -> Html:
    """A confusion matrix (C, C) with its counts. The colour is the share of the row; `rows` selects classes.

    Up to NAMED classes, the columns have names, which are written upwards; with more classes, only numbers.
    """
    rows = list(range(len(names))) if rows is None else list(rows)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = [tag("th", "true / predicted", scope="col")]
    if len(rows) <= NAMED:
        head += [tag("th", tag("div", named(c, names)), scope="col", class_="up") for c in rows]
    else:
        head += [tag("th", tag("abbr", c, title=names[c]), scope="col") for c in rows]
    lines = []
    for t in rows:
        cells = [tag("th", named(t, names), scope="row")]
        for p in rows:
            title = f"true class {names[t]}, predicted {names[p]}: {counts[t, p]}" if counts[t, p] else None
            cells.append(heat(str(counts[t, p] or "·"), shares[t, p], title, diagonal=t == p))
        lines.append(tag("tr", *cells))
    return scrolling_table(head, lines, caption, "heat")


def heat_picture(counts: np.ndarray, caption: str) -> Html:
    """A confusion matrix of many classes: one pixel per cell, its opacity the fourth root of the share of the row."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = Image.fromarray((255 * shares**0.25).round().astype(np.uint8), "P")
    image.putpalette([0, 103, 165] * 256)  # one blue from transparent to opaque, for a light page and a dark one
    source, C, left, top, side = source_of(image, transparency=bytes(range(256))), len(counts), 40, 24, 600
    parts = [tag("image", href=source, x=left, y=top, width=side, height=side, class_="pixels")]
    parts.append(tag("path", d=f"M{left} {top}h{side}v{side}h-{side}z", class_="frame"))
    for c in (int(tick) for tick in ticks(0, C - 1, 10) if tick == int(tick)):
        middle = round((c + 0.5) * side / C, 1)
        parts.append(tag("text", c, x=left + middle, y=top - 8, class_="mid"))
        parts.append(tag("text", c, x=left - 6, y=top + middle + 4, class_="end"))
    box = f"0 0 {left + side + 16} {top + side + 2}"
    drawn = tag("svg", *parts, viewBox=box, role="img", aria_label=caption, class_="matrix")
    return tag("figure", tag("figcaption", caption), drawn)


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#59636e;--rule:#d5dae0;--card:#f4f6f8;--link:#0058a3;
--shade:#0004;--bar:#cfe3f3;--c0:#0067a5;--c1:#bd4b00;--c2:#007a5a;--c3:#8f4a80;--c4:#946200;--c5:#4d6b00;--c6:#a3263b}
@media screen and (prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e6e9ed;--dim:#a2acb7;--rule:#353c45;
--card:#1e2329;--link:#7cc0ff;--shade:#fff4;--bar:#1f4a6b;--c0:#62b5ee;--c1:#ff9350;--c2:#3fcf9f;--c3:#e09fd0;--c4:#edb93f;--c5:#b5d35c;
--c6:#ff8797}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:84rem;padding:1rem;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0}h2{font-size:1.2rem;margin:2rem 0 .6rem}
h3{font-size:1rem;margin:.6rem 0}a{color:var(--link)}
p{margin:.5rem 0;max-width:46rem}small,.about,.dim{color:var(--dim)}.about{font-size:.85rem;margin:.2rem 0}
nav ul,.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0;margin:.4rem 0}
.skip{position:absolute;left:-99rem}.skip:focus{position:static}
:focus-visible{outline:3px solid var(--c1);outline-offset:2px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.6rem;margin:1rem 0}
.cards div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}dt{color:var(--dim);font-size:.85rem}
dd{margin:0}dd b{font-size:1.4rem;line-height:1.3;display:block}
.warning{border-left:.4rem solid var(--c1);border-radius:.3rem;background:var(--card);padding:.5rem .8rem;margin:1rem 0}
.notes{max-width:60rem;padding-left:1.2rem;font-size:.9rem}.warning b{color:var(--c1)}.warning p{max-width:60rem}
figure svg{max-width:26.25rem}
.grid2{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),1fr));gap:1rem 1.5rem}
figure{margin:0 0 1rem;break-inside:avoid}figcaption{font-weight:600}
svg{width:100%;height:auto;display:block;font-size:12px}svg text{fill:var(--dim);
paint-order:stroke;stroke:var(--bg);stroke-width:3px}
.mid{text-anchor:middle}.end{text-anchor:end}.grid{stroke:var(--rule)}.mark{stroke:var(--dim);stroke-dasharray:2 3}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.thick{stroke-width:3}
.key{width:22px;height:10px;display:inline-block;margin-right:.4rem}.legend{font-size:.85rem}
.dot{outline:none}.dot circle{stroke:transparent;stroke-width:12px;pointer-events:all}
.dot text{display:none;fill:var(--fg)}
.dot:hover text,.dot:focus text{display:block}.dot:hover circle,.dot:focus circle{r:5px}
.strip{width:160px;height:20px}
.wide{overflow-x:auto;margin:.5rem 0;container-type:inline-size;scrollbar-width:thin;
background:linear-gradient(to right,var(--bg) 40%,transparent) 0 0/3rem 100% no-repeat local,
linear-gradient(to left,var(--bg) 40%,transparent) 100% 0/3rem 100% no-repeat local,
linear-gradient(to right,var(--shade),transparent) 0 0/1rem 100% no-repeat,
linear-gradient(to left,var(--shade),transparent) 100% 0/1rem 100% no-repeat}
caption span{position:sticky;left:0;display:inline-block;max-width:100cqw}
table{border-collapse:collapse;font-size:.875rem}
caption{text-align:left;color:var(--dim);padding:.2rem 0}thead th{text-align:left;border-bottom:2px solid var(--rule)}
th,td{padding:.2rem .5rem;border-bottom:1px solid var(--rule);vertical-align:top}
th[scope=row]{text-align:left;font-weight:500;min-width:7rem;max-width:18rem}
th,td{overflow-wrap:break-word}td{max-width:30rem}
thead th{white-space:nowrap}thead .n,.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{min-width:6rem;background:linear-gradient(to right,var(--bar) var(--v),transparent 0)}
.heat td{text-align:center;padding:.2rem .1rem;min-width:2rem;border:1px solid var(--bg);font-size:.8rem;
font-variant-numeric:tabular-nums}
.heat th[scope=row]{position:sticky;left:0;background:var(--bg)}.heat thead th{text-align:center;white-space:normal}
.heat thead th:first-child{text-align:left;font-weight:400;color:var(--dim)}
.heat .up{vertical-align:bottom}.up div{writing-mode:vertical-rl;transform:rotate(180deg);max-height:14rem;
margin:0 auto;text-align:left;font-weight:500;line-height:1.1}
.heat .on{outline:1px solid var(--dim);outline-offset:-2px}abbr{text-decoration:none}
.h0{color:var(--dim)}.h1{background:#e3eef7;color:#1b1f24}.h2{background:#cfe1f0;color:#1b1f24}
.h3{background:#b5d1e8;color:#1b1f24}.h4{background:#97bedd;color:#1b1f24}.h5{background:#77a9d1;color:#1b1f24}
.h6{background:#3a78ab;color:#fff}.h7{background:#2b6ba3;color:#fff}.h8{background:#1c5689;color:#fff}
.h9{background:#0d3f6c;color:#fff}
@media screen and (prefers-color-scheme:dark){
.h1{background:#1a2c3b;color:#e6e9ed}.h2{background:#1c3850;color:#e6e9ed}.h3{background:#1e4666;color:#e6e9ed}
.h4{background:#20547d;color:#fff}.h5{background:#226395;color:#fff}.h6{background:#55a0d6;color:#101418}
.h7{background:#79b7e4;color:#101418}.h8{background:#9dcdf0;color:#101418}.h9{background:#c6e3f9;color:#101418}}
.shots{list-style:none;padding:0;margin:.5rem 0;display:grid;gap:.8rem;
grid-template-columns:repeat(auto-fill,minmax(7.5rem,1fr))}
.shots li{font-size:.78rem;line-height:1.35;break-inside:avoid}
.shots img,.shots .gone{display:block;width:112px;height:112px;object-fit:contain;background:var(--card);
border-radius:.3rem;margin-bottom:.2rem}.small{image-rendering:pixelated}
.pairs{grid-template-columns:repeat(auto-fill,minmax(14.5rem,1fr))}.pair{display:flex;gap:.25rem}
figure .matrix{max-width:41rem}.pixels{image-rendering:pixelated}.frame{fill:none;stroke:var(--rule)}
pre{background:var(--card);padding:.7rem;border-radius:.5rem;white-space:pre-wrap}
summary{cursor:pointer;padding:.3rem 0}
@media screen and (max-width:40rem){th[scope=row]{min-width:5rem;max-width:9rem}}
@media print{body{font-size:10pt;max-width:none;padding:0}.wide{overflow:visible}nav,.skip{display:none}
.grid2{grid-template-columns:1fr 1fr}.grid2>div,tr{break-inside:avoid}h2,h3{break-after:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
.d1{stroke-dasharray:7 3}.d2{stroke-dasharray:2 3}.d3{stroke-dasharray:9 3 2 3}
circle{stroke-dasharray:none;fill-opacity:.8}
"""
STYLE += "".join(f".s{i}.line{{stroke:var(--c{i})}}circle.s{i}{{fill:var(--c{i})}}" for i in range(COLOURS))

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, sections: Sequence[tuple[str, Any]], intro: Any = "") -> str:
    """The whole page: its title, `intro`, links to the sections, and the sections (heading, content)."""
    links = [tag("li", tag("a", name, href=f"#s{i}")) for i, (name, _) in enumerate(sections)]
    parts = [
        tag("section", tag("h2", name, id=f"h{i}"), content, id=f"s{i}", aria_labelledby=f"h{i}")
        for i, (name, content) in enumerate(sections)
    ]
    metas = [{"charset": "utf-8"}, {"name": "viewport", "content": "width=device-width, initial-scale=1"}]
    metas.append({"http_equiv": "Content-Security-Policy", "content": POLICY})
    head = [tag("meta", **meta) for meta in metas] + [tag("title", title), tag("style", Html(STYLE))]
    header = tag("header", tag("h1", title), intro, tag("nav", tag("ul", *links), aria_label="sections"))
    skip = tag("a", "Skip to the content", href="#main", class_="skip")
    body = tag("body", skip, header, tag("main", *parts, id="main"))
    return "<!doctype html>\n" + tag("html", tag("head", *head), body, lang="en") + "\n"


def main() -> None:
    rng, epochs = np.random.default_rng(0), list(range(1, 21))
    curves = [Series(f"run {i}", epochs, rng.random(20) / 20 + 1 / np.arange(1 + i, 21 + i)) for i in range(3)]
    counts = rng.integers(0, 30, (6, 6)) + 50 * np.eye(6, dtype=int)
    rows = [["cat", Bar("120", 1.0), "0.9"], ["<dog>", Bar("12", 0.1), "0.4"]]
    sections = [
        ("Warning", warning(["the names of the files look like groups"])),
        ("Figures", cards([("macro F1", "0.812", "0.79 to 0.83"), ("accuracy", "0.934", "")])),
        ("Chart", tag("div", line_chart("Loss", curves, "epoch", mark=(12, "best")), class_="grid2")),
        ("Table", table(["class", "images", "F1"], rows, "Classes")),
        ("Heat map", heat_table(counts, [f"class {c}" for c in range(6)], "Confusion")),
        ("Picture", heat_picture(rng.integers(0, 9, (200, 200)), "200 classes")),
        ("Fold", folded("more", tag("p", "the folded content"))),
    ]
    print(document("Every element", sections), end="")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Bars of a table as an SVG file, readable in light and dark.

    python3 tests/bench/bars.py TABLE.csv PICTURE.svg

The first line of the table names the unit and the series, each further one a
row and its numbers; an empty one has no bar. "# text" is the title.
"""
import csv
import html
import sys

WIDTH, LABELS, ROOM = 760, 150, 90  # of the picture, of names, of numbers
BAR, GAP, TOP = 20, 14, 84

STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #1f2328 }
    .head { font-weight: 600; font-size: 15px }
    .name { text-anchor: end }
    .note { font-size: 11px; fill: #59636e }
    .page { fill: #ffffff; stroke: #d1d9e0 }
    .s0 { fill: #4a90e2 } .s1 { fill: #e39a2d } .s2 { fill: #58a86b }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc } .note { fill: #9198a1 }
      .page { fill: #0d1117; stroke: #3d444d }
      .s0 { fill: #3b7dd8 } .s1 { fill: #b9791c } .s2 { fill: #3f8f55 }
    }"""


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        lines = file.read().splitlines()
    titles = [line[1:].strip() for line in lines if line.startswith("#")]
    table = list(csv.reader(l for l in lines if not l.startswith("#")))
    unit, *series = table[0]
    rows = [(row[0], [float(v) if v else None for v in row[1:]])
            for row in table[1:]]
    if len(series) > 3 or any(len(v) != len(series) for _, v in rows):
        raise SystemExit(f"{path}: one to three series, a number for each")
    return " ".join(titles), unit, series, rows


def draw(title, unit, series, rows):
    largest = max(v for _, values in rows for v in values if v is not None)
    scale = (WIDTH - LABELS - ROOM) / largest
    body, y = [], TOP
    for name, values in rows:
        height = BAR * sum(v is not None for v in values)
        body.append(f'  <text class="name" x="{LABELS - 12}" '
                    f'y="{y + height / 2 + 4:.0f}">{html.escape(name)}</text>')
        for i, value in enumerate(values):
            if value is None:
                continue
            width = max(value * scale, 1)
            body.append(f'  <rect class="s{i}" x="{LABELS}" y="{y}" '
                        f'width="{width:.1f}" height="{BAR - 3}" rx="2"/>'
                        f'<text x="{LABELS + width + 8:.1f}" y="{y + 13}">'
                        f'{value:,.0f}</text>')
            y += BAR
        y += GAP
    legend, x = [], LABELS
    for i, name in enumerate(series):
        legend.append(f'  <rect class="s{i}" x="{x}" y="52" width="12" '
                      f'height="12" rx="2"/><text x="{x + 18}" y="63">'
                      f'{html.escape(name)}</text>')
        x += 110
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" '
        f'role="img" aria-labelledby="t">',
        f'  <title id="t">{html.escape(title)}</title>',
        f'  <style>{STYLE}\n  </style>',
        f'  <rect class="page" x=".5" y=".5" width="{WIDTH - 1}" '
        f'height="{y - 1}" rx="6"/>',
        f'  <text class="head" x="16" y="30">{html.escape(title)}</text>',
        f'  <text class="note" x="{WIDTH - 16}" y="63" '
        f'style="text-anchor:end">{html.escape(unit)}</text>',
        *legend, *body, "</svg>", ""])


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(draw(*read(sys.argv[1])))


if __name__ == "__main__":
    main()

"""Draws the newest results of each scenario into `docs/images/`, as SVG for light and dark pages."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from benchmarks.rooms.load import FOLDER

IMAGES = FOLDER.parent / "docs" / "images"
WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 760, 240, 80, 18, 8, 58  # px
COLOURS = {"ours": "#2a9d8f", "sync": "#6cc3b5", "handwritten": "#e76f51", "bare": "#8d99ae", "socketio": "#d99a2b"}
LABELS = {"sync": "ours, sync", "handwritten": "hand-written", "socketio": "Socket.IO", "bare": "bare ASGI"}
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-size:15px;font-weight:600}.small{fill:#57606a}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}}"
)


class Picture(NamedTuple):
    scenario: str
    metric: str
    title: str
    scale: float = 1.0
    """What the figure is multiplied by."""
    without: str = ""
    """What stands where a contender ran and has no figure."""


PICTURES = (
    Picture("steady", "updates_per_s", "One writer: changes delivered per second (more is better)"),
    Picture("cursors", "in_time_share", "50 cursors at 20 Hz: % that arrived in time (more is better)", 100),
    Picture(
        "storm", "last_ms", "Owners gone: ms until the last clear (less is better)", 1, "never: clears are missing"
    ),
    Picture("idle", "bytes_per_connection", "Memory of an idle connection, kB (less is better)", 1e-3),
)


def draw(picture: Picture, table: dict[str, Any], date: str) -> str:
    """The bars of everybody who ran, in the order of the table."""
    bars = [
        (name.split(), metrics[picture.metric])
        for name, metrics in table["medians"].items()
        if "blast" not in name and not any("skipped" in run or "failed" in run for run in table["rounds"][name])
    ]
    longest = max((value for _, value in bars if value), default=1)
    height = TOP + len(bars) * (BAR + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f"<title>{escape(picture.title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="8" y="22">{escape(picture.title)}</text>',
        f'<text class="small" x="8" y="42">{escape(table["title"])}, {date}</text>',
    ]
    for number, (name, value) in enumerate(bars):
        top, base = TOP + number * (BAR + GAP), TOP + number * (BAR + GAP) + 14
        lines.append(f'<text x="{LEFT - 10}" y="{base}" text-anchor="end">{_label(*name)}</text>')
        if value is None:
            lines.append(f'<text class="small" x="{LEFT}" y="{base}">{escape(picture.without)}</text>')
            continue
        length = max(1.0, value / longest * (WIDTH - LEFT - RIGHT))
        colour = COLOURS[name[2]]
        lines.append(f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" rx="3" fill="{colour}"/>')
        lines.append(f'<text x="{LEFT + length + 8:.1f}" y="{base}">{_figure(value * picture.scale)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER / "results", metavar="DIR")
    parser.add_argument("--images", type=Path, default=IMAGES, metavar="DIR")
    options = parser.parse_args(arguments)
    drawn = 0
    for picture in PICTURES:
        found = sorted(options.results.glob(f"*-{picture.scenario}.json"))  # by date
        if not found:
            print(f"no results of {picture.scenario} in {options.results}", file=sys.stderr)
            continue
        whole = json.loads(found[-1].read_text())
        path = options.images / f"benchmark-{picture.scenario}.svg"
        path.write_text(draw(picture, whole["tables"][0], whole["date"]))
        print(path)
        drawn += 1
    return 0 if drawn else 1


def _label(server: str, layer: str, app: str, variant: str = "") -> str:
    where = [] if app == "socketio" else [server] if layer == "-" else [server, layer]
    return escape(", ".join([LABELS.get(app, app) + (f" {variant}" if variant else ""), *where]))


def _figure(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"

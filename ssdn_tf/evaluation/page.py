"""A page to look at: one HTML file with a table, pictures to compare by a slider, and curves. It needs no network."""

import base64
import html
import io
import json
import pathlib
import string

import numpy as np
from PIL import Image

from ssdn_tf.data import images

HOW = "Click a row to see its pictures; move the border between them; zoom with the wheel and drag."
SHOWN = 24  # pictures of a page; the others are in the table only
SIDE = 1024  # of a shown picture, in pixels: its middle, so that each pixel stays one
_QUALITY = 92  # of the JPEGs inside
_TEMPLATE = pathlib.Path(__file__).with_name("report.html")


class Page:
    """Collects what a page shows.

    Args:
        title, summary: text.
    """

    def __init__(self, title, summary=""):
        self.title, self.summary = title, summary
        self._rows, self._entries, self._curves = [], [], []

    def add(self, cells, views=None):
        """A row of the table.

        Args:
            cells: {column: text}; the columns of all rows are shown.
            views: {name: picture [H,W,1 or 3], in [0, 1]}, two or more of one size, or None.
        """
        number = ""
        if views and len(self._entries) < SHOWN:
            number = len(self._entries)
            views = {name: _middle(picture) for name, picture in views.items()}
            height, width = next(iter(views.values())).shape[:2]
            views = {name: _data_url(picture) for name, picture in views.items()}
            self._entries.append({"width": width, "height": height, "views": views})
        self._rows.append((number, cells))

    def curve(self, title, points, unit=""):
        """A curve below the table. points: [(x, y)] of finite numbers; nothing is shown of fewer than two."""
        if len(points) > 1:
            self._curves.append(f"<h2>{html.escape(title)}</h2>\n{_svg(points, unit)}")

    def write(self, path):
        """Writes the file, whole or not at all.

        Raises:
            UserError: the file system refuses.
        """
        data = json.dumps(self._entries).replace("<", "\\u003c")
        text = string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
            title=html.escape(self.title),
            summary=html.escape(self.summary),
            table=self._table(),
            curves="\n".join(self._curves),
            data=data,
        )
        images.write_text(path, text)

    def _table(self):
        columns = list(dict.fromkeys(name for _, cells in self._rows for name in cells))
        lines = ["<table>", _row("th", columns)]
        for number, cells in self._rows:
            shown = f' data-shown="{number}"' if number != "" else ""
            lines.append(_row("td", [cells.get(name, "") for name in columns], shown))
        return "\n".join([*lines, "</table>"])


def _row(tag, cells, attributes=""):
    return f"<tr{attributes}>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def _middle(picture):
    return images.to_channels(images.to_uint8(images.middle(picture, SIDE)), 3)


def _data_url(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _svg(points, unit, width=640, height=220, margin=48):
    """A line through the points, with the least and the most of both axes."""
    x, y = np.asarray(points, np.float64).T
    (left, right), (low, high) = ((a.min(), a.max() if a.max() > a.min() else a.min() + 1) for a in (x, y))
    px = margin + (x - left) / (right - left) * (width - margin - 10)
    py = height - 25 - (y - low) / (high - low) * (height - 40)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py))
    labels = [
        (0, 19, f"{high:.4g} {unit}", "start"),
        (0, height - 21, f"{low:.4g}", "start"),
        (margin, height - 6, f"{left:,.0f}", "start"),
        (width - 10, height - 6, f"{right:,.0f}", "end"),
    ]
    texts = "".join(f'<text x="{a}" y="{b}" text-anchor="{c}">{html.escape(t)}</text>' for a, b, t, c in labels)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img">'
        f'<polyline points="{line}" fill="none" stroke="#2457c5" stroke-width="2"/>{texts}</svg>'
    )

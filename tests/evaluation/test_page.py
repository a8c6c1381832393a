"""The page of --report: one file with all that it shows, and a browser that draws it."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ssdn_tf.evaluation.page import SHOWN, SIDE, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def ramp(height, width, channels=3):
    return np.broadcast_to(np.linspace(0, 1, width)[None, :, None], (height, width, channels)).astype(np.float32)


def entries(path):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    return json.loads(found[1])


def decoded(url):
    kind, data = url.split(",", 1)
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


class Outside(HTMLParser):
    """What a page loads from elsewhere, and its cells."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.cells, self._in_cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href")]
        self._in_cell = tag in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.cells.append(data)


def test_a_page_is_one_file_with_its_table_and_pictures(tmp_path):
    page = Page("a < b", "summary & more")
    page.add({"file": "<x>.png", "noise": "sigma 25"}, {"noisy": ramp(20, 30), "</script>": ramp(20, 30, 1)})
    page.add({"file": "y.png", "PSNR": "31.2"})
    page.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    found = Outside(text)
    assert found.loaded == [] and "http" not in text  # nothing from elsewhere
    assert [c for c in found.cells if c.strip()] == ["file", "noise", "PSNR", "<x>.png", "sigma 25", "y.png", "31.2"]
    (entry,) = entries(tmp_path / "report.html")
    assert (entry["width"], entry["height"], list(entry["views"])) == (30, 20, ["noisy", "</script>"])
    assert "a &lt; b" in text and text.count("<tr data-shown") == 1
    for url in entry["views"].values():
        pixels = decoded(url)
        assert pixels.shape == (20, 30, 3) and np.abs(pixels / 255 - ramp(20, 30)).max() < 0.05


def test_of_many_and_large_pictures_some_and_the_middle_are_shown(tmp_path):
    page = Page("many")
    for i in range(SHOWN + 2):
        page.add({"file": i}, {"a": ramp(8, 8), "b": ramp(8, 8)})
    large = Page("large")
    large.add({"file": "large"}, {"a": ramp(4, SIDE + 100), "b": ramp(4, SIDE + 100)})
    for name, made in (("many", page), ("large", large)):
        made.write(tmp_path / f"{name}.html")
    assert len(entries(tmp_path / "many.html")) == SHOWN
    assert (tmp_path / "many.html").read_text().count("<tr") == SHOWN + 3
    (entry,) = entries(tmp_path / "large.html")
    middle = decoded(entry["views"]["a"])
    assert middle.shape[1] == SIDE and abs(middle[0, 0, 0] / 255 - 50 / (SIDE + 100)) < 0.02


def test_a_curve_goes_through_its_points(tmp_path):
    page = Page("curves")
    page.curve("PSNR", [(0, 20.0), (50, 30.0), (100, 25.0)], "dB")
    page.curve("one point is no curve", [(0, 1.0)])
    page.curve("flat", [(0, 1.0), (1, 1.0)])
    page.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    lines = [np.array([p.split(",") for p in points.split()], float) for points in re.findall(r'points="(.*?)"', text)]
    assert len(lines) == 2 and all(np.isfinite(line).all() for line in lines)
    x, y = lines[0].T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and y[2] == pytest.approx((y[0] + y[1]) / 2, abs=0.2)
    assert y[1] < y[2] < y[0]  # up is more
    assert "30 dB" in text and "one point" not in text


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_a_browser_draws_the_chosen_pictures(tmp_path):
    page = Page("browser")
    red, blue = np.zeros((40, 60, 3), np.float32), np.zeros((40, 60, 3), np.float32)
    red[..., 0], blue[..., 2] = 1.0, 1.0
    page.add({"file": "x"}, {"noisy": red, "denoised": blue})
    page.write(tmp_path / "report.html")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}"]
    subprocess.run([*command, f"file://{tmp_path / 'report.html'}"], check=True, capture_output=True, timeout=120)
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    red_at = np.argwhere((shot[..., 0] > 200) & (shot[..., 2] < 60) & (shot[..., 1] < 60))
    blue_at = np.argwhere((shot[..., 2] > 200) & (shot[..., 0] < 60) & (shot[..., 1] < 60))
    # Half of the picture each, the noisy one to the left of the border.
    assert len(red_at) > 10_000 and 0.9 < len(red_at) / len(blue_at) < 1.1
    assert red_at[:, 1].max() <= blue_at[:, 1].min() + 3

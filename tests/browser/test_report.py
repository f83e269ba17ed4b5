"""The report in a real browser: it fits a phone, its style and pictures get past its own policy, and scripts do not."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from curation.report.model import CleanReport
from curation.report.render import render
from tests.curation.report.example import feature_report, image_report, text_report
from tests.curation.report.test_render import hostile_report

pytestmark = pytest.mark.browser

WIDTHS = (360, 768, 1280)
PROBE = """
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const wide = [...page.querySelectorAll("body *")].filter(
      element => !element.closest(".scroll, svg, .unseen") && element.getBoundingClientRect().right > root.clientWidth + 1);
    return {
      viewport: frame.contentWindow.innerWidth,
      document: root.scrollWidth,
      wide: wide.slice(0, 5).map(element => element.outerHTML.slice(0, 80)),
      styled: frame.contentWindow.getComputedStyle(page.querySelector("header a")).textUnderlineOffset != "auto",
      ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
      broken: [...page.images].filter(image => !(image.complete && image.naturalWidth)).length,
      ran: frame.contentWindow.ran === true,
    };
  });
  document.documentElement.dataset.found = JSON.stringify(found);
});
"""


def chromium() -> str:
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("the browser tests need Chromium: 'apt-get install chromium', then run 'pytest -m browser' again")
    return path


def look(page: str, folder: Path, *flags: str) -> list[dict]:
    """What a browser makes of `page` in a frame of each of WIDTHS; a window of its own is never as narrow as a phone."""
    frames = "".join(
        f'<iframe srcdoc="{html.escape(page)}" style="border:0;width:{width}px;height:800px"></iframe>'
        for width in WIDTHS
    )
    host = folder / "host.html"
    host.write_text(
        f'<!DOCTYPE html><html lang="en"><body><script>{PROBE}</script>{frames}</body></html>', encoding="utf-8"
    )
    dumped = subprocess.run(
        [
            chromium(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}",
            *flags,
            "--dump-dom",
            host.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = re.search(r'<html[^>]* data-found="([^"]*)"', dumped)
    assert found, f"the probe did not run: {dumped[:300]}"
    return json.loads(html.unescape(found.group(1)))


REPORTS = {"image": image_report(10), "text": text_report(), "features": feature_report(), "hostile": hostile_report()}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_the_page_is_never_wider_than_the_screen(report: CleanReport, tmp_path: Path) -> None:
    page = render(report).replace("</body>", "<script>window.ran = true</script></body>")  # as if escaping had failed
    frames = look(page, tmp_path)
    assert [frame["viewport"] for frame in frames] == list(WIDTHS)
    for frame in frames:
        assert frame["document"] <= frame["viewport"] and frame["wide"] == [], frame
        assert frame["styled"] and frame["broken"] == 0 and not frame["ran"], frame


def test_the_page_follows_the_systems_dark_mode(tmp_path: Path) -> None:
    page = render(text_report(1))
    light, dark = (
        look(page, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")[0]["ground"] for scheme in (1, 0)
    )
    brightness = [sum(int(part) for part in re.findall(r"\d+", colour)[:3]) for colour in (light, dark)]
    assert brightness[0] > 700 and brightness[1] < 100

"""The page of a selection in a real browser: it fits a phone, and its style gets past its own policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation.data import Payload
from curation.selection_report.page import render
from tests.browser.test_report import WIDTHS, look
from tests.curation.selection_report.test_page import EVIL, report

pytestmark = pytest.mark.browser

PAYLOADS = {
    "text": Payload("text", text="word " * 200 + "x" * 300),
    "features": Payload("features", features={f"{EVIL}{number}": "y" * 90 for number in range(12)}),
    "image": Payload("image", image=np.zeros((8, 8), dtype=np.uint8)),
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_the_page_is_never_wider_than_the_screen(payload: Payload, tmp_path: Path) -> None:
    page = render(report(payload)).replace("</body>", "<script>window.ran = true</script></body>")
    frames = look(page, tmp_path)
    assert [frame["viewport"] for frame in frames] == list(WIDTHS)
    for frame in frames:
        assert frame["document"] <= frame["viewport"] and frame["wide"] == [], frame
        assert frame["styled"] and frame["broken"] == 0 and not frame["ran"], frame

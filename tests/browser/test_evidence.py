"""The page of an evidence file in a real browser: it fits a phone, and its style gets past its own policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.unlearning import evidence, evidence_page
from tests.browser.test_report import WIDTHS, look
from tests.curation.unlearning.evidence_example import HASH, example, verified

pytestmark = pytest.mark.browser
IDS = [f"person-{number}" for number in range(30)]


def test_the_page_is_never_wider_than_the_screen(tmp_path: Path) -> None:
    ledger, batch = verified(tmp_path, IDS)
    long = example(ledger, IDS, title="x" * 300, caveats=(HASH * 4,))
    page = evidence_page.write(evidence.write(tmp_path, long, ledger, batch)).read_text()
    frames = look(page.replace("</body>", "<script>window.ran = true</script></body>"), tmp_path)
    assert [frame["viewport"] for frame in frames] == list(WIDTHS)
    for frame in frames:
        assert frame["document"] <= frame["viewport"] and frame["wide"] == [], frame
        assert frame["styled"] and not frame["ran"], frame

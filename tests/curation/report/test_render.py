"""The page as a whole: escaping, structure, policy, size, and how it is written."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from curation.report.model import (
    CleanReport,
    Confusion,
    Curve,
    Distribution,
    Figure,
    Neighbour,
    ReportRow,
    SignalSummary,
)
from curation.report.render import render, write
from tests.curation.report.example import Shown, feature_report, image_report, text_report

VOID = {"meta", "img", "input", "line", "rect", "circle", "polyline"}
HOSTILE = "</script></style><script>alert(1)</script><img src=x onerror='alert(2)'>\" autofocus onfocus=\"alert(3) &amp; {{ 7*7 }}"


EVERY_KIND = [image_report(10), text_report(3), feature_report(2)]


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is closed in the wrong place."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing; text so far: {self.texts[-3:]}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def hostile_report() -> CleanReport:
    """Every string of the report that comes from outside is hostile."""
    base, h = image_report(1, 2), HOSTILE
    near = [Neighbour(h, h, 0.5, Shown("image", image=np.zeros((8, 8), np.uint8)))]
    near_text = [Neighbour(h, h, 0.5, Shown("text", text=h))]
    near_features = [Neighbour(h, h, -0.5, Shown("features", features={h: h}))]
    rows = [
        ReportRow(h, h, h + "2", 1.0, "drop", h, Shown("image", image=np.zeros((8, 8), np.uint8)), near, near, h),
        ReportRow(h, h, h, 1.0, "review", h, Shown("text", text=h), near_text, near_text, h),
        ReportRow(
            h, h, None, 1.0, "relabel", h, Shown("features", features={h: h, "x": 1.5}), near_features, near_features
        ),
    ]
    return replace(
        base,
        title=h,
        data_name=h,
        data_digest=h,
        model_name=h,
        classes=[h, "b"],
        settings=[h],
        found=[Figure(h, 1, note=h)],
        rows=rows,
        distributions=[replace(base.distributions[0], signal=h)],
        confusion=Confusion([h, "b"], np.array([[0, 2], [1, 0]]), np.array([3, 3])),
        curves=[Curve(h, [replace(base.curves[0].series[0], name=h)], x_label=h)],
        signals=[SignalSummary(h, h, 0.5)],
        limitations=[h],
        neighbour_note=h,
        reproduction=replace(
            base.reproduction,
            command=h,
            config_yaml=h,
            mlflow_run_id=h,
            mlflow_tracking_uri=h,
            **{name: {h: h} for name in ("files", "digests", "versions", "seeds")},
            seconds={h: 1.0},
        ),
    )


def test_hostile_strings_stay_text() -> None:
    html = render(hostile_report())
    page = Page(html)
    assert "<script" not in html
    assert {tag for tag, _ in page.tags} == {tag for report in EVERY_KIND for tag, _ in Page(render(report)).tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in {"style", "autofocus"} for name in attributes), (
            tag,
            attributes,
        )
    assert page.text.count(HOSTILE) > 20
    assert any(HOSTILE in image["alt"] for image in page.named("img"))


def test_characters_that_no_page_may_hold_are_replaced() -> None:
    page = render(replace(image_report(1), title="a\x00b\x1b[31mc\ud800d\u202ee\r\n\tf"))
    page.encode("utf-8")
    assert "a\ufffdb\ufffd[31mc\ufffdd\ufffde\r\n\tf" in page


def test_nothing_is_loaded_from_anywhere() -> None:
    html = render(image_report(5))
    page = Page(html)
    for _, attributes in page.tags:
        assert all(attributes.get(name, "#").startswith("#") for name in ("href", "action", "srcset", "poster"))
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert "url(" not in html and "@import" not in html


def test_the_policy_allows_the_pages_own_style_and_nothing_else() -> None:
    html = render(image_report(1))
    [policy] = [
        tag["content"] for tag in Page(html).named("meta") if tag.get("http-equiv") == "Content-Security-Policy"
    ]
    [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert (
        policy == f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


@pytest.mark.parametrize(
    "report", [image_report(3), text_report(3), feature_report(2)], ids=["image", "text", "features"]
)
def test_structure_is_accessible(report: CleanReport) -> None:
    page = Page(render(report))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(image["alt"] for image in page.named("img"))
    assert all(svg.get("aria-hidden") == "true" or svg["aria-label"] for svg in page.named("svg"))
    assert all(header["scope"] for header in page.named("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "href"):
            if name in attributes:
                assert attributes[name].lstrip("#") in ids
    assert page.named("html") == [{"lang": "en"}]


def test_figures_print_value_interval_and_what_was_not_measured() -> None:
    report = replace(
        image_report(1),
        found=[
            Figure("Flagged", 1234, unit="count"),
            Figure("Unknown", None, 0.1, 0.2, "fraction"),
            Figure("Took", 300, unit="seconds"),
        ],
        truth=[Figure("Precision", 0.9, 0.85, 0.94, "fraction", "9 of 10")],
    )
    text = Page(render(report)).text
    for expected in ("1,234", "Unknown not measured", "90.0% 85.0% to 94.0%", "+3.3 points +1.4 to +5.6", "5 min 0 s"):
        assert expected in text


def test_lead_says_when_the_difference_may_be_chance() -> None:
    report = image_report(1)
    assert "may be chance" not in render(report)
    unsure = replace(report.accuracy, difference=replace(report.accuracy.difference, low=-0.01))
    assert "That interval includes zero, so this difference may be chance." in render(replace(report, accuracy=unsure))


def test_lead_does_not_compare_a_model_with_itself() -> None:
    report = image_report(1)
    waiting = replace(report, decisions={"keep": report.n_examples - 5, "review": 5})
    page = Page(render(waiting)).text
    assert "No row was changed, so the model after is the one before." in page and "goes from" not in page


def test_lead_says_when_cleaning_made_the_model_worse() -> None:
    report = image_report(1)
    assert "look at the flagged rows before you use" not in render(report)
    worse = replace(report.accuracy, difference=replace(report.accuracy.difference, value=-0.1, low=-0.2, high=-0.025))
    assert "lower by more than chance explains: look at the flagged rows before you use" in render(
        replace(report, accuracy=worse)
    )


def test_a_report_with_nothing_optional_and_nothing_flagged() -> None:
    full = image_report(1)
    report = CleanReport(
        title="Empty",
        created_at=full.created_at,
        data_name="d",
        data_digest="0",
        model_name="m",
        n_examples=5,
        classes=[0, 1],
        decisions={"keep": 5},
        settings=[],
        found=[],
        reproduction=replace(full.reproduction, mlflow_run_id=None),
    )
    text = Page(render(report)).text
    assert "0 of 5 training labels look wrong (0.0%). The model was not retrained" in text
    assert "MLflow" not in text and "suspicious" not in text


def test_fifty_rows_with_eleven_noisy_thumbnails_each_stay_under_two_megabytes() -> None:
    rng = np.random.default_rng(0)

    def shown() -> Shown:
        return Shown("image", image=rng.integers(0, 256, (28, 28), dtype=np.uint8))  # noise does not compress

    report = image_report(50)
    rows = [
        replace(
            row,
            payload=shown(),
            supporters=[replace(near, payload=shown()) for near in row.supporters],
            opponents=[replace(near, payload=shown()) for near in row.opponents],
        )
        for row in report.rows
    ]
    assert sum(1 + len(row.supporters) + len(row.opponents) for row in rows) == 550
    assert len(render(replace(report, rows=rows)).encode()) < 2_000_000


def test_only_filters_that_split_the_rows_are_offered() -> None:
    page = Page(render(image_report(10)))
    assert [tag["id"] for tag in page.named("input")][:3] == ["show-all", "show-drop", "show-review"]
    assert Page(render(text_report(3))).named("input") == []
    style = (Path(__file__).parents[3] / "curation/report/page.css").read_text()
    for key in ("drop", "relabel", "review", "keep", "right"):
        assert f"#show-{key}:checked" in style


def test_verdict_on_a_flag_needs_the_true_label() -> None:
    rows = image_report(3).rows
    known = [replace(rows[0], true_label=rows[0].label), rows[1], replace(rows[2], true_label=None)]
    text = Page(render(replace(image_report(3), rows=known))).text
    assert text.count("the label was right") == 1 and text.count("the label was wrong") == 1


def test_write_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    assert write(text_report(1), path) == path
    first = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(image_report(1), path)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_write_into_a_missing_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        write(text_report(1), tmp_path / "missing" / "report.html")


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected flagged of shape \(3,\).*got \(2,\)"):
        Distribution("s", np.zeros(3), np.zeros(2, bool))
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for 2 classes"):
        Confusion(["a", "b"], np.zeros((3, 3), np.int64))

# SPDX-License-Identifier: Apache-2.0
"""Table 1 as a page: well-formed, accessible, with numbers to sort by, and without a network."""

import re
from html.parser import HTMLParser

import pytest

from mambaout_jax.report.page import as_page
from mambaout_jax.report.printed import MIXERS, TABLE_1, Printed
from mambaout_jax.report.rows import Error, Row, table_rows

VOID = {"meta", "input", "br", "link", "img"}
ABSENT = Row(Printed("<b>&", "Pool", "5", "-", "70.0", "no_net"), None, "", None, None, None)


class Page(HTMLParser):
    """Elements as (tag, attributes, text), in order; refuses tags that are not closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2].append(data)

    def of(self, tag, **wanted):
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]


@pytest.fixture(scope="module")
def rows():
    speed = {"median": 12.5, "min": 12.0, "max": 13.0}
    first, *others = table_rows()
    return [first._replace(error=Error(2.5e-6, "float32", 2), speed=speed, memory=2**20), *others]


@pytest.fixture(scope="module")
def text(rows):
    return as_page(rows, ["One <fact>.", "Another."])


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_page_needs_no_network(text, page):
    addresses = set(re.findall(r"\w+://[^\s\"']+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which is not looked up
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    for _, attributes, _ in page.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "action"}
    assert not page.of("link")
    assert len(page.of("script")) == len(page.of("style")) == 1
    assert "<!--" not in text


def test_rows_are_the_papers(page):
    names = [text for attributes, text in page.of("th", scope="row")]
    assert names == [printed.model for printed in TABLE_1]
    mixers = [MIXERS[int(attributes["data-mixer"])] for attributes, _ in page.of("tr")
              if "data-mixer" in attributes]  # fmt: skip
    assert mixers == [printed.token_mixer for printed in TABLE_1]
    emphasised = [text for attributes, text in page.of("tr", **{"class": "emphasised"})]
    assert [re.match(r"\d+(MambaOut-\w+?)Conv", text)[1] for text in emphasised] == [
        "MambaOut-Femto", "MambaOut-Small",
    ]  # fmt: skip


def values(page, key):
    cells = [attributes for attributes, _ in page.of("td", **{"data-key": key})]
    return [float(cell["data-value"]) if "data-value" in cell else None for cell in cells]


def test_columns_sort_by_numbers(page, rows):
    assert values(page, "top1") == [float(printed.top1) for printed in TABLE_1]
    assert values(page, "parameters") == [row.ours.parameters / 1e6 for row in rows]
    assert values(page, "macs") == pytest.approx([row.ours.macs / 1e9 for row in rows], rel=1e-9)
    for key, value in (("error", 2.5e-6), ("speed", 12.5), ("memory", 1)):
        assert values(page, key) == [value, *[None] * 79]
    printed = values(page, "printed_macs")
    unknown = [row.model for row, value in zip(TABLE_1, printed, strict=True) if value is None]
    assert unknown == ["Mamba-2D-S", "Mamba-2D-B"]
    assert [text for _, text in page.of("td", **{"data-key": "speed"})][:2] == [
        "12.5", "not measured",
    ]  # fmt: skip


def test_every_column_says_what_it_is_and_how_it_is_sorted(page):
    heads = page.of("th", scope="col")
    sortable = [attributes for attributes, _ in heads if "data-key" in attributes]
    assert len(sortable) == 12
    assert [head["aria-sort"] for head in sortable] == ["ascending", *["none"] * 11]
    buttons = [text for _, text in page.of("button", type="button")]
    assert buttons[3:6] == ["Top-1%", "ParamsM", "MACsG"]
    groups = [text for _, text in page.of("th", scope="colgroup")]
    assert groups == ["Published", "Counted here", "Measured here"]
    used = {attributes["data-key"] for attributes, _ in page.of("td") if "data-key" in attributes}
    assert used | {"order", "model", "mixer"} == {head["data-key"] for head in sortable}


def test_every_mixer_can_be_left_out(page):
    boxes = page.of("input", type="checkbox", name="mixer")
    assert [attributes["value"] for attributes, _ in boxes] == list(MIXERS)
    assert all("checked" in attributes for attributes, _ in boxes)
    assert {attributes["data-chart"] for attributes, _ in page.of("figure")} == {
        "macs", "parameters", "speed",
    }  # fmt: skip


def test_a_model_that_is_not_here_has_one_cell_that_says_so():
    page = Page(as_page([ABSENT], []))
    assert page.of("td", colspan="6") == [
        ({"class": "missing first", "colspan": "6"}, "not in this library")
    ]
    assert page.of("th", scope="row")[0][1] == "<b>&"
    assert page.of("td", **{"data-key": "printed_macs"})[0][0].keys() == {"class", "data-key"}


def test_facts_are_told_as_they_are(page):
    assert [text for _, text in page.of("li")] == ["One <fact>.", "Another."]

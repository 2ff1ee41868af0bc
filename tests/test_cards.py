"""Cards: what they show, that they need nothing else and trust no text, and how they behave in a real browser."""

import html
import itertools
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nstjax.studies import cards, curves

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = (
    "</p></script><script>window.hacked = true</script><img src=http://x.test/a onerror='window.hacked = 1'>&amp;\"'"
)
LONG = "Donaudampfschifffahrtsgesellschaftskapitänswitwenrentenauszahlungsstellenleiter" * 3
ROWS = [
    {"run": f"run {i}", "loss": loss, "seconds": seconds, "method": method}
    for i, loss, seconds, method in [
        (1, 2e-7, 10.0, "gd"),
        (2, 3e-2, 9.0, "L-BFGS"),
        (10, None, 100.0, "gd"),
        (3, 1.5, -2.0, HOSTILE),
        (4, math.nan, 11.5, LONG),
    ]
]


def image(seed=0, shape=(40, 60)):
    return np.random.default_rng(seed).random((*shape, 3), np.float32)


LAYERS = [f"relu{block}_{i}" for block in range(1, 6) for i in range(1, 5)]
SPREAD = [10.0**e for e in (-7.3, -2, 1.4)]


def drawings():
    """Curves whose labels are long, many, or at the edges."""
    corners = [(a, b) for a in SPREAD for b in SPREAD]
    marks = [(a, b, f"mark {i}") for i, (a, b) in enumerate(corners * 2)]
    line = {"a": [(1e3 * i, 1234567.0 + i / 7) for i in range(1, 12)]}
    few = {"a": [(0, 0.0), (9, 2.5e-5)], LONG: [(3, 1e-5)]}
    layers = {"a": [(i, 1.0 / (1 + i)) for i in range(len(LAYERS))]}
    return [
        cards.curves({"a": corners}, x="x", y="y", log="xy", marks=marks),
        cards.curves(
            line, x="evaluations of a loss with its gradient, " * 3, y=LONG, marks=[(1e3, 1234567.2, "first")]
        ),
        cards.curves(few, x="x", y="y"),
        cards.curves({"a": [(0.21, 0.0013), (2.9, 0.0091)]}, x="x", y="y", log="xy"),
        cards.curves(layers, x="layer", y="left", ticks=dict(enumerate(LAYERS))),
        cards.curves(layers, x="layer", y="left", ticks={0: "a long name of a layer", 19: "the longest name of any"}),
    ]


def example():
    several = [cards.Thumbnail(image(i), f"relu{i}_1", "SSIM 0.50") for i in range(4)]
    line = {"gd": [(i, 10.0**-i) for i in range(1, 9)], HOSTILE: [(i, 1.0 / i) for i in range(1, 50)]}
    labels = {i: f"relu{i}_1" for i in range(1, 9)}
    return cards.page(
        "A study of " + HOSTILE,
        cards.section("What it says", "A paragraph " + HOSTILE, LONG),
        cards.gallery([("L-BFGS", several), (HOSTILE, several[:1])], caption=HOSTILE),
        cards.beside(
            cards.curves(line, x="evaluations", y="loss", log="y", caption="Falls.", marks=[(3, 1e-3, "the knee")]),
            cards.curves({"gd": line["gd"]}, x="layer", y=LONG[:60], ticks=labels, caption="Slanted."),
        ),
        cards.beside(*drawings()),
        cards.section("All", cards.table(ROWS, caption=HOSTILE, best={"loss": min})),
        cards.facts({"Command": "python " + LONG, "Seeds": HOSTILE}),
        lead=HOSTILE,
    )


class Parsed(HTMLParser):
    """Elements [(tag, attributes)] and the text of each tag."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_card_needs_nothing_from_outside():
    page = Parsed(example())
    addresses = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(addresses) == 5 and all(address.startswith("data:image/") for address in addresses)
    assert not page.all("link") and not re.search(r"url\(|@import", page.texts["style"])


def test_hostile_text_stays_text():
    page = Parsed(example())
    assert page.open == []
    assert len(page.all("script")) == 1 and HOSTILE not in page.texts["script"]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.texts["title"] == "A study of " + HOSTILE
    assert page.texts["figcaption"].count(HOSTILE) == 2


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_was(text):
    page = Parsed(cards.page(text, cards.table([{"run": text, "n": 1}], caption=text), cards.facts({text: text})))
    assert page.texts.get("title", "") == text
    assert page.texts.get("dd", "").strip("\n") == text.strip("\n")
    assert len(page.all("script")) == 1


def test_images_tell_what_they_show_and_the_page_its_language():
    page = Parsed(example())
    shown = [attributes for attributes in page.all("img") if "src" in attributes]
    assert shown[0]["alt"] == "L-BFGS · relu0_1 · SSIM 0.50" and all(attributes["alt"] for attributes in shown)
    assert page.all("html") == [{"lang": "en"}]
    assert all(attributes.get("aria-label") for attributes in page.all("svg") if attributes.get("role") == "img")


def test_drawings_are_well_formed_and_leave_out_what_is_not_finite():
    points = [(1, 1.0), (2, math.nan), (3, 0.0), (4, None), (5, 1e-4)]
    block = cards.curves({"a": points}, x="x", y="y", log="y", caption="c")
    drawing = ElementTree.fromstring(re.search(r"<svg.*?</svg>", block, re.S)[0])
    line = next(path.attrib["d"] for path in drawing.iter("path") if path.attrib["class"] == "line")
    places = [tuple(map(float, place.split())) for place in line[1:].split("L")]
    assert places == [(46, 10), (380, 206)]  # from the top left to the bottom right
    labels = [text.text for text in drawing.iter("text")]
    assert labels[:5] == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]
    assert labels[5:] == ["1", "2", "3", "4", "5"]
    assert '<div class="axis">y</div>' in block and '<div class="axis x">x</div>' in block


@pytest.mark.parametrize("points", [[], [(1, math.nan)]])
def test_nothing_to_draw_is_said(points):
    assert "no finite numbers" in cards.curves({"a": points}, x="x", y="y", caption="c")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9)), min_size=1, max_size=20),
    st.sampled_from(["", "x", "y", "xy"]),
)
def test_lines_stay_inside_the_drawing(points, log):
    block = cards.curves({"a": points}, x="x", y="y", log=log, caption="c")
    line = re.search(r'class="line"[^>]* d="M([^"]*)"|d="M([^"]*)" class="line"', block)
    path = line[1] or line[2] if line else re.search(r'd="M([^"]*)h0"', block)[1]  # a single point is a dot
    places = [tuple(map(float, place.split())) for place in path.split("L")]
    assert len(places) == len(points)
    assert all(46 <= x <= 380 and 10 <= y <= 206 for x, y in places)


@given(st.floats(1e-8, 1e8), st.floats(1.01, 1e12))
def test_an_axis_has_some_numbers_to_read_and_not_too_many(low, ratio):
    """Also over less than two decades, where the powers of ten may be one."""
    for log in (False, True):
        labels = curves.axis([low, low * ratio], (0, 100), log=log, gap=lambda label: 1).labels
        assert 2 <= len(labels) <= 7 and list(labels) == sorted(labels) and len(set(labels.values())) == len(labels)
        assert all(-1e-6 <= at <= 100 + 1e-6 for at in labels)


FORMS = (r"−?[\d,]+(\.\d+)?", r"10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", r"0|−?[\d.]+×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")


@given(st.floats(1e-8, 1e8), st.floats(1.01, 1e12), st.booleans(), st.booleans())
def test_labels_of_an_axis_have_one_form_and_tell_its_values(low, ratio, log, whole):
    found = curves.axis([low, low * ratio], (0, 334), log=log, gap=lambda label: 8.3 * len(label) + 8, whole=whole)
    texts = list(found.labels.values())
    assert any(all(re.fullmatch(form, text) for text in texts) for form in FORMS), texts
    digits = [len(text.partition(".")[2].partition("×")[0]) for text in texts if text != "0"]
    assert log or "×" in texts[-1] or len(set(digits)) == 1, texts  # 0.0, 0.5, 1.0
    to_plain = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    for at, text in found.labels.items():
        mantissa, _, exponent = re.sub(r"^10(?=[⁻⁰¹²³⁴⁵⁶⁷⁸⁹])", "1×10", text).replace(",", "").partition("×10")
        value = float(mantissa) * 10.0 ** int(exponent.translate(to_plain) or 0)
        assert found.to(value) == pytest.approx(at, abs=0.5), texts


@pytest.mark.parametrize(
    ("values", "log", "texts"),
    [
        ([0, 0.5, 1, 1.5], False, ["0.0", "0.5", "1.0", "1.5"]),
        ([-1000, 0, 1000], False, ["−1,000", "0", "1,000"]),
        ([0, 2e-5, 4e-5, 1e-4], False, ["0", "0.2×10⁻⁴", "0.4×10⁻⁴", "1×10⁻⁴"]),
        ([0.001, 0.1, 20], True, ["0.001", "0.1", "20"]),
        ([0.04, 0.045, 0.05], True, ["0.040", "0.045", "0.050"]),
        ([1e-4, 1e-2, 1], True, ["10⁻⁴", "10⁻²", "10⁰"]),
        ([1e-4, 2e-4, 5e-4], True, ["1×10⁻⁴", "2×10⁻⁴", "5×10⁻⁴"]),
    ],
)
def test_forms_of_labels(values, log, texts):
    assert curves.numbers(values, log=log) == texts


def test_a_run_s_name_is_set_apart_in_a_sentence_and_stays_text():
    told = cards.sentence("Of ", cards.name(HOSTILE), ".")
    page = Parsed(cards.page("t", told, cards.table([{"run": "a"}], caption=told)))
    assert page.texts["b"] == HOSTILE * 2 and page.texts["p"].count("Of .") == 1 and page.texts["figcaption"] == "Of ."
    (region,) = (attributes for attributes in page.all("div") if attributes.get("role") == "region")
    assert region["aria-label"] == f"Of {HOSTILE}." and len(page.all("script")) == 1


def test_alternatives_of_drawings_keep_names_with_commas_apart():
    block = cards.curves({"MSE, power 1": [(1, 1.0)], "MSE": [(2, 2.0)]}, x="x", y="y")
    assert 'aria-label="y against x: MSE, power 1; MSE"' in block


def test_tables_show_what_is_missing_and_what_is_best():
    block = cards.table(ROWS, caption="c", best={"loss": min}, columns={"run": "Run", "loss": "Loss"})
    cells = re.findall(r"<td[^>]*>[^<]*</td>", block)
    assert cells[0] == '<td class="number best" data-value="2e-07">2×10⁻⁷</td>'
    assert cells[2] == cells[4] == '<td class="number" data-value="">–</td>'
    assert block.count("best") == 1 and "Seconds" not in block


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12345, "12,345"), (-0.5, "−0.5"), (0.123456, "0.1235"), (1234.5, "1,234"), (1e-7, "10⁻⁷")]
    + [
        (1234567.8, "1,234,568"),
        (1.2346e-5, "1.235×10⁻⁵"),
        (2.5e9, "2.5×10⁹"),
        (math.inf, "–"),
        (np.float32(0.25), "0.25"),
    ],
)
def test_numbers_are_written_to_be_read(value, text):
    assert cards.number(value) == text


def test_colors_can_be_read_in_light_and_in_dark():
    style = (Path(cards.__file__).parent / "card.css").read_text()
    light = dict(re.findall(r"--(\w+): (#\w{6})", style[: style.index("@media")]))
    dark = light | dict(re.findall(r"--(\w+): (#\w{6})", style[style.index("@media") : style.index("*, ::before")]))
    assert light["paper"] != dark["paper"]

    def luminance(color):
        r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    least_of = {"ink": 10, "soft": 4.5, "accent": 4.5} | {f"s{i}": 3 for i in range(curves.COLORS)}
    for colors in (light, dark):
        for name, least in least_of.items():
            a, b = sorted((luminance(colors["paper"]), luminance(colors[name])))
            assert (b + 0.05) / (a + 0.05) >= least, (name, colors[name])


PROBE = """
const violations = [];
addEventListener("securitypolicyviolation", event => violations.push(event.blockedURI));
addEventListener("load", () => {
  const seen = {
    width: innerWidth,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    images: [...document.querySelectorAll("img[src]")].map(i => [i.naturalWidth, i.naturalHeight, i.width]),
    hacked: typeof window.hacked, resources: performance.getEntriesByType("resource").map(entry => entry.name),
    texts: [...document.querySelectorAll("svg[role=img]")].map(drawing => [drawing.getBoundingClientRect(),
      ...[...drawing.querySelectorAll("text")].map(text => {
        const box = text.getBBox(), m = text.getCTM(), size = {size: parseFloat(getComputedStyle(text).fontSize)};
        return {text: text.textContent, turned: text.hasAttribute("transform"), ...size,
                ...JSON.parse(JSON.stringify(text.getBoundingClientRect()))};
      })]),
    columns: getComputedStyle(document.querySelector(".gallery ul")).gridTemplateColumns.split(" ").length,
    orders: [], edges: [],
  };
  const table = document.querySelector("table"), headings = [...table.tHead.rows[0].cells];
  const order = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
  for (const column of [1, 1, 2, 2, 0]) {
    const button = headings[column].querySelector("button");
    button.focus();
    button.click();
    seen.orders.push([order(), headings.map(h => h.getAttribute("aria-sort")), document.activeElement === button]);
  }
  const box = document.querySelector(".scroll"), first = table.tBodies[0].rows[0].cells[0];
  const shaded = element => getComputedStyle(element, "::after").content !== "none";
  const edge = () => [box.parentElement.className, shaded(box.parentElement), shaded(first),
                      first.getBoundingClientRect().left - box.getBoundingClientRect().left, box.tabIndex];
  const ends = [0, 40, 1e6];
  for (const left of ends) {
    box.scrollLeft = left;
    box.dispatchEvent(new Event("scroll"));
    seen.edges.push(edge());
  }
  const dialog = document.querySelector("dialog");
  document.querySelectorAll(".zoom")[2].click();
  seen.dialog = [dialog.open, dialog.querySelector("p").textContent, dialog.querySelector("img").src.slice(0, 11)];
  dialog.querySelector("button").click();
  seen.closed = !dialog.open;
  setTimeout(() => parent.postMessage(JSON.stringify({...seen, violations}), "*"), 100);
});
"""


def browse(folder, page, widths):
    """What the probe sees in a real browser at each width, all in one start of it."""
    (folder / "card.html").write_text(page.replace("</head>", f"<script>{PROBE}</script></head>"))
    frames = "".join(f'<iframe src="card.html" style="border:0;width:{w}px;height:900px"></iframe>' for w in widths)
    listen = 'addEventListener("message", e => document.body.append(`\\n@${e.data}`))'
    (folder / "all.html").write_text(f"<!doctype html><meta charset=utf-8><script>{listen}</script><body>{frames}")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    dom = subprocess.run([*command, (folder / "all.html").as_uri()], capture_output=True, text=True, timeout=120)
    seen = [json.loads(html.unescape(line)) for line in re.findall(r"^@(\{.*\})", dom.stdout, re.M)]
    assert len(seen) == len(widths), dom.stderr[-2000:]
    return {each["width"]: each for each in seen}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    return browse(tmp_path_factory.mktemp("browser"), example(), (360, 1280))


@pytest.mark.parametrize("width", [360, 1280])
class TestInABrowser:
    def test_images_load(self, seen, width):
        shown_images = seen[width]["images"]
        assert len(shown_images) == 5
        assert all((w, h) == (60, 40) and shown >= 60 for w, h, shown in shown_images)

    def test_nothing_overflows(self, seen, width):
        assert seen[width]["overflow"] <= 0
        assert seen[width]["columns"] == {360: 2, 1280: 4}[width]  # narrower labels would break in words

    def test_the_table_sorts_by_numbers_both_ways(self, seen, width):
        orders = seen[width]["orders"]
        rising, falling, seconds, back, runs = (order for order, _, _ in orders)
        assert rising == ["run 1", "run 2", "run 3", "run 10", "run 4"]  # what is missing comes last
        assert falling == ["run 3", "run 2", "run 1", "run 10", "run 4"]
        assert seconds == ["run 3", "run 2", "run 1", "run 4", "run 10"] and back == seconds[::-1]
        assert runs == ["run 1", "run 2", "run 3", "run 4", "run 10"]
        assert [state[:3] for _, state, _ in orders] == [
            [None, "ascending", None],
            [None, "descending", None],
            [None, None, "ascending"],
            [None, None, "descending"],
            ["ascending", None, None],
        ]

    def test_headings_and_wide_tables_take_the_keyboard(self, seen, width):
        assert all(focused for _, _, focused in seen[width]["orders"])
        assert [tab for *_, tab in seen[width]["edges"]] == [0] * 3

    def test_a_table_shows_where_there_is_more_of_it(self, seen, width):
        """Its shades tell the sides, and its first column stays."""
        assert [edge[:3] for edge in seen[width]["edges"]] == [
            ["wide after", True, False],
            ["wide after before", True, True],
            ["wide before", False, True],
        ]
        assert all(abs(offset) < 1 for *_, offset, _ in seen[width]["edges"])

    def test_labels_are_whole_and_do_not_meet(self, seen, width):
        assert len(seen[width]["texts"]) == 8
        for drawing, *texts in seen[width]["texts"]:
            for text in texts:
                assert drawing["left"] <= text["left"] and text["right"] <= drawing["right"], text
                assert drawing["top"] <= text["top"] and text["bottom"] <= drawing["bottom"], text
            upright = [text for text in texts if not text["turned"]]
            for one, other in itertools.combinations(upright, 2):
                beside = one["right"] <= other["left"] or other["right"] <= one["left"]
                assert beside or one["bottom"] <= other["top"] or other["bottom"] <= one["top"], (one, other)
            slanted = [text["right"] for text in texts if text["turned"]]
            for one, other in itertools.pairwise(slanted):
                assert other - one >= texts[0]["size"] * drawing["width"] / 400, (one, other)

    def test_a_click_shows_an_image_large(self, seen, width):
        assert seen[width]["dialog"] == [True, "L-BFGS · relu2_1 · SSIM 0.50", "data:image/"]
        assert seen[width]["closed"]

    def test_no_text_runs_and_nothing_is_fetched(self, seen, width):
        assert seen[width]["hacked"] == "undefined"
        assert seen[width]["violations"] == []
        assert not [name for name in seen[width]["resources"] if not name.startswith("data:")]


def test_lines_can_be_told_apart():
    """By their colors, and where these come again, by their dashes."""
    strokes = [curves.stroke(i) for i in range(4 * curves.COLORS)]
    assert len({(stroke["stroke"], stroke["stroke_dasharray"]) for stroke in strokes}) == len(strokes)


def test_noise_is_shown_too():
    noise = np.random.default_rng(0).integers(0, 2, (256, 256, 3)).astype(np.float32)
    assert "data:image/jpeg" in cards.gallery([("", [cards.Thumbnail(noise, "noise")])], caption="c")

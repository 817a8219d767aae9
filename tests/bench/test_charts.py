"""Pictures for the page: the same each time, in the page's colours and font, with whatever text a report holds."""

import re

from mega_deploy.bench.report.charts import Bar, Point, bars, lines, shares

ROWS = [Bar("mega-deploy <b>$x$</b>", 1.2, 1.1, 1.35, "$1.2$ ms", 0, 1.3), Bar("torch", 0.6, 0.6, 0.6, "0.6 ms", 11)]
SERIES = {"ours": [Point(8, 3, 2.9, 3.2), Point(1, 0.5, 0.45, 0.6)], "once": [Point(1, 0.7, 0.65, 0.8)]}


def pictures():
    return [
        bars(ROWS),
        lines(SERIES, "windows in a batch", {"ours": 0, "once": 3}),
        lines({"ours": [Point(60, 0.0123, 0.0123, 0.0123)]}, "frames", {"ours": 0}),
        shares([("MatMul", 3.0, 0), ("Gemm", 1.0, 1), ("rest", 0.1, 2)], 4.1),
    ]


def test_a_picture_is_the_same_each_time():
    assert pictures() == pictures()


def test_colours_and_font_are_the_pages_own():
    for picture in pictures():
        assert "var(--" in picture
        for foreign in ("font-family", "<style", "clip-path", "url(", "http", "metadata"):
            assert foreign not in picture, foreign
        targets = set(re.findall(r'href="#(\w+)"', picture))
        assert set(re.findall(r"#[0-9A-Za-z]+", picture)) == {f"#{target}" for target in targets}  # no colour is left
        assert targets <= set(re.findall(r'id="(\w+)"', picture))


def test_what_a_label_holds_stays_text():
    picture = bars(ROWS)
    assert ">mega-deploy &lt;b&gt;$x$&lt;/b&gt;</text>" in picture and ">$1.2$ ms</text>" in picture
    assert 'aria-label="mega-deploy &lt;b&gt;$x$&lt;/b&gt;: $1.2$ ms; torch: 0.6 ms"' in picture


def test_bars_have_whiskers_where_there_is_an_interval_and_series_their_colours():
    with_interval, without = (bars([row]) for row in ROWS)
    assert "var(--s0)" in with_interval and "var(--ink); stroke-width: 1.2" in with_interval
    assert "var(--s1)" in without and "stroke-width: 1.2" not in without  # ten colours, over again


def test_lines_have_a_tick_at_every_value_and_a_text_for_the_mouse():
    picture = lines(SERIES, "windows in a batch", {"ours": 0, "once": 3})
    ticks = re.findall(r">([^<]+)</text>", picture)
    assert {"1", "8", "0.5", "2", "windows in a batch"} <= set(ticks)
    assert sorted(re.findall(r"<title>([^<]+)</title>", picture)) == ["once: 0.7 ms", "ours: 0.5 ms", "ours: 3 ms"]


def test_a_share_that_is_too_narrow_has_no_number_but_a_text_for_the_mouse():
    picture = shares([("MatMul", 3.0, 0), ("Gemm", 1.0, 1), ("rest", 0.1, 2)], 4.1)
    assert re.findall(r">(\d+%)</text>", picture) == ["73%", "24%"] and "<title>rest: 0.1 ms</title>" in picture

import xml.etree.ElementTree as ElementTree

import pytest

from clip_eval.report.svg import Line, heat_map, histogram, interval, lines, number, ticks


def numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(element.attrib[name]) for name in names]


def test_every_chart_is_well_formed_and_names_itself():
    charts = [
        histogram("a < b", [0, 1, 2], [3, 4]),
        lines("a < b", [Line(name="<x>", x=[1, 2], y=[3, 1]), Line(name="y", x=[1], y=[2], dots=True)]),
        interval(0.5, 0.4, 0.6, 0.1),
        heat_map("a < b", ["<r>"], ["c"], [(0, 0, 0.5, "<hover>")], text=True),
    ]
    for chart in charts:
        assert ElementTree.fromstring(chart).attrib["aria-label"]
    assert ElementTree.fromstring(charts[0]).attrib["aria-label"] == "a < b"


def test_histogram_boxes_stand_on_the_axis_and_scale_with_their_counts():
    chart = ElementTree.fromstring(histogram("h", [0, 1, 2, 4], [10, 0, 5]))
    first, last = (numbers(box, "x", "y", "width", "height") for box in chart.iter("rect"))
    assert first[3] == pytest.approx(2 * last[3], abs=0.2)
    assert first[1] + first[3] == pytest.approx(last[1] + last[3], abs=0.2)
    assert last[2] == pytest.approx(2 * first[2], abs=2)


def test_the_last_box_may_hold_all_above():
    for open_end, last in ((False, "1 – 2: 5"), (True, "1 and more: 5")):
        chart = ElementTree.fromstring(histogram("h", [0, 1, 2], [1, 5], open_end=open_end))
        assert [title.text for title in chart.iter("title")] == ["0 – 1: 1", last]


def test_a_share_that_is_not_whole_is_not_written_as_whole():
    chart = ElementTree.fromstring(
        heat_map("h", ["a"], ["b", "c"], [(0, 0, 0.999, "x"), (0, 1, 0.001, "y")], text=True)
    )
    assert [text.text for text in chart.iter("text") if "mid" in text.attrib.get("class", "")] == [">99", "<1"]


def test_a_long_curve_is_thinned_and_keeps_its_mean():
    chart = ElementTree.fromstring(lines("l", [Line(name="x", x=range(10_000), y=[i % 2 for i in range(10_000)])]))
    (curve,) = chart.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
    assert len(points) == 240
    assert max(y for _, y in points) - min(y for _, y in points) < 5


def test_a_flat_curve_and_a_single_point_have_a_place():
    for curve in (Line(name="x", x=[1, 2], y=[0, 0]), Line(name="x", x=[5], y=[-3])):
        for point in ElementTree.fromstring(lines("l", [curve])).find("polyline").attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 330
            assert 0 <= y <= 170


def test_heat_map_puts_rows_down_and_columns_across():
    chart = ElementTree.fromstring(heat_map("h", ["a", "b"], ["c", "d", "e"], [(1, 2, 1.0, "x")], cell=10, margin=50))
    _, box = chart.iter("rect")
    assert numbers(box, "x", "y", "fill-opacity") == [70, 60, 1]
    assert box.find("title").text == "x"


def test_ticks_are_round_and_inside():
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3, 47, 5) == [10, 20, 30, 40]
    assert ticks(5, 5, 5) == [5]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1e-5, "1e-05"), (9999, "9999"), (34_000, "34k"), (2.5e6, "2.5M"), (-12_000, "-12k")],
)
def test_number(value, text):
    assert number(value) == text

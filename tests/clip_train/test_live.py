import re
from html.parser import HTMLParser

from clip_train.monitor.live import POINTS, LivePage


class Seen(HTMLParser):
    """The text of a page, and what it loads from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.loaded, self.curves = "", [], []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag, attrs) -> None:
        given = dict(attrs)
        self.loaded += [given[name] for name in ("src", "href") if name in given]
        if tag == "polyline":
            self.curves.append([tuple(map(float, point.split(","))) for point in given["points"].split()])


def row(step, **values):
    return {"step": step, "samples": 10 * step, "loss": 10.0 / step, "lr": 0.1, "samples_per_s": 5.0, **values}


def test_the_page_shows_the_run_and_loads_nothing(tmp_path):
    page = LivePage(tmp_path / "run" / "live.html", [row(step) for step in range(1, 50)])
    page.add({"step": 50, "event": "validation", "val_loss": 1.5, "note": "<b>&"})
    seen = Seen(page.page(100, over=False))
    assert "step 49 of 100, about 2 min left; running" in seen.text
    assert "validation val_loss 1.5, note <b>&" in seen.text
    assert seen.loaded == []
    loss = seen.curves[0]
    assert len(loss) == 49
    assert loss[0][1] < loss[-1][1]  # the loss falls: on the page, down is larger
    assert [x for x, _ in loss] == sorted(x for x, _ in loss)


def test_a_long_curve_keeps_its_ends_and_its_size(tmp_path):
    page = LivePage(tmp_path / "live.html", [row(step) for step in range(1, 5001)])
    curve = page._curves["loss"]
    assert POINTS / 2 <= len(curve) <= POINTS
    assert curve[-1] == (5000, 10.0 / 5000)
    assert curve[0][0] < 50
    assert len(page.page(5000, over=True)) < 200_000


def test_values_that_are_not_finite_leave_the_page_whole(tmp_path):
    page = LivePage(tmp_path / "live.html", [row(1), row(2, loss=float("nan"), grad_norm=float("inf"))])
    assert "nan" not in re.sub(r"<td>.*?</td>", "", page.page(3, over=True))


def test_the_file_is_replaced_at_most_every_few_seconds_and_at_the_end(tmp_path):
    page = LivePage(tmp_path / "live.html")
    for step in (1, 2):
        page.add(row(step))
        page.write(9)
    assert "step 1 of 9" in (tmp_path / "live.html").read_text()
    page.write(9, over=True)
    assert "step 2 of 9; ended" in (tmp_path / "live.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["live.html"]

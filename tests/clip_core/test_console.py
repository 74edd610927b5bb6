"""Progress bars on a terminal and in a log file, and the line of a warning."""

import io
import sys

import pytest

from clip_core.console import progress_bar, warn


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "show", "shown", "seconds"),
    [
        (Terminal, None, True, 0.2),
        (Terminal, False, False, None),
        (io.StringIO, None, False, None),
        (io.StringIO, True, True, 30),
    ],
)
def test_a_bar_is_for_terminals_unless_a_log_file_is_asked_for(monkeypatch, stream, show, shown, seconds):
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bar(range(3), show=show, desc="work", unit=" units") as bar:
        assert list(bar) == [0, 1, 2]
    assert ("work" in sys.stderr.getvalue()) == shown
    if shown:
        assert bar.mininterval == seconds


def test_a_warning_is_one_line_on_stderr(capsys):
    warn("the disk is nearly full")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: the disk is nearly full\n")

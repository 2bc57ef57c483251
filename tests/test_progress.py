"""What a log file shows of long work: lines that come by themselves, with a rate that an earlier run does not enter."""

import re
import time

import pytest

from mlem_jax import _progress
from mlem_jax._progress import show_progress


@pytest.fixture
def moments(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def lines(text):
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]


def test_a_log_shows_step_text_rate_and_time_left(capfd, moments):
    with show_progress("training", total=5000, done=1000, unit="steps") as progress:
        moments[0] += 30  # compilation, in the first step
        progress.update(1001)
        moments[0] += 50
        progress.update(1101, "loss 0.25")
    first, last = lines(capfd.readouterr().err)
    assert first == "training: 1,000 of 5,000 steps"
    # 100 steps in 50 seconds, so that 3,899 take 1,949.5.
    assert last == "training: 1,101 of 5,000 steps, loss 0.25, 2 steps/s, 32:30 left"


def test_lines_come_while_a_step_is_long(capfd, monkeypatch):
    monkeypatch.setattr(_progress, "_SECONDS_BETWEEN_LINES", 0.02)
    with show_progress("sampling", total=2):
        deadline = time.monotonic() + 30
        shown = ""
        while shown.count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
            shown += capfd.readouterr().err
    assert shown.count("sampling: 0 of 2\n") >= 3


def test_the_interval_is_at_most_half_a_minute_and_nothing_is_shown_where_it_is_switched_off(capfd):
    assert _progress._SECONDS_BETWEEN_LINES <= 30
    with show_progress("sampling", total=2, shown=False) as progress:
        progress.advance(1)
        progress.advance(1)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_a_bar(capfd, monkeypatch, moments):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with show_progress("sampling", total=40, unit="images") as progress:
        progress.advance(8)
        moments[0] += 2
        progress.advance(8)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err)
    assert re.search(r"sampling ━.* 16/40 .* 4 images/s, 0:06 left", shown)

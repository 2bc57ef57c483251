"""The function that `sample` calls after each step."""

import numpy as np
import pytest
from problems import as_user
from sampling_problems import draw, made_plan

PLAN = made_plan()
STEPS = len(PLAN.ts) - 1


class Recorder:
    """Keeps what it is called with; raises in a step, if told so."""

    def __init__(self):
        self.calls, self.fails_in = [], None

    def __call__(self, step, s, states, indices):
        if step == self.fails_in:
            raise RuntimeError("enough")
        self.calls.append((step, s, states, indices))


RECORDER = Recorder()


def test_every_sample_is_reported_after_every_step(tmp_path):
    """20 samples in batches of 8, of which the last is short: each once per step, with its state on the trajectory."""
    RECORDER.calls, RECORDER.fails_in = [], None
    settings = {"batch_size": 8, "save_at": PLAN.grid}
    found = draw(20, callback=RECORDER, **settings)
    np.testing.assert_array_equal(found.images, draw(20, **settings).images)
    pairs = [(step, index) for step, _, _, indices in RECORDER.calls for index in indices]
    assert sorted(pairs) == [(step, index) for step in range(1, STEPS + 1) for index in range(20)]
    for step, s, states, indices in RECORDER.calls:
        assert s == pytest.approx(PLAN.ts[step], rel=1e-6)
        np.testing.assert_allclose(states, found.trajectories[indices, step], atol=1e-6)


def test_what_a_callback_raises_leaves_sample(tmp_path):
    """After the batch: nothing of it is kept, and the same call without the error continues."""
    RECORDER.fails_in = 3
    settings = {"batch_size": 8, "save_at": PLAN.grid, "out": tmp_path / "run"}
    with pytest.raises(RuntimeError, match="enough"):
        draw(20, callback=RECORDER, **settings)
    assert not list((tmp_path / "run" / "batches").glob("*.npz"))
    RECORDER.fails_in = None
    assert draw(20, callback=RECORDER, **settings).images.shape == (20, 3)


def test_a_callback_is_a_function():
    with (
        as_user(),
        pytest.raises(ValueError, match=r"callback=3; a function of \(step, s, states, indices\)"),
    ):
        draw(20, callback=3)

"""Ladders on disk, training that starts from an earlier one, the noise levels of matching, and the ladder that
is shipped."""

import dataclasses
import errno
import os

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import arrays, calibrated_ladder, TINY
from problems import remeasured

from mlem_jax._calibration import UnreachableError
from mlem_jax.diffusion import (
    Ladder,
    load_ladder,
    save_ladder,
)
from mlem_jax.diffusion._ladder import METHODS


@pytest.fixture(scope="module")
def ladder():
    return calibrated_ladder()


def test_round_trip_to_half_precision(ladder, tmp_path):
    save_ladder(tmp_path / "l", ladder)
    again = load_ladder(tmp_path / "l")
    assert again.config == TINY and again.card == ladder.card
    for a, b in zip(ladder.networks, again.networks, strict=True):
        assert arrays(b).dtype == np.float32
        np.testing.assert_array_equal(arrays(b), arrays(a).astype(np.float16).astype(np.float32))
        # Each parameter is off by at most 2**-11 of itself, and the outputs by little more.
        x, level = jr.normal(jr.key(0), (6, 4, 4, 1)), jnp.linspace(-3.0, 3.0, 6)
        out = a(x, level)
        assert jnp.std(out) > 0.1
        np.testing.assert_allclose(b(x, level), out, atol=2**-8 * float(jnp.max(jnp.abs(out))))
    for kind in ("ode", "sde"):
        measured, read = ladder.calibrations[kind], again.calibrations[kind]
        assert read.remarks == measured.remarks
        for mine, other in ((measured.measurements, read.measurements), (measured.trials, read.trials)):
            for field in dataclasses.fields(mine):
                np.testing.assert_array_equal(getattr(other, field.name), getattr(mine, field.name))
    assert [p.name for p in tmp_path.iterdir()] == ["l"]
    # From then on nothing is rounded any more.
    save_ladder(tmp_path / "m", again)
    np.testing.assert_array_equal(arrays(load_ladder(tmp_path / "m").networks), arrays(again.networks))


def test_a_ladder_prints_in_a_few_lines(ladder):
    assert repr(ladder).splitlines() == [
        "Ladder 'tiny' for images of 4 x 4 x 1, v-prediction",
        f"  level 1: UNet, {len(arrays(ladder.networks[0])):,} parameters",
        f"  level 2: UNet, {len(arrays(ladder.networks[1])):,} parameters",
        "  calibrations: ode, sde",
    ]


def test_nothing_is_overwritten_and_an_interrupted_save_leaves_nothing(ladder, tmp_path, monkeypatch):
    save_ladder(tmp_path / "l", ladder)
    before = {p.name: p.read_bytes() for p in (tmp_path / "l").iterdir()}
    with pytest.raises(FileExistsError, match="choose another place"):
        save_ladder(tmp_path / "l", ladder)
    assert {p.name: p.read_bytes() for p in (tmp_path / "l").iterdir()} == before

    write, written = eqx.tree_serialise_leaves, []

    def stop(path, tree):
        if written:
            raise KeyboardInterrupt
        write(path, tree)
        written.append(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(eqx, "tree_serialise_leaves", stop)
        save_ladder(tmp_path / "m", ladder)
    assert len(written) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["l"]
    # And nothing stands in the way of the next try.
    save_ladder(tmp_path / "m", ladder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l", "m"]


def test_a_description_of_a_later_version_is_read_with_a_warning(ladder, tmp_path):
    save_ladder(tmp_path / "l", ladder)
    path = tmp_path / "l" / "ladder.toml"
    text = path.read_text()
    assert text.startswith("version = 2\n")
    path.write_text(
        text.replace("version = 2", "version = 3\nmood = 'good'").replace("width", "hue = 1\nwidth")
    )
    with pytest.warns(
        UserWarning, match=r"later version of mlem_jax and has \['(mood|hue)'\], which this version"
    ):
        again = load_ladder(tmp_path / "l")
    assert again.config == TINY
    path.write_text(text.replace("version = 2", "version = 2\nmood = 'good'"))
    with pytest.raises(ValueError, match=r"has \['mood'\], which is not known"):
        load_ladder(tmp_path / "l")


def test_networks_saved_without_an_input_skip_are_loaded_without(tmp_path):
    """A description without a version is from before there was one: these levels would have one today."""
    levels = tuple(dataclasses.replace(level, input_skip=False) for level in TINY.levels)
    config = dataclasses.replace(TINY, levels=levels)
    save_ladder(tmp_path / "l", Ladder(config.networks(), config, {}, {}))
    path = tmp_path / "l" / "ladder.toml"
    path.write_text(path.read_text().replace("version = 2\n", "").replace("input_skip = false\n", ""))
    assert load_ladder(tmp_path / "l").config == config


def test_a_folder_that_is_no_ladder_says_how_to_make_one(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="is not a ladder: it has no ladder.toml.*train_ladder"):
            load_ladder(folder)


def test_damaged_and_foreign_levels(ladder, tmp_path):
    save_ladder(tmp_path / "l", ladder)
    wide = dataclasses.replace(TINY, levels=(TINY.levels[0], dataclasses.replace(TINY.levels[1], width=9)))
    other = Ladder(wide.networks(), wide, {}, {})
    save_ladder(tmp_path / "other", other)
    path = tmp_path / "l" / "level_2.eqx"
    whole = path.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        b"",
        b"<html>not found</html>",
        (tmp_path / "l" / "level_1.eqx").read_bytes(),
        (tmp_path / "other" / "level_2.eqx").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(
            ValueError,
            match=r"level_2\.eqx does not hold level 2 of .*ladder\.toml: it is damaged or belongs",
        ):
            load_ladder(tmp_path / "l")


@pytest.mark.parametrize("name", ["card.json", "ladder.toml", "calibration_ode.npz"])
def test_every_file_of_a_ladder_that_is_cut_short_is_named(ladder, tmp_path, name):
    save_ladder(tmp_path / "l", ladder)
    path = tmp_path / "l" / name
    whole = path.read_bytes()
    for part in (0.0, 0.5, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(ValueError, match=name):
            load_ladder(tmp_path / "l")


@pytest.mark.parametrize("name", ["level_2.eqx", "card.json"])
def test_a_ladder_without_one_of_its_files_says_which(ladder, tmp_path, name):
    save_ladder(tmp_path / "l", ladder)
    (tmp_path / "l" / name).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{name} is .*missing.*Copy the ladder again"):
        load_ladder(tmp_path / "l")


def test_a_full_disk_leaves_no_half_a_ladder(ladder, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="No space is left to write .*l. Nothing"),
    ):
        patch.setattr(os, "fsync", full)
        save_ladder(tmp_path / "l", ladder)
    assert not list(tmp_path.iterdir())
    save_ladder(tmp_path / "l", ladder)


# Training that starts from an earlier ladder.


# The noise levels of matching.


# The shipped ladder.


@pytest.fixture(scope="module")
def shipped():
    return load_ladder()


def test_the_shipped_ladder_has_four_levels_of_growing_cost(shipped):
    flops = np.array(shipped.flops())
    assert len(flops) == 4 and np.all((flops[1:] / flops[:-1] > 4) & (flops[1:] / flops[:-1] < 8))
    card = shipped.card
    assert card["name"] == shipped.config.name
    assert card["parameters"] == [len(arrays(network)) for network in shipped.networks]
    # XLA may count a little differently in another version.
    np.testing.assert_allclose(card["flops_per_image"], flops, rtol=0.05)
    # A level that is no nearer to the finest than the one below is not worth its cost.
    distances = card["held_out_loss"]["to_finest"]
    assert distances == sorted(distances, reverse=True) and distances[-1] == 0
    for kind, calibration in shipped.calibrations.items():
        sde, steps = kind.startswith("sde"), 256 if kind.startswith("sde") else 128
        measured = calibration.measurements
        assert measured.increment_rms.shape == (steps, 4) and measured.effects.shape[:2] == (steps, 4)
        assert np.all(np.isfinite(measured.effects))
        np.testing.assert_allclose(calibration.ts, shipped.config.process.grid(steps), rtol=1e-5)
        calibration.require(shipped.term(sde=sde).levels, jnp.zeros(shipped.config.shape))


def test_the_shipped_ladder_has_fitted_steps_of_all_costs(shipped):
    steps = shipped.calibration(method=METHODS[1]).fitted
    steps.require(shipped.term().levels, jnp.zeros(shipped.config.shape))
    found = [steps.plan(budget=budget) for budget in (2.5, 3.5, 4.5, 5.5)]
    for plan in found:
        assert (
            len(plan.levels) > 1 and plan.levels[-1] == 3 and plan.speedup_over_single > 1.2 and plan.fitted
        )
        assert f"{plan.speedup_over_single:.2f} over level 4 alone with fitted steps" in str(plan)
    # One evaluation of the finest level more each time, and errors that fall.
    assert [plan.expected_firings[-1] for plan in found] == [2, 3, 4, 5]
    # Below one evaluation of the finest level only smaller ones are evaluated.
    assert steps.plan(budget=0.95).levels == (0, 2)
    errors = [plan.typical_error for plan in found]
    assert errors == sorted(errors, reverse=True)
    # With so many evaluations several levels bring nothing, and the plan says so by being the single network.
    assert steps.plan(budget=12).levels == (3,)


def test_a_ladder_plans_with_the_better_order(ladder):
    first = ladder.calibrations["ode"]
    # Each is better than the other at some step counts.
    first = remeasured(first, single_error=np.tile([0.5, 0.2], (2, 1)))
    second = remeasured(first, method=METHODS[1], single_error=np.tile([0.4, 0.3], (2, 1)))
    both = dataclasses.replace(ladder, calibrations={"ode": first, "ode_2": second})
    for choice in (dict(budget=4, steps=4), dict(budget=9, steps=8)):
        alone = [c.plan(**choice) for c in (first, second)]
        best = both.plan(**choice)
        assert best.error == min(plan.error for plan in alone) < max(plan.error for plan in alone)
        assert best.method == METHODS[int(alone[1].error < alone[0].error)]
    alone = [c.plan(error=0.45) for c in (first, second)]
    assert both.plan(error=0.45).cost == min(plan.cost for plan in alone) < max(plan.cost for plan in alone)
    # What cannot be reached is told by the better of both, whichever that is: each alone errs 0.2 or 0.3 at least.
    for errors in ((0.2, 0.3), (0.3, 0.2)):
        pair = {
            kind: remeasured(first, method=method, single_error=np.tile([0.5, error], (2, 1)))
            for kind, method, error in zip(("ode", "ode_2"), METHODS, errors, strict=True)
        }
        with pytest.raises(UnreachableError) as caught:
            dataclasses.replace(ladder, calibrations=pair).plan(error=1e-9)
        assert caught.value.least == pytest.approx(0.2)


def test_a_ladder_without_the_calibration_says_how_to_measure_it(ladder):
    bare = dataclasses.replace(ladder, calibrations={"ode": ladder.calibrations["ode"]})
    with pytest.raises(ValueError, match=r"no calibration 'sde', only \['ode'\].*method=mlem_jax.EulerM"):
        bare.plan(budget=4, sde=True)
    with pytest.raises(ValueError, match="AdamsBashforth"):
        bare.calibration(method=METHODS[1])
    with pytest.raises(ValueError, match="positive"):
        bare.plan(budget=-1)
    wrong = dataclasses.replace(bare, networks=bare.networks[::-1])
    with pytest.raises(ValueError, match="number 1, 2 differ"):
        wrong.plan(budget=4)


@pytest.mark.slow
def test_the_finest_shipped_level_draws_clothes_on_black(shipped):
    process = shipped.config.process
    ts = process.grid(8)
    y0 = process.s_max * jr.normal(jr.key(0), (2, *shipped.config.shape))
    sol = diffrax.diffeqsolve(
        shipped.term(), diffrax.Euler(), ts[0], ts[-1], None, y0, stepsize_controller=diffrax.StepTo(ts)
    )
    images = np.asarray(sol.ys[0])
    assert np.all(np.isfinite(images)) and np.abs(images).max() < 1.5
    assert np.all(images.std(axis=(1, 2, 3)) > 0.2)
    assert np.all(images[:, :2, :2] < -0.8)

"""LinearMultistep: classical coefficients, any coefficients against a plain loop, laziness, transforms, errors."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from multistep_problems import (
    by_hand,
    cheap,
    fine,
    GRADED,
    middle,
    on_grid,
    random_coefficients,
    TERM,
    Y0,
)
from problems import as_user, CountedLevels, slope, solve, WITH_STATE

import mlem_jax as ml

# All in double precision; test_fit.py has the solver in single.
pytestmark = pytest.mark.usefixtures("x64")


def test_one_drift_is_euler():
    coefficients = ml.MultistepCoefficients.adams_bashforth(GRADED, drifts=1)
    found = on_grid(ml.MultilevelTerm(fine), coefficients, jnp.asarray(Y0)).ys
    expected = diffrax.diffeqsolve(
        diffrax.ODETerm(fine),
        diffrax.Euler(),
        GRADED[0],
        GRADED[-1],
        None,
        jnp.asarray(Y0),
        stepsize_controller=diffrax.StepTo(jnp.asarray(GRADED)),
    ).ys
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variable", ["time", "log"])
def test_two_drifts_are_mlab2_on_one_level(variable):
    coefficients = ml.MultistepCoefficients.adams_bashforth(GRADED, drifts=2, time_variable=variable)
    found = on_grid(ml.MultilevelTerm(fine), coefficients, jnp.asarray(Y0)).ys
    solver = ml.MLAB2([1.0], time_variable=variable, key=jr.key(0))
    steps = diffrax.StepTo(jnp.asarray(GRADED))
    expected = diffrax.diffeqsolve(
        ml.MultilevelTerm(fine),
        solver,
        GRADED[0],
        GRADED[-1],
        None,
        jnp.asarray(Y0),
        stepsize_controller=steps,
    ).ys
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_coefficients_of_equal_steps_are_the_textbook_ones():
    weights = ml.MultistepCoefficients.adams_bashforth(np.linspace(0, 1, 6), drifts=3).drifts * 5
    np.testing.assert_allclose(weights[0], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(weights[1], [3 / 2, -1 / 2, 0], atol=1e-12)
    np.testing.assert_allclose(weights[4], [23 / 12, -16 / 12, 5 / 12], atol=1e-12)


@pytest.mark.parametrize("drifts", [1, 2, 3])
def test_order_is_the_number_of_drifts(drifts):
    errors, counts = [], np.array([40, 80, 160])
    exact = solve(ml.MultilevelTerm(fine), diffrax.Dopri8(), jnp.asarray(Y0), steps=200).ys[-1]
    for count in counts:
        # Graded, and after a few steps so short that the first ones, of lower order, do not count.
        ts = np.linspace(0, 1, count + 1) ** 2
        coefficients = ml.MultistepCoefficients.adams_bashforth(ts, drifts=drifts)
        errors.append(
            np.linalg.norm(on_grid(ml.MultilevelTerm(fine), coefficients, jnp.asarray(Y0)).ys[-1] - exact)
        )
    assert abs(slope(1 / counts, errors) - drifts) < 0.15


def test_any_coefficients_against_a_plain_loop():
    for seed in range(3):
        coefficients = random_coefficients(seed)
        found = on_grid(TERM, coefficients, jnp.asarray(Y0)).ys[-1]
        expected = by_hand((cheap, middle, fine), coefficients, Y0)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_backward_in_time_is_the_loop_backward():
    coefficients = random_coefficients(ts=GRADED[::-1])
    found = on_grid(TERM, coefficients, jnp.asarray(Y0)).ys[-1]
    np.testing.assert_allclose(found, by_hand((cheap, middle, fine), coefficients, Y0), rtol=1e-10)


@pytest.mark.parametrize("how", ["plain", "vmap"])
def test_levels_run_as_often_as_the_coefficients_say(how):
    levels = CountedLevels(3, costs=(0.01, 0.1, 1.0))
    coefficients = random_coefficients()
    y0 = jnp.ones((4, 2)) if how == "vmap" else jnp.ones(2)

    def run(y0):
        sol = on_grid(levels.term, coefficients, y0)
        return sol.ys, sol.solver_state

    call = eqx.filter_jit(jax.vmap(run) if how == "vmap" else run)
    _, state = call(y0)
    repeats = int(np.sum(coefficients.repeats))
    assert 0 < repeats < 6
    assert levels.take() == [12 + repeats, 4, 3]
    report = ml.evaluation_report(state)
    assert report.evaluations.tolist() == [12 + repeats, 4, 3] == coefficients.evaluations.tolist()
    assert report.finest_evaluations == pytest.approx(0.01 * (12 + repeats) + 0.4 + 3)


def test_vmap_is_the_loop():
    coefficients = random_coefficients()
    y0s = jnp.asarray(np.stack([Y0, Y0 + 0.3, Y0 - 0.2]))
    together = jax.vmap(lambda y: on_grid(TERM, coefficients, y).ys[-1])(y0s)
    apart = jnp.stack([on_grid(TERM, coefficients, y).ys[-1] for y in y0s])
    np.testing.assert_allclose(together, apart, rtol=1e-5)


def test_events_under_vmap_leave_the_others_going():
    coefficients = random_coefficients()
    y0s = jnp.asarray(np.stack([Y0, Y0 + 0.3, Y0 - 0.2]))

    def run(y, limit):
        event = diffrax.Event(lambda t, y, args, **kwargs: t > limit)
        return on_grid(TERM, coefficients, y, event=event).ys[-1]

    together = jax.vmap(run)(y0s, jnp.array([0.9, 5.0, 1.4]))
    np.testing.assert_allclose(together[1], on_grid(TERM, coefficients, y0s[1]).ys[-1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint",
    [diffrax.RecursiveCheckpointAdjoint(), diffrax.DirectAdjoint(), diffrax.ForwardMode()],
    ids=lambda a: type(a).__name__,
)
def test_gradients_are_finite_differences(adjoint):
    coefficients = random_coefficients()

    def end(scale):
        levels = [
            lambda t, y, args, f=f, k=k: scale[k] * f(t, y, args) for k, f in enumerate((cheap, middle, fine))
        ]
        return jnp.sum(
            on_grid(ml.MultilevelTerm(*levels), coefficients, jnp.asarray(Y0), adjoint=adjoint).ys ** 2
        )

    at = jnp.array([1.0, 1.1, 0.9])
    derivative = jax.jacfwd(end) if isinstance(adjoint, diffrax.ForwardMode) else jax.grad(end)
    step = 1e-5
    differences = [(end(at.at[k].add(step)) - end(at.at[k].add(-step))) / (2 * step) for k in range(3)]
    np.testing.assert_allclose(derivative(at), differences, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_with_respect_to_the_coefficients():
    coefficients = random_coefficients()

    def end(drifts):
        table = eqx.tree_at(lambda c: c.drifts, coefficients, drifts)
        return on_grid(TERM, table, jnp.asarray(Y0)).ys[-1, 0]

    at, step = jnp.asarray(coefficients.drifts), 1e-6
    difference = (end(at.at[5, 1].add(step)) - end(at.at[5, 1].add(-step))) / (2 * step)
    np.testing.assert_allclose(jax.grad(end)(at)[5, 1], difference, rtol=1e-5)


def test_pytrees_are_their_leaves_side_by_side():
    def split(level):
        def drift(t, y, args):
            f = level(t, jnp.stack([y["a"], y["b"][0]]), args)
            return {"a": f[0], "b": f[1:]}

        return drift

    term = ml.MultilevelTerm(*[split(level) for level in (cheap, middle, fine)])
    coefficients = random_coefficients()
    ys = on_grid(term, coefficients, {"a": jnp.asarray(Y0)[0], "b": jnp.asarray(Y0)[1:]}).ys
    expected = on_grid(TERM, coefficients, jnp.asarray(Y0)).ys[-1]
    np.testing.assert_allclose([ys["a"][-1], ys["b"][-1, 0]], expected, rtol=1e-5, atol=1e-6)


def test_continued_solve_is_one_solve():
    coefficients = random_coefficients()
    solver, ts = ml.LinearMultistep(coefficients), jnp.asarray(GRADED)

    def part(ts, y, state):
        return diffrax.diffeqsolve(
            TERM, solver, ts[0], ts[-1], None, y, solver_state=state, stepsize_controller=diffrax.StepTo(ts),
            saveat=WITH_STATE,
        )  # fmt: skip

    first = part(ts[:6], jnp.asarray(Y0), None)
    second = part(ts[5:], first.ys[-1], first.solver_state)
    np.testing.assert_allclose(
        second.ys[-1], on_grid(TERM, coefficients, jnp.asarray(Y0)).ys[-1], rtol=1e-5, atol=1e-6
    )


def test_additive_noise_as_it_comes():
    ts = jnp.asarray(GRADED)
    path = ml.GridBrownianPath(ts, (2,), key=jr.key(3))
    noise = diffrax.ControlTerm(lambda t, y, args: 0.5 * jnp.eye(2), path)
    coefficients = ml.MultistepCoefficients.adams_bashforth(GRADED, drifts=1)
    found = on_grid(diffrax.MultiTerm(ml.MultilevelTerm(fine), noise), coefficients, jnp.asarray(Y0)).ys
    expected = diffrax.diffeqsolve(
        diffrax.MultiTerm(diffrax.ODETerm(fine), noise),
        diffrax.Euler(),
        ts[0],
        ts[-1],
        None,
        jnp.asarray(Y0),
        stepsize_controller=diffrax.StepTo(ts),
    ).ys
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_another_grid_is_refused():
    solver = ml.LinearMultistep(random_coefficients())
    with pytest.raises(Exception, match="next one of its grid"):
        diffrax.diffeqsolve(TERM, solver, GRADED[0], GRADED[-1], 0.1, jnp.asarray(Y0))
    shifted = jnp.asarray(GRADED) + 0.05
    with pytest.raises(Exception, match="next one of its grid"):
        diffrax.diffeqsolve(
            TERM,
            solver,
            shifted[0],
            shifted[-1],
            None,
            jnp.asarray(Y0),
            stepsize_controller=diffrax.StepTo(shifted),
        )


def test_errors_say_what_to_write():
    with as_user():
        with pytest.raises(ValueError, match="coefficients for 3 levels and a MultilevelTerm of 1"):
            on_grid(ml.MultilevelTerm(fine), random_coefficients(), jnp.asarray(Y0))
        with pytest.raises(ValueError, match="exactly one MultilevelTerm"):
            on_grid(diffrax.ODETerm(fine), random_coefficients(), jnp.asarray(Y0))
        with pytest.raises(ValueError, match="one side of 0"):
            ml.MultistepCoefficients.adams_bashforth(np.linspace(-1, 1, 4), time_variable="log")
        with pytest.raises(ValueError, match="strictly increasing or strictly decreasing"):
            ml.MultistepCoefficients.adams_bashforth(np.array([0.0, 1.0, 1.0]))
        with pytest.raises(ValueError, match=r"evaluated of shape \(11, 2\)"):
            eqx.tree_at(
                lambda c: c.evaluated, random_coefficients(), np.zeros((11, 2), bool)
            ).__check_init__()
    tables = jax.tree.map(lambda *x: jnp.stack(x), random_coefficients(0), random_coefficients(1))
    with pytest.raises(ValueError, match="Keep the solver out of the vmap"):
        jax.vmap(lambda c: on_grid(TERM, eqx.tree_at(lambda c: c.ts, c, GRADED), jnp.asarray(Y0)).ys)(tables)

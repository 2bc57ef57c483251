"""Mistakes that users make, and whether the error says what was passed, what is expected, and what to write
instead. Probabilities' values are in test_probabilities.py, grids' in test_brownian.py, batches' in
test_evaluations.py, derivatives' in test_gradients.py."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import as_user, solve

import mlem_jax as ml

KEY = jr.key(0)
Y0 = jnp.array([1.0, 2.0])
P = [1.0, 0.5]


def drift(t, y, args):
    return -y


def term(*levels, **settings):
    return ml.MultilevelTerm(*(levels or (drift, drift)), **settings)


def run(terms=None, p=P, y0=Y0, **settings):
    solver = ml.MLEM(p, key=KEY, **settings.pop("solver", {}))
    return solve(term() if terms is None else terms, solver, y0, **settings)


BROWNIAN = ml.GridBrownianPath(jnp.linspace(0, 1, 21), (), key=KEY)
DIFFUSION = diffrax.ControlTerm(lambda t, y, args: y, BROWNIAN)

LEVELS = {
    "none": (ml.MultilevelTerm, r"no levels. Write MultilevelTerm\(cheap, ..., finest\)"),
    "a number": (lambda: term(drift, 3.0), r"Level 2 .* is a float; a callable \(t, y, args\)"),
    "an array": (lambda: term(Y0, drift), "Level 1 .* a callable"),
    "a list": (
        lambda: ml.MultilevelTerm([drift, drift]),
        r"a list.*Unpack the list: MultilevelTerm\(\*levels\)",
    ),
    "a term": (
        lambda: term(drift, diffrax.ODETerm(drift)),
        "Level 2 .* ODETerm.*vector field itself, not a term",
    ),
    "too few costs": (lambda: term(costs=[1.0]), r"2 levels .*costs=\[1.0\]. One positive number per level"),
    "one cost": (lambda: term(costs=1.0), "2 levels .*costs=1.0. One positive number per level"),
    "unordered costs": (lambda: term(costs=[2.0, 1.0]), r"costs=\[2.0, 1.0\].*cheapest level first"),
    "a cost of zero": (lambda: term(costs=[0.0, 1.0]), "One positive number per level"),
    "an infinite cost": (lambda: term(costs=[1.0, np.inf]), "One positive number per level"),
}

# diffrax promotes the state to the dtype of the times.
SINGLE_PRECISION = dict(zip(["t0", "t1", "dt0"], np.array([0, 1, 0.1], np.float32), strict=True))

STATES = {
    "another structure": (
        lambda: run(term(lambda t, y, args: (y, y), drift)),
        r"Level 1 .*returned \(f32\[2\], f32\[2\]\), but the state is f32\[2\].*structure and shapes",
    ),
    "another shape": (
        lambda: run(term(drift, lambda t, y, args: y[:1])),
        r"Level 2 .*returned f32\[1\], but the state is f32\[2\]",
    ),
    "nothing": (
        lambda: run(term(drift, lambda t, y, args: None)),
        "Level 2 .*returned None, but the state is",
    ),
    "a number": (
        lambda: run(term(lambda t, y, args: 1.0, drift)),
        r"returned 1.0, but the state is f32\[2\]",
    ),
    "two dtypes": (
        lambda: run(term(lambda t, y, args: -y.astype(jnp.bfloat16), drift)),
        r"Level 1 .*bfloat16 and the finest level float32.*Levels must agree.*\.astype\(float32\)",
    ),
    "integers": (
        lambda: run(term(drift, lambda t, y, args: jnp.zeros(2, jnp.int32))),
        r"Level 2 .*dtype int32 for a state of dtype float32.*\.astype\(float32\)",
    ),
    "a wider dtype": (
        lambda: run(term(*[lambda t, y, args: np.ones(2)] * 2), **SINGLE_PRECISION),
        r"Level 2 .*dtype float64 for a state of dtype float32.*or a narrower floating one",
    ),
    "complex for real": (
        lambda: run(term(*[lambda t, y, args: 1j * y] * 2)),
        "dtype complex64 for a state of dtype float32",
    ),
}

SOLVERS = {
    "wrong number": (
        lambda: run(p=[1.0, 0.5, 0.1]),
        r"shape \(3,\) for 2 levels; one probability per level is expected, shape \(2,\), cheapest",
    ),
    "wrong number from a callable": (lambda: run(p=lambda t: jnp.ones(1)), r"shape \(1,\) for 2 levels"),
    "wrong number of rates": (lambda: run(p=ml.Rates([9.0, 5.0, 1.0])), r"shape \(3,\) for 2 levels"),
    "wrong number of costs": (lambda: run(p=ml.PowerLaw([1, 5, 25])), r"shape \(3,\) for 2 levels"),
    "above one": (lambda: run(p=[1.0, 1.5]), r"must be in \(0, 1\] and was given .*1.5.*Rates"),
    "zero": (lambda: run(p=[1.0, 0.0]), "has a zero: .*Leave the level out of MultilevelTerm"),
    "a class of coins": (
        lambda: run(solver=dict(coins=ml.IndependentCoins)),
        "given <class 'mlem_jax._coins.independent.IndependentCoins'>. Write the parentheses",
    ),
    "coins by name": (
        lambda: run(solver=dict(coins="independent")),
        r"such as mlem_jax.IndependentCoins\(\) and was given 'independent'",
    ),
    "an offset of one": (lambda: ml.SystematicCoins(1.0), r"offset in \[0, 1\).*given 1.0. Write 0.5"),
    "too many offsets": (
        lambda: run(solver=dict(coins=ml.SystematicCoins([0.1, 0.2, 0.3]))),
        r"offsets of shape \(3,\) for 2 levels. Give a number, or one per level",
    ),
    "a seed for a key": (lambda: ml.MLEM(P, key=7), r"given key=7; write key=jax.random.key\(7\)"),
    "a switch for a record": (lambda: ml.MLEM(P, key=KEY, record=True), "record=True; the number of steps"),
    "a negative record": (lambda: ml.MLEM(P, key=KEY, record=-1), "record=-1; the number of steps to keep"),
}

TERMS = {
    "an ODETerm": (
        diffrax.ODETerm(drift),
        r"given ODETerm; it needs exactly one MultilevelTerm.*in place of ODETerm\(finest\)",
    ),
    "an SDE of an ODETerm": (
        diffrax.MultiTerm(diffrax.ODETerm(drift), DIFFUSION),
        r"given MultiTerm\(ODETerm, ControlTerm\).*for an SDE write MultiTerm\(MultilevelTerm\(cheap",
    ),
    "noise alone": (DIFFUSION, r"given ControlTerm; .*MultiTerm\(MultilevelTerm"),
    "two drifts": (
        diffrax.MultiTerm(term(), term()),
        r"MultiTerm\(MultilevelTerm, MultilevelTerm\).*Add the drifts inside the levels",
    ),
}
TERMS = {name: (lambda terms=terms: run(terms), message) for name, (terms, message) in TERMS.items()}

MISTAKES = {"level": LEVELS, "drift": STATES, "solver": SOLVERS, "terms": TERMS}
CASES = [
    pytest.param(*case, id=f"{kind}: {name}")
    for kind, cases in MISTAKES.items()
    for name, case in cases.items()
]


@pytest.mark.parametrize("mistake, message", CASES)
def test_mistakes_are_errors_that_say_what_to_write(mistake, message):
    with jax.enable_x64("float64" in message), as_user():
        with pytest.raises(ValueError, match="(?s)" + message):
            mistake()


def test_adaptive_controllers_are_refused_by_diffrax():
    controller = diffrax.PIDController(rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match="adaptive step sizes with a solver that does not provide error"):
        run(stepsize_controller=controller, dt0=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_drift_that_is_not_finite_is_an_error_where_it_first_is(bad):
    def breaks(t, y, args):
        return jnp.where(t > 0.5, bad, -y)

    with pytest.raises(RuntimeError, match=r"not finite. Solve with diffrax.Euler\(\) on the same terms"):
        run(term(drift, breaks))
    # Only where that level is looked at, and not at all if it was asked not to check.
    assert np.all(np.isfinite(run(term(drift, breaks), t1=0.5, steps=10).ys))
    ys = run(term(drift, breaks), solver=dict(check_finite=False), steps=10).ys
    assert not np.any(np.isfinite(ys))


def test_a_state_that_is_not_finite_from_the_start_is_let_through():
    # diffrax fills with infinity and NaN itself, and a batch may hold a dead member.
    ys = run(y0=jnp.array([jnp.nan, 1.0])).ys[0]
    assert np.isnan(ys[0]) and np.isfinite(ys[1])


def test_a_drift_given_as_a_python_number_is_no_mistake():
    with as_user():
        end = run(term(*[lambda t, y, args: -2.0] * 2), y0=jnp.array(1.0)).ys[0]
    np.testing.assert_allclose(end, -1, rtol=1e-5)

"""The benchmarks' rivals: their orders of convergence on problems with known solutions, that they agree with diffrax
where both exist, their counts of evaluations; and the studies' own arithmetic."""

import sys
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import slope

import mlem_jax as ml
from mlem_jax.diffusion import reverse_diffusion, VariancePreserving
from mlem_jax.diffusion._sampling.frechet import frechet_of_features

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from _curves import cost_at, costs_to_reach
from _distribution import kernel_discrepancy, sliced_wasserstein
from _hierarchies import accurate, COINS, hierarchy, SECOND
from _image_methods import ReverseNoise, split_plan
from _methods import Batch, draw, Method, Prepared, Shared, stochastic_runge_kutta
from _rivals import (
    DPMSolver,
    Euler,
    exponential_weights,
    Held,
    Heun,
    march,
    Path as BrownianPath,
    Plain,
    SDEDPMSolver,
    Switched,
)
from _runs import measure, tune
from gamma import exponent, SIZES, study

PROCESS = VariancePreserving()
SPREAD = np.array([[0.2, 0.7, 1.5]])  # Standard deviations of Gaussian data.


class Gaussian(eqx.Module):
    """Exact `factor * eps_hat` for data of standard deviation `size * SPREAD`, from a state `(n, 3)`."""

    factor: float = 1.0
    size: float = 1.0

    def __call__(self, s, y, args):
        return self.factor * s * y / ((self.size * SPREAD) ** 2 + s**2)


def flow(y0, s0, s1):
    """The exact probability flow of Gaussian data."""
    return y0 * jnp.sqrt((SPREAD**2 + s1**2) / (SPREAD**2 + s0**2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "order"),
    [
        (lambda drift: Euler(drift), 1),
        (lambda drift: Heun(drift), 2),
        (lambda drift: DPMSolver(drift), 2),
        (lambda drift: DPMSolver(drift, corrector=True), 3),
    ],
    ids=["Euler", "Heun", "DPM-Solver++(2M)", "UniPC"],
)
def test_order_on_exact_gaussian_flow(x64, step, order):
    """Step counts 40, 80, 160, log-uniform grid, from s = 10 to 0.1; the slope within 0.2 of the order. UniPC's
    corrector adds one to the order of its predictor (Zhao et al. 2023)."""
    process = VariancePreserving(s_min=0.1, s_max=10.0)
    y0 = jnp.array([[9.0, -5.0, 12.0]])
    counts, errors = (40, 80, 160), []
    for count in counts:
        ts = np.asarray(process.grid(count, spacing="log"))
        end = march(step(Plain(Gaussian(), 1.0)), ts, y0)[0]()
        errors.append(float(jnp.max(jnp.abs(end - flow(y0, 10.0, 0.1)))))
    assert slope(counts, errors) == pytest.approx(-order, abs=0.2)


def brownian(ts, shape, key):
    """A path of the library and the same path as the rivals take it."""
    path = ml.GridBrownianPath(ts, shape, key=key)
    cells = jax.lax.map(lambda pair: path.evaluate(*pair), (ts[:-1], ts[1:]))
    lengths = jnp.abs(jnp.diff(ts)).reshape(-1, *[1] * len(shape))
    areas = jnp.sqrt(lengths / 12) * jr.normal(jr.fold_in(key, 1), cells.shape)
    return path, BrownianPath(ts, cells, areas, exponential_weights(ts))


@pytest.mark.parametrize("kind", ["Euler", "Heun", "Euler, SDE"])
def test_marching_is_what_diffrax_does(kind):
    ts = PROCESS.grid(24)
    y0 = 80 * jr.normal(jr.key(0), (2, 3))
    drift, path, recorded = Gaussian(2.0), None, None
    terms = ml.MultilevelTerm(drift)
    solver = diffrax.Heun() if kind == "Heun" else diffrax.Euler()
    step = Heun(Plain(drift, 1.0)) if kind == "Heun" else Euler(Plain(drift, 1.0))
    steps = ts
    if kind == "Euler, SDE":
        path, recorded = brownian(ts, y0.shape, jr.key(1))
        noise = reverse_diffusion(path)
        terms = diffrax.MultiTerm(terms, noise)
        step, steps = Euler(Plain(drift, 1.0), ReverseNoise()), ts[::3]
    theirs = diffrax.diffeqsolve(
        terms, solver, ts[0], ts[-1], None, y0, stepsize_controller=diffrax.StepTo(steps)
    ).ys[0]
    ours, cost = march(step, np.asarray(steps), y0, path=recorded)
    np.testing.assert_allclose(ours(), theirs, rtol=2e-5, atol=1e-5)
    assert cost == (len(steps) - 1) * (2 if kind == "Heun" else 1)


def test_levy_areas_of_merged_cells():
    """8 cells of unequal length merged into one step: H has variance T / 12 and is not correlated with W. Seed 3,
    20,000 samples, 5 standard errors."""
    ts = jnp.cumsum(jnp.array([0.0, 1, 2, 1, 3, 1, 1, 2, 1]))
    _, path = brownian(ts, (20_000,), jr.key(3))
    noise = path.over(jnp.asarray(0), jnp.asarray(8))
    w, h = np.asarray(noise.w, float), np.asarray(noise.area, float)
    assert abs(np.mean(h**2) - 1.0) < 5 * np.sqrt(2 / len(h))
    assert abs(np.mean(w * h)) < 5 * np.sqrt(12 / len(h))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1.0, 0.0], ids=["Gaussian data", "all data zero"])
def test_reverse_sde_solvers_on_one_path(size):
    """512 steps, seed 4, 64 trajectories: diffrax's ShARK (strong order 3/2) on the recorded Lévy areas, turned to
    forward time, is what Euler approaches with order 1. If all data are zero, SDE-DPM-Solver++ is exact in any number
    of steps: with 8 closer to ShARK than Euler with 256 is by a factor of five. On Gaussian data it converges to the
    same end states with order 1."""
    ts = VariancePreserving(s_min=0.05, s_max=10.0).grid(512)
    y0 = 10 * jr.normal(jr.key(4), (64, 3))
    path, recorded = brownian(ts, y0.shape, jr.key(5))
    batch = Batch(y0, path, recorded, np.zeros(0))
    drift = Gaussian(2.0, size)
    problem = Shared("", (drift,), (1.0,), ts, ReverseNoise(), (3,), 10.0)
    runge = stochastic_runge_kutta(problem, "", "", diffrax.ShARK(), ts).prepare(batch, 0)
    shark, cost = runge.read(runge.call())
    assert cost == 1024

    def distance(step, stride):
        end = march(step(Plain(drift, 1.0)), np.asarray(ts[::stride]), y0, path=recorded)[0]()
        return float(jnp.sqrt(jnp.mean((end - shark) ** 2)))

    counts, strides = (256, 128, 64), (2, 4, 8)
    euler = [distance(lambda drift: Euler(drift, ReverseNoise()), stride) for stride in strides]
    assert slope(counts, euler) == pytest.approx(-1, abs=0.2)
    if size:
        multistep = [distance(SDEDPMSolver, stride) for stride in strides]
        assert slope(counts, multistep) == pytest.approx(-1, abs=0.2)
    else:
        assert 5 * distance(SDEDPMSolver, 64) < euler[0]


def test_held_and_switched_drifts():
    """Held at every step, or switched before the start, is the fine level alone; costs are those of the evaluations."""
    cheap, fine = (lambda t, y, args: -y), (lambda t, y, args: -1.3 * y + 0.2 * t)
    y0, ts = jnp.array([1.0, 2.0]), np.linspace(3.0, 1.0, 11)
    alone = march(Euler(Plain(fine, 1.0)), ts, y0)[0]()
    always, cost = march(Euler(Held(cheap, fine, (0.1, 1.0), 1)), ts, y0)
    np.testing.assert_allclose(always(), alone, rtol=1e-5)
    assert cost == pytest.approx(11.0)
    late, cost = march(Euler(Switched(cheap, fine, (0.1, 1.0), 3.5)), ts, y0)
    np.testing.assert_allclose(late(), alone, rtol=1e-5)
    assert cost == pytest.approx(10.0)

    # Every third step: 4 evaluations in 10 steps, and between them the correction as it was.
    held, cost = march(Euler(Held(cheap, fine, (0.1, 1.0), 3)), ts, y0)
    y, correction = np.asarray(y0, float), 0.0
    for n, t in enumerate(ts[:-1]):
        if n % 3 == 0:
            correction = fine(t, y, None) - cheap(t, y, None)
        y = y + (ts[n + 1] - t) * (cheap(t, y, None) + correction)
    np.testing.assert_allclose(held(), y, rtol=1e-5)
    assert cost == pytest.approx(5.0)
    # Times 3.0, 2.8, ..., 1.2: six lie above 1.9.
    switched, cost = march(Euler(Switched(cheap, fine, (0.1, 1.0), 1.9)), ts, y0)
    y = np.asarray(y0, float)
    for n, t in enumerate(ts[:-1]):
        y = y + (ts[n + 1] - t) * (cheap if t > 1.9 else fine)(t, y, None)
    np.testing.assert_allclose(switched(), y, rtol=1e-5)
    assert cost == pytest.approx(0.6 + 4)


def test_costs_at_an_error():
    """Straight lines in logarithms on the lower envelope; what is worse and dearer does not count."""
    costs, errors = [1.0, 4.0, 16.0, 8.0], [1.0, 0.5, 0.25, 3.0]
    assert cost_at(costs, errors, 0.5) == pytest.approx(4)
    assert cost_at(costs, errors, 2**-1.5) == pytest.approx(8)
    assert cost_at(costs, errors, 5.0) == 1
    assert cost_at(costs, errors, 0.2) == np.inf
    rows = [
        {"method": "a", "batch_cost": [c, 2 * c], "batch_error": [e, e]}
        for c, e in zip(costs, errors, strict=True)
    ]
    np.testing.assert_allclose(costs_to_reach(rows, [0.5, 0.25])["a"], [4, 32])
    errors = np.array([0.5, 0.1, 0.02])
    assert exponent(errors, 7 * errors**-2.5) == pytest.approx(2.5)


@pytest.mark.slow
def test_tuning_keeps_the_lower_envelope_and_measures_on_other_noise():
    def fixed(name, cost, error):
        def prepare(batch, seed):
            return Prepared(lambda: batch.y0 + error, lambda end: (end, cost))

        return Method(name, f"{cost}", prepare)

    settings = [
        fixed("a", 4, 0.5),
        fixed("a", 1, 2.0),
        fixed("a", 2, 3.0),
        fixed("a", 8, 0.495),
        fixed("b", 9, 9.0),
    ]
    batch = Batch(jnp.zeros(5), None, None, np.zeros(5))
    kept, _ = tune(settings, batch, coin_seeds=1)
    assert [(m.name, m.setting) for m in kept] == [("a", "1"), ("a", "4"), ("b", "9")]
    other = batch._replace(reference=np.full(5, 1.0))
    (row, *_) = measure(kept, [batch, other], coin_seeds=1)
    np.testing.assert_allclose(row["batch_error"], [2, 1])
    assert row["error"] == pytest.approx(np.sqrt(2.5))


@pytest.mark.slow
def test_a_split_plan_fires_as_often():
    fine = np.asarray(PROCESS.grid(64), float)
    table = np.stack([np.ones(16), np.linspace(0.1, 1.0, 16)], axis=1)

    class Stub:
        ts = fine[::4]

    Stub.table = table
    ts, split = split_plan(Stub, fine, 2)
    np.testing.assert_allclose(ts, fine[::2])
    np.testing.assert_allclose(split[:, 1].sum(), table[:, 1].sum())
    assert np.all(split[:, 0] == 1)
    # No more parts than the fine grid has steps.
    ts, split = split_plan(Stub, fine, 8)
    np.testing.assert_allclose(ts, fine)
    np.testing.assert_allclose(split[:, 1].sum(), table[:, 1].sum())


@pytest.mark.slow
def test_distances_of_distributions():
    """Closed forms: a shift by v, 4,000 Gaussian samples in 8 dimensions, seed 0. And the unbiased estimator's mean
    over 40 pairs of one distribution is zero within 5 standard errors."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4000, 8))
    shift = np.full(8, 0.5)
    assert sliced_wasserstein(a, a + shift) == pytest.approx(0.5, rel=0.1)
    assert frechet_of_features(a, a + shift) == pytest.approx(2.0, rel=1e-6)
    b = rng.normal(size=(4000, 8))
    # Of Gaussians with covariances I and 4 I the squared distance is 8.
    assert frechet_of_features(a, 2 * b) == pytest.approx(8.0, rel=0.1)
    same = [kernel_discrepancy(*rng.normal(size=(2, 60, 8))) for _ in range(40)]
    assert abs(np.mean(same)) < 5 * np.std(same) / np.sqrt(40)
    assert kernel_discrepancy(a[:500], b[:500] + 1) > 0.1


@pytest.mark.slow
def test_hierarchies_halve_their_errors():
    """Gamma 2.5, 4 levels, seed 0, 8 trajectories: each level's distance to the truth is about half the one before's
    (0.3 to 0.8), and its cost 2 ** 2.5 times, up to the cheaper fields that it contains."""
    problem, truth = hierarchy(2.5, 4, 4, False, 0)
    batch = draw(problem, jr.key(0), 8, lambda b: accurate(problem, truth, b))
    errors = [
        float(np.sqrt(np.mean((np.asarray(accurate(problem, level, batch)) - batch.reference) ** 2)))
        for level in problem.levels
    ]
    ratios = np.array(errors[1:]) / errors[:-1]
    assert np.all((ratios > 0.3) & (ratios < 0.8)), ratios
    growth = np.array(problem.costs[1:]) / problem.costs[:-1]
    assert np.all((growth > 5) & (growth < 7.5)), growth


@pytest.mark.slow
def test_study_of_gamma_runs():
    """The whole study on its smallest setting: every method gets a curve with finite errors, and Euler on one level
    costs what its steps do."""
    found = study(2.5, False, SIZES["smoke"])
    assert set(found["curves"]) == {"Euler", "Heun", *COINS, SECOND}
    for curves in found["curves"].values():
        (curve,) = curves
        assert all(np.isfinite(error) for _, error, _, _ in curve["points"])
    for cost, _, _, setting in found["curves"]["Euler"][0]["points"]:
        if setting.startswith("level 1,"):
            assert cost == pytest.approx(int(setting.split()[2]))

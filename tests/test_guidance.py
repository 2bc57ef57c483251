"""Guided levels: what they compute, that both branches are one call that shares a level's coins, labels per
trajectory, and a scale per level."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from exact_scores import MIXTURE, Mixture, run, S_MAX, S_MIN
from problems import assert_mean

import mlem_jax as ml
from mlem_jax.diffusion import (
    EDM,
    FlowMatching,
    Guided,
    GuidedEach,
    GuidedLabel,
    NoisePredictor,
    Preconditioned,
    ProbabilityFlow,
    sampling_terms,
)

PROCESS = FlowMatching(S_MIN, S_MAX)
CLASSES = [
    Mixture((1.0,), (mean,), (covariance,))
    for mean, covariance in zip(MIXTURE.means, MIXTURE.covariances, strict=True)
]
NULL = 2


class ConditionalNetwork(eqx.Module):
    """The exact prediction for the class of each point's label, or for the whole mixture at label 2."""

    prediction: str = eqx.field(static=True, default="velocity")

    def __call__(self, x, t, label):
        batch = x.reshape(-1, 2)
        scores = [data.score(batch, 1 - t, t) for data in (*CLASSES, MIXTURE)]
        score = jnp.stack(scores)[jnp.broadcast_to(label, batch.shape[:1]), jnp.arange(len(batch))]
        score = score.reshape(x.shape)
        eps, x0 = -t * score, (x + t**2 * score) / (1 - t)
        return {"velocity": eps - x0, "x0": x0, "score": score, "eps": eps}[self.prediction]


def guided(scale, prediction="velocity"):
    network = Guided(ConditionalNetwork(prediction), scale, NULL)
    return NoisePredictor(network, PROCESS, prediction, "time")


@pytest.mark.parametrize("prediction", ["velocity", "x0", "score", "eps"])
def test_guidance_is_the_papers_combination_of_noises(prediction, x64):
    # Ho & Salimans 2022, equation 6, with w = scale - 1.
    y, label, s = 2 * jr.normal(jr.key(0), (6, 2)), jnp.array([0, 1, 1, 0, 0, 1]), jnp.asarray(0.7)
    given = jnp.where(label[:, None] == 0, CLASSES[0].noise(y, s), CLASSES[1].noise(y, s))
    without = MIXTURE.noise(y, s)

    @jax.jit
    def noise(scale, y, label):
        return ProbabilityFlow(guided(scale, prediction))(s, y, label)

    for scale in jnp.array([0.0, 1.0, 3.0]):
        expected = scale * given - (scale - 1) * without
        np.testing.assert_allclose(noise(scale, y, label), expected, atol=1e-10)
    # One point alone.
    np.testing.assert_allclose(noise(scale, y[1], label[1]), expected[1], atol=1e-10)


def test_each_sample_may_have_its_own_scale_and_negative_label(x64):
    """Each is what `Guided` makes of it alone, with that scale, away from that label; in a batch and under vmap."""
    y, s = 2 * jr.normal(jr.key(0), (3, 2)), jnp.asarray(0.7)
    labels = GuidedLabel(jnp.array([0, 1, 0]), jnp.array([0.5, 3.0, 2.0]), jnp.array([NULL, 0, 1]))
    level = ProbabilityFlow(NoisePredictor(GuidedEach(ConditionalNetwork()), PROCESS, "velocity", "time"))
    found = jax.jit(level)(s, y, labels)
    mapped = jax.vmap(lambda y, label: level(s, y, label))(y, labels)
    for i, (label, scale, away) in enumerate(zip(*labels, strict=True)):
        alone = NoisePredictor(Guided(ConditionalNetwork(), scale, away), PROCESS, "velocity", "time")
        expected = ProbabilityFlow(alone)(s, y[i], label)
        np.testing.assert_allclose(found[i], expected, atol=1e-10)
        np.testing.assert_allclose(mapped[i], expected, atol=1e-10)
    with pytest.raises(ValueError, match="needs a GuidedLabel.* and was given no label"):
        level(s, y, None)


@pytest.mark.slow
def test_trajectories_end_in_the_class_of_their_label():
    """z-tests at 5 standard errors, n = 4,000 for each class, seed 0. Guidance of scale 1 is the class itself."""
    label = jnp.repeat(jnp.arange(2), 4_000)
    y0 = jnp.concatenate([data.draw(jr.key(k), 4_000, S_MAX) for k, data in enumerate(CLASSES)])
    terms = sampling_terms(guided(1.0))
    batch = run(terms, diffrax.Heun(), PROCESS.grid(60), y0, args=label)
    for k, data in enumerate(CLASSES):
        y = np.asarray(batch[label == k], np.float64)
        mean, covariance = data.moments(S_MIN)
        assert_mean(y, mean)
        assert_mean((y - mean)[:, :, None] * (y - mean)[:, None, :], covariance)
    # A label per trajectory of a vmap is a label per row of a batch.
    few = slice(3_990, 4_010)
    single = jax.vmap(lambda y, label: run(terms, diffrax.Heun(), PROCESS.grid(60), y, args=label))
    np.testing.assert_allclose(single(y0[few], label[few]), batch[few], atol=1e-4)


def counted(calls):
    """A guided network that counts its executions on the device, and how often it is traced."""

    def bump():
        calls["run"] += 1

    def network(x, t, label):
        calls["traced"] += 1
        # Without operands the callback is not batched: one call is one execution, of any batch.
        jax.debug.callback(bump)
        return x * label

    return Guided(network, 3.0, 0.0)


@pytest.mark.slow
def test_both_branches_are_one_call_and_share_the_coins_of_their_level():
    calls = [{"run": 0, "traced": 0} for _ in range(2)]
    predictors = [NoisePredictor(counted(c), PROCESS, "eps") for c in calls]
    probability, ts = 0.25, PROCESS.grid(32)
    solver = ml.MLEM([1.0, probability], coins=ml.IndependentCoins(), key=jr.key(0))
    y0, labels = jr.normal(jr.key(1), (5, 2)), jnp.linspace(0.1, 0.5, 5)

    def end(y, label):
        save = diffrax.SaveAt(t1=True, solver_state=True)
        return diffrax.diffeqsolve(
            sampling_terms(*predictors),
            solver,
            ts[0],
            ts[-1],
            None,
            y,
            args=label,
            stepsize_controller=diffrax.StepTo(ts),
            saveat=save,
        )

    solution = jax.jit(jax.vmap(end))(y0, labels)
    jax.effects_barrier()
    evaluated = ml.evaluation_report(solution.solver_state).evaluations
    np.testing.assert_array_equal(evaluated, [c["run"] for c in calls])
    assert 0 < calls[1]["run"] < 20
    # One evaluation traces the network once, not once per branch.
    before = calls[0]["traced"]
    jax.make_jaxpr(lambda y: ProbabilityFlow(predictors[0])(1.0, y, labels[0]))(y0[0])
    assert calls[0]["traced"] == before + 1


def test_what_does_not_depend_on_the_label_is_computed_once():
    weights = jr.normal(jr.key(0), (2, 64, 64))

    def network(x, t, label):
        return jnp.tanh(x @ weights[0] + label) @ weights[1]

    def products(network, label):
        jaxpr = jax.make_jaxpr(network)(jnp.ones(64), jnp.asarray(0.3), label)
        return [eqn.outvars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]

    assert products(Guided(network, 2.0, 0.0), jnp.asarray(1.0)) == [(64,), (2, 64)]


def test_each_level_has_its_own_scale(x64):
    label, y = jnp.array([0, 1, 1]), jr.normal(jr.key(0), (3, 2))
    scales = [1.5, 4.0]
    cheap, finest = (jax.jit(level)(1.0, y, label) for level in sampling_terms(*map(guided, scales)).levels)
    without = MIXTURE.noise(y, 1.0)
    np.testing.assert_allclose((cheap - without) / 1.5, (finest - without) / 4, atol=1e-10)
    assert np.max(np.abs(cheap - finest)) > 0.1


def test_labels_may_be_pytrees_and_networks_preconditioned():
    def network(x, c_noise, label):
        return x * label["text"][0] + label["style"]

    null = {"text": jnp.zeros(3), "style": 0.0}
    label = {"text": jnp.array([2.0, 1.0, 0.0]), "style": jnp.asarray(5.0)}
    raw = Preconditioned(network, 0.5)
    predictor = NoisePredictor(Guided(raw, 3.0, null), EDM(), "x0", "sigma")
    x, s = jnp.arange(4.0), jnp.asarray(0.8)

    def alone(label):
        return NoisePredictor(raw, EDM(), "x0", "sigma")(x, s, label)

    without = alone({"text": jnp.zeros(3), "style": jnp.asarray(0.0)})
    np.testing.assert_allclose(
        predictor(x, s, label), without + 3 * (alone(label) - without), rtol=1e-5, atol=1e-5
    )


def test_bad_labels_say_what_to_write():
    level, y = ProbabilityFlow(guided(2.0)), jnp.zeros((3, 2))
    with pytest.raises(ValueError, match=r"needs a label and was given none. Write .*args=labels"):
        level(1.0, y, None)
    with pytest.raises(ValueError, match=r"label of structure .*but null=2 has PyTreeDef\(\*\)"):
        level(1.0, y, {"label": jnp.zeros(3)})

"""What `learn_probabilities` refuses."""

import diffrax
import jax.numpy as jnp
import jax.random as jr
import pytest
from learn_problems import bent, grid, learn, linear_term, more_bent
from problems import as_user

import mlem_jax as ml

MISTAKES = {
    "neither": ({}, "mu=None and budget=None; exactly one is expected: budget=12"),
    "both": (dict(mu=1.0, budget=3.0), r"mu=1.0 and budget=3.0; exactly one is expected"),
    "negative mu": (dict(mu=-1.0), "mu=-1.0; a positive number is expected"),
    "key": (dict(mu=1.0, key=3), r"key=3; write key=jax.random.key\(3\)"),
    "levels": (dict(mu=1.0, start=[1.0, 0.5]), "start with 2 probabilities for 3 levels"),
    "all ones": (dict(mu=1.0, start=[1.0, 1.0, 1.0]), r"Start lower, for example from \[1.0, 0.3"),
    "above one": (dict(mu=1.0, start=lambda t: jnp.array([1.0, 2.0, 0.5])), r"outside \(0, 1\].*Rates"),
    "large budget": (dict(budget=99.0), "budget=99.0; .* from 1 to 16 .* in 16 steps. Use diffrax.Euler()"),
    "small budget": (dict(budget=0.5), "budget=0.5; .* from 1 to 16 .* Take fewer steps"),
    "costs": (
        dict(mu=1.0, costs=[1.0, 2.0]),
        r"3 levels and was given costs=\[1.0, 2.0\]. One positive number",
    ),
    "knots": (dict(mu=1.0, knots=1), "knots=1; a whole number from 2 on"),
    "many knots": (dict(mu=1.0, knots=40), "knots=40 for 16 steps; write at most knots=17"),
    "perturbations": (dict(mu=1.0, perturbations=0), "perturbations=0; a whole number from 1 on"),
    "iterations": (dict(mu=1.0, iterations=2.5), "iterations=2.5; a whole number from 1 on"),
}


@pytest.mark.parametrize("settings, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_explained(settings, message):
    with as_user(), pytest.raises(ValueError, match=message):
        learn(**settings)


def test_mistakes_in_terms_and_times_are_explained():
    settings = dict(start=[1.0, 0.5, 0.5], key=jr.key(0), mu=1.0)
    bare = ml.MultilevelTerm(bent, bent, more_bent)
    with pytest.raises(ValueError, match=r"MultilevelTerm has none. Write MultilevelTerm\(..., costs="):
        ml.learn_probabilities(bare, grid(), jnp.ones(3), **settings)
    with pytest.raises(ValueError, match="needs strictly increasing or strictly decreasing ts"):
        ml.learn_probabilities(linear_term(), jnp.array([0.0, 1.0, 0.5]), jnp.ones((3, 2)), **settings)
    with pytest.raises(ValueError, match="ODETerm; it needs exactly one MultilevelTerm"):
        ml.learn_probabilities(diffrax.ODETerm(bent), grid(), jnp.ones((3, 2)), **settings)

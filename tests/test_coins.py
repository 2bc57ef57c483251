"""Coin policies by themselves: means, exact counts, nesting, dependence on the key. Each policy is run as a
scan over a sequence of probabilities, compiled once."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import assert_mean, every_policy, POLICIES

import mlem_jax as ml

STEPS, LEVELS = 48, 3


@functools.partial(jax.jit, static_argnums=0)
def _run(structure, leaves, p, keys):
    coins = jax.tree.unflatten(structure, leaves)

    def draws(key):
        def body(state, x):
            step, p = x
            count, state = coins.draw(p, state, step, key)
            return state, count

        return jax.lax.scan(body, coins.init(p.shape[1]), (jnp.arange(p.shape[0]), p))[1]

    return jax.vmap(draws)(keys)


def counts(coins, p, keys):
    """How often each level fires in each step, `(keys, steps, levels)`."""
    leaves, structure = jax.tree.flatten(coins)
    return np.asarray(_run(structure, leaves, jnp.asarray(p, jnp.float32), jnp.atleast_1d(keys)))


def varying_probabilities():
    """Values between 0.02 and 1; the first level is at 1 for the middle half of the time."""
    t = np.linspace(0, 1, STEPS)
    first = np.where((t > 0.25) & (t < 0.75), 1.0, 0.6931)
    return np.stack([first, 0.4 + 0.35 * np.sin(7 * t), 0.0217 + 0.0977 * t], axis=1)


RANDOM = {name: coins for name, coins in POLICIES.items() if name != "midpoint"}


@pytest.mark.parametrize("coins", RANDOM.values(), ids=RANDOM.keys())
def test_mean_count_is_the_probability(coins):
    # Seed 0, 20000 keys, 5 standard errors for each of 144 means.
    p = varying_probabilities()
    fired = counts(coins, p, jr.split(jr.key(0), 20_000))
    assert_mean(fired, p)


@every_policy
def test_probability_one_fires_exactly_once(coins):
    p = varying_probabilities()
    fired = counts(coins, p, jr.split(jr.key(1), 100))
    assert np.all(fired[:, p == 1] == 1)
    assert np.all(counts(coins, np.ones((STEPS, LEVELS)), jr.split(jr.key(1), 10)) == 1)


@pytest.mark.parametrize("name", ["stratified", "systematic", "midpoint"])
def test_steps_with_probability_one_leave_the_clock_as_it_is(name):
    p = varying_probabilities()
    some = np.insert(p, [5, 5, 20, 48], 1.0, axis=0)
    added = np.array([5, 6, 22, 51])
    keys = jr.split(jr.key(2), 50)
    np.testing.assert_array_equal(
        np.delete(counts(POLICIES[name], some, keys), added, axis=1), counts(POLICIES[name], p, keys)
    )


@pytest.mark.parametrize("name", ["stratified", "systematic", "midpoint"])
def test_one_firing_in_each_unit_of_the_clock(name):
    # 1/16, 1/4 and 1/2 divide the windows into whole steps, exactly in binary.
    p = np.tile([1 / 16, 1 / 4, 1 / 2], (STEPS, 1))
    fired = counts(POLICIES[name], p, jr.split(jr.key(3), 500))
    for level, window in enumerate([16, 4, 2]):
        assert np.all(fired[:, :, level].reshape(500, -1, window).sum(-1) == 1)


def test_stratified_places_are_uniform_and_independent():
    # Seed 4, 20000 keys, 5 standard errors: each of 4 places has probability 1/4, and neighbouring windows
    # and levels agree in their places in a quarter of the cases.
    p = np.tile([1 / 4, 1 / 4], (8, 1))
    place = counts(ml.StratifiedCoins(), p, jr.split(jr.key(4), 20_000)).reshape(-1, 2, 4, 2).argmax(2)
    assert_mean(place[..., None] == np.arange(4), 1 / 4)
    assert_mean(place[:, 0] == place[:, 1], 1 / 4)
    assert_mean(place[:, :, 0] == place[:, :, 1], 1 / 4)


def test_systematic_draws_one_place_per_level():
    p = np.tile([1 / 4, 1 / 4], (16, 1))
    fired = counts(ml.SystematicCoins(), p, jr.split(jr.key(5), 2000)).reshape(-1, 4, 4, 2)
    place = fired.argmax(2)
    assert np.all(place == place[:, :1])
    # Seed 5, 2000 keys, 5 standard errors: the levels' places are independent.
    assert_mean(place[:, 0, 0] == place[:, 0, 1], 1 / 4)


@pytest.mark.parametrize("offset", [0.5, 0.0, 0.9])
def test_systematic_fires_where_the_clock_passes_its_offset(offset):
    p = varying_probabilities()
    clock = np.cumsum(np.where(p == 1, 0, p), axis=0)
    passed = np.ceil(clock - offset)  # how many of offset, offset + 1, ... lie below the clock
    expected = np.where(p == 1, 1, np.diff(passed, axis=0, prepend=np.ceil(-offset)))
    assert np.min(np.abs((clock - offset) - np.round(clock - offset))) > 1e-5  # no tie to be rounded
    fired = counts(ml.SystematicCoins(offset), p, jr.key(0))[0]
    np.testing.assert_array_equal(fired, expected)


def test_offsets_per_level():
    p = np.tile([1 / 8, 1 / 8], (16, 1))
    fired = counts(ml.SystematicCoins([0.0, 0.75]), p, jr.key(0))[0]
    np.testing.assert_array_equal(np.nonzero(fired[:, 0])[0], [0, 8])
    np.testing.assert_array_equal(np.nonzero(fired[:, 1])[0], [6, 14])


def test_a_level_may_fire_twice_in_a_step():
    # With p = 3/4, places late in one window and early in the next fall into one step. The first two steps
    # cover [0, 0.75) and [0.75, 1.5): twice if U_0 >= 3/4 and U_1 < 1/2, probability 1/8.
    # Seed 6, 20000 keys, 5 standard errors.
    fired = counts(ml.StratifiedCoins(), np.full((2, 1), 0.75), jr.split(jr.key(6), 20_000))
    assert_mean(fired[:, 1, 0] == 2, 1 / 8)


def test_independent_coins_are_independent_over_steps_and_levels():
    # Seed 7, 20000 keys, 5 standard errors: products of centred counts have mean zero.
    p = varying_probabilities()
    centred = counts(ml.IndependentCoins(), p, jr.split(jr.key(7), 20_000)) - p
    assert_mean(centred[:, 1:] * centred[:, :-1], 0)
    assert_mean(centred[:, :, 0] * centred[:, :, 1], 0)
    assert_mean(centred[:, :, 1] * centred[:, :, 2], 0)


def test_nested_coins_fire_together_and_are_independent_over_steps():
    # Seed 8, 20000 keys, 5 standard errors: E B_j B_k = min(p_j, p_k).
    p = varying_probabilities()
    fired = counts(ml.NestedCoins(), p, jr.split(jr.key(8), 20_000))
    assert_mean(fired[:, :, 0] * fired[:, :, 2], np.minimum(p[:, 0], p[:, 2]))
    assert_mean((fired - p)[:, 1:] * (fired - p)[:, :-1], 0)


@every_policy
def test_coins_depend_on_the_key_alone(coins):
    p = varying_probabilities()
    one, again, other = (counts(coins, p, jr.key(seed)) for seed in (9, 9, 10))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other) == (coins is not POLICIES["midpoint"])


# Arbitrary sequences. Shorter ones are filled up with p = 1, which leaves the clocks alone.
sequences = st.lists(st.tuples(*[st.floats(2**-10, 1.0, width=32)] * LEVELS), min_size=1, max_size=STEPS).map(
    lambda rows: np.concatenate([np.array(rows), np.ones((STEPS - len(rows), LEVELS))])
)
seeds = st.integers(0, 2**31 - 1)
ROUNDING = 1e-4  # of 48 additions in single precision


@hypothesis.given(sequences, seeds, st.none() | st.floats(0.0, 0.99))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_systematic_counts_stay_within_one_of_the_clock(p, seed, offset):
    fired = counts(ml.SystematicCoins(offset), p, jr.key(seed))[0]
    deviation = np.cumsum(fired - p, axis=0)
    assert np.all(np.abs(deviation) < 1 + ROUNDING)


@hypothesis.given(sequences, seeds)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_stratified_counts_stay_within_one_of_the_clock_and_two_of_any_part_of_it(p, seed):
    fired = counts(ml.StratifiedCoins(), p, jr.key(seed))[0]
    deviation = np.cumsum(fired - p, axis=0)
    assert np.all(np.abs(deviation) < 1 + ROUNDING)
    assert np.all(np.ptp(np.concatenate([np.zeros((1, LEVELS)), deviation]), axis=0) < 2 + ROUNDING)


@hypothesis.given(sequences, seeds)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_nested_firings_are_nested(p, seed):
    fired = counts(ml.NestedCoins(), p, jr.key(seed))[0]
    rarer_first = np.take_along_axis(fired, np.argsort(p, axis=1), axis=1)
    assert np.all(np.diff(rarer_first, axis=1) >= 0)

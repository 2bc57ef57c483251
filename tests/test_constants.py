"""Solvers as constants of a program: hashing, models that hold one, maps, export, explicit meshes; and policies whose
state is any PyTree."""

import subprocess
import sys
import textwrap

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import as_user, mlem, solve

import mlem_jax as ml

TERM = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: -1.1 * y)
TS = np.linspace(0, 1, 20)


def multistep(drifts, ts=np.linspace(0, 1, 21), **settings):  # noqa: B008 (not changed)
    evaluated = [range(0, len(ts) - 1, 4)]
    coefficients = ml.MultistepCoefficients.adams_bashforth(
        ts, drifts=drifts, num_levels=2, evaluated=evaluated
    )
    return ml.LinearMultistep(coefficients, **settings)


FIXED = {
    "list": lambda: ml.MLEM([1.0, 0.2]),
    "power law": lambda: ml.MLEM(ml.PowerLaw([1.0, 5.0])),
    "rates": lambda: ml.MLEM(ml.Rates([20.0, 4.0])),
    "table": lambda: ml.MLEM(ml.TabulatedProbabilities(TS, np.tile([1.0, 0.2], (20, 1)))),
    "second order": lambda: ml.MLAB2([1.0, 0.2], time_variable="log"),
    "with a key": lambda: ml.MLEM([1.0, 0.2], key=jr.key(0)),
    "multistep": lambda: multistep(3),
}
every_fixed = pytest.mark.parametrize("make", FIXED.values(), ids=FIXED.keys())


class Model(eqx.Module):
    """A model with a solver in it, as users build them."""

    rate: jax.Array
    solver: diffrax.AbstractSolver

    def __call__(self, y0):
        term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: -self.rate * y)
        return solve(term, self.solver, y0, t0=1.0, t1=2.0, steps=5, saveat=diffrax.SaveAt(t1=True)).ys[-1]


@every_fixed
def test_fixed_solvers_hash_and_have_no_arrays(make):
    assert hash(make()) == hash(make()) and make() == make()
    assert not [leaf for leaf in jax.tree.leaves(make()) if eqx.is_array(leaf)]
    assert hash(ml.MLEM([1.0, 0.2])) == hash(ml.MLEM((1.0, 0.2)))
    assert ml.MLEM([1.0, 0.2]) != ml.MLEM([1.0, 0.3])


HELD = {
    "list": lambda: ml.MLEM([1.0, 0.3]),
    "multistep": lambda: multistep(2, np.linspace(1, 2, 6)),
    "array": lambda: ml.MLEM(jnp.array([1.0, 0.3])),
    "random": lambda: mlem([1.0, 0.9], jr.key(0)),
    "function": lambda: ml.MLEM(lambda t: jnp.array([1.0, 0.3])),
}


@pytest.mark.parametrize(
    "make",
    [
        make if name in ("list", "function", "multistep") else pytest.param(make, marks=pytest.mark.slow)
        for name, make in HELD.items()
    ],
    ids=HELD.keys(),
)
def test_a_model_that_holds_a_solver_has_gradients(make):
    model = Model(jnp.array(1.1), make())
    value, gradient = eqx.filter_value_and_grad(lambda m, y: jnp.sum(jax.vmap(m)(y)))(model, jnp.ones(3))
    assert np.isfinite(value) and gradient.rate != 0
    # What the solver holds is a constant to it.
    for leaf in jax.tree.leaves(gradient.solver):
        assert np.all(leaf == 0)


@pytest.mark.parametrize("name", ["list", "multistep"])
def test_filter_vmap_does_not_map_a_fixed_solver(name):
    solver = FIXED[name]()

    def run(y0, solver):
        return solve(TERM, solver, y0, steps=20).ys[-1]

    starts = jnp.array([1.0, 2.0, 3.0])
    ends = eqx.filter_vmap(run)(starts, solver)
    np.testing.assert_allclose(ends, starts * run(jnp.asarray(1.0), solver), rtol=1e-6)


def test_fixed_solvers_export():
    solver = ml.MLEM([1.0, 0.2])
    run = jax.jit(jax.vmap(lambda y: diffrax.diffeqsolve(TERM, solver, 0.0, 1.0, 0.05, y, throw=False).ys))
    (b,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(run)(jax.ShapeDtypeStruct((b, 3), jnp.float32))
    y0 = jnp.arange(15.0).reshape(5, 3)
    np.testing.assert_allclose(exported.call(y0), run(y0), rtol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [
        ml.MLAB2(lambda t: jnp.array([1.0, 0.2]), time_variable="log", check_finite=False),
        multistep(3, np.linspace(1, 2, 5), check_finite=False),
    ],
    ids=["MLAB2", "LinearMultistep"],
)
def test_without_checks_all_solvers_export(solver):
    run = jax.jit(lambda y: diffrax.diffeqsolve(TERM, solver, 1.0, 2.0, 0.25, y, throw=False).ys)
    exported = jax.export.export(run)(jax.ShapeDtypeStruct((3,), jnp.float32))
    np.testing.assert_allclose(exported.call(jnp.ones(3)), run(jnp.ones(3)), rtol=1e-6)


def test_random_coins_need_a_key_and_say_so():
    with as_user(), pytest.raises(ValueError, match=r"MLAB2 needs a key for StratifiedCoins; write key=jax"):
        ml.MLAB2([1.0, 0.5], coins=ml.StratifiedCoins())


@pytest.mark.parametrize("seed", [3, np.int64(3), np.array(3), jnp.array(3)], ids=repr)
def test_a_seed_is_no_key(seed):
    with as_user(), pytest.raises(ValueError, match=r"MLEM was given key=3; write key=jax.random.key\(3\)"):
        ml.MLEM([1.0, 0.5], key=seed)


class Countdown(ml.AbstractCoins):
    """Fires in every fourth step, by a state of many kinds of leaves."""

    def init(self, num_levels):
        return {
            "left": jnp.asarray(3),
            "grid": jnp.zeros((2, 3)),
            "key": jr.key_data(jr.key(0)),
            "parts": (jnp.array(True), None),
        }

    def draw(self, p, state, step, key):
        fires = state["left"] == 0
        state = {**state, "left": jnp.where(fires, 3, state["left"] - 1), "grid": state["grid"] + 1}
        return jnp.where(p < 1, fires, True).astype(jnp.int32), state


def test_a_policy_of_one_s_own_may_remember_any_pytree():
    # Events stop the trajectories of a batch at different times: then what a policy remembers is batched.
    event = diffrax.Event(lambda t, y, args, **kwargs: y < 0.6)
    solver = ml.MLEM([1.0, 0.25], coins=Countdown(), key=jr.key(0))

    def run(y0):
        return solve(TERM, solver, y0, event=event).solver_state

    state = jax.vmap(run)(jnp.array([0.7, 1.0, 5.0]))
    # 0.7 e^{-t} < 0.6 at 0.15, after 4 steps (of 1/20); 1 at 0.51, after 10 or 11; 5 never.
    steps = np.asarray(state.step)
    assert steps[0] == 4 and 10 <= steps[1] <= 11 and steps[2] == 20
    np.testing.assert_array_equal(state.evaluations[:, 1], steps // 4)
    np.testing.assert_array_equal(state.coins["grid"][:, 0, 0], steps)
    assert Countdown().name == "Countdown" and not Countdown().deterministic
    assert Countdown().randomised() == Countdown()
    with pytest.raises(ValueError, match="Countdown is not one of mlem_jax's coin policies"):
        Countdown().to_dict()


@pytest.mark.slow
def test_explicit_meshes():
    # In a process of its own, for several devices.
    code = """
        import diffrax, jax, jax.numpy as jnp, mlem_jax as ml
        from jax.sharding import NamedSharding, PartitionSpec as P
        term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: -1.1 * y)
        run = lambda y: diffrax.diffeqsolve(term, ml.MLEM([1.0, 0.2]), 0.0, 1.0, 0.05, y).ys[0]
        alone = run(jnp.ones(2))
        mesh = jax.make_mesh((4,), ("b",))
        with jax.set_mesh(mesh):
            y0 = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, P("b")))
            ends = jax.jit(jax.vmap(run))(y0)
            assert ends.sharding.spec == P("b", None), ends.sharding
        assert abs(jax.device_get(ends) - jax.device_get(alone)).max() < 1e-6
    """
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    program = f"import os; os.environ['XLA_FLAGS'] = '{flags}'\n" + textwrap.dedent(code)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


# --- the state of another solve ---


class Every(ml.AbstractCoins):
    """Level 2 in every step whose number can be divided."""

    number: int = eqx.field(static=True)

    def init(self, num_levels):
        return None

    def draw(self, p, state, step, key):
        return jnp.where(p < 1, step % self.number == 0, True).astype(jnp.int32), state


OTHER_STATES = {
    "MLEM's into MLAB2": (ml.MLEM([1.0, 0.2]), ml.MLAB2([1.0, 0.2]), "MLAB2 was given MLEM's MLEMState"),
    "MLAB2's into MLEM": (ml.MLAB2([1.0, 0.2]), ml.MLEM([1.0, 0.2]), "MLEM was given MLAB2's MLAB2State"),
    # Pairs of policies whose states have the same structure.
    "independent coins into nested": (
        mlem([1.0, 0.2], jr.key(0)),
        mlem([1.0, 0.2], jr.key(0), coins=ml.NestedCoins()),
        r"coins=IndependentCoins\(\) and has coins=NestedCoins\(\); continue a solve with the same coins",
    ),
    "stratified coins into systematic": (
        ml.MLAB2([1.0, 0.2], coins=ml.StratifiedCoins(), key=jr.key(0)),
        ml.MLAB2([1.0, 0.2]),
        r"MLAB2 was given .* coins=StratifiedCoins\(\) and has coins=SystematicCoins\(offset=0.5\)",
    ),
    "another offset": (
        ml.MLEM([1.0, 0.2], coins=ml.SystematicCoins(0.25)),
        ml.MLEM([1.0, 0.2]),
        r"coins=SystematicCoins\(offset=0.25\) and has coins=SystematicCoins\(offset=0.5\)",
    ),
    "coins of one's own": (
        ml.MLEM([1.0, 0.25], coins=Every(4), key=jr.key(0)),
        ml.MLEM([1.0, 0.25], coins=Every(5), key=jr.key(0)),
        r"coins=Every\(number=4\) and has coins=Every\(number=5\)",
    ),
    "another time variable": (
        ml.MLAB2([1.0, 0.2], time_variable="log"),
        ml.MLAB2([1.0, 0.2]),
        "MLAB2 was given .* time_variable='log' and has time_variable='time'",
    ),
    "MLEM's into LinearMultistep": (
        ml.MLEM([1.0, 0.2]),
        multistep(3),
        "LinearMultistep was given MLEM's MLEMState as solver_state; its own MultistepState is expected",
    ),
    "other coefficients": (
        multistep(3),
        multistep(2),
        "keeps 2 drifts and 1 increments .*; 1 and 1 are expected",
    ),
    "all 1 before": (ml.MLAB2([1.0, 1.0]), ml.MLAB2([1.0, 0.2]), "MLAB2 was given .* other probabilities"),
    "all 1 now": (ml.MLAB2([1.0, 0.2]), ml.MLAB2([1.0, 1.0]), "MLAB2 was given .* other probabilities"),
    "a record": (ml.MLEM([1.0, 0.2], record=3), ml.MLEM([1.0, 0.2]), "MLEM has record=0 .*record=3"),
}


@pytest.mark.parametrize("first, second, message", OTHER_STATES.values(), ids=OTHER_STATES.keys())
def test_another_solver_s_state_is_refused(first, second, message):
    state = first.init(TERM, 0.0, 1.0, jnp.asarray(1.0), None)
    with as_user(), pytest.raises(ValueError, match=message):
        solve(TERM, second, jnp.asarray(1.0), solver_state=state)


def test_the_state_of_the_same_solver_is_accepted_in_every_transformation():
    # What identifies coins must not depend on whether their numbers are traced.
    y0 = jnp.array([1.0, 2.0])
    offsets = jnp.array([0.5, 0.5])
    with as_user():
        whole = solve(TERM, ml.MLEM([1.0, 0.2]), y0, steps=40).ys[-1]

        def continued(solver, state, y):
            half = 0.0 if state is None else 0.5
            return solve(TERM, solver, y, t0=half, t1=half + 0.5, steps=20, solver_state=state)

        outer = ml.MLEM([1.0, 0.2], coins=ml.SystematicCoins(offsets))
        for first in (eqx.filter_jit(continued), continued):
            begun = first(outer, None, y0)
            for second in (eqx.filter_jit(continued), continued):
                np.testing.assert_allclose(
                    second(outer, begun.solver_state, begun.ys[-1]).ys[-1], whole, rtol=1e-6
                )
        # A batch of states belongs to a batch of solves.
        many = jax.vmap(lambda y: continued(outer, None, y))(y0)
        ends = jax.vmap(lambda s, y: continued(outer, s, y).ys[-1])(many.solver_state, many.ys[:, -1])
        np.testing.assert_allclose(ends, whole, rtol=1e-6)
        with pytest.raises(ValueError, match="MLEM was given the solver_state of a batch of 2 solves"):
            continued(outer, many.solver_state, many.ys[0, -1])


def test_a_state_of_other_levels_is_refused():
    three = ml.MultilevelTerm(*[lambda t, y, args: -y] * 3)
    state = ml.MLEM([1.0, 0.5, 0.2]).init(three, 0.0, 1.0, jnp.asarray(1.0), None)
    with as_user(), pytest.raises(ValueError, match="MLEM was given .*with 3 levels; one for the 2 levels"):
        solve(TERM, ml.MLEM([1.0, 0.2]), jnp.asarray(1.0), solver_state=state)

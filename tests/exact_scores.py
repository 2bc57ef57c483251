"""Data whose scores are known in closed form, and networks that return them exactly: for every process, prediction
and conditioning, each written from its definition in the process's own time, without the library's formulas."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from mlem_jax.diffusion import EDM, FlowMatching, VarianceExploding, VariancePreserving

S_MIN, S_MAX = 0.02, 20.0
BETAS = (0.1, 20.0)
PROCESSES = {
    "cosine": VariancePreserving(S_MIN, S_MAX),
    "linear": VariancePreserving(S_MIN, S_MAX, BETAS),
    "exploding": VarianceExploding(S_MIN, S_MAX),
    "edm": EDM(S_MIN, S_MAX),
    "flow": FlowMatching(S_MIN, S_MAX),
    "flow from noise": FlowMatching(S_MIN, S_MAX, noise_at=0),
}


def linear_alpha(t):
    """Song et al. 2021, equation 33."""
    return jnp.exp(-(t**2) * (BETAS[1] - BETAS[0]) / 4 - t * BETAS[0] / 2)


# alpha(t), sigma(t) and the inverse of their ratio, from the papers.
SCHEDULES = {
    "cosine": (
        lambda t: jnp.cos(jnp.pi * t / 2),
        lambda t: jnp.sin(jnp.pi * t / 2),
        lambda s: jnp.arctan2(s, jnp.ones_like(s)) / (jnp.pi / 2),
    ),
    "linear": (
        linear_alpha,
        lambda t: jnp.sqrt(1 - linear_alpha(t) ** 2),
        # The positive root of (b1 - b0) t^2 / 2 + b0 t = log(1 + s^2).
        lambda s: (
            (-BETAS[0] + jnp.sqrt(BETAS[0] ** 2 + 2 * (BETAS[1] - BETAS[0]) * jnp.log(1 + s**2)))
            / (BETAS[1] - BETAS[0])
        ),
    ),
    "exploding": (
        jnp.ones_like,
        lambda t: S_MIN * (S_MAX / S_MIN) ** t,
        lambda s: (jnp.log(s) - np.log(S_MIN)) / (np.log(S_MAX) - np.log(S_MIN)),
    ),
    "edm": (jnp.ones_like, lambda t: t, lambda s: s),
    "flow": (lambda t: 1 - t, lambda t: t, lambda s: 1 - 1 / (1 + s)),
    "flow from noise": (lambda t: t, lambda t: 1 - t, lambda s: 1 / (1 + s)),
}

CONDITIONINGS = {
    "log_s": "log_s",
    "log_snr": "log_snr",
    "sigma": "sigma",
    "time": "time",
    "own": lambda s: 1 + 4 * s,
}


class Mixture(eqx.Module):
    """A mixture of Gaussians in any dimension; one component is a Gaussian."""

    weights: tuple = eqx.field(static=True)
    means: tuple = eqx.field(static=True)
    covariances: tuple = eqx.field(static=True)

    def score(self, x, alpha, sigma):
        """Of `alpha x_0 + sigma eps`, at points `(n, d)`."""
        size, rotations = (np.asarray(a) for a in np.linalg.eigh(np.asarray(self.covariances)))
        spread = alpha**2 * jnp.asarray(size)[None] + sigma**2
        off = x[:, None, :] - alpha * jnp.asarray(self.means)[None]
        along = jnp.einsum("kij,nki->nkj", rotations.astype(x.dtype), off)
        log_weight = (
            jnp.log(jnp.asarray(self.weights))[None]
            - jnp.sum(along**2 / spread + jnp.log(spread), axis=-1) / 2
        )
        pull = jnp.einsum("kij,nkj->nki", rotations.astype(x.dtype), -along / spread)
        return jnp.sum(jax.nn.softmax(log_weight, axis=-1)[:, :, None] * pull, axis=1)

    def noise(self, y, s):
        """The exact `eps_hat`, in the variables of sampling."""
        return -s * self.score(y, 1.0, s)

    def draw(self, key, n, s=0.0):
        """`n` draws of `x_0 + s eps`."""
        keys = jr.split(key, 3)
        which = jr.choice(keys[0], len(self.weights), (n,), p=jnp.asarray(self.weights))
        roots = jnp.linalg.cholesky(jnp.asarray(self.covariances))[which]
        inner = jnp.einsum("nij,nj->ni", roots, jr.normal(keys[1], (n, roots.shape[-1])))
        return jnp.asarray(self.means)[which] + inner + s * jr.normal(keys[2], inner.shape)

    def moments(self, s=0.0):
        """Mean and covariance of `x_0 + s eps`."""
        mean = np.average(self.means, axis=0, weights=self.weights)
        off = np.asarray(self.means) - mean
        inner = np.asarray(self.covariances) + np.einsum("ki,kj->kij", off, off)
        return mean, np.average(inner, axis=0, weights=self.weights) + s**2 * np.eye(len(mean))


GAUSSIAN = Mixture((1.0,), ((0.4, -0.7),), (((0.5, 0.3), (0.3, 0.4)),))
MIXTURE = Mixture(
    (0.3, 0.7),
    ((-1.0, 0.5), (0.8, -0.3)),
    (((0.1, 0.05), (0.05, 0.2)), ((0.3, -0.1), (-0.1, 0.1))),
)


class ExactNetwork(eqx.Module):
    """Returns the exact prediction for a `Mixture`, from `x` and what it is told of the noise."""

    data: Mixture
    process: str = eqx.field(static=True)
    prediction: str = eqx.field(static=True)
    conditioning: str = eqx.field(static=True, default="log_s")

    def time(self, told):
        """The process's own time, from the conditioning."""
        *_, time_at = SCHEDULES[self.process]
        if self.conditioning == "time":
            return told
        if self.conditioning == "sigma":
            told = {
                "cosine": lambda u: u / jnp.sqrt(1 - u**2),
                "linear": lambda u: u / jnp.sqrt(1 - u**2),
                "exploding": lambda u: u,
                "edm": lambda u: u,
                "flow": lambda u: u / (1 - u),
                "flow from noise": lambda u: u / (1 - u),
            }[self.process](told)
            return time_at(told)
        inverse = {
            "log_s": jnp.exp,
            "log_snr": lambda u: jnp.sqrt(jnp.exp(-u)),
            "own": lambda u: (u - 1) / 4,
        }
        return time_at(inverse[self.conditioning](told))

    def __call__(self, x, told):
        alpha_at, sigma_at, _ = SCHEDULES[self.process]
        t = self.time(told)
        alpha, sigma = alpha_at(t), sigma_at(t)
        score = self.data.score(x, alpha, sigma)
        eps = -sigma * score
        x0 = (x + sigma**2 * score) / alpha
        return {
            "score": lambda: score,
            "eps": lambda: eps,
            "x0": lambda: x0,
            "v": lambda: alpha * eps - sigma * x0,
            "velocity": lambda: jax.grad(alpha_at)(t) * x0 + jax.grad(sigma_at)(t) * eps,
        }[self.prediction]()


def run(terms, solver, ts, y0, **settings):
    """The end of a run through the grid `ts`."""
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        ts[0],
        ts[-1],
        None,
        y0,
        stepsize_controller=diffrax.StepTo(ts=ts),
        max_steps=4096,
        **settings,
    )
    return jax.tree.map(lambda leaf: leaf[-1], solution.ys)

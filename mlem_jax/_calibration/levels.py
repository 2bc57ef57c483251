"""Terms with some of their levels."""

import diffrax
import numpy as np
from jaxtyping import Float, PyTree

from .._term import find_multilevel_term, MultilevelTerm


def keep_levels(
    terms: PyTree, levels: tuple[int, ...], *, costs: Float[np.ndarray, " k"] | None = None
) -> PyTree:
    """The same terms with some of their levels. Raises `ValueError` if there are fewer."""
    place, term = find_multilevel_term(terms)
    if len(term.levels) <= levels[-1]:
        raise ValueError(
            f"The plan uses level {levels[-1] + 1} and the MultilevelTerm has {len(term.levels)} "
            "levels. Pass the terms that were calibrated."
        )
    kept = MultilevelTerm(*[term.levels[k] for k in levels], costs=costs)
    if place is None:
        return kept
    return diffrax.MultiTerm(*(kept if i == place else other for i, other in enumerate(terms.terms)))

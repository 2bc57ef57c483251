"""Comparison of levels and a state with those that a calibration or a plan was made for."""

from collections.abc import Sequence
from typing import Any

from .._checks import counted
from .._custom_types import Y
from .._fingerprint import level_id, state_id


def mismatch(
    what: str, levels_id: tuple[str, ...], made_for_state: str, levels: Sequence[Any], y0: Y
) -> str | None:
    """A sentence, beginning with `what`, about how levels (their types, settings and numbers) or the shapes of a state
    differ from those that something was made for; `None` if they do not differ."""
    ids = tuple(level_id(level) for level in levels)
    if len(ids) != len(levels_id):
        return f"{what} {counted(len(levels_id), 'level')} and is used with {counted(len(ids), 'level')}."
    differ = [str(k + 1) for k, (now, then) in enumerate(zip(ids, levels_id, strict=True)) if now != then]
    if differ:
        return (
            f"{what} {counted(len(ids), 'level')}, of which number {', '.join(differ)} differ from those that it is "
            "used with: in a network, its process or prediction, the guidance, or the stochasticity."
        )
    if state_id(y0) != made_for_state:
        return f"{what} a state {made_for_state} and is used with {state_id(y0)}."
    return None

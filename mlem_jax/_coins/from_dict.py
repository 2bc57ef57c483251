"""Coin policies from the dictionaries that their `to_dict` returns."""

from collections.abc import Mapping
from typing import Any

from .base import AbstractCoins
from .clocked import StratifiedCoins, SystematicCoins
from .independent import IndependentCoins
from .nested import NestedCoins

_TYPES: dict[str, type[AbstractCoins]] = {
    "IndependentCoins": IndependentCoins,
    "NestedCoins": NestedCoins,
    "StratifiedCoins": StratifiedCoins,
    "SystematicCoins": SystematicCoins,
}


def coins_from_dict(values: Mapping[str, Any]) -> AbstractCoins:
    """The coin policy that [`mlem_jax.AbstractCoins.to_dict`][] describes. Raises `ValueError` for an unknown type."""
    settings = dict(values)
    kind = settings.pop("type", None)
    if kind not in _TYPES:
        raise ValueError(f"type={kind!r} is not a coin policy of mlem_jax; these are {', '.join(_TYPES)}.")
    return _TYPES[kind](**settings)

"""In which steps the levels are evaluated: the coin policies."""

from .base import (
    AbstractCoins as AbstractCoins,
    as_coins as as_coins,
    as_text as as_text,
    level_coefficients as level_coefficients,
    next_finer as next_finer,
    simulate_counts as simulate_counts,
)
from .clocked import StratifiedCoins as StratifiedCoins, SystematicCoins as SystematicCoins
from .from_dict import coins_from_dict as coins_from_dict
from .independent import IndependentCoins as IndependentCoins
from .nested import NestedCoins as NestedCoins
from .resumed import ResumedCoins as ResumedCoins

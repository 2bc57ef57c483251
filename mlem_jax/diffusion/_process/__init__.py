"""Noising processes, one per file."""

from .base import AbstractProcess as AbstractProcess
from .edm import EDM as EDM
from .flow_matching import FlowMatching as FlowMatching
from .variance_exploding import VarianceExploding as VarianceExploding
from .variance_preserving import VariancePreserving as VariancePreserving

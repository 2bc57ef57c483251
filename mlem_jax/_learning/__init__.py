"""Probabilities that are learned by stochastic gradients."""

from .learn import learn_probabilities as learn_probabilities, LearningHistory as LearningHistory

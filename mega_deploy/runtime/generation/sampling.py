"""A token drawn by the scores that a language model gives the next one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn: from softmax(scores / temperature) over those that `top_k` and then `top_p` leave.

    Raises:
        OptionError: a value is out of its range.
    """

    temperature: float = 1.0
    """Above 0; lower ones favour likely tokens more."""
    top_k: int | None = None
    """Only the most likely, so many."""
    top_p: float | None = None
    """Only the most likely, as few as together have this probability (nucleus sampling, arXiv 1904.09751)."""
    seed: int = 0
    """Where the draws begin; each sequence of a batch has its own, whatever the others do."""

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, int | float) and 0 < self.temperature < np.inf):
            raise OptionError(
                f"temperature must be above 0 and finite, got {self.temperature!r}; for the most likely token leave "
                "sampling out"
            )
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise OptionError(f"top_k must be a whole number of tokens, 1 or more, got {self.top_k!r}")
        if self.top_p is not None and not (isinstance(self.top_p, int | float) and 0 < self.top_p <= 1):
            raise OptionError(f"top_p must be a probability above 0, up to 1, got {self.top_p!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise OptionError(f"seed must be a whole number, 0 or more, got {self.seed!r}")

    def generators(self, count: int) -> list[np.random.Generator]:
        """Randomness of their own for so many sequences."""
        return [np.random.default_rng((self.seed, index)) for index in range(count)]

    def draw(self, scores: Array, random: np.random.Generator) -> int:
        """A token.

        Args:
            scores: of all tokens, [vocabulary]: logits or log-probabilities.
            random: decides.
        """
        tokens = np.arange(len(scores))
        if self.top_k is not None and self.top_k < len(scores):
            tokens = np.flatnonzero(scores >= np.partition(scores, -self.top_k)[-self.top_k])
            tokens = tokens[_likeliest_first(scores[tokens])[: self.top_k]]
        distance = scores[tokens].astype(np.float64)
        distance -= distance.max()
        with np.errstate(over="ignore"):  # minus infinity is what a tiny temperature makes of all others
            likely = np.exp(log_softmax(distance / self.temperature))
        if self.top_p is not None:
            # All that are rarer than this have together less than is left over: most need no sorting.
            common = np.flatnonzero(likely >= (1 - self.top_p) / len(likely))
            common = common[_likeliest_first(likely[common])]
            before = np.cumsum(likely[common]) - likely[common]
            common = common[before < self.top_p]
            tokens, likely = tokens[common], likely[common]
        return int(random.choice(tokens, p=likely / likely.sum()))


def _likeliest_first(scores: Array) -> Array:
    """Their order; of equals the one with the smaller number first."""
    return np.argsort(-scores, kind="stable")


def log_softmax(scores: Array) -> Array:
    """Over the last axis, in float64; log-probabilities stay as they are."""
    scores = scores.astype(np.float64)
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))

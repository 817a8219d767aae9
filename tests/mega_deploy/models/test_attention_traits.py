"""What is said of each attention function holds of its formula."""

import pytest
import torch

from mega_deploy.config.attention import L1_LAPLACE, SOFTMAX, TRAITS
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.models.paper.activation import ELEMENTWISE
from mega_deploy.models.paper.attention import attention_weights

QUERIES, KEYS, WIDTH = 3, 7, 4
EVERY = pytest.mark.parametrize("function", list(TRAITS))


def scored(function, shift=0.0, keys=KEYS, scale=1.0):
    """Weights [QUERIES, keys] of random queries, of which the first keys and their biases are always the same."""
    generator = torch.Generator().manual_seed(3)
    q, k, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((QUERIES, WIDTH), (KEYS, WIDTH), (QUERIES, KEYS))
    )
    return attention_weights(function, scale * q, k[:keys], bias[:, :keys] + shift, None, causal=False)


@EVERY
def test_the_weights_of_a_normalised_function_alone_sum_to_one(function):
    sums = scored(function).sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums)) == TRAITS[function].normalised


@EVERY
def test_a_number_added_to_all_scores_changes_nothing_of_a_shift_invariant_function_alone(function):
    assert torch.allclose(scored(function), scored(function, shift=0.3)) == TRAITS[function].shift_invariant


@EVERY
def test_a_weight_depends_on_its_own_key_and_the_number_of_keys_unless_the_function_is_normalised(function):
    traits, fewer = TRAITS[function], KEYS - 2
    scale = fewer / KEYS if traits.divides_by_keys else 1.0
    alike = torch.allclose(scored(function)[:, :fewer], scored(function, keys=fewer, scale=scale))
    assert alike == (not traits.normalised)


def test_every_function_that_is_not_normalised_has_a_formula():
    assert set(ELEMENTWISE) == {name for name, traits in TRAITS.items() if not traits.normalised}


@pytest.mark.parametrize(("laplace", "traits"), [(False, SOFTMAX), (True, L1_LAPLACE)])
def test_edifice_has_the_traits_of_its_function(laplace, traits):
    assert EdificeConfig(embed_dim=4, laplace_attention=laplace).attention_traits is traits

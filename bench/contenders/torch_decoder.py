"""What one would write in PyTorch to decode with the paper's Mega: averages, keys and values kept between tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mega_deploy.models.paper import MegaEncoder, MegaHuggingFace, MegaLanguageModel, MegaTranslation
from mega_deploy.models.paper.activation import ACTIVATIONS, ELEMENTWISE
from mega_deploy.models.paper.attention import GatedAttention, GatedCrossAttention, attention_weights
from mega_deploy.models.paper.encoder import MegaLayer

if TYPE_CHECKING:
    from mega_deploy.exporters.paper.stream.stream_io import StreamModel

Inputs = Mapping[str, Tensor]


class CachedDecoder:
    """A trained model, a token a call.

    Args:
        model: bare layers, fairseq's language model or translation, or Hugging Face's decoder, in eval mode.
        length: steps that a sequence can have where nothing else ends it.
        source: what is read of it, by name; empty for a model that reads none.
    """

    def __init__(self, model: StreamModel, length: int, source: Inputs) -> None:
        self.model = model
        stack = model.encoder if isinstance(model, MegaEncoder | MegaHuggingFace) else model.decoder
        self.final_norm, memory, attention_mask = stack.final_norm, None, None
        if isinstance(model, MegaTranslation):
            memory, attention_mask = model.encode(source["src_tokens"])
        elif source:
            memory, attention_mask = source["encoder_hidden_states"], source["encoder_attention_mask"] != 0
        self.layers = [_CachedLayer(cast(MegaLayer, layer), length, memory, attention_mask) for layer in stack.layers]

    def reset(self) -> None:
        """Begin a new sequence with the same source."""
        for layer in self.layers:
            layer.reset()

    def step(self, inputs: Inputs) -> dict[str, Tensor]:
        """[batch] by name -> the outputs of the next token, [batch, ...] by name."""
        x, attention_mask = self._first({name: value[:, None] for name, value in inputs.items()})
        for layer in self.layers:
            x = layer.step(x, attention_mask)
        return {name: value[:, 0] for name, value in self._outputs(self.final_norm(x), attention_mask).items()}

    def _first(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The first layer's input [batch, 1, D], and whether it is no padding [batch, 1]."""
        model: Any = self.model
        if isinstance(model, MegaEncoder):
            x, attention_mask = inputs["frames"], torch.ones(inputs["frames"].shape[:2], dtype=torch.bool)
        elif isinstance(model, MegaLanguageModel):
            x, attention_mask = model.embedding(inputs["tokens"], model.table)
        elif isinstance(model, MegaTranslation):
            x, attention_mask = model.target_embedding(inputs["prev_output_tokens"], model.target_table)
        else:
            x, attention_mask = model.words(inputs["input_ids"]), inputs["attention_mask"] != 0
            if model.token_types is not None:
                x = x + model.token_types(inputs["token_type_ids"])
        return x, attention_mask

    def _outputs(self, x: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        model: Any = self.model
        if isinstance(model, MegaEncoder):
            return {"features": x}
        if isinstance(model, MegaHuggingFace):
            return model.headed(x, x.shape[:2])
        table = model.target_table if isinstance(model, MegaTranslation) else model.table
        return {
            "log_probs" if model.config.output.cutoffs else "logits": model.output(x * attention_mask[..., None], table)
        }


class _CachedLayer:
    def __init__(self, layer: MegaLayer, length: int, memory: Tensor | None, attention_mask: Tensor | None) -> None:
        self.attention, self.cross, self.ffn = layer.attention, layer.cross_attention, layer.ffn
        self.window = layer.attention.config.chunk_size or length
        self.bias = layer.attention.position(self.window, self.window)
        ema = layer.attention.ema
        p = torch.sigmoid(ema.delta)
        self.decay, self.gain = 1 - p * torch.sigmoid(ema.alpha), p * ema.beta
        self.readout = ema.gamma * ema.gamma.shape[1] ** -0.5
        self.memory_mask = attention_mask
        if self.cross is not None and memory is not None:
            self.memory_keys = self.cross.k_proj(memory)
            self.memory_values = ACTIVATIONS[self.cross.config.activation](self.cross.v_proj(memory))
            self.cross_bias = self.cross.position(length, memory.shape[1])
        self.reset()

    def reset(self) -> None:
        self.average: Tensor | float = 0.0
        self.cache: tuple[Tensor, ...] = ()
        self.steps = 0

    def step(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """x: [batch, 1, D] -> the same."""
        x = self._attend(self.attention, x, attention_mask)
        if self.cross is not None:
            x = self._read(self.cross, x)
        self.steps += 1
        return x if self.ffn is None else self.ffn(x)

    def _attend(self, layer: GatedAttention, x: Tensor, attention_mask: Tensor) -> Tensor:
        config, act = layer.config, ACTIVATIONS[layer.config.activation]
        n = layer.norm(x) if config.prenorm else x
        self.average = self.decay * self.average + self.gain * (n * attention_mask[..., None])[:, 0, :, None]
        m = F.silu((self.average * self.readout).sum(-1)[:, None] + layer.ema.omega * n)
        u, z, r, hx = layer.mx_proj(m).split((config.embed_dim, config.z_dim, config.hidden_dim, config.embed_dim), -1)
        q, k = (F.silu(z)[:, :, None] * layer.qk_weight + layer.qk_bias).unbind(2)
        new = (k, act(layer.v_proj(n)), attention_mask)
        self.cache = new if self.steps % self.window == 0 else tuple(map(_joined, self.cache, new))
        keys, values, kept = self.cache
        count = keys.shape[1]
        bias = self.bias[count - 1 : count, :count]
        if config.attention_traits.normalised:
            weights = attention_weights(config.attention, q, keys, bias, kept, causal=False)
        else:
            weights = ELEMENTWISE[config.attention](q @ keys.transpose(1, 2) / count + bias) * kept[:, None]
        h = act(hx + layer.h_proj(F.silu(r) * (weights @ values)))
        out = x + torch.sigmoid(u) * (h - x)
        return out if config.prenorm else layer.norm(out)

    def _read(self, layer: GatedCrossAttention, x: Tensor) -> Tensor:
        config, act = layer.config, ACTIVATIONS[layer.config.activation]
        n = layer.norm(x) if config.prenorm else x
        u, r, q = layer.q_proj(n).split((config.embed_dim, config.embed_dim, config.z_dim), -1)
        bias = self.cross_bias[self.steps : self.steps + 1]
        weights = attention_weights(config.attention, q, self.memory_keys, bias, self.memory_mask, causal=False)
        out = x + torch.sigmoid(u) * (act(layer.h_proj(F.silu(r) * (weights @ self.memory_values))) - x)
        return out if config.prenorm else layer.norm(out)


def _joined(old: Tensor, new: Tensor) -> Tensor:
    return torch.cat([old, new], 1)

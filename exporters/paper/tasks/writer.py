"""The graph of a model of the paper's family: inputs, embedding, layers, and what the task makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from onnxscript import ir
from torch import nn

from mega_deploy.config.paper_signature import pads_to_chunks
from mega_deploy.errors import OptionError
from mega_deploy.exporters.ema.kernel import FLOAT32_HALF_ULP
from mega_deploy.exporters.ema.lowering import choose
from mega_deploy.exporters.graph import Graph, Length
from mega_deploy.exporters.linear import check_trained
from mega_deploy.exporters.paper.embedding import TokenEmbedding, hugging_face_words, nonzero, padded, values
from mega_deploy.exporters.paper.fold import fold_stack
from mega_deploy.exporters.paper.layer import LayerWriter
from mega_deploy.exporters.paper.padding import check_padding
from mega_deploy.exporters.paper.sequence import Memory, WholeSequence
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.exporters.paper.tasks.classifier import classified, in_one_batch
from mega_deploy.exporters.paper.tasks.heads import computed_row, headed, scores
from mega_deploy.exporters.window_graph import LONGEST, MegaGraph
from mega_deploy.models.paper import (
    MegaClassifier,
    MegaEncoder,
    MegaHuggingFace,
    MegaLanguageModel,
    MegaStack,
    MegaTranslation,
    PaperModel,
)
from mega_deploy.models.paper.embedding import Embedding, ValueEmbedding
from mega_deploy.models.paper.output import AdaptiveSoftmax, Output
from mega_deploy.signature import SEQUENCE_AXES, Range, Signature, TensorSpec, largest, usual

DTYPES = {"int64": ir.DataType.INT64, "float32": None}


def paper_graph(
    model: PaperModel,
    signature: Signature,
    *,
    ema: str = "auto",
    dtype: ir.DataType = ir.DataType.FLOAT,
    cut: float = FLOAT32_HALF_ULP,
) -> MegaGraph:
    """Write the graph of a model for the lengths and batches of a signature.

    Args:
        model: trained, in eval mode; it stays as it is.
        signature: of its bundle.
        ema: how the moving averages are lowered (exporters.ema.lowering.choose).
        dtype: of real inputs, constants and arithmetic.
        cut: share of a kernel's L1 norm that may be cut off its tail (exporters.ema.kernel.lower_to_kernel).

    Raises:
        OptionError: the model is in training mode, a sequence is too long, or there is no such lowering.
        InputError: a weight is NaN or infinite, or exceeds the dtype.
    """
    check_trained(model)
    check_padding(model, largest(signature.dim(*SEQUENCE_AXES)))
    return Task(model, signature, ema, dtype, cut).write()


@dataclass(frozen=True)
class _Words:
    """An embedding of tokens in the trained form."""

    embedding: Embedding
    table: nn.Module
    scope: str = "embedding"
    """Name of the embedding."""
    name: str = "table"
    """Name of the table."""
    shared: bool = False
    """Whether another embedding, or an output, reads the table as well."""


class Task:
    """Writes one model, or what its cross attention reads; the arguments are those of `paper_graph`."""

    def __init__(
        self,
        model: PaperModel,
        signature: Signature,
        ema: str = "auto",
        dtype: ir.DataType = ir.DataType.FLOAT,
        cut: float = FLOAT32_HALF_ULP,
    ) -> None:
        self.model, self.signature = model, signature
        self.graph = Graph("mega", dtype)
        self.op = self.graph.op
        self.inputs = {spec.name: self._input(spec) for spec in signature.inputs}
        self.seq_len = signature.dim(*SEQUENCE_AXES)
        stacks = {name: module for name, module in model.named_children() if isinstance(module, MegaStack)}
        pads = pads_to_chunks(model.config)
        self.longest = {
            name: padded(largest(self.seq_len), stack.config.chunk_size if pads else None)
            for name, stack in stacks.items()
        }
        """Steps of each stack's longest sequence, padding up to whole chunks included."""
        for name, stack in stacks.items():
            if (chunk := min(self.longest[name], stack.config.chunk_size or self.longest[name])) > LONGEST:
                raise OptionError(
                    f"attention over {chunk} steps is beyond the {LONGEST} that this version's graphs take"
                )
        reach = max(self.longest.values())
        folded = {name: fold_stack(stack, self.longest[name]) for name, stack in stacks.items()}
        averages = [layer.attention.ema for stack in folded.values() for layer in stack.layers]
        self.lowering = choose(ema, averages, reach, cut)
        lowered = iter(self.lowering.blocks)
        self.averages = {name: [next(lowered) for _ in stack.layers] for name, stack in folded.items()}
        """The lowered moving averages of each stack's layers."""
        self.first_only = computed_row(model.config) is not None
        self.writers = {name: LayerWriter(self.graph, stack, name) for name, stack in folded.items()}

    def write(self) -> MegaGraph:
        """The finished graph."""
        match self.model:
            case MegaEncoder():
                self._encoder(self.model)
            case MegaClassifier():
                self._classifier(self.model)
            case MegaLanguageModel():
                self._language_model(self.model)
            case MegaTranslation():
                self._translation(self.model)
            case MegaHuggingFace():
                self._hugging_face(self.model)
        blocks = [name for writer in self.writers.values() for name in writer.block_outputs]
        return MegaGraph(self.graph.model(), self.lowering, tuple(blocks))

    def _input(self, spec: TensorSpec) -> ir.Value:
        return self.graph.input(spec.name, _shape(spec), DTYPES[spec.dtype])

    def _output(self, name: str, value: ir.Value) -> None:
        spec = next(spec for spec in self.signature.outputs if spec.name == name)
        self.graph.output(value, name, _shape(spec))

    def _length(self, x: ir.Value) -> Length:
        """How long an input [rows, steps, ...] is: a number, or the vector [rows, steps]."""
        return self.op.Shape(x, start=0, end=2) if isinstance(self.seq_len, Range) else self.seq_len

    def _layout(self, stack: str, length: Length, attention_mask: ir.Value | None) -> SequenceLayout:
        chunk_size = self.writers[stack].config.chunk_size
        return SequenceLayout(self.graph, length, self.longest[stack], chunk_size, attention_mask)

    def _layers(self, stack: str, x: ir.Value, layout: SequenceLayout, memory: Memory | None = None) -> ir.Value:
        """All layers of a stack over whole sequences: [rows * steps, D] -> the same, or the first steps' [rows, D]."""
        writer = self.writers[stack]
        context = WholeSequence(
            config=writer.config,
            lowered=self.averages[stack],
            layout=layout,
            memory=memory,
            first_only=self.first_only,
        )
        return writer.write(x, context)

    def _encoder(self, model: MegaEncoder) -> None:
        frames, dim = self.inputs["frames"], model.config.embed_dim
        length = self._length(frames)
        x = self._layers("encoder", self.graph.rows(frames, dim), self._layout("encoder", length, None))
        self._output("features", self.graph.windows(x, length, dim))

    def _embedded(self, stack: str, tokens: ir.Value, of: _Words) -> tuple[ir.Value, SequenceLayout]:
        """Tokens as the first layer's input, and their steps, padded to whole chunks."""
        config = self.writers[stack].config
        words = TokenEmbedding(
            self.graph, of.embedding, of.table, scope=of.scope, name=of.name, dim=config.embed_dim, shared=of.shared
        )
        tokens, length = words.pad(tokens, self.seq_len, config.chunk_size)
        layout = self._layout(stack, length, words.attention_mask(tokens))
        return words.write(tokens, layout), layout

    def _classifier(self, model: MegaClassifier) -> None:
        op, graph, config = self.op, self.graph, model.config
        dim = config.encoder.embed_dim
        # Both documents of a pair are rows of one batch.
        documents = ("src", "src1")[: 1 + config.pair]
        given = [self.inputs[f"{document}_tokens"] for document in documents]
        lengths = [self.inputs[f"{document}_lengths"] for document in documents]
        tokens = in_one_batch(graph, given, config.embedding.pad) if config.pair else given[0]
        lengths_of_rows = op.Concat(*lengths, axis=0) if config.pair else lengths[0]
        if isinstance(model.table, ValueEmbedding):
            x = values(graph, tokens, model.table, model.embedding, dim)
            layout = self._layout("encoder", self._length(tokens), None)
        else:
            x, layout = self._embedded("encoder", tokens, _Words(model.embedding, model.table))
        x = self._layers("encoder", x, layout)
        if config.pooling == "first":
            kept = layout.kept()
            x = x if kept is None else op.Mul(x, layout.first(kept, 1))
        else:
            x = op.Div(layout.total(x, dim), op.Unsqueeze(op.Cast(lengths_of_rows, to=graph.dtype), [1]))
        self._output("logits", classified(graph, model, x))

    def _language_model(self, model: MegaLanguageModel) -> None:
        words = _Words(model.embedding, model.table, shared=model.config.output.tied)
        x, layout = self._embedded("decoder", self.inputs["tokens"], words)
        x = self._layers("decoder", x, layout)
        self._scores(x, layout, self.inputs["tokens"], model.output, words)

    def memory(self) -> Memory:
        """What cross attention reads, of a model that has it; only the inputs that this is made of need be there."""
        if isinstance(self.model, MegaTranslation):
            return self._encoded(self.model)
        assert isinstance(self.model, MegaHuggingFace)
        states, graph = self.inputs["encoder_hidden_states"], self.graph
        attention_mask = nonzero(self.graph, self.inputs["encoder_attention_mask"])
        reached = SequenceLayout(graph, self._length(states), largest(self.seq_len), None, attention_mask)
        return Memory(graph.rows(states, self.model.config.encoder.embed_dim), reached)

    def _encoded(self, model: MegaTranslation) -> Memory:
        """The source behind the encoder."""
        shared, table = model.source_table is None, model.source_table or model.target_table
        source = _Words(
            model.source_embedding,
            table,
            "source_embedding",
            "target_table" if shared else "source_table",
            shared=shared,
        )
        x, layout = self._embedded("encoder", self.inputs["src_tokens"], source)
        x = layout.masked(self._layers("encoder", x, layout))
        length = self._length(self.inputs["src_tokens"])
        return Memory(*layout.cut(x, model.config.encoder.embed_dim, length, largest(self.seq_len)))

    def _translation(self, model: MegaTranslation) -> None:
        target = _Words(
            model.target_embedding,
            model.target_table,
            "target_embedding",
            "target_table",
            shared=model.config.shared or model.config.output.tied,
        )
        memory = self.memory()
        y, layout = self._embedded("decoder", self.inputs["prev_output_tokens"], target)
        y = self._layers("decoder", y, layout, memory)
        self._scores(y, layout, self.inputs["prev_output_tokens"], model.output, target)

    def _scores(
        self, x: ir.Value, layout: SequenceLayout, tokens: ir.Value, output: Output | AdaptiveSoftmax, words: _Words
    ) -> None:
        """Scores of the steps that were given."""
        length, dim = self._length(tokens), self.writers["decoder"].config.embed_dim
        x, _ = layout.cut(layout.masked(x), dim, length, largest(self.seq_len))
        spec = self.signature.outputs[0]
        found = scores(self.graph, x, output, words.table, words.name)
        self._output(spec.name, self.graph.windows(found, length, usual(spec.dims[-1])))

    def _hugging_face(self, model: MegaHuggingFace) -> None:
        graph = self.graph
        rows = {name: self._flat(value) for name, value in self.inputs.items()}
        ids = rows["input_ids"]
        layout = self._layout("encoder", self._length(ids), nonzero(graph, rows["attention_mask"]))
        memory = self.memory() if model.config.encoder.cross_positions is not None else None
        x = self._layers("encoder", hugging_face_words(graph, model, rows), layout, memory)
        for name, value in headed(graph, model, x, layout, self.inputs["input_ids"]).items():
            self._output(name, value)

    def _flat(self, x: ir.Value) -> ir.Value:
        """Choices as rows: [batch, choices, steps] -> [batch * choices, steps]."""
        if self.signature.inputs[0].axes[1] != "choices":
            return x
        op = self.op
        last = op.Shape(x, start=2) if isinstance(self.seq_len, Range) else self.graph.sizes(self.seq_len)
        return op.Reshape(x, op.Concat(self.graph.sizes(-1), last, axis=0))


def _shape(spec: TensorSpec) -> list[int | str]:
    return [axis if isinstance(dim, Range) else dim for axis, dim in zip(spec.axes, spec.dims, strict=True)]

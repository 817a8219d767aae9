"""The graphs of the paper's models are the trained form, in float64, whatever the options, lengths and padding."""

import math

import hypothesis.strategies as st
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from onnxscript import ir
from paper_graphs import evaluated, float64_graph, trained
from random_models import randomised
from strategies import relative_l2

from mega_deploy.config.attention import TRAITS
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import (
    ClassifierConfig,
    EmbeddingConfig,
    HuggingFaceConfig,
    LanguageModelConfig,
    OutputConfig,
    TranslationConfig,
)
from mega_deploy.errors import InputError, OptionError
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.graph import Graph
from mega_deploy.exporters.paper import chunks
from mega_deploy.exporters.paper.sequence_layout import SequenceLayout
from mega_deploy.models.paper import MegaEncoder
from mega_deploy.signature import Range

WORDS, PAD, MOST = 11, 1, 12
# The largest errors of 1,000 examples: 4e-11, of layer norms, whose epsilon is a float32 attribute; and 3e-7 where
# there are error functions, for Gelu's root of 2 and the Laplace function's constants are float32 as well.
TOLERANCE, OF_ERROR_FUNCTIONS = 1e-9, 2e-6


@st.composite
def stacks(draw, **fixed):
    """Options of a small stack."""
    bidirectional = draw(st.booleans())
    options = {
        "embed_dim": draw(st.sampled_from([4, 6])),
        "z_dim": 4,
        "hidden_dim": 5,
        "ffn_dim": draw(st.sampled_from([None, 7])),
        "ema_dim": draw(st.integers(1, 3)),
        "num_layers": draw(st.integers(1, 2)),
        "attention": draw(st.sampled_from(list(TRAITS))),
        "position": draw(st.sampled_from(["simple", "rotary"])),
        "norm": draw(st.sampled_from(["layernorm", "scalenorm", "rmsnorm", "batchnorm", "scaling"])),
        "prenorm": draw(st.booleans()),
        "bidirectional": bidirectional,
        "causal": draw(st.sampled_from([None, False, True])),
        "chunk_size": draw(st.sampled_from([None, 3, 4])),
        "truncation": draw(st.sampled_from([None, 1, 5])),
        "max_positions": 2 * MOST,
        "activation": draw(st.sampled_from(["silu", "relu", "gelu", "gelu_accurate", "tanh", "linear"])),
    }
    return MegaConfig(**{**options, **fixed})


def tokens(random, length, padding):
    """[3, length], with padding nowhere, on the right, on the left, or anywhere and everywhere."""
    words = np.delete(np.arange(WORDS), PAD)
    found = random.choice(words, (3, length))
    ends, steps = random.integers(1, length + 1, (3, 1)), np.arange(length)
    if padding == "anywhere":
        keep = random.random(found.shape) < 0.5
        keep[0] = False
    else:
        keep = {"none": steps >= 0, "right": steps < ends, "left": steps[::-1] < ends}[padding]
    return np.where(keep, found, PAD)


PADDING = st.sampled_from(["none", "right", "left", "anywhere"])
SEEDS = st.integers(0, 2**32 - 1)


def agree(model, length, feeds, ema):
    graph = float64_graph(model, length, ema)
    got, want = evaluated(graph, feeds), trained(model, feeds)
    assert got.keys() == want.keys()
    tolerance = OF_ERROR_FUNCTIONS if {"Gelu", "Erf"} & {node.op_type for node in graph.graph.node} else TOLERANCE
    for name, value in want.items():
        assert relative_l2(got[name], value) <= tolerance


@settings(max_examples=25, deadline=None)
@given(stacks(), SEEDS, st.integers(1, 3), st.booleans(), st.sampled_from(["kernel", "blocked"]))
def test_an_encoder(config, seed, chunks, dynamic, ema):
    model, random = randomised(config, seed), np.random.default_rng(seed)
    length = chunks * (config.chunk_size or 3)
    served = Range(1, length, length if config.chunk_size else MOST)
    dynamic = dynamic and (config.chunk_size is None or chunks == 1)
    agree(model, served if dynamic else length, {"frames": random.standard_normal((2, length, config.embed_dim))}, ema)


@settings(max_examples=25, deadline=None)
@given(stacks(), SEEDS, st.integers(1, 9), PADDING, st.booleans(), st.sampled_from(["mean", "first"]), st.booleans())
def test_a_classifier(config, seed, length, padding, dynamic, pooling, pair):
    embedding = EmbeddingConfig(vocab_size=WORDS, dim=config.embed_dim, norm=True, pad=PAD)
    task = ClassifierConfig(encoder=config, embedding=embedding, classes=3, pooling=pooling, pair=pair, widths=(6,))
    model, random = randomised(task, seed), np.random.default_rng(seed)
    feeds = {}
    for document in ("src", "src1")[: 1 + pair]:
        steps = int(random.integers(1, MOST + 1)) if dynamic and document == "src1" else length
        found = tokens(random, steps, padding)
        feeds |= {f"{document}_tokens": found, f"{document}_lengths": np.maximum((found != PAD).sum(1), 1)}
    agree(model, Range(1, length, MOST) if dynamic else length, feeds, "kernel")


@settings(max_examples=15, deadline=None)
@given(
    stacks(),
    SEEDS,
    st.integers(1, 9),
    PADDING,
    st.booleans(),
    st.sampled_from([(), (3, 7)]),
    st.booleans(),
    st.booleans(),
)
def test_a_language_model(config, seed, length, padding, dynamic, cutoffs, tied, tied_projections):
    dim = config.embed_dim
    embedding = EmbeddingConfig(
        vocab_size=WORDS, dim=dim, cutoffs=cutoffs, factor=2, scaled=True, norm=not tied, pad=PAD
    )
    output = OutputConfig(
        tied=tied, cutoffs=cutoffs, factor=2, tied_projections=bool(cutoffs and tied and tied_projections)
    )
    model = randomised(LanguageModelConfig(decoder=config, embedding=embedding, output=output), seed)
    feeds = {"tokens": tokens(np.random.default_rng(seed), length, padding)}
    agree(model, Range(1, length, MOST) if dynamic else length, feeds, "kernel")


@settings(max_examples=20, deadline=None)
@given(stacks(), SEEDS, st.integers(4, 11), PADDING, st.sampled_from([2, 3]), st.booleans(), st.booleans())
def test_attention_over_some_queries_at_a_time(config, seed, length, padding, rows, causal_tokens, dynamic):
    embedding = EmbeddingConfig(vocab_size=WORDS, dim=config.embed_dim, pad=PAD)
    if causal_tokens:
        task = LanguageModelConfig(decoder=config, embedding=embedding, output=OutputConfig())
    else:
        task = ClassifierConfig(encoder=config, embedding=embedding, classes=3)
    found = tokens(np.random.default_rng(seed), length, padding)
    lengths = np.maximum((found != PAD).sum(1), 1)
    feeds = {"tokens": found} if causal_tokens else {"src_tokens": found, "src_lengths": lengths}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "ROWS", rows)
        patch.setattr(chunks, "PART_ROWS", rows)
        agree(randomised(task, seed), Range(1, length, MOST) if dynamic else length, feeds, "kernel")


@pytest.mark.parametrize("length", [5000, Range(1, 5000, 5000)])
def test_the_mean_of_thousands_of_like_steps_loses_no_digits(length):
    graph = Graph("mean")
    x = graph.input("x", ["batch", 5000, 3] if isinstance(length, int) else ["batch", "seq_len", 3])
    steps = SequenceLayout(
        graph, length if isinstance(length, int) else graph.op.Shape(x, start=0, end=2), 5000, None, None
    )
    graph.output(steps.total(graph.rows(x, 3), 3), "total", ["batch", 3])
    session = onnxruntime.InferenceSession(ir.to_proto(graph.model()).SerializeToString())
    for count in (5000,) if isinstance(length, int) else (1, 63, 64, 65, 5000):
        given = np.full((2, count, 3), [0.1, 0.7, 1.3], np.float32)
        want = given.astype(np.float64).sum(1)
        np.testing.assert_allclose(session.run(None, {"x": given})[0], want, rtol=1e-6)


@pytest.mark.parametrize(("kind", "causal"), [("softmax", False), ("softmax", True), ("laplace", False)])
def test_a_long_chunk_of_a_range_has_the_scores_of_an_eighth_of_its_queries_at_once(kind, causal):
    length, dim = chunks.MOST_PARTS * chunks.PART_ROWS, 4
    config = MegaConfig(
        embed_dim=dim,
        z_dim=4,
        hidden_dim=4,
        ffn_dim=4,
        ema_dim=1,
        num_layers=1,
        max_positions=length,
        causal=causal,
        attention=kind,
    )
    model = MegaEncoder(config).eval()
    graph = family_of(model).graph(family_of(model).signature(1, Range(1, 60, length)), "kernel", ir.DataType.FLOAT)
    proto = ir.to_proto(graph.model)
    gathers = [
        node.output[0] for node in proto.graph.node if node.op_type == "Gather" and node.input[0].endswith("bias")
    ]
    assert len(gathers) == chunks.MOST_PARTS
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in gathers)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for steps in (1, 9, 1000):
        _, *biases = session.run(None, {session.get_inputs()[0].name: np.zeros((1, steps, dim), np.float32)})
        assert {len(bias) for bias in biases} == {-(-steps // chunks.MOST_PARTS)}


@pytest.mark.parametrize("causal", [False, True])
def test_a_long_chunk_never_has_all_its_scores_or_biases_at_once(causal, tmp_path):
    length, dim = 2 * chunks.ROWS + 100, 4
    config = MegaConfig(
        embed_dim=dim, z_dim=4, hidden_dim=4, ffn_dim=4, ema_dim=1, num_layers=2, max_positions=length, causal=causal
    )
    model = MegaEncoder(config).eval()
    graph = family_of(model).graph(family_of(model).signature(Range(1, 1, 4), length), "kernel", ir.DataType.FLOAT)
    onnx.shape_inference.infer_shapes(ir.to_proto(graph.model), check_type=True, strict_mode=True, data_prop=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(ir.to_proto(graph.model).SerializeToString(), options)
    optimised = onnx.load(tmp_path / "optimised.onnx")
    # The band of biases is as wide as all its parts side by side.
    assert max(math.prod(tensor.dims) for tensor in optimised.graph.initializer) < 2 * length * chunks.ROWS
    softmax = [node for node in optimised.graph.node if node.op_type == "Softmax"]
    assert len(softmax) == 2 * 3


@settings(max_examples=15, deadline=None)
@given(stacks(), st.data(), SEEDS, st.integers(1, 9), st.integers(1, 9), PADDING, st.booleans())
def test_a_translation(encoder, data, seed, source, target, padding, shared):
    dim = encoder.embed_dim
    decoder = data.draw(stacks(embed_dim=dim, bidirectional=False, causal=None, cross_positions=2 * MOST))
    embedding = EmbeddingConfig(vocab_size=WORDS, dim=dim, scaled=True, pad=PAD)
    config = TranslationConfig(
        encoder=encoder,
        decoder=decoder,
        source=embedding,
        target=embedding,
        output=OutputConfig(tied=shared),
        shared=shared,
    )
    model, random = randomised(config, seed), np.random.default_rng(seed)
    feeds = {
        "src_tokens": tokens(random, source, padding),
        "src_lengths": np.full(3, source),
        "prev_output_tokens": tokens(random, target, "right"),
    }
    agree(model, Range(1, 5, MOST), feeds, "kernel")


HEADS = [
    "model",
    "causal_lm",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "multiple_choice",
]


@settings(max_examples=15, deadline=None)
@given(stacks(chunk_size=None), SEEDS, st.integers(1, 9), PADDING, st.booleans(), st.sampled_from(HEADS))
def test_a_class_of_hugging_face(config, seed, length, padding, dynamic, head):
    task = HuggingFaceConfig(encoder=config, vocab_size=WORDS, head=head, token_types=2, pooler=head == "model")
    model, random = randomised(task, seed), np.random.default_rng(seed)
    ids = tokens(random, length, padding)
    shape = (3, 1, length) if head == "multiple_choice" else ids.shape
    feeds = {
        "input_ids": ids.reshape(shape),
        "attention_mask": (ids != PAD).astype(np.int64).reshape(shape),
        "token_type_ids": random.integers(0, 2, shape),
    }
    agree(model, Range(1, length, MOST) if dynamic else length, feeds, "kernel")


SMALL = MegaConfig(embed_dim=4, z_dim=4, hidden_dim=5, ffn_dim=7, ema_dim=2, num_layers=1, max_positions=8)


def test_a_length_without_a_position_is_refused():
    with pytest.raises(OptionError, match="at most 8"):
        family_of(randomised(SMALL, 0)).signature(Range(1, 1, 4), 9)


def test_a_model_in_training_mode_and_one_that_diverged_are_refused():
    model = randomised(SMALL, 0)
    family = family_of(model)
    signature = family.signature(Range(1, 1, 4), 8)
    model.encoder.layers[0].attention.train()
    with pytest.raises(OptionError, match=r"eval\(\)"):
        family.graph(signature, "auto", ir.DataType.FLOAT)
    model.eval().encoder.layers[0].ffn.fc1.bias.data[2] = float("nan")
    with pytest.raises(InputError, match=r"encoder\.layers\.0\.ffn\.fc1\.bias"):
        family.graph(signature, "auto", ir.DataType.FLOAT)

"""Graphs of fairseq's checkpoints and of Hugging Face's give the outputs of fairseq and of Hugging Face."""

import pytest
from paper_goldens import CLASSIFIERS, HUGGING_FACE, LANGUAGE_MODELS, TRANSLATIONS, close
from paper_graphs import served

from mega_deploy.checkpoints import load_checkpoint
from mega_deploy.config.paper_signature import longest, pads_to_chunks, stacks
from mega_deploy.signature import Range


def lengths(model, *found):
    """The length that the inputs have, and a range around it where the model takes one."""
    usual = max(found)
    most = min(longest(model.config) or usual + 9, usual + 9)
    whole = any(stack.chunk_size for stack in stacks(model.config)) and not pads_to_chunks(model.config)
    return ([usual] if len(set(found)) == 1 else []) + ([] if whole else [Range(1, usual, most)])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_of_fairseq(name):
    case = CLASSIFIERS[name]
    model = load_checkpoint(case.checkpoint)
    for length in lengths(model, *(x.shape[1] for key, x in case.inputs.items() if key.endswith("_tokens"))):
        close(served(model, length, case.inputs)["logits"], case.outputs["logits"])


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_of_fairseq(name):
    case = LANGUAGE_MODELS[name]
    model = load_checkpoint(case.checkpoint)
    adaptive = bool(model.config.output.cutoffs)
    compared = 0
    for kind in [kind for kind in case.inputs if kind.startswith("tokens_")]:
        want = case.outputs.get(f"log_probs_{kind}" if adaptive else f"out_{kind}")
        for length in [] if want is None else lengths(model, case.inputs[kind].shape[1]):
            got = served(model, length, {"tokens": case.inputs[kind]})
            close(got["log_probs" if adaptive else "logits"], want)
            compared += 1
    assert compared


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", TRANSLATIONS)
def test_a_translation_of_fairseq(name, side):
    case = TRANSLATIONS[name]
    model = load_checkpoint(case.checkpoint)
    feeds = {key: case.inputs[key] for key in ("src_lengths", "prev_output_tokens")}
    feeds["src_tokens"] = case.inputs[f"src_tokens_{side}"]
    got = served(model, Range(1, 15, 34), feeds)
    close(got["logits"], case.outputs[f"tf_logits_{side}"])


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_class_of_hugging_face(name):
    case = HUGGING_FACE[name]
    model = load_checkpoint(case.checkpoint)
    memory = case.inputs.get("encoder_hidden_states", case.inputs["input_ids"])
    found = lengths(
        model,
        case.inputs["input_ids"].shape[-1],
        memory.shape[-2 if memory.ndim == 3 and "encoder_hidden_states" in case.inputs else -1],
    )
    for length in found:
        got = served(model, length, case.inputs)
        for output, value in got.items():
            close(value, case.outputs.get(f"nocache_{output}", case.outputs.get(output)))

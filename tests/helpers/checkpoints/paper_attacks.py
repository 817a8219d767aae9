"""Checkpoints of the paper's Mega that a stranger might send: each is a good one with a single thing wrong."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints.attacks import Payload, saved
from paper_goldens import DATA
from safetensors.torch import load_file, save_file

from mega_deploy.checkpoints.sources.native import config_header
from mega_deploy.models.paper import MegaConfig, MegaEncoder

Builder = Callable[[], bytes]
Folder = Callable[[Path], None]
GONE = object()
EMBEDDING, SCALE = "encoder.encoder.embed_tokens.embed.weight", "encoder.encoder.layers.0.mega_layer.gamma"


def fairseq(case: str = "model_lra_listops_mp") -> dict[str, Any]:
    """A good checkpoint, unpickled."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: dict[str, Any] = torch.load(DATA / "fairseq" / case / "checkpoint.pt", weights_only=True)
    return content


def with_args(case: str = "model_lra_listops_mp", **changes: Any) -> Builder:
    """Arguments replaced, or left out (GONE)."""

    def build() -> bytes:
        content = fairseq(case)
        args = {name: value for name, value in {**vars(content["args"]), **changes}.items() if value is not GONE}
        return saved({**content, "args": argparse.Namespace(**args)})

    return build


def with_weights(case: str = "model_lra_listops_mp", **changes: Any) -> Builder:
    """Weights replaced, added, or left out (GONE); "__" in a name stands for "."."""

    def build() -> bytes:
        content = fairseq(case)
        weights = {**content["model"], **{name.replace("__", "."): value for name, value in changes.items()}}
        return saved({**content, "model": {name: value for name, value in weights.items() if value is not GONE}})

    return build


def dotted(name: str) -> str:
    return name.replace(".", "__")


def native(**changes: Any) -> Builder:
    """A native .pt file of a small encoder with options replaced in its header, or with another architecture."""

    def build() -> bytes:
        model = MegaEncoder(MegaConfig(8, 4, 12, 16, 2, 1))
        header = config_header(model.config)
        if "architecture" in changes or "config" in changes:
            header |= changes
        else:
            header["config"] |= changes
        return saved({"mega-deploy": header, "state_dict": model.state_dict()})

    return build


def one_storage() -> bytes:
    """Every weight of a giant model, each a view of one number."""
    content = fairseq()
    giant = {name: torch.zeros(1).expand([1 << 14] * value.ndim) for name, value in content["model"].items()}
    return saved({**content, "model": giant})


FILES: dict[str, Builder] = {
    "fairseq: code in the arguments": with_args(x=Payload()),
    "fairseq: code beside the weights": lambda: saved({**fairseq(), "task_state": Payload()}),
    "fairseq: arguments of another class": lambda: saved({**fairseq(), "args": torch.nn.Linear(2, 2)}),
    "fairseq: arguments are a dict": lambda: saved({**fairseq(), "args": {"arch": "mega_lra_listop"}}),
    "fairseq: no weights": lambda: saved({**fairseq(), "model": {}}),
    "fairseq: weights are a list": lambda: saved({**fairseq(), "model": [torch.zeros(2)]}),
    "fairseq: weights are missing": lambda: saved({"args": fairseq()["args"]}),
    "fairseq: views of one number": one_storage,
    "fairseq: no z_dim": with_args(z_dim=GONE),
    "fairseq: z_dim is a word": with_args(z_dim="16"),
    "fairseq: z_dim is True": with_args(z_dim=True),
    "fairseq: z_dim is a tensor": with_args(z_dim=torch.zeros(1)),
    "fairseq: z_dim of 2,000 bits": with_args(z_dim=1 << 2000),
    "fairseq: z_dim of another size": with_args(z_dim=18),
    "fairseq: n_dim is negative": with_args(n_dim=-6),
    "fairseq: dropout of 2,000 bits": with_args(dropout=1 << 2000),
    "fairseq: dropout is not a number": with_args(dropout=float("nan")),
    "fairseq: a million layers": with_args(encoder_layers=1 << 20),
    "fairseq: one layer too few": with_args(encoder_layers=1),
    "fairseq: a thousand million layers of the classifier": with_args(classifier_layers=10**9),
    "fairseq: an unknown attention": with_args(attention_activation_fn="exec"),
    "fairseq: an unknown norm": with_args(norm_type="__import__"),
    "fairseq: an unknown bias": with_args(rel_pos_bias=["simple"]),
    "fairseq: another layer type": with_args(layer_type="lstm"),
    "fairseq: truncation of 0": with_args(truncation_length=0),
    "fairseq: chunks of 0": with_args(chunk_size=0),
    "fairseq: no attention of a classifier": with_args(attention_activation_fn=GONE),
    "fairseq: max_positions beyond the table": with_args(max_positions=61),
    "fairseq: cutoffs are words": with_args("model_lm_wiki103_adaptive", adaptive_input_cutoff="a,b"),
    "fairseq: cutoffs of 2,000 bits": with_args("model_lm_wiki103_adaptive", adaptive_input_cutoff=[1 << 2000, "x"]),
    "fairseq: cutoffs fall": with_args("model_lm_wiki103_adaptive", adaptive_input_cutoff="30,12"),
    "fairseq: cutoffs without end": with_args(
        "model_lm_wiki103_adaptive", adaptive_input_cutoff=list(range(1, 100_000))
    ),
    "fairseq: NaN": with_weights(**{dotted(SCALE): torch.full((2, 16), float("nan"))}),
    "fairseq: integers as weights": with_weights(**{dotted(SCALE): torch.ones(2, 16, dtype=torch.int64)}),
    "fairseq: missing tensor": with_weights(**{dotted(SCALE): GONE}),
    "fairseq: unknown tensor": with_weights(encoder__encoder__layers__0__mega_layer__extra=torch.ones(2)),
    "fairseq: transposed tensor": with_weights(**{dotted(SCALE): torch.ones(16, 2)}),
    "fairseq: embedding of one axis": with_weights(**{dotted(EMBEDDING): torch.ones(38)}),
    "fairseq: one weight under two names": with_weights(encoder__encoder__embed_tokens__weight=torch.ones(38, 24)),
    "fairseq: tied weights differ": with_weights(
        "model_lm_enwik8", decoder__output_projection__weight=torch.ones(53, 24)
    ),
    "fairseq: a transformer": lambda: saved({**fairseq(), "model": {"decoder.embed_tokens.weight": torch.ones(4, 4)}}),
    "fairseq: weights alone": lambda: saved(fairseq()["model"]),
    "native paper: unknown architecture": native(architecture="mega-oracle"),
    "native paper: architecture is a list": native(architecture=["mega-encoder"]),
    "native paper: config is a list": native(config=[1]),
    "native paper: config of another architecture": native(architecture="mega-classifier"),
    "native paper: an option too many": native(code="import os"),
    "native paper: a million layers": native(num_layers=1 << 20),
    "native paper: option of 2,000 bits": native(z_dim=1 << 2000),
    "native paper: attention of 2,000 bits": native(attention=1 << 2000),
    "native paper: another size": native(z_dim=6),
    "native paper: a giant table": native(max_positions=1 << 20),
    "native paper: endless widths": native(
        architecture="mega-classifier",
        config={
            "encoder": MegaConfig(8, 4, 12, 16, 2, 1).to_dict(),
            "embedding": {"vocab_size": None, "dim": 8},
            "classes": 2,
            "widths": [8] * 200_000,
        },
    ),
}


def good_folder(path: Path, case: str = "model_relu2_simple") -> dict[str, Any]:
    """Copies a good folder; its options."""
    path.mkdir()
    source = DATA / "huggingface" / case
    (path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    options: dict[str, Any] = json.loads((source / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(options))
    return options


def with_options(case: str = "model_relu2_simple", **changes: Any) -> Folder:
    def build(path: Path) -> None:
        options = {**good_folder(path, case), **changes}
        kept = {name: value for name, value in options.items() if value is not GONE}
        (path / "config.json").write_text(json.dumps(kept))

    return build


def with_text(text: str) -> Folder:
    def build(path: Path) -> None:
        good_folder(path)
        (path / "config.json").write_text(text)

    return build


def with_tensors(**changes: Any) -> Folder:
    def build(path: Path) -> None:
        good_folder(path)
        weights = {**load_file(path / "model.safetensors"), **{n.replace("__", "."): v for n, v in changes.items()}}
        save_file({name: value for name, value in weights.items() if value is not GONE}, path / "model.safetensors")

    return build


def with_weights_file(name: str, content: Builder) -> Folder:
    """The folder with another weights file."""

    def build(path: Path) -> None:
        good_folder(path)
        (path / "model.safetensors").unlink()
        (path / name).write_bytes(content())

    return build


def cut(path: Path) -> None:
    good_folder(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def in_shards(
    change: Callable[[dict[str, str]], Any] = lambda places: None, case: str = "model_relu2_simple", text: str = ""
) -> Folder:
    """The folder with its weights in two files; `change` spoils the index's map, `text` replaces the index."""

    def build(path: Path) -> None:
        good_folder(path, case)
        weights = load_file(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        names = sorted(weights)
        places = {name: SHARDS[index >= len(names) // 3] for index, name in enumerate(names)}
        for shard in SHARDS:
            save_file({name: weights[name] for name in names if places[name] == shard}, path / shard)
        change(places)
        (path / INDEX).write_text(text or json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))

    return build


def without_a_shard(path: Path) -> None:
    in_shards()(path)
    (path / SHARDS[1]).unlink()


def with_a_cut_shard(path: Path) -> None:
    in_shards()(path)
    (path / SHARDS[1]).write_bytes((path / SHARDS[1]).read_bytes()[:-1])


def with_a_pipe_for_a_shard(path: Path) -> None:
    without_a_shard(path)
    os.mkfifo(path / SHARDS[1])


def with_a_shard_outside(path: Path) -> None:
    in_shards(lambda places: places.update(dict.fromkeys(places, f"../{SHARDS[0]}")))(path)
    (path.parent / SHARDS[0]).write_bytes((path / SHARDS[0]).read_bytes())


FIRST = "embedding_layer.word_embeddings.weight"
FOLDERS: dict[str, Folder] = {
    "shards: one is missing": without_a_shard,
    "shards: one is cut": with_a_cut_shard,
    "shards: one is a pipe": with_a_pipe_for_a_shard,
    "shards: one lies outside": with_a_shard_outside,
    "shards: an absolute path": in_shards(lambda places: places.update({FIRST: "/etc/passwd.safetensors"})),
    "shards: a Windows path": in_shards(lambda places: places.update({FIRST: "..\\x.safetensors"})),
    "shards: a name with a zero byte": in_shards(lambda places: places.update({FIRST: "x\0.safetensors"})),
    "shards: a name that is too long": in_shards(lambda places: places.update({FIRST: "x" * 5000 + ".safetensors"})),
    "shards: a shard with code": in_shards(lambda places: places.update({FIRST: "pytorch_model-00001-of-00002.bin"})),
    "shards: a shard is a number": in_shards(lambda places: places.update({FIRST: 1})),
    "shards: a tensor is in none": in_shards(lambda places: places.update(beyond=SHARDS[0])),
    "shards: a tensor is in another": in_shards(lambda places: places.update({min(places): SHARDS[1]})),
    "shards: a tensor is not in the index": in_shards(lambda places: places.pop(min(places))),
    "shards: no index but a list": in_shards(text="[1]"),
    "shards: an index of nothing": in_shards(text='{"weight_map": {}}'),
    "shards: an index that is deep": in_shards(text='{"a":' * 100_000),
    "shards: an index that names a tensor twice": in_shards(text='{"weight_map": {"a": "b", "a": "c"}}'),
    "shards: an index of 17 mebibytes": in_shards(text='{"a": "' + "x" * (17 << 20) + '"}'),
    "empty": Path.mkdir,
    "config.json is empty": with_text(""),
    "config.json is a list": with_text("[1]"),
    "config.json is deep": with_text('{"a":' * 100_000),
    "config.json is a number of 100,000 digits": with_text('{"hidden_size": ' + "9" * 100_000 + "}"),
    "config.json of two mebibytes": with_text('{"a": "' + "x" * (2 << 20) + '"}'),
    "another model type": with_options(model_type="bert"),
    "no architectures": with_options(architectures=GONE),
    "an unknown class": with_options(architectures=["MegaForEverything"]),
    "two classes": with_options(architectures=["MegaModel", "MegaForMaskedLM"]),
    "class is a number": with_options(architectures=[1]),
    "another class": with_options(architectures=["MegaForMaskedLM"]),
    "hidden_size is a word": with_options(hidden_size="24"),
    "hidden_size is infinite": with_options(hidden_size=float("inf")),
    "hidden_size of another size": with_options(hidden_size=26),
    "a million layers": with_options(num_hidden_layers=1 << 20),
    "an unknown attention": with_options(attention_activation="linear"),
    "an unknown norm": with_options(normalization_type={"a": 1}),
    "chunks of no size": with_options(use_chunking=True, chunk_size=-1),
    "chunk_size is a word": with_options(chunk_size="8"),
    "chunk_size of 0": with_options(chunk_size=0),
    "is_decoder is a word": with_options(is_decoder="no"),
    "a table shorter than max_positions": with_options(max_positions=41),
    "no weights": with_weights_file("other.bin", lambda: b""),
    "weights with code": with_weights_file("pytorch_model.bin", lambda: saved({"x": Payload()})),
    "weights are text": with_weights_file("model.safetensors", lambda: b"none"),
    "weights are empty": with_weights_file("model.safetensors", lambda: b""),
    "weights are cut": cut,
    "missing tensor": with_tensors(layers__0__nffn__fc1__bias=GONE),
    "unknown tensor": with_tensors(layers__0__nffn__fc3__bias=torch.ones(2)),
    "NaN": with_tensors(layers__0__nffn__fc1__bias=torch.full((56,), float("nan"))),
    "one weight under two names": with_tensors(mega__layers__0__nffn__fc1__bias=torch.ones(56)),
}

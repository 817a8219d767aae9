"""A Hugging Face folder whose weights lie in several safetensors files, with an index that tells which is where."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers.safetensors import MAX_FILE_BYTES, read_bytes, read_safetensors, unique
from mega_deploy.checkpoints.sources.paper_names import own_name
from mega_deploy.errors import CheckpointError

INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 16 << 20


def read_sharded(folder: Path) -> tuple[dict[str, Array], str, int]:
    """Tensors by name, the SHA-256 of the index and the shards behind it in the order of their names, and their bytes.

    Args:
        folder: that holds INDEX: {"weight_map": {tensor: shard}}, where a shard is a file beside it.

    Raises:
        CheckpointError: the index is damaged or leads out of the folder, a shard is missing or damaged, or they hold
            something else than the index tells.
        MissingComponentError: safetensors is not installed.
    """
    try:
        index = read_bytes(folder / INDEX, MAX_INDEX_BYTES)
    except CheckpointError as error:
        raise CheckpointError(f"its {INDEX} {error}") from None
    digest, size = hashlib.sha256(index), len(index)
    tensors: dict[str, Array] = {}
    for shard, told in sorted(_shards(index).items()):
        try:
            data = read_bytes(folder / shard, MAX_FILE_BYTES - size)
            held = read_safetensors(data)[0]
        except CheckpointError as error:
            raise CheckpointError(f"its shard {shard}: {error}") from None
        if absent := sorted(told - held.keys()):
            raise CheckpointError(f"its {INDEX} says that {shard} holds {absent[0]}, which is not there; copy it again")
        if more := sorted(held.keys() - told):
            raise CheckpointError(f"its shard {shard} holds {more[0]}, which its {INDEX} does not say; copy it again")
        digest.update(data)
        size += len(data)
        tensors |= held
    return tensors, digest.hexdigest(), size


def _shards(index: bytes) -> dict[str, set[str]]:
    """The tensors of each shard, without those that carry no weight."""
    try:
        content = json.loads(index, object_pairs_hook=unique)
    except CheckpointError as error:  # a ValueError, too
        raise CheckpointError(f"its {INDEX}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its {INDEX} is no JSON ({error}); copy the folder again") from None
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"its {INDEX} has no weight_map, which tells the file of each tensor")
    shards: dict[str, set[str]] = defaultdict(set)
    for tensor, shard in places.items():
        if not isinstance(shard, str) or not _is_beside(shard):
            raise CheckpointError(
                f"its {INDEX} puts {tensor} into {shard!r:.100}, expected the name of a .safetensors file beside it"
            )
        if own_name(tensor) is not None:
            shards[shard].add(tensor)
    return shards


def _is_beside(name: str) -> bool:
    """Whether a name is of a safetensors file in the same folder, on any system."""
    return (
        name.endswith(".safetensors")
        and name.isprintable()
        and PurePosixPath(name).name == name == PureWindowsPath(name).name
    )

"""Arrays in several safetensors files, with an index that tells which is where."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers.bounded import MAX_FILE_BYTES, parse_json, read_bytes
from mega_deploy.checkpoints.containers.safetensors import read_safetensors
from mega_deploy.errors import CheckpointError

INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 8 << 20
MAX_SHARDS = 1000


def read_sharded(folder: Path) -> tuple[dict[str, Array], str, int]:
    """Arrays by name, the SHA-256 of the index and the shards behind it in the order of their names, and their bytes.

    Args:
        folder: that holds INDEX: {"weight_map": {array: shard}}, where a shard is a file beside it.

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
    arrays: dict[str, Array] = {}
    for shard, named in sorted(_shards(index).items()):
        try:
            data = read_bytes(folder / shard, MAX_FILE_BYTES - size)
            held = read_safetensors(data)[0]
        except CheckpointError as error:
            raise CheckpointError(f"its shard {shard}: {error}") from None
        if absent := sorted(named - held.keys()):
            raise CheckpointError(f"its {INDEX} says that {shard} holds {absent[0]}, which is not there; copy it again")
        if more := sorted(held.keys() - named):
            raise CheckpointError(f"its shard {shard} holds {more[0]}, which its {INDEX} does not say; copy it again")
        digest.update(data)
        size += len(data)
        arrays |= held
    return arrays, digest.hexdigest(), size


def _shards(index: bytes) -> dict[str, set[str]]:
    """The names of each shard's arrays."""
    content = parse_json(index, f"its {INDEX}")
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"its {INDEX} has no weight_map, which tells the file of each tensor")
    shards: dict[str, set[str]] = defaultdict(set)
    for name, shard in places.items():
        if not isinstance(shard, str) or not _is_beside(shard):
            raise CheckpointError(
                f"its {INDEX} puts {name} into {shard!r:.100}, expected the name of a .safetensors file beside it"
            )
        shards[shard].add(name)
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"its {INDEX} names {len(shards)} files, more than the {MAX_SHARDS} that are read")
    return shards


def _is_beside(name: str) -> bool:
    """Whether a name is of a safetensors file in the same folder, on any system."""
    return (
        name.endswith(".safetensors")
        and name.isprintable()
        and PurePosixPath(name).name == name == PureWindowsPath(name).name
    )

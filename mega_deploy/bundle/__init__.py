"""A bundle: the folder that holds a deployed model and everything needed to trust it.

manifest.json names every other file with its SHA-256 and size. A bundle appears whole under its name or not at all, and
nothing in it is executed when it is opened.
"""

from mega_deploy.bundle.manifest import (
    ENCODE,
    FORMAT_VERSION,
    MANIFEST,
    MODEL,
    PARITY,
    PREFILL,
    REFERENCE,
    STEP,
    STREAM_PARITY,
    STREAM_REFERENCE,
    TRAINED,
    Manifest,
)
from mega_deploy.bundle.opening import MAX_MANIFEST_BYTES, Bundle, stream_signature
from mega_deploy.bundle.reading import ChangedError, GraphFile, Loadable, OpenGraph
from mega_deploy.bundle.staging import (
    FolderKind,
    add_engines,
    check_target,
    describe_files,
    read_marker,
    refuse_within_bundle,
    write_json,
    writing,
)

__all__ = [
    "ENCODE",
    "FORMAT_VERSION",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "MODEL",
    "PARITY",
    "PREFILL",
    "REFERENCE",
    "STEP",
    "STREAM_PARITY",
    "STREAM_REFERENCE",
    "TRAINED",
    "Bundle",
    "ChangedError",
    "FolderKind",
    "GraphFile",
    "Loadable",
    "Manifest",
    "OpenGraph",
    "add_engines",
    "check_target",
    "describe_files",
    "read_marker",
    "refuse_within_bundle",
    "stream_signature",
    "write_json",
    "writing",
]

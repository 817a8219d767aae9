"""Files that a stranger might send: each is a good one with a single thing wrong, and each must be refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import torch
from checkpoints import files
from checkpoints.files import CONTAINER, Atom

Builder = Callable[[], bytes]
GAMMA, KERNEL, ALPHA = "final_norm.gamma", "mega_block_1_gattn_q.kernel", "mega_block_1_ema.mega_block_1_ema_alpha"
MARKER = "MEGA_DEPLOY_ATTACK_MARKER"


class Payload:
    """Creates the file that the environment variable names, if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"import os, pathlib; pathlib.Path(os.environ[{MARKER!r}]).touch()",))


def with_term(raw: bytes) -> Builder:
    """A .nx file whose container is this external term."""
    return lambda: files.nx(files.nx_body(b"\x83" + raw, b"\0" * 64))


def with_metadata(raw: bytes) -> Builder:
    """A good .nx file with this external term as metadata."""
    return lambda: files.nx_file(files.weights(), metadata=b"\x83" + raw)


def with_spec(**changes: Any) -> Builder:
    return lambda: files.nx_file(files.weights(), metadata=files.spec(**changes))


def with_layout(name: str, offset: int, size: int) -> Builder:
    return lambda: files.nx_file(files.weights(), {name: (offset, size)})


def with_tensors(**changes: files.Entry | None) -> Builder:
    """A safetensors file with tensors added, replaced or (None) left out; "__" in a name stands for "."."""

    def build() -> bytes:
        tensors: dict[str, Any] = {**files.weights(), **{k.replace("__", "."): v for k, v in changes.items()}}
        return files.safetensors({name: entry for name, entry in tensors.items() if entry is not None})

    return build


def renamed(old: str, new: str) -> Builder:
    def build() -> bytes:
        return files.safetensors({name.replace(old, new): entry for name, entry in files.weights().items()})

    return build


def cut(case: str, name: str, count: int) -> Builder:
    """The first bytes of a good file, or all but the last ones."""
    return lambda: files.golden(case, name)[:count]


def header(text: str, body: bytes = b"") -> Builder:
    return lambda: files.raw_safetensors(text.encode(), body)


def native(config: Any, **changes: Any) -> Builder:
    """A native .pt file of the one-layer model with this config in its header."""

    def build() -> bytes:
        content = {"mega-deploy": {"architecture": "edifice", "config": config}, "state_dict": state(), **changes}
        return saved(content)

    return build


def state() -> dict[str, torch.Tensor]:
    from mega_deploy.models.edifice import Mega

    return dict(Mega.build(embed_dim=12, hidden_size=16, ema_dim=4, num_layers=1).state_dict())


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def rezipped(
    change: Callable[[str, bytes], bytes] = lambda name, raw: raw,
    *,
    method: int = zipfile.ZIP_STORED,
    extra: dict[str, bytes] | None = None,
) -> bytes:
    """A good state dict with its archive written anew, entry by entry."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(state()))) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, raw in (extra or {}).items():
            new.writestr(name, raw)
    return buffer.getvalue()


def with_pickle(raw: bytes) -> Builder:
    return lambda: rezipped(lambda name, old: raw if name.endswith("data.pkl") else old)


def zlib_bomb() -> bytes:
    """256 MiB of zeros in 256 KiB, for a tensor that the container's term declares to be that large."""
    shape = [1 << 13, 1 << 13]
    leaf = (Atom("t"), tuple(shape), (Atom("f"), 32), [None, None], [], 0, 4 << 26)
    container = (CONTAINER, [(b"final_norm", (CONTAINER, [(b"gamma", leaf)], Atom("ok")))], Atom("ok"))
    return files.nx(files.nx_body(container, b"\0" * (4 << 26)), compressed=True)


def endless_zlib() -> bytes:
    """A good body that goes on with 256 MiB of zeros."""
    return files.nx(uncompressed_body() + b"\0" * (256 << 20), compressed=True)


def uncompressed_body() -> bytes:
    return files.nx_file(files.weights())[5:]


def zlib_without_checksum() -> bytes:
    return files.nx(uncompressed_body(), compressed=True)[:-2]


def zlib_wrong_checksum() -> bytes:
    data = files.nx(uncompressed_body(), compressed=True)
    return data[:-1] + bytes([data[-1] ^ 1])


def duplicate_in_header() -> bytes:
    good = files.safetensors(files.weights())
    size = int.from_bytes(good[:8], "little")
    text, body = good[8 : 8 + size].decode(), good[8 + size :]
    entry = json.dumps(json.loads(text)[GAMMA])
    return files.raw_safetensors(f'{{"{GAMMA}": {entry}, {text[1:]}'.encode(), body)


def duplicate_layer() -> bytes:
    tensors = files.weights()
    terms = files.tensor_terms(tensors)
    buffers = b"".join(raw for _, _, raw in tensors.values())
    offset = len(buffers)
    leaf = (Atom("t"), (16,), (Atom("f"), 32), [None], [], offset, 64)
    terms.append((b"final_norm", (CONTAINER, [(b"gamma", leaf)], Atom("ok"))))
    return files.nx(files.nx_body((CONTAINER, terms, Atom("ok")), buffers + b"\0" * 64))


def vectorized() -> bytes:
    leaf = (Atom("t"), (4,), (Atom("f"), 32), [None], [(Atom("x"), 2)], 0, 32)
    return files.nx(files.nx_body((CONTAINER, [(b"a", leaf)], Atom("ok")), b"\0" * 32))


def expanded_tensor() -> bytes:
    """Every tensor of a giant model, each a view of one number: a few KiB that ask for 40 GiB."""
    tensors = {}
    for name, tensor in state().items():
        giant = [{16: 1 << 15, 48: 87392}.get(size, size) for size in tensor.shape]
        tensors[name] = torch.zeros(1).expand(giant)
    return saved(tensors)


def deep_key() -> bytes:
    """A dictionary's key of a million nested tuples, whose hash would exhaust the C stack."""
    return with_pickle(b"\x80\x02}" + b"N" + b"\x85" * 1_000_000 + b"Ns.")()


ATTACKS: dict[str, Builder] = {
    "empty file": lambda: b"",
    "one byte": lambda: b"\0",
    "text": lambda: b"this is not a checkpoint\n" * 10,
    # Erlang's external term format
    "etf: deep tuples": with_term(b"h\x01" * 100_000 + b"j"),
    "etf: deep lists in metadata": with_metadata(b"l\0\0\0\x01" * 100_000 + b"j" * 100_001),
    "etf: deep list tails": with_metadata(b"l\0\0\0\x01a\0" * 10_000 + b"j"),
    "etf: deep maps": with_metadata(b"t\0\0\0\x01a\0" * 10_000 + b"j"),
    "etf: giant large tuple": with_term(b"i\xff\xff\xff\xff"),
    "etf: giant small tuple": with_term(b"h\xff"),
    "etf: giant list": with_term(b"l\xff\xff\xff\xff"),
    "etf: giant map": with_metadata(b"t\xff\xff\xff\xff"),
    "etf: giant binary": with_metadata(b"m\xff\xff\xff\xff"),
    "etf: giant string": with_metadata(b"k\xff\xff"),
    "etf: giant atom": with_metadata(b"v\xff\xffx"),
    "etf: giant small atom": with_metadata(b"w\xffx"),
    "etf: giant old atom": with_metadata(b"d\xff\xffx"),
    "etf: giant bignum": with_metadata(b"o\xff\xff\xff\xff\0\x01"),
    "etf: bignum of a mebibyte": with_metadata(b"o\0\x10\0\0\0" + b"\xff" * (1 << 20)),
    "etf: truncated float": with_metadata(b"F\0\0"),
    "etf: truncated integer": with_metadata(b"b\0"),
    "etf: two million terms": with_metadata(b"l" + struct.pack(">I", 2_000_000) + b"j" * 2_000_001),
    "etf: improper list": with_metadata(b"l\0\0\0\x01a\0a\0"),
    "etf: atom that is not UTF-8": with_metadata(b"w\x02\xff\xfe"),
    "etf: function": with_metadata(b"p\0\0\0\x10" + b"\0" * 12),
    "etf: exported function": with_metadata(b"qw\x02osw\x03cmda\x01"),
    "etf: compressed term": with_metadata(b"P\0\0\0\x10" + zlib.compress(b"j")),
    "etf: nothing behind the version": with_metadata(b""),
    "etf: data behind the term": with_metadata(b"jj"),
    "etf: a list as a map's key": with_metadata(b"t\0\0\0\x01jj"),
    "etf: a map's key twice": with_metadata(b"t\0\0\0\x02a\x01ja\x01j"),
    # the .nx container
    "nx: flag only": cut("trained_loop", "params.nx", 1),
    "nx: cut in the metadata's size": cut("trained_loop", "params.nx", 3),
    "nx: cut in the metadata": cut("trained_loop", "params.nx", 100),
    "nx: cut behind the metadata": cut("trained_loop", "params.nx", 203),
    "nx: cut behind nx": cut("trained_loop", "params.nx", 205),
    "nx: cut in the term's size": cut("trained_loop", "params.nx", 210),
    "nx: cut in the term": cut("trained_loop", "params.nx", 300),
    "nx: cut in the buffers": cut("trained_loop", "params.nx", -1),
    "nx: compressed, cut in the stream": cut("softmax_small", "params_compressed.nx", 200_000),
    "nx: compressed, cut in the checksum": zlib_without_checksum,
    "nx: compressed, wrong checksum": zlib_wrong_checksum,
    "nx: compressed, data behind the stream": lambda: files.nx(uncompressed_body(), compressed=True) + b"more",
    "nx: data behind the buffers": lambda: files.nx_file(files.weights()) + b"more",
    "nx: zlib bomb that the term declares": zlib_bomb,
    "nx: zlib bomb behind the buffers": endless_zlib,
    "nx: version 2": lambda: files.nx(files.nx_body(b"\x83j", b"", version=2)),
    "nx: endianness 2": lambda: files.nx(files.nx_body(b"\x83j", b"", endianness=2)),
    "nx: giant term": lambda: files.nx(b"nx\x01\0" + b"\xff" * 8 + b"\x83j"),
    "nx: giant metadata": lambda: b"\0\xff\xff\xff\xff\x83t\0\0\0\0nx",
    "nx: container is a number": with_term(b"a\x01"),
    "nx: container without layers": with_term(files.term((CONTAINER, [], Atom("ok")))),
    "nx: layer without a name": with_term(files.term((CONTAINER, [1], Atom("ok")))),
    "nx: negative offset": with_layout(GAMMA, -64, 64),
    "nx: overlapping": with_layout(GAMMA, 0, 64),
    "nx: offset out of range": with_layout(GAMMA, 1 << 62, 64),
    "nx: offset of 8,000 bits": with_layout(GAMMA, 1 << 8000, 64),
    "nx: negative size": with_layout(GAMMA, 64, -64),
    "nx: size that is not the shape's": with_layout(GAMMA, 64, 60),
    "nx: huge dimension": lambda: files.nx_file({**files.weights(), GAMMA: ("F32", [1 << 39], b"\0" * 64)}),
    "nx: negative dimension": lambda: files.nx_file({**files.weights(), GAMMA: ("F32", [-4, -4], b"\0" * 64)}),
    "nx: zero dimension": lambda: files.nx_file({**files.weights(), GAMMA: ("F32", [0], b"")}),
    "nx: integers as weights": lambda: files.nx_file({**files.weights(), GAMMA: ("I32", [16], b"\0" * 64)}),
    "nx: unsigned integers as weights": lambda: files.nx_file({**files.weights(), GAMMA: ("U32", [16], b"\0" * 64)}),
    "nx: layer twice": duplicate_layer,
    "nx: vectorized axes": vectorized,
    "nx: NaN": lambda: files.nx_file(files.poisoned(KERNEL, float("nan"))),
    # the spec
    "spec: another architecture": with_spec(arch=Atom("mamba")),
    "spec: another hidden_size": with_spec(hidden_size=32),
    "spec: another num_layers": with_spec(num_layers=2),
    "spec: aliases disagree": with_spec(obs_size=13),
    "spec: dropout of 2": with_spec(dropout=2.0),
    "spec: dropout of 8,000 bits": with_spec(dropout=1 << 8000),
    "spec: window_size of 8,000 bits": with_spec(window_size=1 << 8000),
    "spec: negative window_size": with_spec(window_size=-1),
    "spec: laplace_attention is an atom": with_spec(laplace_attention=Atom("maybe")),
    "spec: no keyword list": lambda: files.nx_file(
        files.weights(), metadata={b"__edifice_spec__": {Atom("arch"): Atom("mega"), Atom("build_opts"): 1}}
    ),
    "spec: a list": lambda: files.nx_file(files.weights(), metadata={b"__edifice_spec__": [1]}),
    # safetensors
    "safetensors: cut in the header": cut("trained_loop", "params.safetensors", 100),
    "safetensors: cut behind the header": lambda: files.golden()[: 8 + int.from_bytes(files.golden()[:8], "little")],
    "safetensors: cut in the data": cut("trained_loop", "params.safetensors", -1),
    "safetensors: data behind the last tensor": lambda: files.golden() + b"more",
    "safetensors: giant header": lambda: b"\xff" * 7 + b"\x7f" + b"{" + b" " * 64,
    "safetensors: header is a list": lambda: files.raw_safetensors(b'{"a": [1]}'),
    "safetensors: deep header": header('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "safetensors: header without end": header("{" + '"a": {' * 50_000),
    "safetensors: no tensors": header("{}"),
    "safetensors: name twice": duplicate_in_header,
    "safetensors: overlapping": header(
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
        ' "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
        b"\0" * 12,
    ),
    "safetensors: offsets backwards": header(
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}', b"\0" * 8
    ),
    "safetensors: negative offset": header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', b"\0" * 4),
    "safetensors: shape that overflows": header(
        json.dumps({"a": {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 4]}}), b"\0" * 4
    ),
    "safetensors: unknown dtype": header('{"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 4),
    "safetensors: boolean weights": with_tensors(final_norm__gamma=("BOOL", [16], b"\0" * 16)),
    "safetensors: integer weights": with_tensors(final_norm__gamma=("I64", [16], b"\0" * 128)),
    "safetensors: metadata config of digits": lambda: files.safetensors(
        files.weights(), {"mega-deploy": '{"architecture": "edifice", "config": ' + "9" * 100_000 + "}"}
    ),
    "safetensors: metadata config is deep": lambda: files.safetensors(files.weights(), {"mega-deploy": "[" * 100_000}),
    # the tensors of an Edifice Mega
    "edifice: NaN": lambda: files.safetensors(files.poisoned(KERNEL, float("nan"))),
    "edifice: infinite": lambda: files.safetensors(files.poisoned(KERNEL, float("-inf"))),
    "edifice: float64 beyond float32": with_tensors(
        final_norm__gamma=("F64", [16], struct.pack("<16d", *[1e300] * 16))
    ),
    "edifice: missing norm": with_tensors(final_norm__gamma=None),
    "edifice: missing bias": with_tensors(mega_block_1_ffn_up__bias=None),
    "edifice: unknown tensor": with_tensors(mega_block_1_extra__kernel=("F32", [1], b"\0" * 4)),
    "edifice: random state of another shape": with_tensors(mega_block_1_ema_drop__key=("U32", [4], b"\0" * 16)),
    "edifice: random state of another layer": with_tensors(mega_block_1_other__key=("U32", [2], b"\0" * 8)),
    "edifice: transposed kernel": with_tensors(input_projection__kernel=("F32", [16, 12], b"\0" * 768)),
    "edifice: another inner size": with_tensors(
        mega_block_1_ffn_up__kernel=("F32", [16, 40], b"\0" * 2560),
        mega_block_1_ffn_up__bias=("F32", [40], b"\0" * 160),
    ),
    "edifice: zero features": with_tensors(input_projection__kernel=("F32", [0, 16], b"")),
    "edifice: zero channels": with_tensors(**{ALPHA.replace(".", "__"): ("F32", [0], b"")}),
    "edifice: scalar norm": with_tensors(final_norm__gamma=("F32", [], b"\0" * 4)),
    "edifice: projection between equal sizes": with_tensors(input_projection__kernel=("F32", [16, 16], b"\0" * 1024)),
    "edifice: blocks from 2": renamed("mega_block_1", "mega_block_2"),
    "edifice: block of 5,000 digits": renamed("mega_block_1", "mega_block_" + "9" * 5000),
    "edifice: name of a mebibyte with newlines": with_tensors(**{"mega_block_1_\n" * 80_000: ("F32", [1], b"\0" * 4)}),
    # pickles, and the zip archives of torch.save
    "pickle: bare, with code": lambda: pickle.dumps(Payload()),
    "pickle: bare, protocol 0, with code": lambda: pickle.dumps(Payload(), 0),
    "pickle: torch's old format, with code": lambda: pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(Payload()),
    "pt: code": lambda: saved({"state_dict": state(), "payload": Payload()}),
    "pt: code in the state dict": lambda: saved({**state(), "x": Payload()}),
    "pt: a whole module": lambda: saved(torch.nn.Linear(2, 2)),
    "pt: not a dict": lambda: saved([torch.zeros(2)]),
    "pt: an empty dict": lambda: saved({}),
    "pt: numbers for names": lambda: saved({1: torch.zeros(2)}),
    "pt: compressed entries": lambda: rezipped(method=zipfile.ZIP_DEFLATED),
    "pt: zip bomb": lambda: rezipped(
        lambda name, raw: b"\0" * (128 << 20) if name.endswith("data/0") else raw, method=zipfile.ZIP_DEFLATED
    ),
    "pt: cut": lambda: saved(state())[:-10],
    "pt: cut in the first entry": lambda: saved(state())[:100],
    "pt: no pickle": with_pickle(b""),
    "pt: pickle of noise": with_pickle(bytes(range(256))),
    "pt: giant string in the pickle": with_pickle(b"\x80\x02X\xff\xff\xff\x7f."),
    "pt: deep key": deep_key,
    "pt: TorchScript": lambda: rezipped(extra={"archive/constants.pkl": b"\x80\x02).", "archive/code/x.py": b"1/0"}),
    "pt: storage shorter than its tensor": lambda: rezipped(lambda n, raw: raw[:4] if n.endswith("data/0") else raw),
    "pt: views of one number": expanded_tensor,
    "pt: sparse": lambda: saved({**state(), "final_norm.weight": torch.eye(16)[0].to_sparse()}),
    "pt: complex": lambda: saved({**state(), "final_norm.weight": torch.zeros(16, dtype=torch.complex64)}),
    "pt: float8": lambda: saved({**state(), "final_norm.weight": torch.zeros(16).to(torch.float8_e4m3fn)}),
    "pt: integers": lambda: saved({**state(), "final_norm.weight": torch.zeros(16, dtype=torch.int64)}),
    "pt: no memory behind it": lambda: saved({**state(), "final_norm.weight": torch.zeros(16, device="meta")}),
    "pt: NaN": lambda: saved({**state(), "final_norm.weight": torch.full((16,), float("nan"))}),
    "pt: missing tensor": lambda: saved({k: v for k, v in state().items() if k != "final_norm.bias"}),
    "native: config is a list": native([1, 2]),
    "native: config of integers": native({1: 2}),
    "native: config contradicts the tensors": native({"embed_dim": 13, "hidden_size": 16, "ema_dim": 4}),
    "native: option of 100,000 bits": native({"embed_dim": 1 << 100_000}),
    "native: dropout of 100,000 bits": native({"embed_dim": 12, "dropout": 1 << 100_000}),
    "native: unknown option": native({"embed_dim": 12, "code": "import os"}),
    "native: header is a number": native({}, **{"mega-deploy": 7}),
}


def arm(path: os.PathLike[str]) -> None:
    """Where a payload would leave its mark."""
    os.environ[MARKER] = os.fspath(path)

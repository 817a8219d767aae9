"""Small files that ask for much: memory, time, or an endless text. Each must be refused soon, in little memory."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from checkpoints import attacks, files
from checkpoints.attacks import saved, state
from checkpoints.files import CONTAINER, Atom
from checkpoints.paper_attacks import INDEX, SHARDS, Folder, good_folder, in_shards, with_text

Builder = Callable[[], bytes]


def pickled(raw: bytes, **entries: bytes) -> Builder:
    """An archive of torch.save's with this pickle and these entries; "__" in a name stands for "/"."""

    def build() -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", raw)
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/version", "3\n")
            for name, content in entries.items():
                archive.writestr("archive/" + name.replace("__", "/"), content)
        return buffer.getvalue()

    return build


def called(name: bytes, arguments: bytes) -> bytes:
    """A pickle of one call: module and name with a newline between them, and the operations of its arguments."""
    return b"\x80\x02c" + name + b"\n" + arguments + b"R."


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def tensor(storage_count: int, offset: int, shape: bytes, strides: bytes, kind: bytes = b"FloatStorage") -> bytes:
    """A state dict with one tensor, from the operations of its sizes."""
    place = b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text("0") + text("cpu")
    place += b"\x8a\x08" + struct.pack("<q", storage_count) + b"tQ"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + b"\x8a\x08" + struct.pack("<q", offset)
    view += shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("final_norm.weight") + view + b"s."


def long(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def laughs(levels: int = 30, width: int = 10) -> bytes:
    """Operations of a list of ten times a list of ten times a list: a few hundred bytes whose text has no end."""
    raw = b"]q\0"
    for level in range(levels):
        raw += b"0](" + (b"h" + bytes([level])) * width + b"eq" + bytes([level + 1])
    return raw


def native_header(value: bytes) -> Builder:
    """A native .pt file whose config has an option of this value."""
    header = b"}" + text("architecture") + text("edifice") + b"s" + text("config") + b"}" + text("dropout") + value
    raw = b"\x80\x02}" + text("mega-deploy") + header + b"sss" + text("state_dict") + b"}s."
    return pickled(raw)


def fairseq_argument(value: bytes) -> Builder:
    raw = b"\x80\x02}" + text("args") + b"cargparse\nNamespace\n)\x81}" + text("z_dim") + value + b"sbs"
    return pickled(raw + text("model") + b"}s.")


def long_text_a_million_times() -> bytes:
    """A list that holds a text of a mebibyte 200,000 times."""
    return native_header(b"](" + text("x" * (1 << 20)) + b"q\0" + b"h\0" * 200_000 + b"e")()


def copied_a_hundred_thousand_times() -> bytes:
    """Calls that would each copy a list of 100,000 pairs."""
    pairs = b"](" + (text("a") + b"K\1\x86") * 1000 + b"eq\0"
    return pickled(b"\x80\x02" + pairs + b"0](" + b"ccollections\nOrderedDict\nh\0\x85R" * 100_000 + b"e.")()


def filled_a_hundred_thousand_times() -> bytes:
    """Namespaces that would each copy a dict of 10,000 entries."""
    fields = b"}(" + b"".join(text(f"a{index}") + b"K\1" for index in range(10_000)) + b"uq\0"
    return pickled(b"\x80\x02" + fields + b"0](" + b"cargparse\nNamespace\n)\x81h\0b" * 100_000 + b"e.")()


def many_entries() -> bytes:
    """An archive of 150,000 empty entries."""
    good = io.BytesIO(saved(state()))
    with zipfile.ZipFile(good, "a") as archive:
        for index in range(150_000):
            archive.writestr(f"archive/x/{index}", b"")
    return good.getvalue()


def same_entry_many_times() -> bytes:
    """A central directory that names one entry of a mebibyte 1,000 times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", b"\0" * (1 << 20))
        entry = archive.getinfo("archive/data/0")
        for index in range(1, 1000):
            other = zipfile.ZipInfo(f"archive/data/{index}")
            other.file_size = other.compress_size = entry.file_size
            other.CRC, other.header_offset = entry.CRC, entry.header_offset
            archive.filelist.append(other)
    return buffer.getvalue()


def twice_in_the_archive() -> bytes:
    buffer = io.BytesIO(saved(state()))
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the name that is there already
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(saved(state()))
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    return bytes(data)


def leaf(offset: int, shape: tuple[int, ...] = (1,), size: int = 4) -> tuple[object, ...]:
    return (Atom("t"), shape, (Atom("f"), 32), [None], [], offset, size)


def names_times_layers() -> bytes:
    """A layer with a name of two mebibytes, around 50,000 tensors whose names would begin with it."""
    leaves = [(str(index).encode(), leaf(4 * index)) for index in range(50_000)]
    container = (CONTAINER, [(b"x" * (2 << 20), (CONTAINER, leaves, Atom("ok")))], Atom("ok"))
    return files.nx(files.nx_body(container, b"\0" * 200_000))


def million_axes() -> bytes:
    """A tensor of a million axes, whose size is a number of five mebibytes."""
    axes = b"i" + struct.pack(">I", 900_000) + b"n\x05\0\xff\xff\xff\xff\x7f" * 900_000
    head = b"\x83h\x03" + files.term(CONTAINER) + b"l\0\0\0\x01h\x02" + files.term(b"a")
    term = head + b"h\x07" + files.term(Atom("t")) + axes + files.term((Atom("f"), 32))
    return files.nx(files.nx_body(term + b"jja\0a\x04j" + files.term(Atom("ok")), b"\0" * 4))


def one_buffer_many_times() -> bytes:
    """20,000 tensors of a mebibyte that all lie in the same bytes."""
    leaves = [(str(index).encode(), leaf(0, (1 << 18,), 1 << 20)) for index in range(20_000)]
    container = (CONTAINER, [(b"a", (CONTAINER, leaves, Atom("ok")))], Atom("ok"))
    return files.nx(files.nx_body(container, b"\0" * (1 << 20)))


def one_hash() -> bytes:
    """A map of 60,000 integers that all have the hash 0 in Python."""
    keys = b"".join(
        b"n\x0a\0" + (index * ((1 << 61) - 1)).to_bytes(10, "little") + b"a\0" for index in range(1, 60_001)
    )
    return attacks.with_metadata(b"t" + struct.pack(">I", 60_000) + keys)()


def strings_of_numbers() -> bytes:
    """A hundred strings, each of which is a list of 65,535 numbers: eight times as much memory as file."""
    return attacks.with_metadata(b"l\0\0\0\x64" + (b"k\xff\xff" + b"\1" * 0xFFFF) * 100 + b"j")()


def zlib_of_zeros() -> bytes:
    """A tensor of 2 GiB in two mebibytes."""
    container = (CONTAINER, [(b"a", (CONTAINER, [(b"b", leaf(0, (1 << 29,), 1 << 31))], Atom("ok")))], Atom("ok"))
    packer = zlib.compressobj()
    raw = packer.compress(files.nx_body(container, b""))
    for _ in range(128):
        raw += packer.compress(b"\0" * (16 << 20))
    raw += packer.flush()
    return b"\1" + struct.pack(">I", 0) + raw


def large_header(entries: int) -> Builder:
    """A safetensors file of arrays without numbers."""

    def build() -> bytes:
        one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
        return files.raw_safetensors(("{" + ",".join(one % index for index in range(entries)) + "}").encode())

    return build


def repeated_key() -> bytes:
    return files.raw_safetensors(b"{" + b'"a":0,' * 500_000 + b'"a":0}')


BOMBS: dict[str, Builder] = {
    "pt: bytearray of a gibibyte": pickled(called(b"__builtin__\nbytearray", b"J\0\0\0\x40\x85")),
    "pt: bytes of a gibibyte": pickled(called(b"builtins\nbytes", b"J\0\0\0\x40\x85")),
    "pt: list of a range": pickled(called(b"builtins\nrange", b"J\0\0\0\x40\x85")),
    "pt: a counter": pickled(called(b"collections\nCounter", b"]\x85")),
    "pt: storage of a gibibyte by its class": pickled(called(b"torch\nFloatStorage", b"J\0\0\0\x40\x85")),
    "pt: tensor by its class": pickled(called(b"torch\nTensor", b"J\0\0\0\x40\x85")),
    "pt: module of a system's": pickled(called(b"os\nsystem", text("true") + b"\x85")),
    "pt: a name by the stack": pickled(
        b"\x80\x04" + text("posix") + text("system") + b"\x93" + text("true") + b"\x85R."
    ),
    "pt: an attribute of a name": pickled(called(b"torch\n_C._nn", b")")),
    "pt: extension registry": pickled(b"\x80\x02\x82\x01."),
    "pt: an instance": pickled(b"(iargparse\nNamespace\n."),
    "pt: memo of two thousand million": pickled(b"\x80\x02Nr\xff\xff\xff\x7f."),
    "pt: frame of many exbibytes": pickled(b"\x80\x04\x95" + b"\xff" * 8 + b"N."),
    "pt: two million operations": pickled(b"\x80\x02" + b"N0" * 1_000_000 + b"N."),
    "pt: laughs": pickled(b"\x80\x02" + laughs() + b"."),
    "pt: laughs as a key": pickled(b"\x80\x02}" + laughs() + b"Ns."),
    "pt: laughs for a tensor": pickled(b"\x80\x02}" + text("a") + laughs() + b"s."),
    "native: laughs as an option": native_header(laughs()),
    "native: a long text a million times": long_text_a_million_times,
    "fairseq: laughs as an argument": fairseq_argument(laughs()),
    "pt: copies of a list": copied_a_hundred_thousand_times,
    "pt: copies of a dict": filled_a_hundred_thousand_times,
    "pt: a list in itself": pickled(b"\x80\x02]q\0h\0a."),
    "pt: a namespace in itself": pickled(b"\x80\x02cargparse\nNamespace\n)\x81q\0}" + text("a") + b"h\0sb."),
    "pt: storage longer than its entry": pickled(tensor(1 << 38, 0, b"K\4\x85", b"K\1\x85"), data__0=b"\0" * 16),
    "pt: storage without an entry": pickled(tensor(4, 0, b"K\4\x85", b"K\1\x85")),
    "pt: offset beyond the storage": pickled(tensor(4, 1 << 39, b"K\4\x85", b"K\1\x85"), data__0=b"\0" * 16),
    "pt: negative stride": pickled(tensor(4, 3, b"K\4\x85", b"J\xff\xff\xff\xff\x85"), data__0=b"\0" * 16),
    "pt: negative offset": pickled(tensor(4, -8, b"K\4\x85", b"K\1\x85"), data__0=b"\0" * 16),
    "pt: stride of an exbibyte": pickled(tensor(4, 0, b"K\4\x85", long(1 << 60) + b"\x85"), data__0=b"\0" * 16),
    "pt: more sizes than strides": pickled(tensor(4, 0, b"K\2K\2\x86", b"K\1\x85"), data__0=b"\0" * 16),
    "pt: 10,000 axes": pickled(tensor(4, 0, b"(" + b"K\1" * 10_000 + b"t", b"(" + b"K\1" * 10_000 + b"t")),
    "pt: one number a million million times": pickled(
        tensor(1, 0, long(1 << 39) + b"\x85", b"K\0\x85"), data__0=b"\0" * 4
    ),
    "pt: 150,000 entries": many_entries,
    "pt: one entry 1,000 times": same_entry_many_times,
    "pt: an entry twice": twice_in_the_archive,
    "pt: encrypted": encrypted,
    "nx: names times layers": names_times_layers,
    "nx: a million axes": million_axes,
    "nx: one buffer 20,000 times": one_buffer_many_times,
    "nx: zlib of two gibibytes": zlib_of_zeros,
    "etf: integers of one hash": one_hash,
    "etf: strings of numbers": strings_of_numbers,
    "safetensors: 500,000 empty arrays": large_header(500_000),
    "safetensors: 100,000 empty arrays": large_header(100_000),
    "safetensors: one name 500,000 times": repeated_key,
    "safetensors: a header of a million lists": lambda: files.raw_safetensors(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"),
    "safetensors: 100 axes": lambda: files.raw_safetensors(
        json.dumps({"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}).encode(), b"\0" * 4
    ),
}


def many_shards(path: Path) -> None:
    """An index that names 5,000 files, all of them there."""
    good_folder(path)
    (path / "model.safetensors").rename(path / SHARDS[0])
    names = [f"s{index}.safetensors" for index in range(5000)]
    for name in names:
        (path / name).symlink_to(SHARDS[0])
    (path / INDEX).write_text(json.dumps({"weight_map": {f"t{name}": name for name in names}}))


def with_config_twice(path: Path) -> None:
    good_folder(path)
    text = (path / "config.json").read_text()
    (path / "config.json").write_text('{"hidden_size": 24, ' + text[1:])


BOMB_FOLDERS: dict[str, Folder] = {
    "shards: 5,000 files": many_shards,
    "shards: a name with escapes": in_shards(lambda places: places.update({"\x1b[2J\n": "x\x1b[31m.safetensors"})),
    "shards: an index of two million lists": in_shards(text='{"weight_map": [' + "[]," * 2_000_000 + "[]]}"),
    "config.json of 300,000 lists": with_text('{"architectures": [' + "[]," * 300_000 + "[]]}"),
    "config.json names an option twice": with_config_twice,
}

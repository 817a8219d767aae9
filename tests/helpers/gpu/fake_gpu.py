"""The TensorRT plugin on a GPU that is not there: its library drives a driver of ours, and the interpreter launches.

Runs in a process of its own (see `plugins/conftest.py`): the library is native code, and a GPU's real driver must not
be in the way. Buffers of the host stand for the device's memory; each launch that the plugin asks for is read off the
driver call, matched with the compiled kernel that its image is, and executed by Triton's interpreter on those buffers.
"""

import ctypes
import math
import pickle
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import interpreted
import numpy as np
import torch

from mega_deploy.plugins.gpu.compile import Compiled
from mega_deploy.plugins.gpu.tiles import variants

TRT_TYPES = {"float32": 0, "float16": 1, "int32": 3, "bfloat16": 7}
ALIGNMENT = 256
GUARD = 4096
CTYPES = {"ptr": ctypes.c_uint64, "i32": ctypes.c_int32, "f32": ctypes.c_float}
FIELD_TYPES = {str: 6, int: 5, float: 1, bytes: 6}


class Tensor(ctypes.Structure):
    """What the driver program takes as a tensor."""

    _fields_ = (
        ("rank", ctypes.c_int32),
        ("dims", ctypes.c_int64 * 8),
        ("least", ctypes.c_int64 * 8),
        ("most", ctypes.c_int64 * 8),
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
    )


class Field(ctypes.Structure):
    """nvinfer1::PluginField."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("n", ctypes.c_int32))


class Fields(ctypes.Structure):
    """nvinfer1::PluginFieldCollection."""

    _fields_ = (("n", ctypes.c_int32), ("fields", ctypes.POINTER(Field)))


@dataclass(frozen=True)
class Launched:
    """A launch as the driver got it."""

    name: str
    dtype: str
    tile: str
    architecture: str
    grid: tuple[int, int, int]
    threads: tuple[int, int, int]
    shared_bytes: int
    arguments: tuple[float, ...]


@dataclass
class Ran:
    """What came of an attention."""

    code: int
    output: torch.Tensor | None = None
    launches: list[Launched] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    workspace: int = 0
    fills: int = 0


def tensor(shape, dtype="float32", least=None, most=None, layout=0):
    """A tensor's description; shape may hold -1, least and most are its bounds."""
    made = Tensor(rank=len(shape), type=TRT_TYPES[dtype], format=layout)
    for axis, size in enumerate(shape):
        made.dims[axis], made.least[axis], made.most[axis] = size, (least or shape)[axis], (most or shape)[axis]
    return made


def read_image(address):
    """The cubin (an ELF file, whose headers end it) or PTX (text with a closing zero) at an address."""
    header = ctypes.string_at(address, 64)
    if not header.startswith(b"\x7fELF"):
        return ctypes.string_at(address) + b"\0"
    programs, sections = struct.unpack_from("<QQ", header, 0x20)
    program_size, program_count, section_size, section_count = struct.unpack_from("<4H", header, 0x36)
    return ctypes.string_at(
        address, max(programs + program_size * program_count, sections + section_size * section_count)
    )


def array(tensors):
    return (Tensor * len(tensors))(*tensors)


class Gpu:
    """The fake driver, and the plugin library on top of it."""

    def __init__(self, folder, library, compiled):
        # The driver first: the library asks for libcuda.so.1 and gets what bears that name already.
        self.driver = ctypes.CDLL(f"{folder}/libcuda.so.1")
        self.trt = ctypes.CDLL(f"{folder}/tensorrt.so")
        for name in ("open_library", "create", "clone", "attach"):
            getattr(self.trt, name).restype = ctypes.c_void_p
        self.trt.workspace.restype = ctypes.c_size_t
        self.trt.supports.restype = ctypes.c_bool
        self.trt.fields.restype = ctypes.POINTER(Fields)
        self.trt.timing_cache_id.restype = ctypes.c_char_p
        self.kernels = [Compiled(**made) for made in pickle.loads(compiled)]
        self.log, self.launches, self.interpret, self.dtype, self.error = [], [], True, "", None
        self._hear = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_char_p)(self._heard)
        three = ctypes.POINTER(ctypes.c_uint32 * 3)
        kinds = (ctypes.c_char_p, ctypes.c_void_p, three, three, ctypes.c_uint32, ctypes.c_void_p)
        self._launch = ctypes.CFUNCTYPE(ctypes.c_int, *kinds, ctypes.POINTER(ctypes.c_void_p))(self._launched)
        self.driver.fake_callback(self._launch)
        self.creator = ctypes.c_void_p(self.trt.open_library(str(library).encode(), self._hear))
        assert self.creator

    def _heard(self, severity, line):
        self.log.append(line.decode())

    def _launched(self, name, image, grid, threads, shared, stream, parameters):
        try:
            kernel = self._kernel(image, name.decode())
            arguments = tuple(
                CTYPES[kind].from_address(parameters[place]).value for place, kind in enumerate(kernel.parameters)
            )
            place = (kernel.name, kernel.dtype, kernel.tile, kernel.architecture)
            self.launches.append(Launched(*place, tuple(grid.contents), tuple(threads.contents), shared, arguments))
            assert tuple(threads.contents) == (kernel.threads, 1, 1)
            assert (shared, stream) == (kernel.shared_bytes, STREAM)
            if self.interpret:
                self._run(kernel, self.launches[-1])
        except Exception as error:  # an exception does not pass through C
            self.error = error
            return UNKNOWN_ERROR
        return 0

    def _kernel(self, image, name):
        """The compiled kernel that an image in the library is, byte by byte."""
        held = read_image(image)
        same = [k for k in self.kernels if k.image == held and k.name == name]
        # Copies of 16 bits are the same machine code for both half precisions.
        (kernel,) = [k for k in same if k.dtype == self.dtype]
        return kernel

    def _run(self, kernel, launched):
        number = int(kernel.architecture.split("_")[1])
        variant = next(
            v for v in variants(number) if (v.kernel, v.dtype, v.tile_name) == (kernel.name, kernel.dtype, kernel.tile)
        )
        function = getattr(interpreted.KERNELS[variant.module], variant.kernel)
        names = [name for name in function.arg_names if name not in variant.tile.constants]
        assert launched.arguments[len(names) :] == (0, 0)
        given = {}
        for name, kind, value in zip(names, kernel.parameters, launched.arguments, strict=False):
            given[name] = self._view(name, kernel, value) if kind == "ptr" else value
        function[launched.grid](**given, **variant.tile.constants)

    def _view(self, name, kernel, address):
        """The memory at an address as the kernel reads it; a null pointer is a tensor of nothing."""
        transposed = name in ("qt", "kt") or (name, kernel.name) == ("out", "pack_columns")
        dtype = torch.float32 if transposed else getattr(torch, kernel.dtype)
        if address == 0:
            return torch.empty(0, dtype=dtype)
        offset = address - self.memory.data_ptr()
        assert 0 <= offset < self.memory.numel() and offset % 16 == 0, name
        end = self.memory.numel() - (self.memory.numel() - offset) % dtype.itemsize
        return self.memory[offset:end].view(dtype)

    def create(self, phase=0, **given):
        """A plugin from fields, or None where it is refused."""
        made, buffers = [], []
        for name, value in given.items():
            if isinstance(value, Field):
                made.append(value)
                continue
            kind = FIELD_TYPES[type(value)]
            data = value.encode() + b"\0" if isinstance(value, str) else value
            data = data if isinstance(data, bytes) else np.array([value], {5: np.int32, 1: np.float32}[kind]).tobytes()
            buffers.append(ctypes.create_string_buffer(data, len(data)))
            length = len(data) if kind == 6 else 1
            made.append(Field(name.encode(), ctypes.addressof(buffers[-1]), kind, length))
        plugin = self.trt.create(self.creator, (Field * len(made))(*made), len(made), phase)
        return None if plugin is None else ctypes.c_void_p(plugin)

    def ask(self, question, *arguments, **given):
        """What a layer with these fields answers, and what it logs; None for a layer that is refused."""
        self.log.clear()
        plugin = self.create(**given)
        answer = None
        if plugin is not None:
            answer = getattr(self, f"_{question}")(plugin, *arguments)
            self.trt.destroy(plugin)
        return answer, list(self.log)

    def _exists(self, plugin):
        return True

    def _fields(self, plugin):
        return self.serialized(plugin)

    def _timing_cache_id(self, plugin):
        return self.trt.timing_cache_id(plugin).decode()

    def _output_type(self, plugin, *types):
        return self.trt.output_type(plugin, (ctypes.c_int32 * len(types))(*map(TRT_TYPES.get, types)), len(types))

    def _output_shape(self, plugin, *ranks):
        shape = (ctypes.c_ssize_t * 8)()
        rank = self.trt.output_shape(plugin, (ctypes.c_int32 * len(ranks))(*ranks), len(ranks), shape)
        return None if rank < 0 else list(shape)[:rank]

    def _supports(self, plugin, position, *tensors):
        return self.trt.supports(plugin, position, array([tensor(*one) for one in tensors]), len(tensors) - 1)

    def _tactics(self, plugin):
        values = (ctypes.c_int32 * 8)()
        number = self.trt.tactics(plugin, values)
        return list(values)[:number]

    def _set_tactic(self, plugin, tactic):
        return self.trt.set_tactic(plugin, tactic)

    def _configure(self, plugin, *tensors):
        return self.trt.configure(plugin, array([tensor(*one) for one in tensors]), len(tensors))

    def _workspace(self, plugin, *tensors):
        return self.trt.workspace(plugin, array([tensor(*one) for one in tensors]), len(tensors))

    def _on_shape_change(self, plugin, *tensors):
        self.driver.fake_no_context()
        return self.trt.on_shape_change(plugin, array([tensor(*one) for one in tensors]), len(tensors))

    def _enqueue_sizes(self, plugin, *tensors):
        """Enqueue on tensors that have sizes and no memory: for sizes that are refused before any launch."""
        described = array([tensor(*one) for one in tensors])
        self.driver.fake_no_context()
        assert self.trt.on_shape_change(plugin, described, len(tensors)) == 0
        self.driver.fake_gpu(80)
        nowhere = (ctypes.c_void_p * len(tensors))()
        return self.trt.enqueue(plugin, described, len(tensors), nowhere, None, None, None)

    def ask_with_length(self, name, length):
        """Whether a layer is made from a field of so many values."""
        values = (ctypes.c_int32 * length)()
        return self.ask("exists", **{name: Field(name.encode(), ctypes.addressof(values), 5, length)})

    def serialized(self, plugin):
        """The plugin's fields, by name; creating another from them is what TensorRT does with an engine."""
        collection = self.trt.fields(plugin).contents
        found = {}
        for place in range(collection.n):
            one = collection.fields[place]
            size = {6: 1, 5: 4, 1: 4}[one.type] * one.n
            raw = ctypes.string_at(one.data, size)
            found[one.name.decode()] = (
                raw if one.type == 6 else np.frombuffer(raw, np.int32 if one.type == 5 else np.float32)[0].item()
            )
        return found

    def attention(self, tensors, *, tactic=0, capability=80, spare=0, interpret=True, failure=("", 0), **fields):
        """Create, configure, serialise, re-create and run the layer, as a build and then an engine do.

        Args:
            tensors: q, k, v and the optional inputs, of one dtype.
            tactic: 0 for none.
            capability: of the GPU.
            spare: bytes to shift each tensor by, from a multiple of 256.
            interpret: whether launches are executed, or only recorded.
            failure: a call of the driver, and the error that it returns.
            fields: of the node.
        """
        self.driver.fake_gpu(capability)
        self.driver.fake_failure(failure[0].encode(), failure[1])
        self.log.clear()
        self.launches, self.interpret = [], interpret
        fills = self.driver.fake_fills()
        self.dtype = str(tensors[0].dtype).removeprefix("torch.")
        described = array([tensor(x.shape, self.dtype) for x in tensors])
        building = self.create(**fields)
        assert building, self.log
        ran = Ran(self.trt.configure(building, described, len(tensors)))
        if ran.code != 0:
            return self._done(ran, building)
        ran.workspace = self.trt.workspace(building, described, len(tensors))
        restored = self.create(phase=1, **self.serialized(building))
        plugin = ctypes.c_void_p(self.trt.attach(restored))
        for made in (building, restored):
            self.trt.destroy(made)
        assert self.trt.set_tactic(plugin, tactic) == 0
        ran.code = self.trt.on_shape_change(plugin, described, len(tensors))
        if ran.code != 0:
            return self._done(ran, plugin)
        q, _, v = tensors[:3]
        output = torch.full((len(q), q.shape[1], v.shape[2]), math.nan, dtype=v.dtype)
        places, output_at, workspace_at = self._allocate([*tensors, output], ran.workspace, spare)
        before = self.memory.clone()
        loads = self.driver.fake_loads()
        addresses = (ctypes.c_void_p * len(tensors))(*places)
        ran.code = self.trt.enqueue(
            plugin, described, len(tensors), addresses, ctypes.c_void_p(output_at), ctypes.c_void_p(workspace_at),
            ctypes.c_void_p(STREAM),
        )  # fmt: skip
        if ran.code == 0:
            assert self.driver.fake_loads() == loads, "a kernel was loaded after the shapes were known"
        self._nothing_else_changed(before, (output_at, output.numel() * output.itemsize), (workspace_at, ran.workspace))
        ran.output = self._read(output_at, output)
        ran.fills = self.driver.fake_fills() - fills
        return self._done(ran, plugin)

    def concurrently(self, tensors, threads, **fields):
        """Launches and loads of so many contexts of one engine at once, with none of its kernels loaded yet."""
        self.driver.fake_gpu(80)
        self.launches, self.interpret = [], False
        self.dtype = str(tensors[0].dtype).removeprefix("torch.")
        described = array([tensor(x.shape, self.dtype) for x in tensors])
        engine = self.create(phase=1, **fields)
        assert self.trt.configure(engine, described, len(tensors)) == 0
        plugins = [ctypes.c_void_p(self.trt.attach(engine)) for _ in range(threads)]
        nowhere = (ctypes.c_void_p * len(tensors))()
        loads, barrier = self.driver.fake_loads(), threading.Barrier(threads)

        def enqueue(plugin):
            barrier.wait()
            return self.trt.enqueue(plugin, described, len(tensors), nowhere, None, None, ctypes.c_void_p(STREAM))

        with ThreadPoolExecutor(threads) as pool:
            codes = list(pool.map(enqueue, plugins))
        for plugin in (engine, *plugins):
            self.trt.destroy(plugin)
        assert codes == [0] * threads and self.error is None
        return [launch.name for launch in self.launches], self.driver.fake_loads() - loads

    def _done(self, ran, plugin):
        self.trt.destroy(plugin)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        ran.launches, ran.log = list(self.launches), list(self.log)
        return ran

    def _allocate(self, tensors, workspace, spare):
        """Addresses for the tensors, the last of which is the output, and the workspace, between guards of NaN."""
        sizes = [x.numel() * x.itemsize for x in tensors] + [workspace]
        step = [-(-(size + spare) // ALIGNMENT) * ALIGNMENT + GUARD for size in sizes]
        self.memory = torch.full((GUARD + sum(step) + ALIGNMENT,), 0xFF, dtype=torch.uint8)
        at = -(-(self.memory.data_ptr() + GUARD) // ALIGNMENT) * ALIGNMENT
        places = []
        for x, own in zip([*tensors, None], step, strict=True):
            places.append(at + spare)
            if x is not None and x.numel():
                start = at + spare - self.memory.data_ptr()
                raw = x.contiguous().flatten().view(torch.uint8)
                self.memory[start : start + len(raw)] = raw
            at += own
        return places[:-2], places[-2], places[-1] - spare

    def _nothing_else_changed(self, before, *allowed):
        changed = (self.memory != before).nonzero().flatten()
        for address, size in allowed:
            start = address - self.memory.data_ptr()
            changed = changed[(changed < start) | (changed >= start + size)]
        assert changed.numel() == 0, "a kernel wrote beyond the output and the workspace"

    def _read(self, address, like):
        start = address - self.memory.data_ptr()
        raw = self.memory[start : start + like.numel() * like.itemsize]
        return raw.clone().view(like.dtype).reshape(like.shape) if like.numel() else like


STREAM = 0x5EA
"""The stream that every launch must go to."""

UNKNOWN_ERROR = 999
_gpu = None


def start(*arguments):
    """Make this process's GPU."""
    global _gpu  # noqa: PLW0603
    _gpu = Gpu(*arguments)


def call(method, *arguments, **options):
    """A method of this process's GPU."""
    return getattr(_gpu, method)(*arguments, **options)

"""A cubin's machine code, as nvdisasm writes it: instructions and the loops among them."""

import re
import subprocess
import tempfile
from collections import Counter

from mega_deploy.plugins.gpu.compile import tool

_LABEL = re.compile(r"\s*\.?(L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA")
"""Tensor-core products: up to Ampere and on consumer Blackwell, of Hopper's warp groups, of data-centre Blackwell."""


def disassemble(cubin):
    """Opcodes in order, without their modifiers, and the loops as lists of opcodes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True).stdout
    opcodes, labels, loops = [], {}, []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif found := _INSTRUCTION.search(line):
            opcodes.append(found[1].split(".")[0])
            target = re.search(r"L_x_\d+", found[2])
            if opcodes[-1] == "BRA" and target and target[0] in labels:
                loops.append(opcodes[labels[target[0]] :])
    return opcodes, [list(loop) for loop in loops]


def tensor_core(opcodes):
    """How many of them are products on tensor cores."""
    counts = Counter(opcodes)
    return sum(counts[name] for name in TENSOR_CORE)

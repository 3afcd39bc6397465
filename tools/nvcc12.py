#!/usr/bin/env python3
"""CUDA 12's compiler, as far as the build of the kernels needs it, made of NVIDIA's packages on PyPI.

PyPI has nvcc itself from CUDA 13.0 on, and its code needs driver 580. For CUDA 12 it has NVRTC, the same compiler as a
library, and ptxas. This program takes nvcc's options that build.rs gives: NVRTC makes PTX of the source, ptxas makes
machine code of that for each architecture, and all of it becomes one fatbin. No host compiler is needed.
tools/install_nvcc.sh --cuda 12 installs it as `nvcc`, beside ptxas.
"""

import ctypes
import struct
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGES = Path(__file__).resolve().parent.parent.parent  # …/nvidia/cuda_nvcc/bin/nvcc
PTXAS = PACKAGES / "cuda_nvcc/bin/ptxas"
# NVRTC brings no headers of the C++ library. These are what kernels and CUDA's own headers use of them.
HEADERS = {
    "cstddef": "#pragma once\nusing size_t = decltype(sizeof(0));\nusing ptrdiff_t = long;\n",
    "cstdint": """#pragma once
using int8_t = signed char; using int16_t = short; using int32_t = int; using int64_t = long;
using uint8_t = unsigned char; using uint16_t = unsigned short; using uint32_t = unsigned;
using uint64_t = unsigned long; using uintptr_t = unsigned long;
""",
    "cfloat": """#pragma once
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-7f
""",
}
MACROS = ["-DINFINITY=__int_as_float(0x7f800000)", "-DNAN=__int_as_float(0x7fffffff)"]
IGNORED = ("-fatbin", "-O3", "-Xfatbin=", "-allow-unsupported-compiler")


def fail(message):
    sys.exit(f"nvcc (tools/nvcc12.py): {message}")


class Nvrtc:
    def __init__(self):
        try:
            self.nvrtc = ctypes.CDLL(str(PACKAGES / "cuda_nvrtc/lib/libnvrtc.so.12"))
        except OSError as error:
            fail(f"{error}; run tools/install_nvcc.sh --cuda 12")

    def call(self, name, *arguments):
        answer = getattr(self.nvrtc, name)(*arguments)
        if answer:
            self.nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            fail(f"{name}: {self.nvrtc.nvrtcGetErrorString(answer).decode()}")

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def architectures(self):
        count = ctypes.c_int()
        self.call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self.call("nvrtcGetSupportedArchs", found)
        return list(found)

    def text(self, of, program):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{of}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{of}", program, text)
        return text.value

    def ptx(self, source, options):
        def array(texts):
            return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))

        program = ctypes.c_void_p()
        text, headers = Path(source).read_bytes(), (array(HEADERS.values()), array(HEADERS))
        self.call("nvrtcCreateProgram", ctypes.byref(program), text, source.encode(), len(HEADERS), *headers)
        failed = self.nvrtc.nvrtcCompileProgram(program, len(options), array(options))
        if log := self.text("ProgramLog", program).decode().strip():
            print(log, file=sys.stderr)
        if failed:
            sys.exit(1)
        return self.text("PTX", program)


def ptxas(file, arch, options):
    """Machine code of this architecture, and what was said about it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "code.cubin"
        command = [PTXAS, f"-arch=sm_{arch}", "-O3", *options, file, "-o", out]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            fail(f"ptxas for sm_{arch} failed:\n{done.stdout}{done.stderr}")
        return out.read_bytes(), done.stdout + done.stderr


def fatbin(codes):
    """NVIDIA's container of images for several architectures, as its tool `fatbinary` writes it, without compression.

    `codes` are (is it PTX, architecture, version, bytes): the version of a cubin's format, or of PTX.
    """
    PTX, CUBIN, LINUX_64 = 1, 2, 0x11
    entries = b""
    for is_ptx, arch, (major, minor), code in codes:
        # PTX ends with a zero byte. After the part that all images have, it has room for options, of which there are none.
        code += bytes(-len(code) % 8 or 8) if is_ptx else bytes(-len(code) % 8)
        more = struct.pack("<QQ", 72, 0) if is_ptx else b""
        kind, size = (PTX, 80) if is_ptx else (CUBIN, 64)
        options = 64 if is_ptx else 0
        head = struct.pack("<HHIQIIHHIIIQQQ", kind, 0x101, size, len(code), 0, options, minor, major, arch, 0, 0, LINUX_64, 0, 0)
        entries += head + more + code
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def parsed(arguments):
    given = {"options": [], "ptxas": [], "codes": [], "threads": 1}
    rest = iter(arguments)
    for argument in rest:
        if argument == "-o":
            given["out"] = next(rest)
        elif argument.startswith("-gencode="):
            arch, codes = argument[len("-gencode=") :].split(",", 1)
            given["arch"] = arch[len("arch=") :]
            given["codes"] = codes[len("code=") :].strip("[]").split(",")
        elif argument.startswith("-Xptxas="):
            given["ptxas"] += argument[len("-Xptxas=") :].split(",")
        elif argument.startswith("--threads="):
            given["threads"] = max(int(argument[len("--threads=") :]), 1)
        elif argument == "-lineinfo" or argument.startswith("-std="):
            given["options"].append(argument)
        elif not argument.startswith("-"):
            given["source"] = argument
        elif not argument.startswith(IGNORED):
            fail(f"{argument} is no option that is known here")
    if missing := {"source", "out", "arch"} - given.keys():
        fail(f"no {', '.join(sorted(missing))}")
    return given


def compile(given):
    source = given["source"]
    options = [f"--gpu-architecture={given['arch']}", "-default-device", *given["options"], *MACROS]
    options += [f"-I{Path(source).parent}", f"-I{PACKAGES / 'cuda_runtime/include'}"]
    ptx = Nvrtc().ptx(source, [option.replace("-std=", "--std=") for option in options])
    if "-lineinfo" in given["options"]:
        given["ptxas"].append("-lineinfo")
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file, ThreadPoolExecutor(given["threads"]) as pool:
        file.write(ptx)
        file.flush()
        machines = [int(code[len("sm_") :]) for code in given["codes"] if code.startswith("sm_")]
        made = list(pool.map(lambda arch: ptxas(file.name, arch, given["ptxas"]), machines))
    codes = []
    for arch, (cubin, said) in zip(machines, made):
        print(said, end="", file=sys.stderr)
        codes.append((False, arch, (1, cubin[8]), cubin))
    if given["arch"] in given["codes"]:
        version = ptx.split(b".version ")[1].split()[0].decode().split(".")
        codes.append((True, int(given["arch"][len("compute_") :]), tuple(map(int, version)), ptx))
    Path(given["out"]).write_bytes(fatbin(codes))


def main():
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        # The build compiles again when this text changes.
        script = zlib.crc32(Path(__file__).read_bytes())
        print("NVRTC {}.{} in the place of nvcc (tools/nvcc12.py {:08x}), with".format(*Nvrtc().version(), script))
        print(subprocess.run([PTXAS, "--version"], capture_output=True, text=True, check=True).stdout)
    elif arguments == ["--list-gpu-code"]:
        print(*(f"sm_{arch}" for arch in Nvrtc().architectures()), sep="\n")
    else:
        compile(parsed(arguments))


if __name__ == "__main__":
    main()

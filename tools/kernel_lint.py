"""What slows a kernel down without a wrong number, seen in its machine code.

`Lint` takes a kernel's instructions one by one, as cuobjdump prints them, and tells:

- **split stores**: in a loop, 16 bytes that lie side by side are stored by several instructions, where
  one would do;
- **slow conversions**: double precision, or F2F, inside a loop: both run at a fraction of fp32's rate;
- **loads one by one**: fewer loads under way together than the source means, see `TOGETHER`.

A kernel of `KNOWN` may have the fault that is named there, for the reason given; where it does not have it any more, the
line has to go, so that the fault cannot come back unseen.
"""

import re
import sys
from collections import defaultdict
from fnmatch import fnmatchcase

SPLIT, CONVERSIONS, ONE_BY_ONE, BLOCKS = "split stores", "slow conversions", "loads one by one", "fewer blocks"

# Vectors of 16 bytes that the source means to load together: the most that a loop issues before it reads one of their
# results must be at least this. The first pattern that fits a kernel's name counts.
TOGETHER = (
    ("residual_forward_*", 8),
    ("squeeze_pool_*", 2),
    ("head_pool_*", 2),
    ("expand_backward_split_*", 2),
    ("project_forward_*", 2),
    ("project_backward_*", 2),
)
ARCHITECTURES = {80, 86, 89, 90}
MEND = "known, to be mended"
TREE = "sums in double precision of few numbers, off the step's critical path"
SLICES = "batch norm's coefficients in the last block, a slice of channels after another; no such numbers in the hot loop"
SMALL = "known: the shared memory of an RTX 30 or 40, or of an A100, holds fewer blocks than an H100's"
FEWER = (
    "depthwise_backward_k3s1_*",
    "depthwise_backward_k5s1_*",
    "depthwise_backward_recompute_k3s1_*",
    "depthwise_forward_*",
    "expand_backward_240x48_*",
    "expand_backward_split_64x192_*",
    "expand_forward_128x128_*",
    "expand_forward_128x96_*",
    "expand_forward_64x80_*",
    "project_backward_192x64_*",
    "project_backward_32x32_*",
    "project_backward_data_128_*",
    "project_forward_128x112_*",
    "project_forward_128x16_*",
    "project_forward_128x80_*",
    "project_forward_64x192_*",
)
KNOWN = (
    *((name, BLOCKS, SMALL) for name in FEWER),
    ("head_loss", CONVERSIONS, TREE),
    ("head_loss_soft", CONVERSIONS, TREE),
    ("optimiser_clip", CONVERSIONS, TREE),
    ("stem_forward_*", CONVERSIONS, SLICES),
)

INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\S*)\s*([^;]*);")
STORE = re.compile(r"(?:desc\[UR\d+\])?\[([^\]]*?)(?:\+(-?0x[0-9a-f]+))?\], ?R(\d+|Z)")
REGISTER = re.compile(r"\bR(\d+)")
SLOW = ("DADD", "DMUL", "DFMA", "DSETP", "F2F")
WIDTHS = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
BRANCHES = ("BRA", "EXIT", "BRX", "RET", "BSYNC", "BAR", "CALL")
VECTOR = 16


class Lint:
    """One kernel's instructions, in order."""

    def __init__(self):
        self.lines = []

    def take(self, line):
        if match := INSTRUCTION.match(line):
            self.lines.append((int(match[1], 16), match[2], match[3].strip()))

    def findings(self, name):
        """{fault: what was found}"""
        loops = self.loops()
        found = {}
        if split := self.split_stores():
            found[SPLIT] = f"{split} vectors of {VECTOR} bytes are stored in pieces"
        slow = [op for at, op, _ in self.lines if op.split(".")[0] in SLOW and inside(at, loops)]
        if slow:
            found[CONVERSIONS] = f"{len(slow)} of {', '.join(sorted(set(op.split('.')[0] for op in slow)))} in loops"
        wanted = next((number for pattern, number in TOGETHER if fnmatchcase(name, pattern)), 0)
        if wanted and (most := self.loads_together(loops)) < wanted:
            found[ONE_BY_ONE] = f"{most} under way together, {wanted} are meant"
        return found

    def loops(self):
        """From the first to the last address of each, by branches backwards."""
        loops = []
        for at, op, operands in self.lines:
            target = re.search(r"0x([0-9a-f]+)$", operands)
            # A branch to itself ends a kernel; slow paths of divisions lie behind it.
            if op.split(".")[0] == "BRA" and target and int(target[1], 16) < at:
                loops.append((int(target[1], 16), at))
        return loops

    def split_stores(self):
        """Vectors that are stored in several pieces, none of which are overlapped by another store."""
        loops, split, pieces = self.loops(), 0, defaultdict(dict)
        for at, op, operands in self.lines:
            parts = op.split(".")
            store = STORE.match(operands) if parts[0] in ("STS", "STG") else None
            if store and inside(at, loops):
                width = next((WIDTHS[part] for part in parts if part in WIDTHS), 4)
                pieces[parts[0], store[1]][int(store[2] or "0", 16)] = width
            elif parts[0] in BRANCHES:
                split += sum(vectors(known) for known in pieces.values())
                pieces.clear()
            else:
                # A base that changes begins another group.
                changed = REGISTER.match(operands)
                for key in [key for key in pieces if changed and re.search(rf"\b{changed[0]}\b", key[1])]:
                    split += vectors(pieces.pop(key))
        return split + sum(vectors(known) for known in pieces.values())

    def loads_together(self, loops):
        """The most loads of whole vectors that a loop issues before one of their results is read."""
        most, waiting = 0, {}
        for at, op, operands in self.lines:
            if not inside(at, loops):
                waiting = {}
                continue
            load = op.startswith("LDG")
            registers = [int(number) for number in REGISTER.findall(operands)]
            used = registers[1:] if load else registers
            if any(first <= number < first + count for number in used for first, count in waiting.items()):
                waiting = {}
            if load and not op.startswith("LDGSTS") and "128" in op.split(".") and registers:
                waiting[registers[0]] = VECTOR // 4
                most = max(most, len(waiting))
        return most


def promised_blocks(folder, kernels):
    """((kernel, architecture), blocks that its declaration in `folder` says fit a multiprocessor)"""
    promised = {}
    for file in sorted(folder.glob("*.cu")):
        text = file.read_text().replace("\\\n", " ")
        for prefix, number in re.findall(r"^KERNEL_BLOCKS\((\w+),[^,]*, *(\d+),", text, re.M):
            promised[prefix] = int(number)
        macros = {}
        for macro, body in re.findall(r"^ *# *define (\w+)\(T, name, Shape\)(.*)$", text, re.M):
            # The kernel's name, and the number of the shape that is its promise.
            macros[macro] = re.findall(r"KERNEL_BLOCKS\((\w+)##name,[^;{]*?Shape::(\w+),\s*\w+\)", body)
            if len(macros[macro]) != body.count("KERNEL_BLOCKS("):
                sys.exit(f"{file}: {macro} has a kernel whose blocks are not read")
            # It may begin with another's kernels.
            for other in re.findall(r"(\w+)\(T, name, Shape\)", body):
                macros[macro] += macros[other]
        for kind, macro, name, rest in re.findall(r"^INSTANCE_(HALF|FP32)\((\w+), (\w+),(.*)\)$", text, re.M):
            numbers = dict(re.findall(r"(\w+) = (\d+)", rest))
            for prefix, promise in macros.get(macro, []):
                for suffix in ("f16", "bf16") if kind == "HALF" else ("f32",):
                    promised[f"{prefix}{name}_{suffix}"] = int(numbers[promise])
    return [((name, arch), promised[name]) for name, arch in kernels if name in promised]


def inside(at, loops):
    return any(first <= at <= last for first, last in loops)


def vectors(pieces):
    """How many whole vectors these pieces, {offset: bytes}, are. Four single words may lie where no vector may, but one of
    8 bytes shows how the address is aligned."""
    count = 0
    for start in pieces:
        at, widths = start, []
        while at < start + VECTOR and at in pieces:
            widths.append(pieces[at])
            at += pieces[at]
        count += start % VECTOR == 0 and at == start + VECTOR and max(widths) == VECTOR // 2
    return count


def judge(found, known=KNOWN, kinds=(SPLIT, CONVERSIONS, ONE_BY_ONE)):
    """Lines for what is wrong. `found`: {(kernel, architecture): {fault: what}}"""
    used = set()
    for (name, arch), faults in sorted(found.items()):
        for fault, what in faults.items():
            exception = next((entry for entry in known if entry[1] == fault and fnmatchcase(name, entry[0])), None)
            if exception:
                used.add(exception)
            else:
                yield f"{name} (sm_{arch}): {fault}: {what}"
    names = {name for name, _ in found}
    # A fault may be there on one architecture only.
    complete = ARCHITECTURES <= {arch for _, arch in found}
    for entry in known if complete else ():
        there = any(fnmatchcase(name, entry[0]) for name in names)
        if entry[1] in kinds and entry not in used and there:
            yield f"{entry[0]}: has no {entry[1]} any more; remove that line from KNOWN in tools/kernel_lint.py"


def demonstrate():
    """Each fault is found where it is, and not where it is not; an exception that nobody needs is told."""

    def findings(name, *lines):
        lint = Lint()
        for number, line in enumerate([*lines, "@P0 BRA 0x0", "EXIT"]):
            lint.take(f"        /*{16 * number:04x}*/  {line} ;")
        return lint.findings(name)

    pieces = ("STS [R7], R0", "STS [R7+0x4], R1", "STS.64 [R7+0x8], R2")
    assert set(findings("a", *pieces)) == {SPLIT}
    assert not findings("a", "STS.128 [R7], R0", "STS.128 [R7+0x10], R4")
    assert not findings("a", *pieces[:2], "IADD3 R7, R7, 0x10, RZ", pieces[2])
    assert set(findings("a", "DADD R0, R0, R2")) == {CONVERSIONS}
    loads = ("LDG.E.128 R4, [R0.64]", "LDG.E.128 R8, [R2.64]", "FADD R4, R4, R5")
    assert not findings("squeeze_pool_f16", *loads)
    assert set(findings("squeeze_pool_f16", loads[0], loads[2], loads[1])) == {ONE_BY_ONE}
    known = [("a_*", SPLIT, MEND)]
    of = lambda name, faults: {(name, arch): faults for arch in ARCHITECTURES}
    assert not list(judge(of("a_f16", {SPLIT: ""}), known)) and len(list(judge(of("a_f16", {SPLIT: ""}), []))) == 4
    assert len(list(judge(of("a_f16", {}), known))) == 1 and not list(judge(of("b", {}), known))
    assert not list(judge({("a_f16", 90): {}}, known))


if __name__ == "__main__":
    demonstrate()

"""The text of a compiled program (optimised HLO), cut into instructions."""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # others end in their width


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # as written, with layouts; a tuple's in brackets
    opcode: str
    operands: tuple[str, ...]
    rest: str  # what follows the operands


TARGET = re.compile(r'custom_call_target="([^"]*)"')
CHANNEL = re.compile(r"channel_id=(\d+)")
# Of the calls in the first and the last fusion of a collective that runs beside matmuls: it is written in every fusion.
STARTS, ENDS = "AsyncCollectiveStart", "AsyncCollectiveDone"
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ROW = re.compile(r"^(\d+) (.+)$")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_PAIR = re.compile(r"(\w+)=(\d+)")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


class Module:
    """A module's computations, its entry, and every instruction by name."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.roots: dict[str, Instruction] = {}
        self.by_name: dict[str, Instruction] = {}
        self.tables: dict[str, dict[int, str]] = defaultdict(dict)  # from a frame's number to where it is
        self.entry, here, name, table = "", None, "", {}
        for line in text.splitlines():
            if here is None:
                if line.endswith("{") and (head := _HEAD.match(line)):
                    name = head[2]
                    here = self.computations[name] = []
                    self.entry = name if head[1] else self.entry
                elif row := _ROW.match(line):
                    table[int(row[1])] = row[2].strip('"')
                else:
                    table = self.tables[line]
            elif line == "}" or line.startswith("}, execution_thread"):
                here = None
            elif found := _LINE.match(line):
                inside, _, rest = found[5].partition(")")
                names = tuple(_NAME.findall(inside)) if "%" in inside else ()
                made = Instruction(found[2], found[3], found[4], names, rest if names else f"{inside}){rest}")
                here.append(made)
                self.by_name[made.name] = made
                if found[1]:
                    self.roots[name] = made
            elif here:  # kernels' notes have line breaks
                last = here[-1]
                here[-1] = self.by_name[last.name] = replace(last, rest=last.rest + line)
                if self.roots.get(name) is last:
                    self.roots[name] = here[-1]
        self._frames: dict[int, tuple[str, ...]] = {0: ()}

    @functools.cached_property
    def begun(self) -> dict[str, set[str]]:
        """The channels of collectives that are fused with matmuls, and the computations in which they begin."""
        found = defaultdict(set)
        for name, body in self.computations.items():
            if any(group(TARGET, i.rest) == STARTS for i in body):
                for channel in (group(CHANNEL, i.rest) for i in body):
                    found[channel].add(name)
        found.pop("", None)
        return found

    def shape(self, name: str) -> str:
        return self.by_name[name].shape if name in self.by_name else ""

    def frames(self, rest: str) -> tuple[str, ...]:
        """The frames of JAX's caller, innermost first, of an instruction's metadata."""
        number = int(group(_FRAME, rest) or 0)
        if number not in self._frames:
            found, at = {}, number  # a dict, as a frame may come twice
            while at in self.tables["StackFrames"] and len(found) < 64:
                frame = dict(_PAIR.findall(self.tables["StackFrames"][at]))
                place = dict(_PAIR.findall(self.tables["FileLocations"][int(frame["file_location_id"])]))
                file = self.tables["FileNames"][int(place["file_name_id"])].rsplit("/", 1)[-1]
                function = self.tables["FunctionNames"][int(place["function_name_id"])]
                found[f"{file}:{place['line']} {function.replace('.<locals>', '')}"] = None
                at = int(frame["parent_frame_id"]) - 1  # the text writes them one too high
            self._frames[number] = tuple(found)
        return self._frames[number]


def arrays(shape: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(dtype, sizes, layout) of an array, or of each of a tuple's."""
    for dtype, sizes, layout in _ARRAY.findall(shape):
        yield dtype, tuple(int(x.lstrip("<=")) for x in sizes.split(",") if x), layout


def size(shape: str, only_main: bool = False) -> int:
    """Bytes; `only_main`: of what lies in main memory, not in the chip's fast one (`S(1)` and above)."""
    total = 0
    for dtype, sizes, layout in arrays(shape):
        if not (only_main and "S(" in layout and "S(0)" not in layout):
            total += math.prod(sizes) * bits(dtype) // 8
    return total


def bits(dtype: str) -> int:
    return BITS[dtype] if dtype in BITS else int(re.search(r"\d+", dtype)[0])


def bare(shape: str) -> str:
    """A shape without its layout."""
    told = [f"{dtype}[{','.join(map(str, sizes))}]" for dtype, sizes, _ in arrays(shape)]
    return told[0] if len(told) == 1 else f"({', '.join(told)})"


def group(pattern: re.Pattern, text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""

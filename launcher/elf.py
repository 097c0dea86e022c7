# SPDX-License-Identifier: Apache-2.0
"""Taking out of an executable what it has elsewhere, compressed (packed.c)."""

from __future__ import annotations

import struct
from pathlib import Path

# elf(5): Elf64_Ehdr from e_phoff to e_shnum, Elf64_Phdr, Elf64_Shdr.
_HEADER_AT = 32
_HEADER = struct.Struct("<QQIHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_PT_LOAD = 1
_SHT_NOBITS = 8


def cut(executable: Path, start: int) -> None:
    """Take the end of a segment, from the address `start` on, out of the file. Nothing else moves
    in memory; in the file, what is behind it moves up."""
    content = bytearray(executable.read_bytes())
    header = list(_HEADER.unpack_from(content, _HEADER_AT))
    segments_at, sections_at, _, _, _, segments, _, sections = header
    places = [segments_at + i * _SEGMENT.size for i in range(segments)]
    loaded = [
        each for each in (_SEGMENT.unpack_from(content, at) for at in places) if each[0] == _PT_LOAD
    ]
    # Each has its type, flags, offset, address, another address, size, size in memory, alignment.
    _, _, offset, address, _, size, _, alignment = max(
        (each for each in loaded if each[3] <= start), key=lambda each: each[3]
    )
    first: int = offset + start - address
    following: int = min(each[2] for each in loaded if each[2] > first)
    length: int = following // alignment * alignment - first

    def moved(place: int) -> int:
        return place - length if place >= first + length else min(place, first)

    for at in places:
        fields = list(_SEGMENT.unpack_from(content, at))
        if fields[0] == _PT_LOAD and fields[3] == address:
            fields[5] = fields[6] = start - address
        fields[2] = moved(fields[2])
        _SEGMENT.pack_into(content, at, *fields)
    for at in range(sections_at, sections_at + sections * _SECTION.size, _SECTION.size):
        name, kind, flags, where, place, *rest = _SECTION.unpack_from(content, at)
        if start <= where < address + size:
            kind = _SHT_NOBITS
        _SECTION.pack_into(content, at, name, kind, flags, where, moved(place), *rest)
    header[1] = moved(sections_at)
    _HEADER.pack_into(content, _HEADER_AT, *header)
    del content[first : first + length]
    executable.write_bytes(content)

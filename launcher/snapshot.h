// SPDX-License-Identifier: Apache-2.0
//
// An interpreter that was started when this file was built, and is stored in it. See snapshot.c.

#include <stdbool.h>
#include <stddef.h>

// Whether this file has one. The file that the linker makes has none.
bool snapshot_is_taken(void);

// From now on all that CPython allocates is placed in this file's data, and kept.
void snapshot_begin(void);

// Write the data, with the interpreter in it, for launcher/assemble.py to put into the file.
// False where a write fails; errno says why.
bool snapshot_write(int fd);

// Make CPython's data what it is in a process in which no interpreter was ever started.
void snapshot_forget(void);

// Memory for CPython's small objects (PyObjectArenaAllocator).
void *snapshot_arena(void *unused, size_t size);
void snapshot_drop_arena(void *unused, void *arena, size_t size);

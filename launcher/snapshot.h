// SPDX-License-Identifier: Apache-2.0
//
// An interpreter that was started when this file was built, and is stored in it. See snapshot.c.

#include <stdbool.h>
#include <stddef.h>

// Whether this file has one. The file that the linker makes has none.
bool snapshot_is_taken(void);

// From now on all that CPython allocates is placed in this file's data, and kept. `plan` is a
// descriptor of what a survey has written; true where it is empty, and this becomes the survey.
bool snapshot_begin(int plan);

// Of the survey: all is allocated, and what is written from now on is what a call writes.
void snapshot_watch(void);

// Write what the survey has found. False where a write fails; errno says why.
bool snapshot_write_plan(int fd);

// Write the data, with the interpreter in it, for launcher/assemble.py to put into the file. The
// same in case of failure.
bool snapshot_write(int fd);

// Have the pages that a call writes copied at once.
void snapshot_expect_writes(void);

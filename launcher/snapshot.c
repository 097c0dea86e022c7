// SPDX-License-Identifier: Apache-2.0
//
// All that CPython keeps is at fixed addresses in this file: its variables and ours in the section
// .state, and what it allocates before the snapshot in .heap (snapshot.ld). To take a snapshot is
// to write the two into the executable; to restore the interpreter is to map the executable.
//
// The C library is left out: it starts anew in each process, with that process's stack, threads and
// random numbers. The snapshot holds only fixed addresses of it.

#include "snapshot.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

// Set by snapshot.ld.
extern char state_start[], state_end[], heap_start[], heap_end[];

// The variables as the linker made them, compressed; launcher/assemble.py puts them here.
__attribute__((section(".pristine"))) const unsigned char pristine[64 << 10];

// Not in .state, so that it is false whenever a process starts.
static bool filling;

enum { ALIGNMENT = 16 };

// Blocks that were freed while the heap was filled, for reuse.
static struct spare {
    struct spare *next;
} *spares;

// Each block has its size before it. The heap begins with how much of it is used.
static size_t *const used = (size_t *)heap_start;

bool
snapshot_is_taken(void)
{
    return *used != 0;
}

void
snapshot_begin(void)
{
    *used = ALIGNMENT;
    filling = true;
}

static bool
is_kept(const void *block)
{
    return (uintptr_t)block - (uintptr_t)heap_start < (uintptr_t)(heap_end - heap_start);
}

static void *
keep(size_t size, size_t alignment)
{
    if (size < sizeof(struct spare))
        size = sizeof(struct spare);
    for (struct spare **each = &spares; *each != NULL; each = &(*each)->next) {
        struct spare *found = *each;
        size_t room = ((size_t *)found)[-1];
        if (room >= size && room / 2 <= size && (uintptr_t)found % alignment == 0) {
            *each = found->next;
            return found;
        }
    }
    uintptr_t block = (uintptr_t)heap_start + *used + sizeof size;
    block = (block + alignment - 1) & ~(uintptr_t)(alignment - 1);
    if (block > (uintptr_t)heap_end || size > (uintptr_t)heap_end - block) {
        static const char full[] = "launcher: MOST_HEAP in assemble.py is too small\n";
        ssize_t told = write(STDERR_FILENO, full, sizeof full - 1); // dprintf() would allocate
        _exit(told < 0 ? 2 : 1);
    }
    *used = block + size - (uintptr_t)heap_start;
    ((size_t *)block)[-1] = size;
    return (void *)block;
}

// The linker puts these in place of libc's (--wrap). In a process that was woken they call
// libc's, except for blocks of the snapshot, which are never freed.

void *
__wrap_malloc(size_t size)
{
    extern void *__real_malloc(size_t);

    return filling ? keep(size, ALIGNMENT) : __real_malloc(size);
}

void *
__wrap_calloc(size_t count, size_t size)
{
    extern void *__real_calloc(size_t, size_t);

    return filling ? memset(keep(count * size, ALIGNMENT), 0, count * size)
                   : __real_calloc(count, size);
}

void __wrap_free(void *);

void *
__wrap_realloc(void *block, size_t size)
{
    extern void *__real_realloc(void *, size_t);

    if (!filling && !is_kept(block))
        return __real_realloc(block, size);
    void *grown = __wrap_malloc(size);
    if (grown != NULL && block != NULL) {
        size_t had = ((size_t *)block)[-1];
        memcpy(grown, block, had < size ? had : size);
        __wrap_free(block);
    }
    return grown;
}

void
__wrap_free(void *block)
{
    extern void __real_free(void *);

    if (!is_kept(block))
        __real_free(block);
    else if (filling) {
        ((struct spare *)block)->next = spares;
        spares = block;
    }
}

// CPython's ID of a thread: the address of libc's record of it, different in each process.
pthread_t
__wrap_pthread_self(void)
{
    extern pthread_t __real_pthread_self(void);

    return filling ? 0 : __real_pthread_self();
}

void *
snapshot_arena(void *unused, size_t size)
{
    (void)unused;
    if (filling)
        return keep(size, 1 << 14); // POOL_SIZE of Objects/obmalloc.c
    void *arena = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return arena == MAP_FAILED ? NULL : arena;
}

void
snapshot_drop_arena(void *unused, void *arena, size_t size)
{
    (void)unused;
    if (is_kept(arena))
        __wrap_free(arena);
    else
        munmap(arena, size);
}

bool
snapshot_write(int fd)
{
    for (const char *from = state_start; from < heap_end;) {
        ssize_t written = write(fd, from, (size_t)(heap_end - from));
        if (written < 0)
            return false;
        from += written;
    }
    return true;
}

void
snapshot_forget(void)
{
    uLongf size = (uLongf)(state_end - state_start);
    uncompress((Bytef *)state_start, &size, (const Bytef *)pristine, sizeof pristine);
}

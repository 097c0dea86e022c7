// SPDX-License-Identifier: Apache-2.0
//
// All that CPython keeps is at fixed addresses in this file: its variables and ours in the section
// .state, and what it allocates before the snapshot in .idle, .read and .written (snapshot.ld). To
// take a snapshot is to write these into the executable; to restore the interpreter is to map the
// executable.
//
// A page of a file that a process writes is copied, one fault each. A call writes to a tenth of the
// blocks, most for a reference count, and they would be spread over all pages. So they have a
// section of their own, in front of the memory for new blocks, and those that a call only reads
// have another. Which ones they are, a first run of the linker's output finds out (the survey):
// each block gets pages of its own, which are protected while calls are rehearsed. The second run
// makes the same allocations in the same order, and is told what becomes of each.
//
// The C library is left out: it starts anew in each process, with that process's stack, threads and
// random numbers. The snapshot holds only fixed addresses of it.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <internal/pycore_interp.h>
#include <internal/pycore_runtime.h>

#include "snapshot.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// Set by snapshot.ld. Where what a call writes begins: runtime_start.
extern char idle_start[], idle_end[], read_start[], read_end[], written_start[], written_end[];
extern char runtime_start[], fresh_start[], fresh_end[];

// libc's, which the linker puts functions of this file in place of (--wrap).
extern void *__real_malloc(size_t);
extern void *__real_calloc(size_t, size_t);
extern void *__real_realloc(void *, size_t);
extern void __real_free(void *);
extern pthread_t __real_pthread_self(void);

// From snapshot_begin() on. No variable of this file is in .state: each process has them anew.
static bool filling;

// ---- Blocks ------------------------------------------------------------------------------------

// Each block has its capacity before it, and is aligned to 16 bytes.
static size_t *
capacity_of(void *block)
{
    return (size_t *)block - 1;
}

static size_t
round_up(size_t size)
{
    return ((size + 7) & ~(size_t)15) + 8;
}

// What becomes of the blocks that are allocated before the snapshot, in their order.
enum fate { FREED = 'f', IDLE = 'i', READ = 'r', WRITTEN = 'w' };
static unsigned char *fates;
static size_t allocated;
// In the second run: how many fates are known, and how many blocks are still to be freed.
static size_t foreseen, temporary;

// Memory for what is not kept: in the first run all blocks, in the second those that are freed. Its
// address is always the same, because pointers to what has been freed stay behind in caches.
enum { PAGE = 4096, MOST_PAGES = 4 << 20 };
static char *const scratch_address = (char *)(1ul << 40);
static char *scratch_start, *scratch_end;

// In the first run: its used part, and of each page the number of its block.
static char *surveyed;
static uint32_t *owners;

static bool
is_within(const void *block, const char *start, const char *end)
{
    return (uintptr_t)block - (uintptr_t)start < (uintptr_t)(end - start);
}

static bool
is_ours(const void *block)
{
    return is_within(block, idle_start, fresh_end) || is_within(block, scratch_start, scratch_end);
}

__attribute__((noreturn)) static void
fail(const char *why)
{
    ssize_t told = write(STDERR_FILENO, why, strlen(why)); // dprintf() would allocate
    _exit(told < 0 ? 2 : 1);
}

// A section begins with how much of it is used.
static void *
place(char *section, const char *end, size_t capacity)
{
    size_t *used = (size_t *)section;
    void *block = section + *used + sizeof capacity;
    if (capacity > (size_t)(end - (char *)block))
        fail("launcher: MOST in assemble.py is too small\n");
    *used += sizeof capacity + capacity;
    *capacity_of(block) = capacity;
    return block;
}

static void *
examine(size_t capacity)
{
    void *block = surveyed + 2 * sizeof capacity;
    for (; surveyed < (char *)block + capacity; surveyed += PAGE) {
        if (surveyed == scratch_end)
            fail("launcher: MOST_PAGES in snapshot.c is too small\n");
        owners[(surveyed - scratch_start) / PAGE] = (uint32_t)allocated;
    }
    fates[allocated] = IDLE;
    *capacity_of(block) = capacity;
    return block;
}

static unsigned char *
fate_of(const void *block)
{
    return &fates[owners[((const char *)block - scratch_start) / PAGE]];
}

static void *
keep(size_t size)
{
    size_t capacity = round_up(size);
    void *block = NULL;
    if (surveyed)
        block = examine(capacity);
    else if (allocated == foreseen)
        fail("launcher: more was allocated than in the survey\n");
    else if (fates[allocated] == FREED) {
        temporary++;
        block = place(scratch_start, scratch_end, capacity);
    } else if (fates[allocated] == WRITTEN)
        block = place(written_start, written_end, capacity);
    else if (fates[allocated] == READ)
        block = place(read_start, read_end, capacity);
    else
        block = place(idle_start, idle_end, capacity);
    allocated++;
    return block;
}

// In a process that has restored it: freed blocks by capacity, and what is left of the memory for
// new ones. Larger blocks are libc's.
enum { LARGEST = 520, FRESH_AT_ONCE = 20 << 10 };
static void *spares[LARGEST / 16 + 1];
static char *fresh = fresh_start;

static void
let_go(void *block)
{
    if (!is_ours(block))
        __real_free(block);
    else if (!filling) {
        size_t capacity = *capacity_of(block);
        if (capacity <= LARGEST) {
            *(void **)block = spares[capacity / 16];
            spares[capacity / 16] = block;
        }
    } else if (surveyed) {
        *fate_of(block) = FREED;
        madvise((char *)block - 16, *capacity_of(block) + 16, MADV_DONTNEED);
    } else if (is_within(block, scratch_start, scratch_end))
        temporary--;
    else
        fail("launcher: a block is freed that the survey kept\n");
}

// ---- CPython's allocators ----------------------------------------------------------------------

// For objects and all else that is allocated with the GIL held. A call is over before it would pay
// to return memory, or to use it for blocks of another size.

static void *
allocate(void *unused, size_t size)
{
    (void)unused;
    if (filling)
        return keep(size);
    size_t capacity = round_up(size), room = sizeof capacity + capacity;
    if (capacity > LARGEST)
        return __real_malloc(size);
    void **spare = &spares[capacity / 16], *block = *spare;
    if (block != NULL) {
        *spare = *(void **)block;
        return block;
    }
    if (room > (size_t)(fresh_end - fresh))
        return __real_malloc(size);
    block = fresh + sizeof capacity;
    fresh += room;
    *capacity_of(block) = capacity;
    return block;
}

static void *
allocate_zeros(void *unused, size_t count, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(count, size, &total))
        return NULL;
    void *block = allocate(unused, total);
    return block ? memset(block, 0, total) : NULL;
}

static void *
resize(void *unused, void *block, size_t size)
{
    if (block == NULL)
        return allocate(unused, size);
    if (!is_ours(block))
        return __real_realloc(block, size ? size : 1); // libc's frees the block at 0; CPython's not
    size_t had = *capacity_of(block);
    if (!filling && had >= size)
        return block;
    void *grown = allocate(unused, size);
    if (grown != NULL) {
        memcpy(grown, block, had < size ? had : size);
        let_go(block);
    }
    return grown;
}

static void
release(void *unused, void *block)
{
    (void)unused;
    let_go(block);
}

// Of the memory for Python's frames, which CPython takes for an arena.
static void
release_frames(void *unused, void *block, size_t size)
{
    (void)size;
    release(unused, block);
}

// The linker puts these in place of libc's (--wrap). In a process that has restored it they call
// libc's, except for blocks of the snapshot.

void *
__wrap_malloc(size_t size)
{
    return filling ? keep(size) : __real_malloc(size);
}

void *
__wrap_calloc(size_t count, size_t size)
{
    return filling ? allocate_zeros(NULL, count, size) : __real_calloc(count, size);
}

void *
__wrap_realloc(void *block, size_t size)
{
    return filling || is_ours(block) ? resize(NULL, block, size) : __real_realloc(block, size);
}

void
__wrap_free(void *block)
{
    let_go(block);
}

// CPython's ID of a thread: the address of libc's record of it, different in each process.
pthread_t
__wrap_pthread_self(void)
{
    return filling ? 0 : __real_pthread_self();
}

// ---- Taking it ----------------------------------------------------------------------------------

bool
snapshot_is_taken(void)
{
    return *(size_t *)read_start != 0;
}

static void *
reserve(void *address, size_t size)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *memory = mmap(address, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED || (address != NULL && memory != address))
        fail("launcher: no memory to take a snapshot\n");
    return memory;
}

bool
snapshot_begin(int plan)
{
    fates = reserve(NULL, MOST_PAGES);
    for (ssize_t got; (got = read(plan, fates + foreseen, MOST_PAGES - foreseen)) > 0;)
        foreseen += (size_t)got;
    size_t size = (size_t)MOST_PAGES * PAGE;
    scratch_start = reserve(scratch_address, size);
    scratch_end = scratch_start + size;
    bool survey = foreseen == 0;
    if (survey) {
        surveyed = scratch_start;
        owners = reserve(NULL, MOST_PAGES * sizeof *owners);
    } else
        *(size_t *)scratch_start = sizeof(size_t);
    char *const sections[] = {idle_start, read_start, written_start};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(sections); i++)
        *(size_t *)sections[i] = sizeof(size_t); // so that blocks are aligned
    filling = true;
    PyMemAllocatorEx ours = {NULL, allocate, allocate_zeros, resize, release};
    PyMem_SetAllocator(PYMEM_DOMAIN_MEM, &ours);
    PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &ours);
    PyObject_SetArenaAllocator(&(PyObjectArenaAllocator){NULL, allocate, release_frames});
    return survey;
}

// A block's pages are closed at first, then readable, then open.
static void
note_access(int number, siginfo_t *fault, void *context)
{
    (void)number, (void)context;
    if (!is_within(fault->si_addr, scratch_start, surveyed))
        fail("launcher: the survey crashed\n");
    size_t first = (size_t)((char *)fault->si_addr - scratch_start) / PAGE, end = first + 1;
    uint32_t block = owners[first];
    while (first > 0 && owners[first - 1] == block)
        first--;
    while (scratch_start + end * PAGE < surveyed && owners[end] == block)
        end++;
    bool read = fates[block] != IDLE;
    fates[block] = read ? WRITTEN : READ;
    int protection = read ? PROT_READ | PROT_WRITE : PROT_READ;
    if (mprotect(scratch_start + first * PAGE, (end - first) * PAGE, protection) != 0)
        fail("launcher: the survey cannot go on\n");
}

void
snapshot_watch(void)
{
    filling = false;
    struct sigaction action = {.sa_sigaction = note_access, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    if (mprotect(scratch_start, (size_t)(surveyed - scratch_start), PROT_NONE) != 0)
        fail("launcher: the survey cannot be made\n");
}

static bool
write_all(int fd, const char *from, const char *end)
{
    while (from < end) {
        ssize_t written = write(fd, from, (size_t)(end - from));
        if (written < 0)
            return false;
        from += written;
    }
    return true;
}

bool
snapshot_write_plan(int fd)
{
    return write_all(fd, (char *)fates, (char *)fates + allocated);
}

bool
snapshot_write(int fd)
{
    if (allocated != foreseen || temporary != 0)
        fail("launcher: less was allocated or freed than in the survey\n");
    return write_all(fd, idle_start, written_end);
}

// ---- Using it -----------------------------------------------------------------------------------

static void
expect_writes(void *start, const char *end)
{
    char *page = (char *)((uintptr_t)start & ~(uintptr_t)(PAGE - 1));
    // Linux before 5.14 refuses: each page faults.
    madvise(page, (size_t)(end - page), MADV_POPULATE_WRITE);
}

void
snapshot_expect_writes(void)
{
    // .PyRuntime, .written and the first new blocks. In between is a cache of attributes, where what
    // a call looks up is already: it writes to a quarter of its 24 pages.
    struct type_cache *cache = &_PyRuntime._main_interpreter.type_cache;
    expect_writes(runtime_start, (char *)cache);
    expect_writes(cache + 1, fresh_start + FRESH_AT_ONCE);
}

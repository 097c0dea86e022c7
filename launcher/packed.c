// SPDX-License-Identifier: Apache-2.0
//
// Two thirds of what is linked, only the tool uses. It is not in the file as the linker made it but
// compressed (launcher/assemble.py), and the addresses where it belongs are free: the tool
// decompresses it as it starts, which takes 3 ms, and OpenSSL when _ssl is imported. The tool's
// modules are compressed each by itself, and decompressed when they are imported.
//
// What the plugin uses is linked apart from it, object by object (PLUGIN_OBJECTS in assemble.py). If
// a call needs an object that is not in that list, its first use faults and is answered here, so a
// missing entry costs that call 3 ms, and not a pod its network.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "packed.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

// Set by snapshot.ld and assemble.py.
extern char packed_start[], packed_end[], state_start[], state_end[], tool_start[], tool_end[],
    openssl_start[], openssl_end[];

static const struct {
    char *start, *end;
} places[] = {
    [PACKED_VARIABLES] = {state_start, state_end},
    [PACKED_TOOL] = {tool_start, tool_end},
    [PACKED_OPENSSL] = {openssl_start, openssl_end},
};

__attribute__((noreturn)) static void
fail(int error)
{
    dprintf(STDERR_FILENO,
            "mycelium-cni: no memory for the program's own code: %s (a limit such as ulimit -v, or"
            " systemd's MemoryDenyWriteExecute=)\n",
            strerror(error));
    _exit(1);
}

void
packed_open(enum packed_part part)
{
    const char *frame = packed_start;
    size_t length = 0;
    for (enum packed_part each = PACKED_VARIABLES; each <= part; each++) {
        frame += length;
        length = ZSTD_findFrameCompressedSize(frame, (size_t)(packed_end - frame));
    }
    char *start = places[part].start;
    size_t size = (size_t)(places[part].end - start);
    bool is_mapped = part == PACKED_VARIABLES;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE;
    if (!is_mapped && mmap(start, size, PROT_READ | PROT_WRITE, flags, -1, 0) != start)
        fail(errno);
    if (ZSTD_decompress(start, size, frame, length) != size)
        fail(ENOMEM);
    if (!is_mapped && mprotect(start, size, PROT_READ | PROT_EXEC) != 0)
        fail(errno);
    // It is not read again, and would count as this process's memory: 2.6 MB.
    madvise(packed_start, (size_t)(packed_end - packed_start), MADV_DONTNEED);
}

static void
answer_fault(int number, siginfo_t *fault, void *context)
{
    (void)context;
    uintptr_t offset = (uintptr_t)fault->si_addr - (uintptr_t)tool_start;
    // What is not there yet is tried again. A fault of another kind, or the same one again, ends
    // the process as it would have.
    signal(number, SIG_DFL);
    if (offset < (uintptr_t)(tool_end - tool_start))
        packed_open(PACKED_TOOL);
}

void
packed_open_when_used(void)
{
    struct sigaction action = {.sa_sigaction = answer_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
}

// ---- Modules -----------------------------------------------------------------------------------

// See freeze.py: the code of the tool's modules, and what it has in common.
extern const char packed_modules[], packed_modules_end[], packed_dictionary[],
    packed_dictionary_end[];
extern PyObject *__real_PyMarshal_ReadObjectFromString(const char *, Py_ssize_t);

// With this function CPython reads the code of a frozen module.
PyObject *
__wrap_PyMarshal_ReadObjectFromString(const char *data, Py_ssize_t size)
{
    static ZSTD_DCtx *context;
    static ZSTD_DDict *dictionary;
    if (data < packed_modules || data >= packed_modules_end)
        return __real_PyMarshal_ReadObjectFromString(data, size);

    if (context == NULL) {
        size_t length = (size_t)(packed_dictionary_end - packed_dictionary);
        context = ZSTD_createDCtx();
        dictionary = ZSTD_createDDict_byReference(packed_dictionary, length);
    }
    size_t room = (size_t)ZSTD_getFrameContentSize(data, (size_t)size);
    char *code = malloc(room);
    if (context == NULL || dictionary == NULL || code == NULL)
        fail(ENOMEM);
    size_t got = ZSTD_decompress_usingDDict(context, code, room, data, (size_t)size, dictionary);
    PyObject *module = __real_PyMarshal_ReadObjectFromString(code, (Py_ssize_t)got);
    free(code);
    return module;
}

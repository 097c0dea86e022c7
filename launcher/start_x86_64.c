// SPDX-License-Identifier: Apache-2.0
//
// What runs before main() on amd64, instead of glibc 2.36's own __libc_start_main().
//
// glibc's executes CPUID some seventy times, to choose among string functions and to size their
// loops by the caches. Under a hypervisor every CPUID leaves the virtual machine: 1 to 8 µs each,
// which made a static `int main() {}` take 0.60 ms instead of 0.12, and a process of two
// milliseconds never earns that back. This one executes none. glibc then finds no processor
// features in its table and takes the functions every amd64 has (SSE2).
//
// It does, in the same order, what csu/libc-start.c does for a static executable, except that it
// ignores GLIBC_TUNABLES, which a program that runs as root need not take from its environment.
// Names with a leading underscore are glibc's, hidden in its shared library but not in libc.a.
// launcher/build.py refuses any other glibc version. Nothing here may be compiled with a stack
// protector: its guard is not set yet.

#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Defined here so that the linker does not take glibc's libc-start.o for them. These are the values
// that sysdeps/x86/cacheinfo.h starts from, for a processor it knows nothing about; the two it
// leaves at zero until CPUID has answered are set as it computes them from the others.
long __x86_data_cache_size_half = 32 * 1024 / 2;
long __x86_data_cache_size = 32 * 1024;
long __x86_shared_cache_size_half = 1024 * 1024 / 2;
long __x86_shared_cache_size = 1024 * 1024;
long __x86_shared_non_temporal_threshold = 1024 * 1024 * 3 / 4;
long __x86_rep_movsb_threshold = 2048;
long __x86_rep_stosb_threshold = 2048;
long __x86_rep_movsb_stop_threshold = 1024 * 1024 * 3 / 4;
int __x86_string_control = 0;

extern void *__libc_stack_end;
extern const unsigned char *_dl_random; // 16 bytes from the kernel
extern int __libc_enable_secure;
extern void _dl_aux_init(ElfW(auxv_t) *);
extern void __libc_setup_tls(void);
extern void __libc_early_init(_Bool);
extern void __libc_init_first(int, char **, char **);
extern void __libc_check_standard_fds(void);
extern void *_dl_debug_initialize(ElfW(Addr), long);
extern int __cxa_atexit(void (*)(void *), void *, void *);

// From the linker.
typedef void initializer(int, char **, char **);
extern initializer *const __preinit_array_start[], *const __preinit_array_end[];
extern initializer *const __init_array_start[], *const __init_array_end[];
extern void (*const __fini_array_start[])(void), (*const __fini_array_end[])(void);
extern const ElfW(Rela) __rela_iplt_start[], __rela_iplt_end[];
extern void _init(void), _fini(void);

static void
run_finalizers(void *unused)
{
    (void)unused;
    for (size_t i = (size_t)(__fini_array_end - __fini_array_start); i > 0; i--)
        __fini_array_start[i - 1]();
    _fini();
}

// The arguments after argv are those that crt1.o's _start passes; a static executable needs only
// the last of them.
__attribute__((noreturn)) int
__libc_start_main(int (*main)(int, char **, char **), int argc, char **argv, void (*init)(void),
                  void (*fini)(void), void (*loader_fini)(void), void *stack_end)
{
    (void)init, (void)fini, (void)loader_fini;
    environ = &argv[argc + 1];
    __libc_stack_end = stack_end;
    char **after_environment = environ;
    while (*after_environment++ != NULL)
        ;
    _dl_aux_init((ElfW(auxv_t) *)after_environment);

    // The string functions are chosen here; before, none may be called.
    for (const ElfW(Rela) *choice = __rela_iplt_start; choice < __rela_iplt_end; choice++)
        *(ElfW(Addr) *)choice->r_offset = ((ElfW(Addr)(*)(void))choice->r_addend)();

    __libc_setup_tls();
    uintptr_t stack_guard, pointer_guard;
    __builtin_memcpy(&stack_guard, _dl_random, sizeof stack_guard);
    __builtin_memcpy(&pointer_guard, _dl_random + sizeof stack_guard, sizeof pointer_guard);
    stack_guard &= ~(uintptr_t)0xff; // a zero byte stops an overflowing string
    __asm__ volatile("mov %0, %%fs:0x28" : : "r"(stack_guard));
    __asm__ volatile("mov %0, %%fs:0x30" : : "r"(pointer_guard));

    __libc_early_init(1);
    __libc_init_first(argc, argv, environ);
    __cxa_atexit(run_finalizers, NULL, NULL);
    if (__libc_enable_secure)
        __libc_check_standard_fds();
    for (initializer *const *each = __preinit_array_start; each < __preinit_array_end; each++)
        (*each)(argc, argv, environ);
    _init();
    for (initializer *const *each = __init_array_start; each < __init_array_end; each++)
        (*each)(argc, argv, environ);
    _dl_debug_initialize(0, 0);
    exit(main(argc, argv, environ));
}

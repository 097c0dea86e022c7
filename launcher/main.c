// SPDX-License-Identifier: Apache-2.0
//
// The static executable: CPython, the plugin and the operator's tool in one file that needs
// nothing of its host. Which of the two runs is decided before Python starts, because they need
// different interpreters: the plugin one that is ready at once, the tool a whole one.
//
// So the plugin's is started when the file is built, imports all modules, and is stored in the file
// as a snapshot (snapshot.c). A call of the plugin restores it.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <internal/pycore_import.h>
#include <internal/pycore_interp.h>
#include <internal/pycore_runtime.h>

#include "packed.h"
#include "snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mount.h>
#include <unistd.h>

// Tables that launcher/freeze.py generates: the modules in this file, for either interpreter.
extern const struct _frozen plugin_modules[];
extern const struct _frozen tool_modules[];
// What the plugin may import.
extern const char *const plugin_imports[];

// ---- What CPython's posix lacks --------------------------------------------------------------

// os.setns() of CPython 3.12, for mycelium_cni.kernel.netns.
static PyObject *
posix_setns(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"fd", "nstype", NULL};
    PyObject *file;
    int nstype = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|i:setns", names, &file, &nstype))
        return NULL;
    int fd = PyObject_AsFileDescriptor(file);
    if (fd < 0)
        return NULL;
    int result;
    do {
        Py_BEGIN_ALLOW_THREADS
        result = setns(fd, nstype);
        Py_END_ALLOW_THREADS
    } while (result != 0 && errno == EINTR && PyErr_CheckSignals() == 0);
    if (result == 0)
        Py_RETURN_NONE;
    return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
}

// Nobody has this one: for mycelium_cni.kernel.sysctl. Linux 5.2.
static PyObject *
posix_mount_proc(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    int mount = -1, context = fsopen("proc", FSOPEN_CLOEXEC);
    if (context >= 0) {
        if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
            mount = fsmount(context, FSMOUNT_CLOEXEC,
                            MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
        int error = errno;
        close(context);
        errno = error;
    }
    return mount < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(mount);
}

static PyMethodDef backports[] = {
    {"setns", (PyCFunction)(void (*)(void))posix_setns, METH_VARARGS | METH_KEYWORDS,
     "setns(fd, nstype=0)\n--\n\nMove the calling thread into different namespaces."},
    {"mount_proc", posix_mount_proc, METH_NOARGS,
     "mount_proc()\n--\n\nA descriptor of a new procfs that is mounted nowhere."},
    {NULL, NULL, 0, NULL},
};

static int
add_backports(PyObject *module)
{
    return PyModule_AddFunctions(module, backports);
}

// Replaces PyInit_posix in the table of built-in modules. The definition is changed in place and
// not copied, since posix finds its own state by the definition's address.
PyMODINIT_FUNC
PyInit_posix_with_backports(void)
{
    extern PyObject *PyInit_posix(void);
    static PyModuleDef_Slot slots[8];

    PyModuleDef *posix = (PyModuleDef *)PyInit_posix();
    if (posix == NULL || posix->m_slots == slots)
        return (PyObject *)posix;
    size_t used = 0;
    for (PyModuleDef_Slot *slot = posix->m_slots; slot->slot != 0; slot++)
        slots[used++] = *slot;
    slots[used] = (PyModuleDef_Slot){Py_mod_exec, add_backports};
    posix->m_slots = slots;
    return (PyObject *)posix;
}

// Replaces PyInit__ssl in that table.
PyMODINIT_FUNC
PyInit__ssl_unpacked(void)
{
    extern PyObject *PyInit__ssl(void);

    packed_open(PACKED_OPENSSL);
    return PyInit__ssl();
}

// ---- What the C library need not do ----------------------------------------------------------

// glibc reads the link /proc/self/exe in each process, for $ORIGIN in the path of a library that
// dlopen() would load (elf/dl-origin.c). Nobody loads one here, and the kernel makes, and at the end
// deletes, three inodes for it: 25 µs. -1 says that the directory is unknown.
const char *
__wrap__dl_get_origin(void)
{
    return (const char *)-1;
}

// ---- What a single thread need not do --------------------------------------------------------

// A call of the plugin has one thread, and half of its system calls would release CPython's lock and
// take it again, which is a mutex and a condition each time. The linker puts
// these in place of CPython's (--wrap). Set in the snapshot; the tool has its variables set back.
static bool has_one_thread;

extern PyThreadState *__real_PyEval_SaveThread(void);
extern void __real_PyEval_RestoreThread(PyThreadState *);

PyThreadState *
__wrap_PyEval_SaveThread(void)
{
    return has_one_thread ? PyThreadState_Get() : __real_PyEval_SaveThread();
}

void
__wrap_PyEval_RestoreThread(PyThreadState *thread)
{
    if (!has_one_thread)
        __real_PyEval_RestoreThread(thread);
}

// ---- Both interpreters -----------------------------------------------------------------------

// What both interpreters begin with: UTF-8 whatever the locale, and their frozen modules.
static PyStatus
preinitialize(const struct _frozen *modules)
{
    _PyImport_FrozenBootstrap = modules;
    PyPreConfig config;
    PyPreConfig_InitIsolatedConfig(&config);
    config.utf8_mode = 1;
    return Py_PreInitialize(&config);
}

// ---- The plugin's interpreter, when this file is built -------------------------------------------

// What a call needs of it.
static PyObject *plugin_main; // mycelium_cni.main.main()
static PyObject *environment; // posix.environ, a dict

// The core of an interpreter: no files to import from, no streams, no signal handlers, no codecs
// but the ones in C.
static PyStatus
start_plugin_interpreter(void)
{
    PyStatus status = preinitialize(plugin_modules);
    if (PyStatus_Exception(status))
        return status;

    // A call is over before collecting cycles would pay.
    _PyRuntime._main_interpreter.gc.enabled = 0;

    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config._init_main = 0;
    config.use_hash_seed = 1; // the hashes are in the file: two builds make the same one
    status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return status;
}

// The attribute of a module, imported if need be; NULL with an exception set.
static PyObject *
import_attribute(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *attribute = module ? PyObject_GetAttrString(module, name) : NULL;
    Py_XDECREF(module);
    return attribute;
}

// What is being imported, for the error of a failed build.
static const char *importing = "nothing yet";

static void
complain(const char *what)
{
    // Without stdio: after snapshot_begin() its buffers would be in the snapshot.
    const char *const parts[] = {"launcher: ", importing, ": ", what, "\n"};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(parts); i++)
        if (write(STDERR_FILENO, parts[i], strlen(parts[i])) < 0)
            return;
}

static void
crashed(int number)
{
    (void)number;
    complain("crashed: it needs more of an interpreter than there is (launcher/main.c)");
    _exit(1);
}

// Import a module, and make its types ready, which some modules in C leave to their first use.
static bool
import_whole(const char *name)
{
    importing = name;
    PyObject *module = PyImport_ImportModule(name), *value;
    Py_ssize_t position = 0;
    while (module != NULL && PyDict_Next(PyModule_GetDict(module), &position, NULL, &value))
        if (PyType_Check(value) && PyType_Ready((PyTypeObject *)value) != 0)
            break;
    Py_XDECREF(module);
    return !PyErr_Occurred();
}

static int
count_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

// What the module just imported has done that would not be so in another process; NULL if nothing.
static const char *
what_cannot_be_stored(int descriptors)
{
    PyInterpreterState *interpreter = PyInterpreterState_Get();
    if (count_descriptors() != descriptors)
        return "keeps a file open";
    if (PyThreadState_Next(PyInterpreterState_ThreadHead(interpreter)) != NULL)
        return "starts a thread";
    if (interpreter->before_forkers || interpreter->after_forkers_parent ||
        interpreter->after_forkers_child)
        return "hooks into fork(), and a call would run the hook";
    return NULL;
}

// Have modules in C forget their names, most of which nobody has imported. Our modules import names
// and not modules, and what they have imported stays.
static void
forget_names(void)
{
    static const char *const modules[] = {"_blake2", "_json",    "_socket", "_struct", "errno",
                                          "fcntl",   "posix",    "resource", "select", "time"};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(modules) && !PyErr_Occurred(); i++) {
        PyObject *module = PyImport_AddModule(modules[i]); // borrowed
        if (module != NULL)
            PyDict_Clear(PyModule_GetDict(module));
    }
}

// Start the interpreter, have it import everything, and write its snapshot to standard output. The
// first time, standard input is empty and the survey is written; the second time it is the input.
//
// A module must do nothing but compute. Besides what is checked here, it cannot be one that needs
// more than the core of an interpreter: there are no warning filters (warnings, and so inspect and
// dataclasses), no open() and no streams (tokenize, and so traceback and logging), no signal
// handlers (signal, and so subprocess), and no files to import from.
static int
make_snapshot(void)
{
    int descriptors = count_descriptors();
    signal(SIGSEGV, crashed);
    bool survey = snapshot_begin(STDIN_FILENO);
    PyStatus status = start_plugin_interpreter();
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    has_one_thread = true;

    for (const char *const *name = plugin_imports; *name != NULL; name++) {
        const char *trouble = import_whole(*name) ? what_cannot_be_stored(descriptors) : "";
        if (trouble != NULL) {
            complain(*trouble ? trouble : "cannot be imported");
            PyErr_Print();
            return 1;
        }
    }
    plugin_main = import_attribute("mycelium_cni.main", "main");
    environment = import_attribute("posix", "environ");
    PyObject *rehearse = import_attribute("rehearsal", "rehearse");
    forget_names();
    // It keeps names alive, which ones depends on their addresses, and these on the survey.
    PyType_ClearCache();
    Py_XDECREF(PyErr_Occurred() ? NULL : PyObject_CallNoArgs(rehearse));
    if (survey && !PyErr_Occurred()) {
        snapshot_watch();
        PyOS_AfterFork_Child(); // which restore() calls
        PyType_ClearCache();    // not all that a call looks up has room in it
        Py_XDECREF(PyObject_CallNoArgs(rehearse));
    }
    if (PyErr_Occurred()) {
        PyErr_Print();
        return 1;
    }
    if (survey)
        return !snapshot_write_plan(STDOUT_FILENO);

    // These belong to this process alone.
    PyThread_tss_delete(&_PyRuntime.gilstate.autoTSSkey);
    PyThreadState_Get()->native_thread_id = 0;

    if (!snapshot_write(STDOUT_FILENO)) {
        perror("launcher: the snapshot");
        return 1;
    }
    return 0;
}

// ---- The plugin, called --------------------------------------------------------------------------

// As after fork(), correct what the interpreter knows of threads. Here the process, and even the
// machine, is another, and so is its one thread.
static int
restore(void)
{
    PyThreadState *thread = PyThreadState_Get();
    thread->thread_id = PyThread_get_thread_ident();
    Py_tss_t *key = &_PyRuntime.gilstate.autoTSSkey;
    if (PyThread_tss_create(key) != 0 || PyThread_tss_set(key, thread) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    PyOS_AfterFork_Child();

    PyDict_Clear(environment);
    for (char **each = environ; *each != NULL; each++) {
        const char *end = strchr(*each, '=');
        if (end == NULL)
            continue;
        PyObject *name = PyBytes_FromStringAndSize(*each, end - *each);
        PyObject *value = PyBytes_FromString(end + 1);
        // Of two with one name the first counts, as for getenv().
        if (name == NULL || value == NULL || PyDict_SetDefault(environment, name, value) == NULL)
            return -1;
        Py_DECREF(name);
        Py_DECREF(value);
    }
    return 0;
}

static int
run_plugin(const char *verb)
{
    // As in every Python: if the reader is gone, write() fails, and ADD undoes its steps.
    signal(SIGPIPE, SIG_IGN);

    packed_open_when_used();
    // VERSION and the text about the program need little.
    if (verb && *verb && strcmp(verb, "VERSION") != 0)
        snapshot_expect_writes();
    // main() reads and writes descriptors 0, 1 and 2 itself, and returns the exit code.
    PyObject *result = restore() == 0 ? PyObject_CallNoArgs(plugin_main) : NULL;
    long code = result ? PyLong_AsLong(result) : -1;
    if (PyErr_Occurred()) {
        PyErr_Print(); // a bug: main() answers with a CNI error whatever happens in it
        code = 1;
    }
    _exit((int)code); // nothing is buffered, and tearing the interpreter down takes a millisecond
}

// ---- The operator's tool ---------------------------------------------------------------------

// This file's own path, for messages and for starting it again.
static const char *
own_path(void)
{
    static char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length > 0)
        return path;
    // No /proc: the path that the kernel was asked to execute. It may be relative, so resolve it
    // before the tool changes directory.
    const char *asked = (const char *)getauxval(AT_EXECFN);
    return asked && realpath(asked, path) ? path : asked;
}

// Where the tool's data is: in a zip archive at this executable's end. The path through /proc means
// this file even after an upgrade has replaced it, or after chroot().
static const char *
archive_path(void)
{
    static const char through_proc[] = "/proc/self/exe";
    return access(through_proc, R_OK) == 0 ? through_proc : own_path();
}

// A package's __path__ is below the directory of the standard library if its code is in this file
// (tool_modules), so a package of data within it is found in the archive.
static const wchar_t command[] = L"import sys\n"
                                 L"sys._stdlib_dir = sys.path[0]\n"
                                 L"import mycelium_entry\n"
                                 L"sys.exit(mycelium_entry.main())\n";

static PyStatus
start_tool_interpreter(int argc, char **argv)
{
    PyStatus status = preinitialize(tool_modules);
    if (PyStatus_Exception(status))
        return status;

    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.install_signal_handlers = 1;
    config.site_import = 0;
    config.write_bytecode = 0;
    config.module_search_paths_set = 1;

    wchar_t *path = Py_DecodeLocale(own_path(), NULL);
    if (path == NULL)
        return PyStatus_NoMemory();
    // Every path is given, so that none is looked for on the host.
    wchar_t **paths[] = {&config.program_name, &config.executable, &config.base_executable,
                         &config.home,         &config.prefix,     &config.base_prefix,
                         &config.exec_prefix,  &config.base_exec_prefix, &config.stdlib_dir};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(paths) && !PyStatus_Exception(status); i++)
        status = PyConfig_SetString(&config, paths[i], path);
    wchar_t *archive = Py_DecodeLocale(archive_path(), NULL);
    if (archive == NULL)
        return PyStatus_NoMemory();
    if (!PyStatus_Exception(status))
        status = PyWideStringList_Append(&config.module_search_paths, archive);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesArgv(&config, argc, argv);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetString(&config, &config.run_command, command);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return status;
}

static int
run_tool(int argc, char **argv)
{
    packed_open(PACKED_TOOL);
    packed_open(PACKED_VARIABLES);
    PyStatus status = start_tool_interpreter(argc, argv);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    return Py_RunMain();
}

int
main(int argc, char **argv)
{
    if (!snapshot_is_taken())
        return make_snapshot(); // launcher/assemble.py started what the linker made

    // The same rule as mycelium_entry's, for the pip-installed command.
    const char *verb = getenv("CNI_COMMAND");
    if ((verb && *verb) || argc < 2)
        return run_plugin(verb);
    return run_tool(argc, argv);
}

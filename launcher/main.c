// SPDX-License-Identifier: Apache-2.0
//
// The static executable: CPython, the plugin and the operator's tool in one file that needs
// nothing of its host. Which of the two it is, is decided before Python exists, because the two
// want very different interpreters: the plugin one that starts in the time of a Go program, the
// tool a whole one.
//
// An interpreter comes from a start_*() function and everything after that does not ask how. One
// that wakes an interpreter stored in this file at build time would be a third start_*().

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <internal/pycore_import.h>
#include <internal/pycore_interp.h>
#include <internal/pycore_runtime.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <unistd.h>

// Tables that launcher/freeze.py generates: the modules in this file, for either interpreter.
extern const struct _frozen plugin_modules[];
extern const struct _frozen tool_modules[];

// ---- What CPython 3.11 lacks -----------------------------------------------------------------

// os.setns() of CPython 3.12, for mycelium_cni.netns.
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

static PyMethodDef backports[] = {
    {"setns", (PyCFunction)(void (*)(void))posix_setns, METH_VARARGS | METH_KEYWORDS,
     "setns(fd, nstype=0)\n--\n\nMove the calling thread into different namespaces."},
    {NULL, NULL, 0, NULL},
};

static int
add_backports(PyObject *module)
{
    return PyModule_AddFunctions(module, backports);
}

// Stands for PyInit_posix in the table of built-in modules. The definition is changed in place and
// not copied, since posix finds its own state by the definition's address.
PyMODINIT_FUNC
PyInit_posix_with_backports(void)
{
    extern PyObject *PyInit_posix(void);
    static PyModuleDef_Slot slots[8];

    PyModuleDef *definition = (PyModuleDef *)PyInit_posix();
    if (definition == NULL || definition->m_slots == slots)
        return (PyObject *)definition;
    size_t used = 0;
    for (PyModuleDef_Slot *slot = definition->m_slots; slot->slot != 0; slot++)
        slots[used++] = *slot;
    slots[used] = (PyModuleDef_Slot){Py_mod_exec, add_backports};
    definition->m_slots = slots;
    return (PyObject *)definition;
}

// ---- The plugin ------------------------------------------------------------------------------

// A runtime may start us with standard descriptors closed, and the first socket opened would then
// take the number 1 and receive the result meant for standard output. An O_PATH descriptor holds
// the number, while reading and writing still fail with EBADF; "/" can always be opened so.
static void
hold_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/", O_PATH | O_DIRECTORY); // the lowest free number, so exactly this one
}

// The core of an interpreter: no files to import from, no streams, no signal handlers, no codecs
// but the ones in C. Every import is answered by launcher/bootstrap.py from plugin_modules.
static PyStatus
start_plugin_interpreter(void)
{
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    PyStatus status = Py_PreInitialize(&before);
    if (PyStatus_Exception(status))
        return status;

    _PyImport_FrozenBootstrap = plugin_modules;
    // The process is over before there would be a cycle worth finding. PyGC_Disable() would come
    // after some collections of the start-up's own objects.
    _PyRuntime._main_interpreter.gc.enabled = 0;

    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config._init_main = 0;
    status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return status;
}

// The exit code of mycelium_cni.main.main(), which reads and writes descriptors 0, 1 and 2 itself.
static int
call_plugin(void)
{
    PyObject *module = PyImport_ImportModule("mycelium_cni.main");
    PyObject *result = module ? PyObject_CallMethod(module, "main", NULL) : NULL;
    long code = result ? PyLong_AsLong(result) : -1;
    if (!PyErr_Occurred())
        return (int)code;
    PyErr_Print(); // a bug: main() answers with a CNI error whatever happens in it
    return 1;
}

static int
run_plugin(void)
{
    hold_standard_descriptors();
    // As in every Python: a reader that went away is an error of write(), which ADD can undo for.
    signal(SIGPIPE, SIG_IGN);

    PyStatus status = start_plugin_interpreter();
    if (PyStatus_Exception(status)) {
        dprintf(STDOUT_FILENO,
                "{\"cniVersion\":\"1.0.0\",\"code\":999,\"msg\":\"the plugin cannot start: %s\"}\n",
                status.err_msg ? status.err_msg : "no reason given");
        return 1;
    }
    int code = call_plugin();
    _exit(code); // nothing is buffered, and tearing the interpreter down would take a millisecond
}

// ---- The operator's tool ---------------------------------------------------------------------

// This file's own path, where the tool's modules are: a zip archive after the executable's end.
static const char *
own_path(void)
{
    static char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length > 0)
        return path;
    // No /proc: the kernel's word for what it was asked to execute. It may be relative, and then
    // must not depend on where the tool changes directory to.
    const char *asked = (const char *)getauxval(AT_EXECFN);
    return asked && realpath(asked, path) ? path : asked;
}

static PyStatus
start_tool_interpreter(int argc, char **argv)
{
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    PyStatus status = Py_PreInitialize(&before);
    if (PyStatus_Exception(status))
        return status;

    _PyImport_FrozenBootstrap = tool_modules;
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
    if (!PyStatus_Exception(status))
        status = PyWideStringList_Append(&config.module_search_paths, path);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesArgv(&config, argc, argv);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetString(&config, &config.run_command,
                                    L"import sys, mycelium_door; sys.exit(mycelium_door.main())");
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return status;
}

static int
run_tool(int argc, char **argv)
{
    PyStatus status = start_tool_interpreter(argc, argv);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    return Py_RunMain();
}

int
main(int argc, char **argv)
{
    // The same rule as mycelium_door's, which answers for the pip-installed command.
    const char *verb = getenv("CNI_COMMAND");
    if ((verb && *verb) || argc < 2)
        return run_plugin();
    return run_tool(argc, argv);
}

/* Embeds Python for libFuzzer: calls check(data) of the module that the environment
   variable FUZZ_MODULE names, and aborts when it raises. See run.py. */

#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

static PyObject *check;

static void fail(void)
{
    PyErr_Print();
    abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *name = getenv("FUZZ_MODULE");
    PyObject *module;

    (void)argc;
    (void)argv;
    Py_InitializeEx(0); /* the signals are libFuzzer's */
    module = PyImport_ImportModule(name ? name : "FUZZ_MODULE is not set");
    if (module == NULL)
        fail();
    check = PyObject_GetAttrString(module, "check");
    Py_DECREF(module);
    if (check == NULL)
        fail();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PyObject *input = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    PyObject *result;

    if (input == NULL)
        fail();
    result = PyObject_CallOneArg(check, input);
    Py_DECREF(input);
    if (result == NULL)
        fail();
    Py_DECREF(result);
    return 0;
}

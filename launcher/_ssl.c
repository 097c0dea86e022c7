// SPDX-License-Identifier: Apache-2.0
//
// CPython's _ssl, as the executable has it: the agent asks the Kubernetes API with it. It is compiled
// in place of Modules/_ssl.c.

#include <pyconfig.h>

// socketmodule.h would need bluez's headers, for sockets that _ssl never sees.
#undef HAVE_BLUETOOTH_BLUETOOTH_H

#define PyInit__ssl PyInit__ssl_of_cpython
#include "Modules/_ssl.c"
#undef PyInit__ssl

// OpenSSL would read a configuration file: that of the node, or whichever OPENSSL_CONF names. It may
// name shared objects to load, which a static executable cannot.
PyMODINIT_FUNC
PyInit__ssl(void)
{
    OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
    return PyInit__ssl_of_cpython();
}

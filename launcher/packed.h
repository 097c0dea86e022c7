// SPDX-License-Identifier: Apache-2.0
#ifndef PACKED_H
#define PACKED_H

// What is compressed in this file, in this order.
enum packed_part {
    PACKED_VARIABLES, // the section .state, as the linker made it
    PACKED_TOOL,      // code and constants that only the tool uses, modules of the plugin among them
    PACKED_OPENSSL,   // the same of OpenSSL and _ssl
};

// Decompress a part to where it was linked to be; ends the process if there is no memory for it.
void packed_open(enum packed_part part);

// Have PACKED_TOOL opened when it is first used.
void packed_open_when_used(void);

#endif

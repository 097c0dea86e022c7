# SPDX-License-Identifier: Apache-2.0
"""In place of CPython's: names of hosts as the DNS has them, which are ASCII.

socket and ssl encode every name of a host with this codec.
"""

import codecs


def getregentry() -> codecs.CodecInfo:
    """The codec, as `encodings` asks for it."""
    return codecs.CodecInfo(name="idna", encode=codecs.ascii_encode, decode=codecs.ascii_decode)

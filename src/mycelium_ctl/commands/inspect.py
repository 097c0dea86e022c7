# SPDX-License-Identifier: Apache-2.0
"""A key's identity on the overlay: public key, address, subnet, and the gateway of bridge mode.

The key is a public key (64 hexadecimal digits), the daemon's key file, or, with neither, the one
this node's daemon uses. --json prints the fields of `mycelium inspect --json`, no more and no less.
A private key is read and never shown.

    mycelium-cni inspect
    mycelium-cni inspect --key-file /etc/netseed
    mycelium-cni inspect --json a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209
"""

from __future__ import annotations

import argparse
import json

from mycelium_cni.cni.errors import CniError
from mycelium_cni.kernel.address import format_address
from mycelium_cni.node import identity, subnet
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node import options
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.state import State


def parse_public_key(text: str) -> bytes:
    """The 32 bytes of a public key; raises ToolError."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(text) != 64 or len(key) != identity.KEY_SIZE:
        raise ToolError(
            f"{text[:70]!a} is not a public key, which has 64 hexadecimal digits (for a key "
            "file use --key-file)"
        )
    return key


def read_public_key(path: str) -> bytes:
    """The public key of the private one in a file, of which the daemon reads 32 bytes.

    Raises ToolError.
    """
    try:
        private = subnet.read_key(path)
    except CniError as error:
        raise ToolError(error.problem) from error
    if private is None:
        raise ToolError(f"{path}: no such file; the daemon's --key-file names it")
    return identity.public_key(private)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("key", nargs="?", metavar="PUBLIC-KEY", help="in hexadecimal")
    source.add_argument("-k", "--key-file", metavar="FILE", help="the daemon's private key")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the identity; 0 if it is known."""
    public: bytes | None
    if arguments.key:
        public = parse_public_key(arguments.key)
    elif arguments.key_file:
        public = read_public_key(arguments.key_file)
    else:
        state = State(options.read(arguments))
        if state.address is None:
            reason = state.trouble.msg if state.trouble else "the interface has no address"
            raise ToolError(reason)
        public = _running(state, state.address)
        return _print(public, state.address, as_json=arguments.json)
    return _print(public, identity.address(public), as_json=arguments.json)


def _running(state: State, address: bytes) -> bytes | None:
    """The public key that the daemon reports, if it matches the interface's address."""
    try:
        public = parse_public_key(state.daemon.public_key or "")
    except ToolError:
        return None
    return public if identity.address(public) == address else None


def _print(public: bytes | None, address: bytes, *, as_json: bool) -> int:
    text = format_address(address)
    if as_json:
        print(
            json.dumps({"publicKey": public.hex() if public else None, "address": text}, indent=2)
        )
        return 0
    print(f"Public key: {public.hex() if public else 'unknown, the daemon does not report it'}")
    print(f"Address: {text}")
    print(f"Subnet: {nodestate.show_subnet(address[:8])}")
    print(f"Gateway: {format_address(address[:8] + bytes(7) + bytes((1,)))}")
    return 0

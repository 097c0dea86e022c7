# SPDX-License-Identifier: Apache-2.0
"""sysdump: one archive with everything about a node but its secrets."""

from __future__ import annotations

import base64
import json
import os
import stat
import tarfile
from pathlib import Path

from tool import NODE, Tool

KEY = bytes(range(0x91, 0xB1))
HIDDEN = "s3cr3t" + "Zq8" * 6  # in every secret below, whatever is around it
PEM = f"-----BEGIN EC PRIVATE KEY-----\n{HIDDEN}\n-----END EC PRIVATE KEY-----"
SECRETS: dict[str, dict[str, object]] = {
    "token": {"token": HIDDEN},
    "nested": {"auth": {"user": HIDDEN, "more": [HIDDEN]}},
    "password beside others": {"etcd_password": HIDDEN, "mtu": 1400},
    "key": {"key": HIDDEN},
    "camel case": {"clientKeyData": HIDDEN, "apiKey": HIDDEN},
    "URL": {"etcd_endpoints": f"https://root:{HIDDEN}@10.0.0.1:2379"},
    "JSON in a string": {"config": json.dumps({"secret": f'{HIDDEN}"{HIDDEN}'})},
    "PEM": {"ca": PEM},
    "header": {"header": f"Authorization: Bearer {HIDDEN}"},
    "other headers": {
        "a": f"Authorization: Token {HIDDEN}",
        "b": f"Cookie: a={HIDDEN}; b={HIDDEN}",
    },
    "token as user": {"url": f"https://{HIDDEN}@host/x"},
    "short names": {"pass": HIDDEN, "DB_PASS": HIDDEN, "env": f"export DB_PASS={HIDDEN}"},
    "PSK": {
        "a": f"psk={HIDDEN}",
        "b": f"PresharedKey = {HIDDEN}=",
        "c": f"x --network-key {HIDDEN}",
    },
    "prose": {"note": f"the password is {HIDDEN}"},
    "quoted": {"exec": f"/bin/x --password '{HIDDEN} {HIDDEN}'"},
    "PEM in base64": {"data": f"LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0{HIDDEN}"},
    "web token": {"value": f"eyJhbGciOiJIUzI1NiJ9.{HIDDEN}.{HIDDEN}"},
    "command line": {"exec": f"/bin/x --auth-token {HIDDEN} --password={HIDDEN}"},
}


def dump(tool: Tool, path: Path, **env: str) -> dict[str, str]:
    """The archive's files, without their common folder."""
    argv = [*tool.node.lab.command, "sysdump", "--output", str(path), "--root", str(tool.root)]
    done = tool.node.run(argv, check=False, env={"PATH": os.environ["PATH"], **env})
    assert (done.returncode, done.stderr) == (0, "")
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            folder, _, name = member.name.partition("/")
            assert folder.startswith("mycelium-cni-sysdump-")
            assert member.isreg()
            file = archive.extractfile(member)
            assert file is not None
            found[name] = file.read().decode()
    return found


def test_it_tells_what_a_bug_report_needs(tool: Tool, tmp_path: Path) -> None:
    tool("setup")
    tool.attach("web", namespace="shop")
    link = tool.host_link("web")
    path = tmp_path / "dump.tar.gz"
    found = dump(tool, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {each["name"] for each in json.loads(found["doctor.json"])} > {"guard", "conf", "mtu"}
    assert json.loads(found["status.json"])["daemon"]["address"] == NODE
    assert [each["pod"] for each in json.loads(found["list.json"])] == ["web"]
    assert link in {each["ifname"] for each in json.loads(found["ip/links.json"])}
    assert any(route.get("dev") == link for route in json.loads(found["ip/routes6.json"]))
    assert "table inet mycelium-cni" in found["nft/ruleset.txt"]
    assert "net.ipv6.conf.all.forwarding = 1" in found["sysctl.txt"].splitlines()
    conflist = json.loads(found["cni/0/10-mycelium.conflist"])
    assert conflist["plugins"][0]["type"] == "mycelium-cni"
    assert "mycelium-cni" in found[next(name for name in found if name.startswith("plugins/0"))]
    for name in found.keys() - {"README.txt"}:
        assert name in found["README.txt"]


def test_no_secret_of_another_plugins_configuration_is_in_it(tool: Tool, tmp_path: Path) -> None:
    for name, members in SECRETS.items():
        plugin = {"type": "calico", **members}
        text = json.dumps({"cniVersion": "1.0.0", "name": "x", "plugins": [plugin]}, indent=2)
        tool.conf(text, f"20-{name}.conflist")
        tool.conf(text[:-1] + ",}", f"30-{name}.conflist")  # as people break them
        tool.conf(f"\x7fELF{text}", f"40-{name}.conflist")
    found = dump(tool, tmp_path / "dump.tar.gz")
    assert [name for name, content in found.items() if HIDDEN in content] == []
    for name in SECRETS:
        for number in (20, 30):
            content = found[f"cni/0/{number}-{name}.conflist"]
            assert '"type": "calico"' in content
            assert "(masked)" in content


def test_no_encoding_of_the_nodes_key_is_in_it(tool: Tool, tmp_path: Path) -> None:
    (tool.root / "netseed").write_bytes(KEY + b"what follows is ignored")
    (tool.root / "netseed").chmod(0o600)
    forms = {
        "raw": KEY.decode("latin-1"),
        "hex": KEY.hex(),
        "HEX": KEY.hex().upper(),
        "separated": KEY.hex(":"),
        "base64": base64.b64encode(KEY).decode(),
        "longer": base64.b64encode(KEY + b"ab").decode(),
        "url": base64.urlsafe_b64encode(KEY).decode().rstrip("="),
    }
    log = tmp_path / "log"
    start = "2026-01-01T00:00:00Z error mycelium-cni ADD: "
    lines = "".join(f"{start}<{form}>\n" for form in forms.values())
    log.write_bytes(lines.encode("latin-1") + b"root:x:0:0 not the plugin's\n")
    plugin = {"type": "mycelium-cni", "netseed": str(tool.root / "netseed"), "logFile": str(log)}
    tool.conf({"cniVersion": "1.0.0", "name": "n", "plugins": [plugin | {"x": forms["hex"]}]})
    found = dump(tool, tmp_path / "dump.tar.gz")
    assert found["log/plugin.txt"].count("<(masked)>") == len(forms)
    assert "root:x" not in found["log/plugin.txt"]
    for name, content in found.items():
        for form in (*forms.values(), KEY.hex()[8:40], forms["base64"][4:30], forms["url"][4:30]):
            assert form not in content, name


def test_no_secret_of_the_environment_is_in_it(tool: Tool, tmp_path: Path) -> None:
    tool.conf({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "x", "value": HIDDEN}]})
    found = dump(tool, tmp_path / "dump.tar.gz", DEPLOY_TOKEN=HIDDEN, OTHER="in-no-file-either")
    assert "(masked)" in found["cni/0/10-mycelium.conflist"]
    for content in found.values():
        assert HIDDEN not in content
        assert "in-no-file-either" not in content


def test_the_kernels_secrets_are_left_out(tool: Tool, tmp_path: Path) -> None:
    value = "2001:db8:1:2:3:4:5:6"  # addresses are made from it (net/ipv6/addrconf.c)
    tool.node.run(["sysctl", "-w", f"net.ipv6.conf.default.stable_secret={value}"])
    assert [
        name for name, text in dump(tool, tmp_path / "dump.tar.gz").items() if value in text
    ] == []


def test_names_that_are_not_utf8_stop_nothing(tool: Tool, tmp_path: Path) -> None:
    Path(os.fsdecode(b"%s/10-\xff.conflist" % os.fsencode(tool.conf("{").parent))).write_text("{")
    argv = ["ip", "link", "add", os.fsdecode(b"l\xff"), "type", "bridge"]
    tool.node.run(argv)
    found = dump(tool, tmp_path / "dump.tar.gz", DEPLOY_TOKEN=os.fsdecode(b"\xff\xfe"))
    assert "10-\\xff.conflist" in found["README.txt"]
    assert "net/ipv6/conf/l\\xff/" in found["sysctl.txt"].replace(".", "/")


def test_an_output_that_cannot_be_written_is_reported(tool: Tool) -> None:
    done = tool("sysdump", "--output", "/nonexistent/x.tar.gz")
    assert done.returncode == 1
    assert "cannot write /nonexistent/x.tar.gz" in done.stderr

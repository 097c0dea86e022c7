# SPDX-License-Identifier: Apache-2.0
"""The agent reads the kubeconfigs that kubeadm, k3s and kubectl write, or says why not."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from apiserver import ApiServer
from mycelium_agent.access import kubeconfig
from mycelium_agent.kubernetes import Api, ApiError

NODES = "/api/v1/nodes"
User = dict[str, Any]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "pki").running() as server:
        server.put("one")
        yield server


def document(api: ApiServer, user: User, /, **cluster: str) -> dict[str, Any]:
    said = {
        "server": f"https://[{api.address}]:{api.port}",
        "certificate-authority": str(api.secrets / "ca.crt"),
        **cluster,
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [{"name": "it", "cluster": said}],
        "contexts": [{"name": "token", "context": {"cluster": "it", "user": "server"}}],
        "current-context": "token",
        "users": [{"name": "server", "user": user}],
    }


def asked(path: Path) -> Api:
    return Api(partial(kubeconfig, path))


def data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def users(server: ApiServer) -> dict[str, User]:
    pem = server.secrets / "client.pem"
    return {
        "files": {"client-certificate": str(pem), "client-key": str(pem)},
        "beside": {"client-certificate": "pki/client.pem", "client-key": "pki/client.pem"},
        "data": {"client-certificate-data": data(pem), "client-key-data": data(pem)},
        "token": {"token": server.token},
        "token in a file": {"tokenFile": str(server.secrets / "token")},
    }


@pytest.mark.parametrize("write", [yaml.safe_dump, json.dumps], ids=["YAML", "JSON"])
@pytest.mark.parametrize("user", ["files", "beside", "data", "token", "token in a file"])
def test_it_is_read_as_yaml_and_as_json(
    user: str, write: Any, server: ApiServer, tmp_path: Path
) -> None:
    path = tmp_path / "kubelet.conf"
    path.write_text(write(document(server, users(server)[user])))
    assert [item["name"] for item in asked(path).list(NODES)[0]] == ["one"]


def test_it_is_read_as_kubeadm_and_k3s_write_it(server: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "kubelet.conf"
    pem = server.secrets / "client.pem"
    path.write_text(
        f"""\
# server: https://[::1]:1
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {data(server.secrets / "ca.crt")}
    server: "https://[{server.address}]:{server.port}"
  name: kubernetes
users:
- name: system:node:one
  user:
    client-certificate: {pem}
    client-key: {pem}
"""
    )
    assert asked(path).list(NODES)[0]


def test_a_server_has_a_name_that_the_node_resolves(tmp_path: Path) -> None:
    path = tmp_path / "config"
    with ApiServer(tmp_path / "pki", "::ffff:127.0.0.1").running() as server:
        named = {"server": f"https://localhost:{server.port}"}
        user = {"token": server.token}
        path.write_text(json.dumps(document(server, user, **named)))
        with pytest.raises(ApiError, match="not trusted: Hostname mismatch"):
            asked(path).list(NODES)
        named["tls-server-name"] = server.address
        path.write_text(json.dumps(document(server, user, **named)))
        assert asked(path).list(NODES) == ([], "100")


def test_what_is_renewed_is_read_again(server: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(json.dumps(document(server, users(server)["token in a file"])))
    api = asked(path)
    server.write_token("second")
    assert api.list(NODES)[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server": "http://[::1]:80"}, "it names no server with https"),
        ({"server": "https://no.such.name.invalid"}, "no.such.name.invalid is not resolved"),
        ({"server": "https://[::1]:x"}, "Port could not be cast"),
        ({"certificate-authority": "/none"}, "No such file or directory: '/none'"),
        ({"certificate-authority-data": "!"}, "base64"),
        ({"certificate-authority": "/proc"}, "it is a directory"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_named_with_the_file(
    changes: dict[str, str], said: str, server: ApiServer, tmp_path: Path
) -> None:
    path = tmp_path / "config"
    path.write_text(json.dumps(document(server, {"token": "x"}, **changes)))
    with pytest.raises(ApiError, match=f"^kubeconfig {path}: .*{re.escape(said)}"):
        asked(path).list(NODES)


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({}, "it has neither token nor client-certificate"),
        ({"exec": {"command": "aws"}}, "programs that get one are not run"),
        ({"client-certificate": "pki/ca.crt", "client-key": "pki/ca.crt"}, "is not usable"),
        ({"token": "wrong"}, "GET /api/v1/nodes: 401 Unauthorized"),
    ],
)
def test_a_user_that_cannot_be_used_is_said(
    user: User, said: str, server: ApiServer, tmp_path: Path
) -> None:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(document(server, user)))
    with pytest.raises(ApiError, match=re.escape(said)):
        asked(path).list(NODES)


def test_of_several_clusters_none_is_guessed(server: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "config"
    several = document(server, users(server)["token"])
    several["clusters"].append({"name": "other", "cluster": {"server": "https://[::1]:1"}})
    path.write_text(yaml.safe_dump(several))
    with pytest.raises(ApiError, match="kubectl config view --minify --flatten --raw"):
        asked(path).list(NODES)

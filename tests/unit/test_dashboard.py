"""What a Ray dashboard says of its nodes, as a plan takes it; the answers are those of Ray 2.60."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlpipe.plan.hardware import HardwareError
from rlpipe.runtime.dashboard import machines

STATES = [
    {"node_id": "a", "node_ip": "10.0.0.1", "state": "ALIVE", "resources_total": {"CPU": 4.0, "memory": 1e9}},
    {"node_id": "b", "node_ip": "10.0.0.2", "state": "ALIVE", "resources_total": {"CPU": 64.0, "GPU": 2.0}},
]
SUMMARY = [
    {"raylet": {"nodeId": "a"}, "mem": [8 * 2**30, 4 * 2**30, 50.0, 4 * 2**30], "gpus": []},
    {"raylet": {"nodeId": "b"}, "mem": [512 * 2**30, 1, 1.0, 1],
     "gpus": [{"index": 0, "memoryTotal": 81920}, {"index": 1, "memoryTotal": 81920}]},
]  # fmt: skip


class Dashboard(BaseHTTPRequestHandler):
    token = ""
    states, summary = STATES, SUMMARY

    def do_GET(self):
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            self.send_error(401)
            return
        nodes = self.path.startswith("/api/v0/nodes")
        data = {"result": {"total": 2, "result": self.states}} if nodes else {"summary": self.summary}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"result": True, "msg": "", "data": data}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def dashboard(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Its", (Dashboard,), {}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_nodes_and_their_gpus(dashboard):
    found = machines(address(dashboard))
    assert [(n.name, n.gpus, n.gpu_bytes, n.host_bytes, n.cpus) for n in found.nodes] == [
        ("10.0.0.1", 0, 0, 8 * 2**30, 4.0),
        ("10.0.0.2", 2, 80 * 2**30, 512 * 2**30, 64.0),
    ]
    assert found.on_gpu


def test_the_token(dashboard, monkeypatch, tmp_path):
    dashboard.RequestHandlerClass.token = "secret"
    with pytest.raises(HardwareError, match=r"refuses to answer without a token: .* RAY_AUTH_TOKEN"):
        machines(address(dashboard))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(HardwareError, match="refuses this token"):
        machines(address(dashboard))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text("secret\n")
    assert len(machines(address(dashboard)).nodes) == 2


def test_gpus_of_unknown_size(dashboard):
    dashboard.RequestHandlerClass.summary = [SUMMARY[0]]
    with pytest.raises(HardwareError, match=r"node 10.0.0.2 has 2 GPUs and does not say how large .*--gpus 8x80GB"):
        machines(address(dashboard))


def test_nobody_there():
    with pytest.raises(HardwareError, match=r"does not answer .* http://HEAD:8265"):
        machines("http://127.0.0.1:9")

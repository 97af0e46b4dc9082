"""A server that answers as it is told, to fail on purpose."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Answers each request with the next of its replies: (status, headers, body), or a function of the handler that
    returns such or answers by itself. The last one counts for all that follow. `requests` has what it was asked: the
    time, the headers, the JSON."""

    def __init__(self, monkeypatch):
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        self.replies, self.requests = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append((time.monotonic(), dict(self.headers), self.asked))
                reply = outer.replies[min(len(outer.requests), len(outer.replies)) - 1]
                reply = reply(self) if callable(reply) else reply
                if not isinstance(reply, tuple):
                    return
                status, headers, body = reply
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_): ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def half(body, promised=1000):
    """A reply that breaks off: the connection ends before the promised length."""

    def reply(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(promised))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def drip(handler):
    """A reply whose body goes on for seconds."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)

"""Serves a proven ONNX file over HTTP, with numpy and onnxruntime alone: neither torch nor jumpout-export is needed.

    python serve.py model/model.onnx --port 8000
    python serve.py model/model.onnx --check        # only looks whether the files are those that were proven

POST / takes the inputs by name as the bytes of an .npz and answers with the outputs as one; GET / says which file is
served. It ends with 1 where a file is another one than the manifest beside the model names.
"""

import argparse
import hashlib
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime

MOST_BYTES = 64 << 20


def proven(model):
    """The manifest of a model; ends the program where a file is not the one that was proven."""
    try:
        manifest = json.loads(model.with_suffix(".manifest.json").read_text(encoding="utf-8"))
        for name, digest in {model.name: manifest["model"], **manifest["data"]}.items():
            with (model.parent / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    sys.exit(f"error: {name} is not the file that was proven: its sha256 is not that in the manifest")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: whether {model} was proven is not known: {type(error).__name__}: {error}")
    return manifest


def session_of(model):
    """A session with the settings that the file was verified with."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # for one request; the requests run in parallel
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def handler(session, manifest):
    """The class that answers a request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served = {"sha256": manifest["model"], "onnxruntime": onnxruntime.__version__}
            self.answer(200, json.dumps(served).encode() + b"\n", "application/json")

        def do_POST(self):
            try:
                length = int(self.headers["Content-Length"] or 0)
                if not 0 < length <= MOST_BYTES:
                    raise ValueError(f"a request has 1 to {MOST_BYTES} bytes, this one {length}")
                with np.load(io.BytesIO(self.rfile.read(length)), allow_pickle=False) as inputs:
                    outputs = session.run(None, dict(inputs))
            except Exception as error:  # whatever is wrong with a request is the client's
                self.answer(400, f"{type(error).__name__}: {error}\n".encode(), "text/plain")
                return
            body = io.BytesIO()
            np.savez(body, **{one.name: value for one, value in zip(session.get_outputs(), outputs, strict=True)})
            self.answer(200, body.getvalue(), "application/octet-stream")

        def answer(self, status, body, kind):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--check", action="store_true", help="serve nothing")
    settings = parser.parse_args()
    manifest = proven(settings.model)
    session = session_of(settings.model)
    verified = manifest["versions"].get("onnxruntime")
    if verified != onnxruntime.__version__:
        print(f"warning: verified in ONNX Runtime {verified}, this is {onnxruntime.__version__}", file=sys.stderr)
    if settings.check:
        print(f"{settings.model} is the file that was proven")
        return
    with ThreadingHTTPServer((settings.host, settings.port), handler(session, manifest)) as server:
        print(f"serving {settings.model} on port {server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

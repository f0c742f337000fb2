"""Models by their name on the hub, served by a hub on this machine: whole, in part, unknown, offline."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps
from pathlib import Path

import pytest

from wanspec.engines.bundled_export import export_bundled

pytestmark = pytest.mark.slow  # each look is a process that imports the library of the hub

COMMIT = "0123456789012345678901234567890123456789"
NAME = "wanspec/tiny-draft"
FIND = "import sys; from wanspec.engines.hf.folder import find_folder; print(find_folder(sys.argv[1], sys.argv[2] or None))"


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[str]:
    """A repository of these files, as huggingface_hub asks for it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            if path in {f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/revision/{COMMIT}"}:
                siblings = [{"rfilename": file} for file in files]
                self.send({"Content-Type": "application/json"}, dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith(f"/api/models/{NAME}/tree/"):
                tree = [{"type": "file", "path": file, "size": len(data), "oid": etag(data)} for file, data in files.items()]
                self.send({"Content-Type": "application/json"}, dumps(tree).encode())
            elif path.startswith(f"/{NAME}/resolve/") and name in files:
                self.send({"ETag": f'"{etag(files[name])}"', "X-Repo-Commit": COMMIT}, files[name], with_body=with_body)
            else:
                self.send({"X-Error-Code": "RevisionNotFound" if NAME in path else "RepoNotFound"}, b"", status=404)

        def send(self, headers: dict[str, str], body: bytes, *, status: int = 200, with_body: bool = True) -> None:
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def etag(data: bytes) -> str:
    return sha256(data).hexdigest()


def find(name: str, home: Path, endpoint: str, *, revision: str = "", **environment: str) -> tuple[int, str, str]:
    """Look for a model in a process of its own: huggingface_hub reads its settings once. Status, output, complaint."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment}
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy") and not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", FIND, name, revision], capture_output=True, text=True, env={**inherited, **settings}, check=False, timeout=60
    )
    return done.returncode, done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = export_bundled(tmp_path_factory.mktemp("exported"), "draft")
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {"pytorch_model.bin": b"not wanted"}


def test_a_name_is_downloaded_once_and_then_does_without_the_hub(files: dict[str, bytes], tmp_path: Path) -> None:
    with hub(files) as endpoint:
        status, found, complaint = find(NAME, tmp_path, endpoint)
        assert status == 0, complaint
    assert {path.name for path in Path(found).iterdir()} == files.keys() - {"pytorch_model.bin"}
    assert (Path(found) / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert find(NAME, tmp_path, endpoint)[:2] == (0, found)  # the hub is gone
    assert find(NAME, tmp_path, endpoint, HF_HUB_OFFLINE="1")[:2] == (0, found)


def test_a_name_that_was_never_downloaded_needs_the_hub(tmp_path: Path) -> None:
    status, _, complaint = find(NAME, tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert status == 1
    assert f"ConfigError: '{NAME}' is no folder here, was never downloaded whole" in complaint


def test_a_name_or_a_revision_that_the_hub_does_not_know_is_said(files: dict[str, bytes], tmp_path: Path) -> None:
    with hub(files) as endpoint:
        assert "neither a folder here nor on the Hugging Face hub" in find("wanspec/unknown", tmp_path, endpoint)[2]
        assert f"there is no '{NAME}' at revision 'v9'" in find(NAME, tmp_path, endpoint, revision="v9")[2]


def test_a_repository_without_weights_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    without = {name: data for name, data in files.items() if name != "model.safetensors"}
    with hub(without) as endpoint:
        status, _, complaint = find(NAME, tmp_path, endpoint)
    assert status == 1
    assert "has no model.safetensors" in complaint

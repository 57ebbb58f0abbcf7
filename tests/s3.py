"""An S3 server on loopback, out of which a share of the answers never comes."""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import uuid4

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "a-secret-of-theirs"}


@dataclass
class FlakyS3:
    """Where the server is, and what became of the requests to it."""

    port: int = 0
    bucket: str = "images"
    failing: float = 0.0  # share of the requests
    requests: int = 0
    failures: int = 0
    random: Random = field(default_factory=lambda: Random(4))

    def uri(self, path: str) -> str:
        where = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://{self.bucket}/{path}?{where}"

    def answer(self, app: Any, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        if self.random.random() >= self.failing:
            return app(environ, start_response)
        self.failures += 1
        if self.failures % 2:
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        start_response("500 Internal Server Error", [("Content-Length", "1000")])
        return [b"cut off"]  # and the connection is closed


@contextmanager
def flaky_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    """Serve an empty bucket, whose credentials are in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    state = FlakyS3(bucket=f"images-{uuid4().hex}")
    app = DomainDispatcherApplication(create_backend_app)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # no lines of requests cut short
    server = make_server(
        "127.0.0.1", 0, lambda *request: state.answer(app, *request), threaded=True
    )
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{state.port}"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(
            Bucket=state.bucket
        )
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

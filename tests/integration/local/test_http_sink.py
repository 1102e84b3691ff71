"""`rf.HttpSink` against a real HTTP server that answers as the test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from rayflow.connectors.http_sink import retry_after_ms


class Service:
    """Keeps the requests it gets. `script`: what it answers to the next ones, (status, headers) or "hang up", else 204;
    400 to a body that has the text `refuse`."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.script: list[Any] = []
        self.refuse: bytes | None = None
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.requests.append((dict(self.headers.items()), body))
                planned = service.script.pop(0) if service.script else (204, {})
                if planned == "hang up":
                    self.close_connection = True
                    return
                status, headers = planned
                if service.refuse is not None and service.refuse in body:
                    status = 400
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                said = b"" if status == 204 else b"no such   luck"
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/rows?token=s3cr3t"

    def bodies(self) -> list[Any]:
        return [[json.loads(line) for line in body.splitlines()] for _, body in self.requests]


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()


def numbers(rows: int = 10, **config: Any) -> Any:
    env = rf.StreamEnvironment(config={"restart.strategy": "none", **config})
    return env, env.from_arrow(pa.table({"n": range(rows), "s": [f"no {n}\n" for n in range(rows)]}))


def test_rows_are_posted_as_json_lines_with_the_headers_that_were_given(lab: Any, service: Service) -> None:
    env, rows = numbers()
    rows.sink_to(rf.HttpSink(service.url, headers={"Authorization": "Bearer s3cr3t"}))
    lab.finish(env)
    ((headers, body),) = service.requests
    assert headers["Content-Type"] == "application/x-ndjson"
    assert headers["Authorization"] == "Bearer s3cr3t"
    assert [json.loads(line)["n"] for line in body.splitlines()] == list(range(10))


def test_other_formats(lab: Any, service: Service) -> None:
    for format in ("json", "arrow"):
        env, rows = numbers()
        rows.sink_to(rf.HttpSink(service.url, format=format))  # type: ignore[arg-type]
        lab.finish(env)
    (as_json, json_body), (as_arrow, arrow_body) = service.requests
    want = [{"n": n, "s": f"no {n}\n"} for n in range(10)]
    assert (as_json["Content-Type"], json.loads(json_body)) == ("application/json", want)
    assert as_arrow["Content-Type"] == "application/vnd.apache.arrow.stream"
    assert pa.ipc.open_stream(arrow_body).read_all().to_pylist() == want


def test_what_passes_is_tried_again_under_the_same_key_and_not_before_it_may(
    lab: Any, service: Service
) -> None:
    service.script = [(503, {}), "hang up", (429, {"Retry-After": "1"}), (500, {})]
    env, rows = numbers(20)
    rows.sink_to(rf.HttpSink(service.url, batching=rf.Batching(rows=10)))
    result = lab.finish(env)
    keys = [headers["Idempotency-Key"] for headers, _ in service.requests]
    assert [keys.count(key) for key in dict.fromkeys(keys)] == [5, 1]
    assert [row["n"] for row in service.bodies()[4]] == list(range(10))
    assert keys[0].startswith(f"{result.job_id}-")


def test_rows_that_the_service_refuses_go_to_the_side(lab: Any, service: Service) -> None:
    service.refuse = b"no 7"
    _, rows = numbers(16)
    stage = rows.sink_to(rf.HttpSink(service.url, batching=rf.Batching(rows=16)))
    bad = stage.on_error(rf.SideOutput("bad")).side_output("bad").execute_and_collect(local=True)
    assert bad["n"].to_pylist() == [7]
    assert "answered 400 Bad Request: no such luck" in bad["error"][0].as_py()
    got = sorted(
        row["n"] for body in service.bodies() for row in body if b"no 7" not in json.dumps(body).encode()
    )
    assert got == [n for n in range(16) if n != 7]


@pytest.mark.parametrize("status", [401, 404, 302])
def test_a_service_that_wants_nothing_of_the_job_fails_it_and_no_secret_is_shown(
    lab: Any, service: Service, status: int
) -> None:
    service.script = [(status, {"Location": "/elsewhere"})] * 3
    env, rows = numbers()
    stage = rows.sink_to(rf.HttpSink(service.url, headers={"X-Api-Key": "s3cr3t"}))
    stage.on_error("skip")
    result = lab.run(env)
    assert result.state.value == "FAILED"
    said = f"{result.failure} {result.describe} {env.plan().vertices[-1].operators[-1].detail}"
    assert f"answered {status}" in said
    assert "s3cr3t" not in said
    assert len(service.requests) == 1


def test_a_service_that_hangs_ends_in_an_error(lab: Any) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        env, rows = numbers()
        batching = rf.Batching(timeout="400ms", retry_for="100ms")
        rows.sink_to(rf.HttpSink(f"http://127.0.0.1:{silent.getsockname()[1]}/", batching=batching))
        error = lab.fail(env)
    # The client's own limit, or, where that thread got no turn in time, the sink's.
    assert "ReadTimeout" in str(error) or "has not returned within timeout=400ms" in str(error)
    assert "test_http_sink.py" in (error.location or "")


def test_what_makes_no_sense_is_refused_when_it_is_written(service: Service) -> None:
    with pytest.raises(rf.PlanError, match="expected a URL of http or https"):
        rf.HttpSink("ftp://somewhere")
    with pytest.raises(rf.PlanError, match="format='xml'"):
        rf.HttpSink(service.url, format="xml")  # type: ignore[arg-type]
    _, rows = numbers()
    with pytest.raises(rf.PlanError, match="upsert stream"):
        rows.key_by("n").aggregate(rows=rf.count()).sink_to(rf.HttpSink(service.url))
    with pytest.raises(rf.PlanError, match="unknown column 'm'"):
        rows.with_columns(k=col("n")).sink_to(rf.HttpSink(service.url, keys="m"))


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (None, 0),
        ("120", 120_000),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 9_000),
        ("Fri, 31 Dec 1999 23:00:00 GMT", 0),
        ("soon", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, ms: int) -> None:
    assert retry_after_ms(value, 946_684_790.0) == ms

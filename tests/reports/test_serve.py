"""The site of a store: what it shows is what lies there, it changes nothing, and nothing outside the store leaves it."""

import functools
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import browser
import pytest
from browser import DESKTOP, PHONE, Browser
from conftest import FakeStore, write_json, write_rows

from ldmlab.config.compose import ROOT, load
from ldmlab.errors import ConfigError, DataError
from ldmlab.reports.overview import Overview, read_curves, thinned, usage
from ldmlab.reports.run import report
from ldmlab.reports.serve import Server, make_server
from ldmlab.store.lock import locked

SECRET = "what nobody may read"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """A run, a study of two cells, a page, a stage that is being built, one that was killed, and ways out of the store."""
    made = FakeStore(tmp_path_factory.mktemp("site") / "store")
    run = made.finished(studies=["some"])
    report([run], run)
    (made.root / "reports/abc123").mkdir(parents=True)
    (made.root / "reports/abc123/index.html").write_text("<p>several runs")
    (made.root / "reports/abc123/report.md").write_text("# Two runs \\| compared\n")
    jobs = [
        {"words": ["ae=kl_f4"], "exit_code": 0, "log": "job-0.log"},
        {"words": ["ae=kl_f8"], "exit_code": 1, "log": "job-1.log"},
    ]
    write_json(made.root / "sweeps/some/jobs.json", {"study": "some", "jobs": jobs})
    (made.root / "sweeps/some/job-1.log").write_text("error: <b>no memory</b>\n")
    for name, id_ in (("unet_live", "c0ffee"), ("unet_killed", "dead00")):
        folder = made.root / "denoiser" / f"{name}-{id_}"
        write_rows(folder / "metrics.jsonl", rows(30))
        (folder / "config.yaml").write_text("ldm: {fit: {images: 10000}}\n")
    code = "import os, sys, pathlib, ldmlab.store.lock as l; l.Lock(pathlib.Path(sys.argv[1])).take(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, made.root / "denoiser/unet_killed-dead00/.building"], check=False)
    (made.root.parent / "secret.txt").write_text(SECRET)
    (made.root / "denoiser" / "out-1").symlink_to(made.root.parent)
    (made.root / "runs" / "file_out").symlink_to(made.root.parent / "secret.txt")
    (made.root / "data/cache").mkdir(parents=True)
    (made.root / "data/cache/images.npy").write_bytes(b"0" * 300_000)
    (made.root / ".hidden").mkdir()
    (made.root / ".hidden/secret.txt").write_text(SECRET)
    return made


def rows(n: int) -> list[dict[str, Any]]:
    return [{"images": 100 * i, "step": i, "split": "train", "time": i, "loss": 1 / i} for i in range(1, n + 1)]


@pytest.fixture(scope="module")
def server(store: FakeStore) -> Iterator[Server]:
    with make_server(store.root, 0) as made, locked(store.root / "denoiser/unet_live-c0ffee/.building"):
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


Ask = Callable[..., tuple[HTTPResponse, bytes]]


@pytest.fixture
def ask(server: Server) -> Iterator[Ask]:
    """ask(path, method="GET", host=…): the answer and its body; the path is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)

    def asked(path: str, method: str = "GET", host: str | None = None) -> tuple[HTTPResponse, bytes]:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or server.names[0])
        connection.endheaders()
        answer = connection.getresponse()
        return answer, answer.read()

    yield asked
    connection.close()


# ---- what it shows ------------------------------------------------------------------------------------------------------


def test_every_page_and_link_of_the_site_answers(ask: Ask) -> None:
    seen, waiting = set[str](), ["/"]
    while waiting:
        path = waiting.pop()
        answer, body = ask(path)
        assert answer.status == 200, path
        seen.add(path)
        if answer.headers["Content-Type"].startswith("text/html") and "/file/" not in path:
            links = {link.partition("#")[0] for link in re.findall(r'href="(/[^"]*)"', body.decode())}
            waiting += [link for link in links if link and link not in seen and link not in waiting]
    kinds = {path.split("/")[1] for path in seen}
    assert kinds == {"", "run", "study", "stage", "stages", "file"}
    assert "/file/sweeps/some/job-1.log" in seen and "/file/runs/run-c01fe9/index.html" in seen


def test_the_first_page_counts_the_store(ask: Ask, store: FakeStore) -> None:
    text = ask("/")[1].decode()
    stages = [p for kind in ("autoencoder", "denoiser", "samples", "scores") for p in (store.root / kind).iterdir()]
    assert re.search(r"data/cache/.{,200}3\d\d kB", text, re.S)  # no stage, and on the disk
    assert f"1 run, 1 study, {len(stages)} stage folders" in text
    assert "1 done, 1 failed" in text and "12.8" in text and "[12.4, 13.2]" in text  # the last snapshot's FID
    assert ">Two runs | compared</a>" in text  # a page of several runs, by its title


def test_disk_use_is_what_the_disk_says(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.bin").write_bytes(os.urandom(100_000))
    (tmp_path / "two.bin").write_bytes(os.urandom(50_000))
    os.link(tmp_path / "two.bin", tmp_path / "again.bin")  # counts once
    (tmp_path / "out").symlink_to("/")  # is not followed
    said = subprocess.run(
        ["du", "-s", "--block-size=1", "--exclude=out", tmp_path], capture_output=True, text=True, check=True
    )
    folders = sum(path.stat().st_blocks * 512 for path in (tmp_path, tmp_path / "a"))  # du counts them too
    assert usage(tmp_path) == (int(said.stdout.split()[0]) - folders, 2)


def test_running_is_who_holds_the_lock(ask: Ask, store: FakeStore) -> None:
    (live,) = json.loads(ask("/live.json")[1])["stages"]
    assert (live["name"], live["images"], live["target"]) == ("unet_live-c0ffee", 3000, 10_000)
    assert live["holder"].startswith(f"process {os.getpid()} on ") and [curve["name"] for curve in live["curves"]] == [
        "loss"
    ]
    states = {stage.name: stage.state for stage in Overview(store.root.resolve()).stages()}
    assert states["unet_killed-dead00"] == "unfinished" and states["out-1"] == "outside the store"


def test_curves_follow_the_log_while_it_is_written(tmp_path: Path) -> None:
    store = Overview(tmp_path)
    path = tmp_path / "denoiser/net-1/metrics.jsonl"
    write_rows(path, rows(3))
    stage = store.stage("denoiser", "net-1")
    assert stage is not None and store.curves(stage)[0]["lines"][0]["points"] == [(100, 1.0), (200, 0.5), (300, 1 / 3)]
    with path.open("a") as file:
        file.write(json.dumps(rows(4)[3]) + "\n" + '{"images": 500, "lo')  # its last line is half written
    (curve,) = store.curves(stage)
    assert [x for x, _ in curve["lines"][0]["points"]] == [100, 200, 300, 400]
    write_rows(path, rows(2))  # a restart from an older checkpoint
    assert [x for x, _ in store.curves(stage)[0]["lines"][0]["points"]] == [100, 200]


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    write_rows(tmp_path / "metrics.jsonl", rows(5000))
    points = read_curves(tmp_path / "metrics.jsonl")[0]["lines"][0]["points"]
    assert len(points) == 400 and points[0][0] == 100 and points[-1][0] == 500_000
    assert thinned(3) == [0, 1, 2] and len(set(thinned(401))) == 400


def test_files_that_come_and_go_disturb_nothing(tmp_path: Path) -> None:
    folder, ended = tmp_path / "denoiser/net-1", threading.Event()
    write_rows(folder / "metrics.jsonl", rows(3))

    def write() -> None:  # as a training does: beside the place, then renamed into it
        while not ended.is_set():
            (folder / ".tmp").write_bytes(b"0" * 1000)
            (folder / ".tmp").replace(folder / "weights.safetensors")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        store = Overview(tmp_path.resolve())
        for _ in range(300):
            (stage,) = store.stages()
            assert stage.state == "unfinished" and store.files(stage)[-1][0] in ("metrics.jsonl", "weights.safetensors")
    finally:
        ended.set()
        writer.join()


def test_a_damaged_run_is_named_and_the_others_are_shown(fake_store: FakeStore) -> None:
    fake_store.finished()
    (fake_store.root / "runs/bad").mkdir()
    (fake_store.root / "runs/bad/run.json").write_text("{")
    found = {folder: run for folder, run, _ in Overview(fake_store.root.resolve()).runs()}
    assert isinstance(found["bad"], str) and "run.json" in found["bad"] and not isinstance(found["run-c01fe9"], str)


# ---- what it refuses ----------------------------------------------------------------------------------------------------

WAYS_OUT = (
    "/file/../secret.txt",
    "/file/%2e%2e/secret.txt",
    "/file/..%2fsecret.txt",
    "/file/%2e%2e%2fsecret.txt",
    "/file/denoiser/..%2f..%2f..%2fsecret.txt",
    "/file/%252e%252e/secret.txt",
    "/file/..%5csecret.txt",
    "/file//etc/passwd",
    "/file/%2fetc%2fpasswd",
    "/file/denoiser/out-1/secret.txt",
    "/file/runs/file_out",
    "/file/.hidden/secret.txt",
    "/file/%2ehidden/secret.txt",
    "/file/denoiser/unet_live-c0ffee/.building",
    "/file/runs/run-c01fe9/index.html%00.txt",
    "/file/",
    "/file/runs",
    "/stage/denoiser/out-1",
    "/stage/denoiser/..",
    "/stage/..%2f..",
    "/run/..%2f..",
    "/run/..",
    "/study/..",
    "/stages/..",
    "/curves/denoiser/out-1.json",
    "/curves/../..json",
    "/../secret.txt",
    "/%2e%2e/secret.txt",
    "/nothing",
)


@pytest.mark.parametrize("path", WAYS_OUT)
def test_paths_outside_the_store_are_refused(ask: Ask, path: str) -> None:
    answer, body = ask(path)
    assert answer.status == 404 and SECRET.encode() not in body and b"root:" not in body


def test_it_only_reads(ask: Ask, store: FakeStore) -> None:
    def state() -> dict[str, Any]:
        files = [path for path in sorted(store.root.rglob("*")) if path.is_file()]
        return {str(p): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}

    before = state()
    for path in ("/", "/live.json", "/stage/denoiser/unet_killed-dead00", "/study/some", "/run/run-c01fe9"):
        assert ask(path)[0].status == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer, _ = ask("/file/runs/run-c01fe9/run.json", method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert state() == before


def test_only_this_machine_under_its_own_name(ask: Ask, server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    for host in ("evil.example", f"evil.example:{server.server_address[1]}", "127.0.0.1:1"):
        answer, body = ask("/file/runs/run-c01fe9/run.json", host=host)
        assert answer.status == 403 and b"c01fe9" not in body
    assert ask("/", host=f"localhost:{server.server_address[1]}")[0].status == 200


def test_files_are_served_as_what_they_are(ask: Ask, store: FakeStore) -> None:
    answer, body = ask("/file/sweeps/some/job-1.log")
    assert (
        answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        and answer.headers["X-Content-Type-Options"] == "nosniff"
    )
    assert body == (store.root / "sweeps/some/job-1.log").read_bytes()
    head, nothing = ask("/file/sweeps/some/job-1.log", "HEAD")
    assert head.headers["Content-Length"] == str(len(body)) and nothing == b""
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


# ---- the command --------------------------------------------------------------------------------------------------------


def test_the_command_says_where_and_ends_with_ctrl_c(store: FakeStore) -> None:
    words = [sys.executable, "src/report.py", "serve=true", "port=0", f"store={store.root}"]
    heard = functools.partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a shell's background jobs do not hear Ctrl-C
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
    assert found
    with socket.create_connection(("127.0.0.1", int(found[1])), timeout=20) as connection:
        connection.sendall(
            f"GET /live.json HTTP/1.1\r\nHost: localhost:{found[1]}\r\nConnection: close\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, " closed\n", "")


def test_bad_words_are_refused_before_anything_starts(tmp_path: Path, server: Server) -> None:
    for words in ({"study": "some"}, {"runs": "all"}, {"out": "there"}):
        with pytest.raises(ConfigError, match="serve=true shows the whole store"):
            load(["serve=true", *(f"{k}={v}" for k, v in words.items())])
    with pytest.raises(ConfigError, match="port"):
        load(["serve=true", "port=70000"])
    with pytest.raises(DataError, match=r"no such folder\. Make a run first"):
        make_server(tmp_path / "none", 0)
    with pytest.raises(ConfigError, match=r"is in use\. Choose another one; port=0"):
        make_server(tmp_path, server.server_address[1])


# ---- in a browser -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(browser.found() is not None, reason=str(browser.found()))
def test_pages_in_a_browser_wide_and_narrow_light_and_dark(store: FakeStore, server: Server, tmp_path: Path) -> None:
    log = store.root / "denoiser/unet_live-c0ffee/metrics.jsonl"
    with Browser(tmp_path / "profile") as chromium:
        for n, (size, scheme) in enumerate(((DESKTOP, "light"), (PHONE, "dark"))):
            chromium.open(server.url, size, scheme)
            chromium.wait("document.querySelector('.building path')")
            drawn = "document.querySelector('.building path').getAttribute('d')"
            assert chromium.messages == []
            before = chromium.run(drawn)
            write_rows(log, rows(60 + n))
            chromium.wait(f"{drawn} !== {json.dumps(before)}")  # it follows by itself
            assert "6\u202f" in chromium.run("document.querySelector('.building p').textContent")
            for page in ("", "run/run-c01fe9", "study/some", "stage/denoiser/unet_live-c0ffee", "stages/denoiser"):
                chromium.open(server.url + page, size, scheme)
                assert chromium.run("document.documentElement.scrollWidth <= innerWidth"), page
                assert chromium.messages == [], page
            dark = chromium.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
            assert dark == (scheme == "dark")
        chromium.open(f"{server.url}file/runs/run-c01fe9/index.html")  # a report under the site's policy
        assert chromium.messages == []

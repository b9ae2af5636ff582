"""What a hostile page, a hostile file and a hostile client meet."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from viewer_process import LONG, QUICK, UPLOAD, Viewer, until

MB = 10**6


# ------------------------------------------------------------------------------------------------------ who may come in


@pytest.mark.parametrize("path", ["/", "/assets/viewer.js", "/api/about", "/api/jobs", "/api/jobs/1/result", "/x"])
def test_nothing_without_the_token(viewer: Viewer, path: str) -> None:
    for given in ({}, {"X-Lungwave-Token": "x" * 43}, {"Cookie": f"lungwave-{viewer.port}=wrong"}, {"Cookie": 'a="'}):
        status, headers, body = viewer.ask("GET", path, headers=given, token=False)
        assert status == 403
        assert b"token is missing or wrong" in body
        assert "set-cookie" not in headers
    assert viewer.ask("GET", f"{path}?token={'x' * 43}", token=False)[0] == 403


def test_orders_and_files_need_the_token(viewer: Viewer) -> None:
    for method, path in (("POST", "/api/jobs"), ("POST", "/api/files"), ("DELETE", "/api/jobs/1")):
        assert viewer.ask(method, path, b"{}", token=False)[0] == 403
        assert viewer.ask(method, f"{path}?token={viewer.token}", b"{}", token=False)[0] == 403  # only the page's door


def test_token_becomes_a_cookie_that_scripts_cannot_read(viewer: Viewer) -> None:
    status, headers, body = viewer.ask("GET", f"/?token={viewer.token}", token=False)
    assert status == 200
    assert b"<title>lungwave</title>" in body
    cookie = headers["set-cookie"]
    assert cookie == f"lungwave-{viewer.port}={viewer.token}; HttpOnly; SameSite=Strict; Path=/"
    assert viewer.ask("GET", "/api/about", headers={"Cookie": cookie.split(";")[0]}, token=False)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", "",
     "127.0.0.1:{port}@evil.example", "[::1", "10.0.0.1:{port}"],
)  # fmt: skip
def test_foreign_host_is_turned_away(viewer: Viewer, host: str) -> None:
    """DNS rebinding: a page of evil.example whose name points at this machine."""
    status, _, body = viewer.ask("GET", "/api/about", headers={"Host": host.format(port=viewer.port)})
    assert status == 400
    assert b"does not answer to that name" in body


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_own_names_are_answered(viewer: Viewer, host: str) -> None:
    assert viewer.ask("GET", "/api/about", headers={"Host": host.format(port=viewer.port)})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
def test_pages_of_others_get_no_answer_even_with_the_cookie(viewer: Viewer, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/api/jobs"), ("POST", "/api/jobs"), ("GET", "/assets/viewer.js")):
        status, answered, body = viewer.ask(method, path, headers=headers)
        assert status == 403
        assert b"other pages" in body
        assert "access-control-allow-origin" not in answered


def test_headers_forbid_what_the_page_does_not_need(viewer: Viewer) -> None:
    for path in ("/", "/assets/viewer.css", "/api/about", "/nothing"):
        headers = viewer.ask("GET", path)[1]
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_only_loopback_is_listened_at(viewer: Viewer) -> None:
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {row.split()[1] for row in table if row.split()[3] == "0A"}
    assert {address for address in listening if address.endswith(f":{viewer.port:04X}")} == {
        f"0100007F:{viewer.port:04X}"
    }


# ---------------------------------------------------------------------------------------------------- paths and orders


@pytest.mark.parametrize(
    "path",
    ["/assets/../app.py", "/assets/..%2f..%2fcli.py", "/assets/%2e%2e/report.html", "/assets//proc/self/environ",
     "/api/jobs/..%2f..%2fetc/result", "/api/jobs/../../result", "/api/jobs/0/../../../etc/passwd"],
)  # fmt: skip
def test_no_path_leads_out(viewer: Viewer, path: str) -> None:
    status, _, body = viewer.ask("GET", path)
    assert status == 404
    assert b"import" not in body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 9000, "not JSON"),
        (b'{"kind": "file", "settings": {}}', "unknown kind of job 'file'"),
        (b'{"kind": "phantom", "settings": []}', "send an object"),
        (b'{"kind": "phantom", "settings": {"model": "/etc"}}', "choose one of"),
        (b'{"kind": "phantom", "settings": {"path": "x"}}', "unknown setting 'path'"),
        (b'{"kind": "phantom", "settings": {"samples": 1e9}}', "from 2 to 64"),
        (b'{"kind": "phantom", "settings": {"samples": 2.5}}', "whole number"),
        (b'{"kind": "phantom", "settings": {"samples": true}}', "whole number"),
        (b'{"kind": "phantom", "settings": {"severity": NaN}}', "from 0 to 1"),
        (b'{"kind": "phantom", "settings": {"sampler": "__class__"}}', "choose one of"),
        (b'{"kind": "phantom", "settings": {"category": ["healthy"]}}', "choose one of"),
    ],
)
def test_orders_are_checked_before_work(viewer: Viewer, body: bytes, said: str) -> None:
    status, _, answer = viewer.ask("POST", "/api/jobs", body)
    assert status == 400
    assert said in json.loads(answer)["error"]


def test_long_request_is_cut_off(viewer: Viewer) -> None:
    status, _, answer = viewer.ask("POST", "/api/jobs", b" " * 20_000)
    assert status == 413
    assert "more than" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../../tmp/escaped.h5", "escaped.h5"),
        ("..%2F..%2Fescaped.h5", "escaped.h5"),
        ("C:\\Users\\x\\escaped.h5", "escaped.h5"),
        ("%00%1b[31mescaped%0a.h5", "[31mescaped.h5"),
        ("%E2%80%AEescaped.h5", "escaped.h5"),
        ("a" * 300 + ".h5", "a" * 76 + "\N{HORIZONTAL ELLIPSIS}.h5"),
    ],
)
def test_names_are_only_shown(viewer: Viewer, name: str, shown: str) -> None:
    status, answer = viewer.upload(name, b"no HDF5", **QUICK)
    assert status == 201
    job = viewer.wait(answer["id"], "failed")
    assert job["title"] == shown
    assert viewer.on_disk() == []
    assert not list(viewer.temporary.rglob("*escaped*"))
    assert not Path("/tmp/escaped.h5").exists()
    viewer.drop(answer["id"])


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["lung.txt", "lung.pkl", "lung.pt", "lung", "lung.h5.exe", "", "lung.npy"])
def test_wrong_suffix_is_refused_before_a_byte_is_read(viewer: Viewer, name: str) -> None:
    status, answer = viewer.upload(name, b"x" * 100)
    assert status == 400
    assert "give .h5, .hdf5, .uff, .npz" in answer["error"]
    assert viewer.on_disk() == []


def test_announced_size_is_believed(viewer: Viewer) -> None:
    with socket.create_connection(("127.0.0.1", viewer.port), timeout=30) as line:
        line.sendall(head(viewer, f"Content-Length: {UPLOAD * MB + 1}"))
        answer = b"".join(iter(lambda: line.recv(65536), b""))  # until the viewer hangs up
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than 20 MB" in answer
    assert viewer.on_disk() == []


def test_unannounced_size_is_counted(viewer: Viewer) -> None:
    """Chunked, so that nobody says how much is to come."""
    with socket.create_connection(("127.0.0.1", viewer.port), timeout=30) as line:
        line.sendall(head(viewer, "Transfer-Encoding: chunked"))
        chunk = b"%x\r\n" % MB + bytes(MB) + b"\r\n"
        with pytest.raises(OSError):
            for _ in range(3 * UPLOAD):
                line.sendall(chunk)
    until(lambda: viewer.on_disk() == [])
    assert all(job["title"] != "big.h5" for job in viewer.json("/api/jobs")["jobs"])


def test_upload_that_breaks_off_leaves_nothing(viewer: Viewer) -> None:
    """As when the browser is closed."""
    with socket.create_connection(("127.0.0.1", viewer.port), timeout=30) as line:
        line.sendall(head(viewer, "Content-Length: 1000000") + bytes(300_000))
        until(lambda: viewer.on_disk())
    until(lambda: viewer.on_disk() == [])
    assert all(job["title"] != "big.h5" for job in viewer.json("/api/jobs")["jobs"])


def head(viewer: Viewer, length: str) -> bytes:
    """The start of an upload by hand."""
    lines = ["POST /api/files HTTP/1.1", f"Host: 127.0.0.1:{viewer.port}", f"X-Lungwave-Token: {viewer.token}"]
    return "\r\n".join([*lines, "X-File-Name: big.h5", length, "", ""]).encode()


def test_empty_file(viewer: Viewer) -> None:
    status, answer = viewer.upload("lung.h5", b"")
    assert (status, answer["error"]) == (400, "the file is empty; choose another")
    assert viewer.on_disk() == []


def test_truncated_hdf5(viewer: Viewer, rf: Path) -> None:
    content = rf.read_bytes()
    for keep in (len(content) // 2, 2000, 100):
        said = viewer.refused_file("my lung.h5", content[:keep])
        assert said.startswith("my lung.h5: ")
        assert "lungwave-view-" not in said
        assert "upload.h5" not in said


def test_wrong_content_is_named(viewer: Viewer) -> None:
    assert "is a picture" in viewer.refused_file("lung.h5", b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "no known format" in viewer.refused_file("lung.uff", b"<html>" * 40)
    assert "DICOM" in viewer.refused_file("lung.h5", bytes(128) + b"DICM" + bytes(100))


def test_pickle_inside_npz_is_not_opened(viewer: Viewer, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(witness), "w"))

    content = io.BytesIO()
    np.savez(content, rf=np.array([Trap()], dtype=object))
    said = viewer.refused_file("lung.npz", content.getvalue())
    assert said.startswith("lung.npz")
    assert not witness.exists()


def hdf5(fill: object) -> bytes:
    """Bytes of an HDF5 file that ``fill`` makes."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        fill(file)  # type: ignore[operator]
    return content.getvalue()


def test_external_links_lead_nowhere(viewer: Viewer, rf: Path) -> None:
    """Neither a link to another file nor samples kept in one are followed."""

    def linked(file: h5py.File) -> None:
        file["tracks/track_0/data/raw_data"] = h5py.ExternalLink(str(rf), "tracks/track_0/data/raw_data")

    def outside(file: h5py.File) -> None:
        shape = (1, 3, 192, 32, 1)
        file.create_dataset("tracks/track_0/data/raw_data", shape, "f4", external=[(str(rf), 0, h5py.h5f.UNLIMITED)])

    def loop(file: h5py.File) -> None:
        file["tracks/track_0/data/raw_data"] = h5py.SoftLink("/tracks/track_0/data/raw_data")

    assert "links are not followed" in viewer.refused_file("a.h5", hdf5(linked))
    assert "in another file" in viewer.refused_file("b.h5", hdf5(outside))
    assert "links are not followed" in viewer.refused_file("c.h5", hdf5(loop))


def test_deep_and_circular_groups_end(viewer: Viewer) -> None:
    def deep(file: h5py.File) -> None:
        group = file.create_group("data/rf_data")
        for _ in range(3000):
            group = group.create_group("a")

    def circle(file: h5py.File) -> None:
        group = file.create_group("data/rf_data")
        group["again"] = file["data"]

    before = viewer.worker()
    assert viewer.refused_file("deep.h5", hdf5(deep)).startswith("deep.h5: ")
    assert viewer.refused_file("circle.h5", hdf5(circle)).startswith("circle.h5: ")
    assert viewer.worker() == before


def zeros(size: int) -> bytes:
    """So many zero bytes as zlib would pack them, without packing them: one block again and again."""
    block = 2**20
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    more = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush() + ((size % 65521) << 16 | 1).to_bytes(4, "big")
    packed = head + more * (size // block - 1) + end
    if size <= 4 * block:
        assert zlib.decompress(packed) == bytes(size)
    return packed


def bomb(chunks: int, size: int) -> bytes:
    """RF of ``chunks`` chunks of ``size`` bytes of zeros each, in a thousandth of that."""
    shape = (chunks, 1, size // 4 // 32, 32, 1)
    packed = zeros(size)

    def fill(file: h5py.File) -> None:
        name = "tracks/track_0/data/raw_data"
        data = file.create_dataset(name, shape, "f4", chunks=(1, *shape[1:]), compression=9)
        for chunk in range(chunks):
            data.id.write_direct_chunk((chunk, 0, 0, 0, 0), packed)

    return hdf5(fill)


@pytest.mark.parametrize(("chunks", "size"), [(230, 2**25), (1, 900 * 2**20)], ids=["many chunks", "one huge chunk"])
def test_hdf5_bomb_meets_the_memory_limit(viewer: Viewer, chunks: int, size: int) -> None:
    """7.2 GiB of zeros, within what a file may declare; and one chunk that fits, but not twice. Both in under 8 MB."""
    assert len(zeros(2**22)) > 0
    content = bomb(chunks, size)
    assert len(content) < 8 * MB
    before = viewer.worker()
    said = viewer.refused_file("bomb.h5", content)
    assert re.match(r"bomb\.h5: (needs more memory|not a readable HDF5 file)", said), said
    assert viewer.worker() == before


def test_jobs_are_held_by_the_kernel(viewer: Viewer) -> None:
    """What the limits are made of."""
    identity = viewer.order("phantom", **LONG)
    until(lambda: viewer.job(identity)["phase"])
    limits = Path(f"/proc/{viewer.at_work(identity)}/limits").read_text()
    viewer.drop(identity)
    held = {line[:25].strip(): line[26:].split()[:2] for line in limits.splitlines()[1:]}
    assert held["Max core file size"] == ["0", "0"]
    assert 2**30 < int(held["Max address space"][1]) < 64 * 2**30
    assert int(held["Max file size"][1]) == 2 * 2**30
    assert int(held["Max cpu time"][0]) <= 1800 * (os.cpu_count() or 1) + 60


def test_names_of_files_are_not_logged(viewer: Viewer, tmp_path: Path) -> None:
    """Checked while the viewer runs; test_life reads all that one said in its life."""
    log = viewer.temporary.parent / f"{viewer.temporary.name}.log"
    viewer.refused_file("Jane Doe 1970.h5", b"nothing")
    assert log.read_text() == ""

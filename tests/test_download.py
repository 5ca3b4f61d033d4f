"""Downloads against a server on this machine: complete, interrupted, wrong, in the way."""

import errno
import hashlib
import io
import logging
import shutil
import subprocess
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tifffile

from vimunet.datasets import download as module
from vimunet.datasets.download import DATASETS, RemoteFile, download


class Server:
    """Serves `files` (path to bytes), with faults on demand, and keeps a list of requests."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: int | None = None  # bytes of the next answer, then the line goes dead
        self.ranges = True

    def answer(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.command, handler.path, asked))
        content = self.files.get(handler.path)
        if content is None:
            handler.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        handler.send_response(206 if start else 200)
        if self.ranges:
            handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        if body:
            end, self.cut_after = self.cut_after, None
            handler.wfile.write(content[start:] if end is None else content[start : start + end])
            handler.close_connection = True


@pytest.fixture
def server(monkeypatch):
    faults = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            faults.answer(self, body=True)

        def do_HEAD(self):
            faults.answer(self, body=False)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=partial(http.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    faults.url = f"http://127.0.0.1:{http.server_port}/data"
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_TRIES", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield faults
    http.shutdown()
    http.server_close()
    thread.join()


VOLUMES = {letter: bytes(f"volume {letter} ", "ascii") * 50_000 for letter in "ABC"}


@pytest.fixture
def cremi(server, monkeypatch):
    """Three small files in place of CREMI's, with their own hashes as the known ones."""
    files = []
    for file, content in zip(DATASETS["cremi"].files, VOLUMES.values(), strict=True):
        server.files[f"/data/{file.url}"] = content
        files.append(replace(file, sha256=hashlib.sha256(content).hexdigest()))
    small = replace(DATASETS["cremi"], files=tuple(files))
    monkeypatch.setitem(DATASETS, "cremi", small)
    return partial(download, "cremi", base_url=server.url, progress=False)


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tiff(value: int) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.full((5, 7), value, np.uint8))
    return stream.getvalue()


TEST_IMAGE = "images/livecell_test_images/A172/A172_1.tif"
TRAIN_IMAGE = "images/livecell_train_val_images/BV2/BV2_1.tif"


@pytest.fixture
def livecell(server, monkeypatch):
    server.files["/data/images.zip"] = zipped({TEST_IMAGE: tiff(1), TRAIN_IMAGE: tiff(2)})
    for split in ("train", "val", "test"):
        path = f"/data/annotations/LIVECell/livecell_coco_{split}.json"
        server.files[path] = bytes(f'{{"split": "{split}"}}', "ascii")
    files = tuple(replace(file, unpacked_bytes=0) for file in DATASETS["livecell"].files)
    monkeypatch.setitem(DATASETS, "livecell", replace(DATASETS["livecell"], files=files))
    return partial(download, "livecell", base_url=server.url, progress=False)


def gets(server: Server) -> list[tuple[str, str | None]]:
    return [(path, asked) for verb, path, asked in server.requests if verb == "GET"]


def leftovers(folder) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".part" in path.name]


def test_addresses_and_hashes_are_the_official_ones():
    cremi, livecell = DATASETS["cremi"], DATASETS["livecell"]
    assert [f"{cremi.base_url}/{file.url}" for file in cremi.files] == [
        f"https://cremi.org/static/data/sample_{letter}_20160501.hdf" for letter in "ABC"
    ]
    assert [file.sha256[:8] for file in cremi.files] == ["4c563d1b", "887e8552", "2874496f"]
    assert {len(file.sha256) for file in cremi.files} == {64}
    bucket = "livecell-dataset.s3.eu-central-1.amazonaws.com/LIVECell_dataset_2021"
    urls = [f"{livecell.base_url}/{file.url}" for file in livecell.files]
    assert f"https://{bucket}/images.zip" in urls
    assert f"https://{bucket}/annotations/LIVECell/livecell_coco_train.json" in urls
    assert "BY-NC" in livecell.notice
    assert "10.1038/s41592-021-01249-6" in livecell.notice


def test_download_then_offline(cremi, server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "new" / "cremi"
    assert cremi(folder) == folder
    for letter, content in VOLUMES.items():
        assert (folder / f"sample_{letter}_20160501.hdf").read_bytes() == content
    assert leftovers(folder) == []
    assert "Cite: Funke" in caplog.text
    assert "Needs 0.00 GB" in caplog.text

    server.requests.clear()
    server.files.clear()
    cremi(folder)
    assert server.requests == []
    assert "All files are in" in caplog.text


def test_sums_are_readable_by_sha256sum(livecell, tmp_path):
    livecell(tmp_path)
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("sha256sum is not installed")
    check = subprocess.run(
        [program, "--strict", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr
    assert check.stdout.count(": OK") == 5  # three annotations and two images


def test_interrupted_download_goes_on_by_itself(cremi, server, tmp_path):
    server.cut_after = 300_000
    cremi(tmp_path)
    path = "/data/sample_A_20160501.hdf"
    assert gets(server)[:2] == [(path, None), (path, "bytes=262144-")]  # two whole pieces
    assert (tmp_path / "sample_A_20160501.hdf").read_bytes() == VOLUMES["A"]


def test_next_call_continues_where_the_last_stopped(cremi, server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TRIES", 1)
    server.cut_after = 300_000
    with pytest.raises(OSError, match="stopped .* Run it again to continue"):
        cremi(tmp_path)
    target = tmp_path / "sample_A_20160501.hdf"
    assert not target.exists()
    part = target.with_name("sample_A_20160501.hdf.part")
    assert part.read_bytes() == VOLUMES["A"][:262_144]

    server.requests.clear()
    cremi(tmp_path)
    assert gets(server)[0] == ("/data/sample_A_20160501.hdf", "bytes=262144-")
    assert target.read_bytes() == VOLUMES["A"]
    assert leftovers(tmp_path) == []


def test_starts_again_if_the_server_cannot_continue(cremi, server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TRIES", 1)
    server.ranges, server.cut_after = False, 300_000
    with pytest.raises(OSError, match="stopped"):
        cremi(tmp_path)
    cremi(tmp_path)
    assert (tmp_path / "sample_A_20160501.hdf").read_bytes() == VOLUMES["A"]


def test_second_try_starts_again_if_the_server_cannot_continue(cremi, server, tmp_path):
    server.ranges, server.cut_after = False, 300_000
    cremi(tmp_path)
    assert (tmp_path / "sample_A_20160501.hdf").read_bytes() == VOLUMES["A"]
    assert [asked for _, asked in gets(server)] == [None] * 4


def test_part_with_foreign_bytes_is_thrown_away(cremi, tmp_path):
    part = tmp_path / "sample_B_20160501.hdf.part"
    part.write_bytes(b"something else")
    with pytest.raises(ValueError, match="sample_B.* must have SHA-256 .*, got .* Run it again"):
        cremi(tmp_path)
    assert not part.exists()
    assert not (tmp_path / "sample_B_20160501.hdf").exists()
    cremi(tmp_path)
    assert (tmp_path / "sample_B_20160501.hdf").read_bytes() == VOLUMES["B"]


def test_damaged_file_is_moved_aside_and_fetched_again(cremi, server, tmp_path):
    cremi(tmp_path)
    target = tmp_path / "sample_C_20160501.hdf"
    target.write_bytes(b"edited")
    server.requests.clear()
    cremi(tmp_path)
    assert gets(server) == [("/data/sample_C_20160501.hdf", None)]
    assert target.read_bytes() == VOLUMES["C"]
    assert (tmp_path / "sample_C_20160501.hdf.damaged").read_bytes() == b"edited"


def test_missing_on_the_server(cremi, server, tmp_path):
    del server.files["/data/sample_B_20160501.hdf"]
    with pytest.raises(OSError, match="Cannot get .*sample_B_20160501.hdf .*404"):
        cremi(tmp_path)


def test_no_server(cremi, tmp_path):
    with pytest.raises(OSError, match="Cannot get .* Check the network"):
        cremi(tmp_path, base_url="http://127.0.0.1:9/nothing")


def test_too_little_space(cremi, server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"must have 0.00 GB free, got 0.00 GB. Make room"):
        cremi(tmp_path)
    assert gets(server) == []


def test_folder_that_cannot_be_written_to(cremi, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Cannot write to .* Choose another folder"):
        cremi(tmp_path / "file" / "folder")


def test_read_only_folder(cremi, tmp_path, monkeypatch):
    """The superuser may write anywhere, so the system's answer is made up."""

    def refuse(**options):
        raise PermissionError(errno.EACCES, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(module.tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"Cannot write to .* \(Permission denied\)"):
        cremi(tmp_path)


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="Unknown data set 'isic'. Known: cremi, livecell"):
        download("isic", tmp_path)


def test_livecell_is_unpacked_and_recorded(livecell, server, tmp_path):
    livecell(tmp_path)
    assert (tmp_path / TEST_IMAGE).read_bytes() == tiff(1)
    assert (tmp_path / "annotations" / "livecell_coco_val.json").read_text() == '{"split": "val"}'
    assert not (tmp_path / "images.zip").exists()
    assert leftovers(tmp_path) == []
    archive_hash = hashlib.sha256(server.files["/data/images.zip"]).hexdigest()
    assert f"# {archive_hash}  images.zip" in (tmp_path / "SHA256SUMS").read_text()

    server.requests.clear()
    livecell(tmp_path)
    assert server.requests == []


def test_lost_image_is_unpacked_again_and_other_files_stay(livecell, server, tmp_path):
    livecell(tmp_path)
    (tmp_path / TEST_IMAGE).unlink()
    mine = tmp_path / "images" / "my notes.txt"
    mine.write_text("keep")
    server.requests.clear()
    livecell(tmp_path)
    assert gets(server) == [("/data/images.zip", None)]
    assert (tmp_path / TEST_IMAGE).read_bytes() == tiff(1)
    assert mine.read_text() == "keep"


def test_changed_file_without_published_hash_is_noticed(livecell, server, tmp_path):
    livecell(tmp_path)
    (tmp_path / TEST_IMAGE).unlink()
    server.files["/data/images.zip"] = zipped({TEST_IMAGE: tiff(9), TRAIN_IMAGE: tiff(2)})
    with pytest.raises(ValueError, match="images.zip must have SHA-256"):
        livecell(tmp_path)


def test_interrupted_unpacking_is_not_taken_as_complete(livecell, server, tmp_path, monkeypatch):
    extract = zipfile.ZipFile.extract

    def stop_at_second(self, name, path):
        if name == TRAIN_IMAGE:
            raise KeyboardInterrupt
        return extract(self, name, path)

    monkeypatch.setattr(zipfile.ZipFile, "extract", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        livecell(tmp_path)
    assert not (tmp_path / "images").exists()
    monkeypatch.undo()
    server.requests.clear()
    download("livecell", tmp_path, base_url=server.url, progress=False)
    assert (tmp_path / TRAIN_IMAGE).read_bytes() == tiff(2)
    assert gets(server) == []  # the archive was there and complete
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["../evil.tif", "/tmp/evil.tif", "images/../../evil.tif"])
def test_archive_cannot_write_outside(livecell, server, tmp_path, name):
    server.files["/data/images.zip"] = zipped({TEST_IMAGE: tiff(1), name: b"evil"})
    folder = tmp_path / "data"
    with pytest.raises(ValueError, match="wants to write outside"):
        livecell(folder)
    assert list(tmp_path.rglob("evil*")) == []
    assert not (folder / "images").exists()
    assert not (folder / "images.zip").exists()


def test_damaged_archive(livecell, server, tmp_path):
    server.files["/data/images.zip"] = b"not a zip archive"
    with pytest.raises(ValueError, match="images.zip was damaged"):
        livecell(tmp_path)
    assert not (tmp_path / "images.zip").exists()


def test_archive_without_images(livecell, server, tmp_path):
    server.files["/data/images.zip"] = zipped({"readme.txt": b"moved"})
    with pytest.raises(ValueError, match="must have a folder images/"):
        livecell(tmp_path)


def test_images_that_were_not_downloaded_here_are_left_alone(livecell, server, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(FileExistsError, match="images is already there"):
        livecell(tmp_path)
    assert server.requests == []


def test_annotations_that_were_there_before(livecell, server, tmp_path):
    same = tmp_path / "annotations" / "livecell_coco_val.json"
    same.parent.mkdir()
    same.write_text('{"split": "val"}')
    livecell(tmp_path)
    assert not any("val.json" in path for path, _ in gets(server))
    assert "livecell_coco_val.json" in (tmp_path / "SHA256SUMS").read_text()


def test_other_annotations_are_not_overwritten(livecell, tmp_path):
    mine = tmp_path / "annotations" / "livecell_coco_val.json"
    mine.parent.mkdir()
    mine.write_text("a part of it")
    with pytest.raises(FileExistsError, match=r"must have 16 bytes as on the server, got 12"):
        livecell(tmp_path)
    assert mine.read_text() == "a part of it"


def test_progress_bar_is_optional(cremi, tmp_path, capfd):
    cremi(tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    cremi(tmp_path / "shown", progress=True)
    assert "100%" in capfd.readouterr().err


def test_sizes_without_content_length(tmp_path, monkeypatch):
    file = RemoteFile("x", "x", None)
    module._check_space(tmp_path, {file: (None, False)})

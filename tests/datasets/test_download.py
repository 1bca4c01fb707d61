"""One file from a server that breaks off, lies, refuses, or fills the disk."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from ragst_sd.datasets import _download
from ragst_sd.datasets._download import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
ADVICE = "pass `path=`"


def get(file: dict, folder: Path) -> Path:
    return fetch(file, folder, progress=False, advice=ADVICE)


def visible(folder: Path) -> list[str]:
    """Files that a user sees, notes and locks left out."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def test_arrives_and_is_not_asked_for_again(server, tmp_path):
    file = server.add("a/b.bin", CONTENT)
    path = get(file, tmp_path)
    assert path == tmp_path / "a" / "b.bin"
    assert path.read_bytes() == CONTENT
    assert get(file, tmp_path) == path
    assert len(server.asked) == 1
    assert visible(tmp_path) == ["b.bin"]


class TestResume:
    def test_within_a_call(self, server, tmp_path):
        file = server.add("a.bin", CONTENT)
        server.cut_after = [100_000, 50_000]
        assert get(file, tmp_path).read_bytes() == CONTENT
        assert [span for _, span in server.asked] == [None, "bytes=100000-", "bytes=150000-"]
        assert visible(tmp_path) == ["a.bin"]

    def test_between_calls(self, server, tmp_path):
        file = server.add("a.bin", CONTENT)
        server.cut_after = [100_000, *[0] * 10]
        with pytest.raises(
            ConnectionError, match=r"100000 bytes are kept in .*a\.bin\.part.*You can also pass `path=`"
        ):
            get(file, tmp_path)
        assert not (tmp_path / "a.bin").exists()
        server.cut_after, server.asked = [], []
        assert get(file, tmp_path).read_bytes() == CONTENT
        assert server.asked == [("/a.bin", "bytes=100000-")]

    def test_attempts_without_progress_are_counted_and_those_with_are_not(self, server, tmp_path):
        file = server.add("a.bin", CONTENT)
        server.cut_after = [10_000] * 29
        assert get(file, tmp_path).read_bytes() == CONTENT
        assert len(server.asked) == 30

    @pytest.mark.parametrize("etag", [True, False])
    def test_server_that_knows_no_ranges(self, server, tmp_path, etag):
        server.ranges, server.etag = False, etag
        file = server.add("a.bin", CONTENT)
        server.cut_after = [100_000]
        assert get(file, tmp_path).read_bytes() == CONTENT

    def test_file_that_changed_in_between_is_begun_anew(self, server, tmp_path):
        file = server.add("a.bin", CONTENT) | {"size": None, "sha256": None}
        server.cut_after = [100_000, *[0] * 10]
        with pytest.raises(ConnectionError):
            get(file, tmp_path)
        server.cut_after = []
        server.add("a.bin", CONTENT[::-1])
        assert get(file, tmp_path).read_bytes() == CONTENT[::-1]

    @pytest.mark.parametrize("last_modified", [None, "Wed, 01 Jan 2020 00:00:00 GMT"])
    def test_without_a_tag_the_date_decides_and_without_both_it_begins_anew(self, server, tmp_path, last_modified):
        """The same length both times, so that nothing else tells the versions apart."""
        server.etag, server.last_modified = False, last_modified
        file = server.add("a.bin", CONTENT) | {"size": None, "sha256": None}
        server.cut_after = [100_000, *[0] * 10]
        with pytest.raises(
            ConnectionError, match="goes on from there if the server says that the file is still the same"
        ):
            get(file, tmp_path)
        server.cut_after, server.asked, server.conditions = [200_000], [], []
        server.add("a.bin", CONTENT[::-1])
        if last_modified:
            server.last_modified = "Thu, 02 Jan 2020 00:00:00 GMT"
        assert get(file, tmp_path).read_bytes() == CONTENT[::-1]
        if last_modified:
            assert server.conditions == [last_modified, server.last_modified]
            assert [span for _, span in server.asked] == ["bytes=100000-", "bytes=200000-"]
        else:
            assert [span for _, span in server.asked] == [None, None]

    def test_a_date_is_enough_to_go_on(self, server, tmp_path):
        server.etag, server.last_modified = False, "Wed, 01 Jan 2020 00:00:00 GMT"
        file = server.add("a.bin", CONTENT) | {"size": None, "sha256": None}
        server.cut_after = [100_000]
        assert get(file, tmp_path).read_bytes() == CONTENT
        assert [span for _, span in server.asked] == [None, "bytes=100000-"]

    def test_file_of_another_length_is_begun_anew(self, server, tmp_path):
        """A server that goes on with whatever it has now."""
        server.heeds_if_range = False
        file = server.add("a.bin", CONTENT) | {"size": None, "sha256": None}
        server.cut_after = [100_000, *[0] * 10]
        with pytest.raises(ConnectionError):
            get(file, tmp_path)
        server.cut_after = []
        server.add("a.bin", CONTENT[::-1] + b"more")
        assert get(file, tmp_path).read_bytes() == CONTENT[::-1] + b"more"

    def test_part_of_another_file_is_found_out_by_the_checksum(self, server, tmp_path):
        file = server.add("a.bin", CONTENT)
        (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
        assert get(file, tmp_path).read_bytes() == CONTENT
        assert [span for _, span in server.asked] == ["bytes=1000-", None]

    def test_part_longer_than_the_file(self, server, tmp_path):
        file = server.add("a.bin", CONTENT) | {"size": None}
        (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
        assert get(file, tmp_path).read_bytes() == CONTENT


class TestChecks:
    @pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 299_999}])
    def test_wrong_checksum_or_size_is_refused_and_leaves_nothing(self, server, tmp_path, change):
        file = server.add("a.bin", CONTENT) | change
        with pytest.raises(ValueError, match=r"not the file that was expected: (sha256|300000 bytes).*It was not kept"):
            get(file, tmp_path)
        assert visible(tmp_path) == []

    def test_corrupted_on_the_way(self, server, tmp_path):
        file = server.add("a.bin", CONTENT)
        server.files["/a.bin"] = CONTENT[:-1] + b"?"
        with pytest.raises(ValueError, match=f"expected {file['sha256']}"):
            get(file, tmp_path)
        assert visible(tmp_path) == []

    def test_damaged_in_the_cache_is_downloaded_again(self, server, tmp_path, caplog):
        file = server.add("a.bin", CONTENT)
        get(file, tmp_path).write_bytes(CONTENT[:1000])
        assert get(file, tmp_path).read_bytes() == CONTENT
        assert "not what it should be" in caplog.text

    def test_file_put_there_by_hand_is_taken(self, server, tmp_path):
        file = server.add("a.bin", CONTENT)
        (tmp_path / "a.bin").write_bytes(CONTENT)
        get(file, tmp_path)
        assert server.asked == []


class TestRefusals:
    @pytest.mark.parametrize("status", [401, 403])
    def test_not_given_out(self, server, tmp_path, status):
        file = server.add("a.bin", CONTENT)
        server.statuses = [status]
        with pytest.raises(PermissionError, match=rf"not given out to everybody.*{status}.*You can also pass `path=`"):
            get(file, tmp_path)
        assert len(server.asked) == 1

    @pytest.mark.parametrize("status", [404, 410])
    def test_not_there(self, server, tmp_path, status):
        file = server.add("a.bin", CONTENT)
        server.statuses = [status]
        with pytest.raises(FileNotFoundError, match="does not exist"):
            get(file, tmp_path)

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_busy_server_is_asked_again(self, server, tmp_path, status):
        file = server.add("a.bin", CONTENT)
        server.statuses = [status, status]
        assert get(file, tmp_path).read_bytes() == CONTENT

    def test_other_errors_are_told(self, server, tmp_path):
        file = server.add("a.bin", CONTENT)
        server.statuses = [418]
        with pytest.raises(ConnectionError, match="the server answers 418"):
            get(file, tmp_path)

    def test_nobody_answers(self, server, tmp_path):
        file = server.add("a.bin", CONTENT) | {"url": "http://127.0.0.1:9/a.bin"}
        with pytest.raises(ConnectionError, match=r"Tried 5 times.*You can also pass `path=`"):
            get(file, tmp_path)


class TestFullDisk:
    def test_known_before(self, server, tmp_path, monkeypatch):
        file = server.add("a.bin", CONTENT)
        usage = _download.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(_download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(OSError, match=r"No space for 'a\.bin' in .*0\.00 GB are free") as caught:
            get(file, tmp_path)
        assert caught.value.errno == errno.ENOSPC
        assert not (tmp_path / "a.bin").exists()

    def test_while_writing(self, server, tmp_path, monkeypatch):
        file = server.add("a.bin", CONTENT)
        opened = Path.open

        class Full:
            def __init__(self, file):
                self.file = file

            def write(self, block):
                if self.file.tell() + len(block) > 200_000:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return self.file.write(block)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.file.close()

            def __getattr__(self, name):
                return getattr(self.file, name)

        def open_full(path, mode="r", **options):
            file = opened(path, mode, **options)
            return Full(file) if path.name.endswith(".part") and mode in ("ab", "wb") else file

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", open_full)
            with pytest.raises(OSError, match=r"No space for 'a\.bin'.*RAGST_SD_CACHE_DIR"):
                get(file, tmp_path)
        assert visible(tmp_path) == ["a.bin.part"], "nothing half-written under the final name"
        assert get(file, tmp_path).read_bytes() == CONTENT
        assert server.asked[-1] == ("/a.bin", "bytes=200000-")


def test_many_at_once_do_not_damage_each_other(server, tmp_path):
    file = server.add("a.bin", CONTENT)
    server.cut_after = [100_000]
    found, errors = [], []

    def run():
        try:
            found.append(get(file, tmp_path).read_bytes())
        except Exception as error:  # noqa: BLE001  a thread's error would be lost
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert found == [CONTENT] * 4
    assert len(server.asked) == 2, "one download, which broke once"


def test_progress_bar(server, tmp_path, capsys):
    fetch(server.add("a.bin", CONTENT), tmp_path, progress=True, advice=ADVICE)
    assert "a.bin: 100%" in capsys.readouterr().err

"""Files of rows: what a kill, an editor or a full disk may leave of them."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from madakv import ConfigurationError
from madakv.evaluation import rowfiles
from madakv.evaluation.rowfiles import appended, packed_path, read_all, read_rows


@dataclass(frozen=True)
class Line:
    name: str
    score: float = 0.0


def write(path: Path, *names: str) -> None:
    with appended(path) as append:
        for name in names:
            append(vars(Line(name)))


def names(path: Path) -> list[str]:
    return [line.name for line in read_rows(path, Line)]


def test_rows_are_plain_while_written_and_packed_when_done(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    with appended(path) as append:
        append(vars(Line("a")))
        assert path.read_text() == '{"name": "a", "score": 0.0}\n'
        assert names(path) == ["a"]
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl.gz"]
    write(path, "b")
    assert names(path) == ["a", "b"]
    assert gzip.decompress(packed_path(path).read_bytes()).count(b"\n") == 2
    packed = packed_path(path).read_bytes()
    write(path)
    assert packed_path(path).read_bytes() == packed
    write(tmp_path / "rows.jsonl", "a", "b")
    assert (tmp_path / "rows.jsonl.gz").read_bytes() == packed


def test_rows_of_older_versions_are_read_and_packed(tmp_path: Path) -> None:
    """They are plain, and a run of then may have been killed in a line."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "old", "score": 1.0}\n{"name": "cut o')
    (tmp_path / "rows-1-of-2.jsonl").write_text('{"name": "shard"}\n')
    assert [line.name for line in read_all(tmp_path, Line)] == ["shard", "old"]
    write(path, "new")
    assert names(path) == ["old", "new"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows-1-of-2.jsonl", "rows.jsonl.gz"]


def test_what_a_kill_left_in_both_files_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, "a", "b")
    path.write_bytes(gzip.decompress(packed_path(path).read_bytes()))
    (tmp_path / "rows.jsonl.gz.partial").write_bytes(b"half")
    assert [line.name for line in read_all(tmp_path, Line)] == ["a", "b"]
    write(path, "c")
    assert names(path) == ["a", "b", "c"]


def test_a_run_that_fails_leaves_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with contextlib.suppress(KeyboardInterrupt), appended(path) as append:
        append(vars(Line("a")))
        raise KeyboardInterrupt
    assert path.exists()
    assert names(path) == ["a"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("torn", "said"),
    [
        ('{"name": "to', "is torn or no JSON"),
        ('{"name": "to{"name": "x"}', "is torn or no JSON"),
        ('{"score": 1.0}', "missing 1 required positional argument: 'name'"),
        ('{"name": "x", "unheard": 1}', "unexpected keyword argument 'unheard'"),
        ("[1]", "must be a mapping"),
    ],
)
def test_a_torn_line_is_named_with_its_file(tmp_path: Path, torn: str, said: str, packed: bool) -> None:
    path = tmp_path / "rows.jsonl"
    content = f'{{"name": "a"}}\n\n{torn}\n{{"name": "b"}}\n'
    if packed:
        packed_path(path).write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        read_all(tmp_path, Line)
    message = str(caught.value)
    assert message.startswith(f"line 3 of {packed_path(path) if packed else path} ")
    assert said in message
    assert "delete that line" in message
    assert ("gunzip" in message) == packed
    assert "\n" not in message


def test_an_empty_line_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "a"}\n\n')
    assert names(path) == ["a"]
    write(path, "b")
    assert names(path) == ["a", "b"]


def test_a_packed_file_that_is_cut_off_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, *map(str, range(50)))
    half = packed_path(path).read_bytes()[:60]
    packed_path(path).write_bytes(half)
    with pytest.raises(ConfigurationError, match=f"{packed_path(path)} is cut off"):
        read_all(tmp_path, Line)
    assert packed_path(path).read_bytes() == half


def test_a_file_that_another_run_removes_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opened before that run ended, and locked after it: such rows would be gone with it."""
    path = tmp_path / "rows.jsonl"
    flock = rowfiles.fcntl.flock
    calls = []

    def late(file: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            path.unlink()
        flock(file, how)

    monkeypatch.setattr(rowfiles.fcntl, "flock", late)
    write(path, "a")
    assert len(calls) == 2
    assert names(path) == ["a"]


_FULL = """
import resource, signal, sys
from pathlib import Path
from madakv import ConfigurationError
from madakv.evaluation.rowfiles import appended
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    with appended(Path(sys.argv[1])) as append:
        for number in range(10):
            append({"name": f"row {number}"})
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as POSIX does")
def test_a_full_disk_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    done = subprocess.run([sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {path}: ")
    assert "is safe" in done.stdout
    assert done.stdout.count("\n") == 1
    assert names(path) == [f"row {number}" for number in range(5)]
    write(path, "more")
    assert names(path)[-2:] == ["row 4", "more"]


_KILLED = """
import sys, time
from pathlib import Path
from madakv.evaluation.rowfiles import appended
with appended(Path(sys.argv[1])) as append:
    for number in range(1000):
        append({"name": f"row {number}"})
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, "earlier")
    with subprocess.Popen([sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert names(path) == ["earlier", *(f"row {number}" for number in range(1000))]
    write(path)
    assert len(names(path)) == 1001
    assert not path.exists()

"""archive.py: good archives become their files, and no other archive writes outside, fills a disk or crashes."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters_store.archive import check_file_name, unpack
from adapters_store.errors import InvalidRequest, TooLarge

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": os.urandom(3000), "README.md": b""}
LIMIT_BYTES, LIMIT_FILES = 100_000, 8


def tar_of(files: dict[str, bytes], *, format: int = tarfile.PAX_FORMAT, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            add(archive, name, data)
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", *, type: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mtime = type, link, 1.5  # the fraction makes Python write a pax header
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def tar_with(change: Callable[[tarfile.TarFile], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        add(archive, "a/good.json", b"{}")
        change(archive)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def unpack_bytes(tmp_path: Path, data: bytes, *, max_bytes: int = LIMIT_BYTES, max_files: int = LIMIT_FILES) -> dict[str, bytes]:
    archive, into = tmp_path / "upload", tmp_path / "into"
    archive.write_bytes(data)
    into.mkdir(exist_ok=True)
    for old in into.iterdir():
        old.unlink()
    try:
        names = unpack(archive, into, max_bytes=max_bytes, max_files=max_files)
    finally:
        assert {entry.name for entry in tmp_path.iterdir()} == {"upload", "into"}, "written outside"
    found = {entry.name: entry.read_bytes() for entry in into.iterdir()}
    assert set(names) == set(found)
    return found


GOOD = {
    "tar.gz": tar_of(FILES),
    "plain tar": tar_of(FILES, mode="w"),
    "ustar": tar_of(FILES, format=tarfile.USTAR_FORMAT),
    "gnu": tar_of(FILES, format=tarfile.GNU_FORMAT),
    "in a folder": tar_of({f"my_adapter/{name}": data for name, data in FILES.items()}),
    "in a folder after a dot": tar_of({f"./my_adapter/{name}": data for name, data in FILES.items()}),
    "after a dot": tar_of({f"./{name}": data for name, data in FILES.items()}),
    "gnu, a long folder name": tar_of({f"{'x' * 120}/{name}": data for name, data in FILES.items()}, format=tarfile.GNU_FORMAT),
    "pax, a long folder name": tar_of({f"{'x' * 120}/{name}": data for name, data in FILES.items()}),
    "ustar with a prefix": tar_of({f"{'x' * 90}/{name}": data for name, data in FILES.items()}, format=tarfile.USTAR_FORMAT),
    "from macOS": tar_of({"._a": b"x", "a/._b": b"x", "a/.DS_Store": b"x", **{f"a/{name}": data for name, data in FILES.items()}}),
    "zip": zip_of(FILES),
    "stored zip": zip_of(FILES, compression=zipfile.ZIP_STORED),
    "zip with folders": zip_of({"a/": b"", **{f"a/{name}": data for name, data in FILES.items()}}),
    "zip from macOS": zip_of({"__MACOSX/a/._x": b"x", **{f"a/{name}": data for name, data in FILES.items()}}),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_a_good_archive_becomes_its_files(tmp_path: Path, data: bytes) -> None:
    assert unpack_bytes(tmp_path, data) == FILES


def test_what_the_tar_command_packs_is_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "my_adapter"
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    data = subprocess.check_output(["tar", "czf", "-", "-C", str(tmp_path / "source"), "my_adapter/"])
    (tmp_path / "clean").mkdir()
    assert unpack_bytes(tmp_path / "clean", data) == FILES


def zip_with_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link.json")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def zip_encrypted() -> bytes:
    data = bytearray(zip_of({"a.json": b"{}"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def zip_twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning):
        archive.writestr("a.json", b"1")
        archive.writestr("a.json", b"2")
    return buffer.getvalue()


def corrupt(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0xFF
    return bytes(changed)


BAD = {
    "parent": (tar_of({"../evil.json": b"x"}), r"'\.\./evil.json' does not stay"),
    "parent inside": (tar_of({"a/../../evil.json": b"x"}), "does not stay"),
    "absolute": (tar_with(lambda tar: add(tar, "/etc/evil.json", b"x")), "does not stay"),
    "nested": (tar_of({"a/b/c.json": b"x"}), "'a/b/c.json' lies in a nested folder"),
    "two folders": (tar_of({"a/x.json": b"x", "b/y.json": b"y"}), "'b/y.json' lies in a second folder"),
    "folder and top": (tar_of({"x.json": b"x", "b/y.json": b"y"}), "second folder"),
    "symbolic link": (tar_with(lambda tar: add(tar, "a/x", type=tarfile.SYMTYPE, link="/etc/passwd")), "'a/x' is a symbolic link"),
    "hard link": (tar_with(lambda tar: add(tar, "a/x", type=tarfile.LNKTYPE, link="a/good.json")), "a hard link"),
    "device": (tar_with(lambda tar: add(tar, "a/x", type=tarfile.CHRTYPE)), "a device"),
    "FIFO": (tar_with(lambda tar: add(tar, "a/x", type=tarfile.FIFOTYPE)), "a FIFO"),
    "twice": (tar_with(lambda tar: add(tar, "a/good.json", b"2")), "'good.json' twice"),
    "the manifest's name": (tar_of({"manifest.json": b"{}"}), "kept for the store"),
    "a name with spaces": (tar_of({"my adapter.json": b"x"}), "not allowed"),
    "a name with a newline": (tar_of({"a\n.json": b"x"}), "not allowed"),
    "empty tar": (tar_of({}), "no files"),
    "empty zip": (zip_of({}), "no files"),
    "nothing": (b"", "neither"),
    "text": (b"hello" * 200, "neither"),
    "gzip of text": (gzip.compress(b"hello" * 400), "damaged"),
    "tar cut in a file": (tar_of(FILES, mode="w")[:2000], "truncated"),
    "tar cut between files": (tar_of({"a.json": b"x"}, mode="w", format=tarfile.USTAR_FORMAT)[:1024], "truncated"),
    "gzip cut off": (tar_of(FILES)[:-4], "damaged or truncated"),
    "gzip checksum": (corrupt(tar_of(FILES), -8), "damaged"),
    "tar checksum": (corrupt(tar_of(FILES, mode="w", format=tarfile.USTAR_FORMAT), 120), "damaged"),
    "zip parent": (zip_of({"../evil.json": b"x"}), "does not stay"),
    "zip backslash": (zip_of({"a\\..\\evil.json": b"x"}), "does not stay"),
    "zip absolute": (zip_of({"/etc/evil.json": b"x"}), "does not stay"),
    "zip link": (zip_with_link(), "a link or device"),
    "zip encrypted": (zip_encrypted(), "is encrypted"),
    "zip twice": (zip_twice(), "twice"),
    "zip lzma": (zip_of({"a.json": b"x"}, compression=zipfile.ZIP_LZMA), "compressed in a way"),
    "zip cut off": (zip_of(FILES)[:-30], "damaged"),
    "zip checksum": (corrupt(zip_of({"a.json": b"x" * 50}, compression=zipfile.ZIP_STORED), 40), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "says"), BAD.values(), ids=BAD)
def test_a_bad_archive_is_refused_with_its_fault(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        unpack_bytes(tmp_path, data)


BOMB = bytes(12_000_000)
BOMBS = {
    "tar.gz": tar_of({"a.json": BOMB}),
    "zip": zip_of({"a.json": BOMB}),
    "what is skipped": tar_of({"._a": BOMB, "a.json": b"{}"}),
    "after the end": gzip.compress(tar_of({"a.json": b"{}"}, mode="w") + BOMB),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_stopped_at_the_limit(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(TooLarge, match="unpacks to more than 100000 bytes"):
        unpack_bytes(tmp_path, data)
    assert sum(entry.stat().st_size for entry in (tmp_path / "into").iterdir()) <= LIMIT_BYTES


def test_a_huge_extended_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 10 << 30
    with pytest.raises(InvalidRequest, match="tar header of"):
        unpack_bytes(tmp_path, header.tobuf(tarfile.GNU_FORMAT))


def test_a_huge_zip_directory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="directory is too large"):
        unpack_bytes(tmp_path, zip_of({f"{n:05}.json": b"" for n in range(20_000)}))


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_as_many_files_as_allowed_and_no_more(tmp_path: Path, make: Callable[[dict[str, bytes]], bytes]) -> None:
    assert len(unpack_bytes(tmp_path, make({f"{n}.json": b"x" for n in range(LIMIT_FILES)}))) == LIMIT_FILES
    with pytest.raises(TooLarge, match="more than 8 files"):
        unpack_bytes(tmp_path, make({f"{n}.json": b"x" for n in range(LIMIT_FILES + 1)}))


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_exactly_the_limit_of_bytes_fits(tmp_path: Path, make: Callable[[dict[str, bytes]], bytes]) -> None:
    assert unpack_bytes(tmp_path, make({"a.json": b"x" * 1000}), max_bytes=1000) == {"a.json": b"x" * 1000}
    with pytest.raises(TooLarge):
        unpack_bytes(tmp_path, make({"a.json": b"x" * 1001}), max_bytes=1000)


def test_endless_folders_are_stopped(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="members"):
        unpack_bytes(tmp_path, zip_of({f"{n}/": b"" for n in range(100)}))


@pytest.mark.parametrize("name", ["adapter_config.json", "README.md", ".gitattributes", "a" * 120 + ".json"])
def test_a_plain_file_name_is_taken(name: str) -> None:
    assert check_file_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a\\b", "-rf", "a b", "a\0", "ä.json", "x" * 200, "Manifest.json"])
def test_any_other_file_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_file_name(name)


quietly = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
edits = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6)
small = {"adapter_config.json": b'{"r": 4}' * 9, "a.txt": b"x" * 700}
seeds = st.sampled_from([tar_of(small), tar_of(small, mode="w"), tar_of(small, mode="w", format=tarfile.GNU_FORMAT), zip_of(small)])


@quietly
@given(seed=seeds, changes=edits, cut=st.integers(0, 12_000))
def test_a_damaged_archive_never_fails_in_another_way(tmp_path: Path, seed: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(seed)
    for at, value in changes:
        data[at % len(data)] = value
    with contextlib.suppress(InvalidRequest, TooLarge):
        unpack_bytes(tmp_path, bytes(data[:cut] if cut < len(data) else data))


@quietly
@given(data=st.binary(max_size=600), magic=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", b"\0" * 257 + b"ustar"]))
def test_any_bytes_never_fail_in_another_way(tmp_path: Path, data: bytes, magic: bytes) -> None:
    with contextlib.suppress(InvalidRequest, TooLarge):
        unpack_bytes(tmp_path, magic + data)

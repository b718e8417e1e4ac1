"""Resumable uploads: parts come in any order through any process, and become the files that were announced, or nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapters_store import upload_sessions
from adapters_store.adapter import AdapterFile
from adapters_store.errors import Conflict, InternalError, InvalidAdapter, InvalidRequest, NotFound, Overloaded, TooLarge
from adapters_store.history import Actor
from adapters_store.layout import part_key, session_key
from adapters_store.objects import ObjectStore
from adapters_store.registry import Registry
from adapters_store.upload_assembly import UploadAssembly
from adapters_store.upload_session import MAX_PARTS, UploadSession
from adapters_store.upload_sessions import SessionLimits, UploadSessions
from adapters_store.validate import Fit

KEY = "0123456789abcdef"
PART_BYTES = 100
LIMITS = SessionLimits(
    max_bytes=10_000, max_files=5, part_bytes=PART_BYTES, session_seconds=3600.0, sessions_per_key=3, bytes_per_key=4_000
)
WEIGHTS = bytes(range(256)) + b"the end"  # 263 bytes: three parts, the last one shorter
FILES = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": WEIGHTS}


@pytest.fixture
def sessions(store: ObjectStore) -> UploadSessions:
    return UploadSessions(store, LIMITS)


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes it so many seconds later than it is, without waiting."""

    def pass_time(seconds: float) -> None:
        monkeypatch.setattr(upload_sessions, "time", SimpleNamespace(time=lambda: time.time() + seconds))

    return pass_time


def announced(files: Mapping[str, bytes]) -> list[AdapterFile]:
    return [AdapterFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()]


def begin(sessions: UploadSessions, files: Mapping[str, bytes] = FILES, *, name: str = "support", key: str = KEY) -> UploadSession:
    return sessions.begin(key, "acme", name, announced(files))[0]


def send(
    sessions: UploadSessions, session: UploadSession, folder: Path, number: int, part: int, files: Mapping[str, bytes] = FILES
) -> None:
    data = files[session.files[number].name]
    content = folder / "part"
    content.write_bytes(data[part * PART_BYTES : (part + 1) * PART_BYTES])
    sessions.add_part(session, number, part, content)


def send_all(sessions: UploadSessions, session: UploadSession, folder: Path, files: Mapping[str, bytes] = FILES) -> None:
    for number in range(len(session.files)):
        for part in reversed(range(session.parts_of(number))):
            send(sessions, session, folder, number, part, files)


def assembled(store: ObjectStore, sessions: UploadSessions, session: UploadSession, folder: Path) -> dict[str, bytes]:
    into = folder / "assembled"
    into.mkdir()
    UploadAssembly(store, sessions).assemble(session, into)
    return {path.name: path.read_bytes() for path in into.iterdir()}


def test_parts_in_any_order_become_the_announced_files(store: ObjectStore, sessions: UploadSessions, tmp_path: Path) -> None:
    session = begin(sessions)
    assert [session.parts_of(number) for number in (0, 1)] == [1, 3]
    send_all(sessions, session, tmp_path)
    assert assembled(store, sessions, session, tmp_path) == FILES


def test_an_upload_goes_on_through_another_gateway(store: ObjectStore, sessions: UploadSessions, tmp_path: Path) -> None:
    first = begin(sessions)
    send(sessions, first, tmp_path, 1, 1)
    elsewhere = UploadSessions(store, LIMITS)
    session, created = elsewhere.begin(KEY, "acme", "support", list(reversed(announced(FILES))))
    assert (session, created) == (first, False)
    missing = {item.file.name: item.missing for item in UploadAssembly(store, elsewhere).progress(session)}
    assert missing == {"adapter_config.json": (0,), "adapter_model.safetensors": (0, 2)}
    assert elsewhere.arrived(session) == {(1, 1)}


def test_a_part_that_is_sent_again_changes_nothing(store: ObjectStore, sessions: UploadSessions, tmp_path: Path) -> None:
    session = begin(sessions)
    for _ in range(2):
        send_all(sessions, session, tmp_path)
    assert assembled(store, sessions, session, tmp_path) == FILES


def test_a_missing_part_is_a_conflict_that_names_it(store: ObjectStore, sessions: UploadSessions, tmp_path: Path) -> None:
    session = begin(sessions)
    send(sessions, session, tmp_path, 0, 0)
    send(sessions, session, tmp_path, 1, 0)
    with pytest.raises(Conflict, match=r"part 1 of adapter_model\.safetensors"):
        assembled(store, sessions, session, tmp_path)


def test_a_file_that_is_not_what_was_announced_is_asked_for_again(store: ObjectStore, sessions: UploadSessions, tmp_path: Path) -> None:
    session = begin(sessions)
    send_all(sessions, session, tmp_path, {**FILES, "adapter_model.safetensors": bytes(len(WEIGHTS))})
    with pytest.raises(Conflict, match="another sha256"):
        assembled(store, sessions, session, tmp_path)
    assert [item.missing for item in UploadAssembly(store, sessions).progress(session)] == [(), (0, 1, 2)]


def test_content_of_an_earlier_version_need_not_be_sent(store: ObjectStore, sessions: UploadSessions, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    tokenizer = b"a tokenizer" * 50
    for name, data in {**FILES, "tokenizer.json": tokenizer}.items():
        (folder / name).write_bytes(data)
    Registry(store).publish(folder, "acme", "support", Fit("tiny", 8), created_by=Actor(KEY))

    trained = {**FILES, "adapter_model.safetensors": b"new weights", "tokenizer.json": tokenizer, "copy.json": tokenizer}
    session = begin(sessions, trained)
    progress = {item.file.name: (item.stored, item.missing) for item in UploadAssembly(store, sessions).progress(session)}
    stored = (True, ())
    assert progress == {
        "adapter_config.json": stored, "adapter_model.safetensors": (False, (0,)), "copy.json": stored, "tokenizer.json": stored,
    }  # fmt: skip
    send(sessions, session, tmp_path, 1, 0, trained)
    assert assembled(store, sessions, session, tmp_path) == trained


def test_content_of_another_adapter_is_not_given_for_its_digest(store: ObjectStore, sessions: UploadSessions, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    Registry(store).publish(folder, "acme", "secret", Fit("tiny", 8), created_by=Actor(KEY))
    session = begin(sessions)
    assert not any(item.stored for item in UploadAssembly(store, sessions).progress(session))


def test_what_cannot_become_an_adapter_is_refused_before_a_byte_of_it(sessions: UploadSessions) -> None:
    config, weights = announced(FILES)
    for files, error, said in [
        ([config, replace(weights, size_bytes=20_000)], TooLarge, "uploads.max_bytes"),
        ([config, weights, *announced({f"{n}.md": b"x" for n in range(4)})], TooLarge, "at most 5"),
        ([config], InvalidAdapter, "adapter_model.safetensors is missing"),
        ([config, weights, *announced({"optimizer.pt": b"x"})], InvalidAdapter, "pickle"),
        ([config, weights, *announced({"../x.md": b"x"})], InvalidRequest, "not allowed"),
        ([config, weights, weights], InvalidRequest, "twice"),
        ([config, replace(weights, sha256="x")], InvalidRequest, "sha256"),
        ([config, replace(weights, size_bytes=-1)], InvalidRequest, "size_bytes"),
    ]:
        with pytest.raises(error, match=said):
            sessions.begin(KEY, "acme", "support", files)


def test_parts_are_bounded_in_number(local_store: ObjectStore) -> None:
    sessions = UploadSessions(local_store, replace(LIMITS, max_bytes=1 << 40, part_bytes=1))
    with pytest.raises(TooLarge, match=str(MAX_PARTS)):
        begin(sessions, {**FILES, "adapter_model.safetensors": bytes(MAX_PARTS)})


def test_a_key_has_no_more_open_than_it_may(store: ObjectStore, sessions: UploadSessions) -> None:
    opened = [begin(sessions, name=f"a{number}") for number in range(3)]
    with pytest.raises(Overloaded, match="3 uploads open"):
        begin(sessions, name="a3")
    begin(sessions, name="a3", key="another-key")
    assert begin(sessions, name="a1") == opened[1], "what is open goes on"
    sessions.cancel(opened[0])
    begin(sessions, name="a3")


def test_a_key_has_no_more_bytes_open_than_it_may(sessions: UploadSessions) -> None:
    begin(sessions, {**FILES, "adapter_model.safetensors": bytes(3_900)})
    with pytest.raises(Overloaded, match="4000 bytes"):
        begin(sessions)


def test_an_upload_is_only_its_own_keys_and_adapters(sessions: UploadSessions) -> None:
    session = begin(sessions)
    for key, owner, name in (("another-key", "acme", "support"), (KEY, "acme", "other"), (KEY, "other", "support")):
        with pytest.raises(NotFound):
            sessions.find(key, owner, name, session.id)
    assert sessions.find(KEY, "acme", "support", session.id) == session


def test_an_expired_upload_is_gone_and_begins_anew(sessions: UploadSessions, tmp_path: Path, pass_time: Callable[[float], None]) -> None:
    session = begin(sessions)
    send_all(sessions, session, tmp_path)
    pass_time(LIMITS.session_seconds - 60)
    assert sessions.find(KEY, "acme", "support", session.id) == session
    pass_time(LIMITS.session_seconds)
    with pytest.raises(NotFound, match="expired"):
        sessions.find(KEY, "acme", "support", session.id)
    again = begin(sessions)
    assert again.id == session.id and sessions.arrived(again) == frozenset()


def test_a_sweep_removes_what_expired_and_nothing_else(
    store: ObjectStore, sessions: UploadSessions, tmp_path: Path, pass_time: Callable[[float], None]
) -> None:
    brief = UploadSessions(store, replace(LIMITS, session_seconds=60.0))
    open_one, expired = begin(sessions, name="new"), begin(brief, name="old")
    for session in (expired, open_one):
        send_all(sessions, session, tmp_path)
    pass_time(60.0)
    assert sessions.sweep() == 1
    assert len(sessions.arrived(open_one)) == 4
    left = [info.key for info in store.list("uploads/").objects]
    assert len(left) == 5 and not any(expired.id in key for key in left)


def test_a_part_that_came_after_the_end_is_swept_once_it_is_old(
    store: ObjectStore, sessions: UploadSessions, tmp_path: Path, pass_time: Callable[[float], None]
) -> None:
    session = begin(sessions)
    sessions.finish(session)
    send(sessions, session, tmp_path, 0, 0)
    assert sessions.sweep() == 0, "it might be of an upload that has just begun"
    pass_time(LIMITS.session_seconds + 2)  # S3's dates are in seconds
    assert sessions.sweep() == 1
    assert store.list("uploads/").objects == ()


def test_a_finished_upload_says_what_it_became(store: ObjectStore, sessions: UploadSessions, tmp_path: Path) -> None:
    session = begin(sessions)
    send_all(sessions, session, tmp_path)
    sessions.finish(session)
    assert sessions.finished(KEY, session.id) == session.version
    assert sessions.finished("another-key", session.id) is None
    assert [info.key for info in store.list("uploads/").objects] == [f"uploads/{KEY}/done/{session.id}.json"]


def test_a_damaged_record_is_told_and_not_followed(local_store: ObjectStore) -> None:
    sessions = UploadSessions(local_store, LIMITS)
    session = begin(sessions)
    local_store.put(session_key(KEY, session.id), b'{"files": [{"name": "../../x", "size_bytes": 1, "sha256": "x"}]}')
    with pytest.raises(InternalError, match="damaged"):
        sessions.find(KEY, "acme", "support", session.id)


def test_a_part_of_another_size_has_not_arrived(store: ObjectStore, sessions: UploadSessions) -> None:
    session = begin(sessions)
    store.put(part_key(KEY, session.id, 1, 2), b"too short")
    store.put(part_key(KEY, session.id, 1, 0), bytes(PART_BYTES))
    assert sessions.arrived(session) == {(1, 0)}


def test_a_part_that_there_is_not_is_refused(sessions: UploadSessions) -> None:
    session = begin(sessions)
    for part in (-1, 3):
        with pytest.raises(InvalidRequest, match="0 to 2"):
            session.part_size_bytes(1, part)
    with pytest.raises(InvalidRequest, match="not announced"):
        session.file_number("other.json")

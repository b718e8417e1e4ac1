"""Where things lie in the store: every key that Lorikeet makes, in one place.

adapters/<owner>/<name>/aliases.json                         the only mutable object of an adapter (see pointers.py)
adapters/<owner>/<name>/versions/<version>/manifest.json     written last: no manifest, no version
adapters/<owner>/<name>/versions/<version>/<file>
adapters/<owner>/<name>/adapter_config.json, …               a PEFT folder that somebody copied there (see adoption.py)
index/…, index-by/…, private/…, private-by/…                 derived, for listings (see markers.py)
pending/<owner>/<name>/<version>                              an empty mark: this version waits to be tried (see admissions.py)
trials/<owner>/<name>/<trial>/…                              what was counted of a canary or a shadow (see trials.py)
keys/<id>.json                                               API keys, hashed (see keys.py)
uploads/<key id>/open/<upload>/session.json                  a resumable upload: its manifest, written first and removed last
uploads/<key id>/open/<upload>/parts/<file>/<part>           what has arrived of it (see upload_sessions.py)
uploads/<key id>/done/<upload>.json                          what a finished one became, for a repeated commit
"""

from __future__ import annotations

ALIASES_FILE = "aliases.json"
MANIFEST_FILE = "manifest.json"
SESSION_FILE = "session.json"
UPLOADS_PREFIX = "uploads/"
ADAPTERS_PREFIX = "adapters/"
TRIALS_PREFIX = "trials/"
PENDING_PREFIX = "pending/"


def adapter_prefix(owner: str, name: str) -> str:
    return f"{ADAPTERS_PREFIX}{owner}/{name}/"


def aliases_key(owner: str, name: str) -> str:
    return f"{adapter_prefix(owner, name)}{ALIASES_FILE}"


def versions_prefix(owner: str, name: str) -> str:
    return f"{adapter_prefix(owner, name)}versions/"


def file_key(owner: str, name: str, version: str, file: str) -> str:
    return f"{versions_prefix(owner, name)}{version}/{file}"


def manifest_key(owner: str, name: str, version: str) -> str:
    return file_key(owner, name, version, MANIFEST_FILE)


def pending_key(owner: str, name: str, version: str) -> str:
    return f"{PENDING_PREFIX}{owner}/{name}/{version}"


def trials_prefix(owner: str, name: str) -> str:
    return f"{TRIALS_PREFIX}{owner}/{name}/"


def trial_prefix(owner: str, name: str, trial: str) -> str:
    return f"{trials_prefix(owner, name)}{trial}/"


def trial_counts_prefix(owner: str, name: str, trial: str) -> str:
    return f"{trial_prefix(owner, name, trial)}counts/"


def trial_window_key(owner: str, name: str, trial: str) -> str:
    return f"{trial_prefix(owner, name, trial)}window.json"


def open_uploads_prefix(key_id: str) -> str:
    return f"{UPLOADS_PREFIX}{key_id}/open/"


def upload_prefix(key_id: str, upload: str) -> str:
    return f"{open_uploads_prefix(key_id)}{upload}/"


def session_key(key_id: str, upload: str) -> str:
    return f"{upload_prefix(key_id, upload)}{SESSION_FILE}"


def part_key(key_id: str, upload: str, file: int, part: int) -> str:
    return f"{upload_prefix(key_id, upload)}parts/{file:03d}/{part:05d}"


def done_uploads_prefix(key_id: str) -> str:
    return f"{UPLOADS_PREFIX}{key_id}/done/"


def done_key(key_id: str, upload: str) -> str:
    return f"{done_uploads_prefix(key_id)}{upload}.json"

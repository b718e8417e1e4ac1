"""Which server a command talks to, and with which key: options, then the environment, then the run of the home folder."""

from __future__ import annotations

import os
from pathlib import Path

from cluster import run_file
from cluster.client import Client
from cluster.keys import known_key
from configs.load import ConfigError, load
from configs.load import home as home_of
from configs.settings import Settings


def settings_of_run() -> Settings:
    """The settings that the run of the default home was started with; the base's when there is none."""
    settings = load()
    run = run_file.read(home_of(settings))
    if run is None:
        return settings
    return load(Path(run.config) if run.config else None, run.overrides)


def connect(url: str | None = None, key: str | None = None) -> Client:
    """A client of the server that is meant.

    Raises:
        ConfigError: no server or no key is known; says how to give it.
    """
    home = home_of(load())
    run = run_file.read(home)
    url = url or os.environ.get("LORIKEET_BASE_URL") or (run.url if run else None)
    if not url:
        raise ConfigError(f"no running lorikeet is known in {home}: start one with `lorikeet up`, or give --url or LORIKEET_BASE_URL")
    key = key or known_key(home)
    if not key:
        raise ConfigError(f"no API key is known in {home}: give --key or LORIKEET_API_KEY")
    return Client(url, key)

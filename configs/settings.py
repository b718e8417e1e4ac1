"""The settings tree: every value that can be set, its default and its reason.

Frozen once read. An unknown key is refused (pydantic `extra="forbid"`), so a typo never silently means the default.
`load.py` makes it from YAML and `key=value` words.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

GIB = 1 << 30
MIB = 1 << 20

Port = Annotated[int, Field(ge=1, le=65535)]


class _Node(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class StoreSettings(_Node):
    """Where adapters, aliases and keys are kept."""

    url: str = Field(
        default="embedded",
        description="`embedded` (a folder in home), `file:///folder`, or `s3://bucket/prefix`; the S3 endpoint comes from AWS_ENDPOINT_URL",
    )
    lease_seconds: PositiveFloat = Field(
        default=1.0,
        le=30.0,
        description="how long a gateway may answer from what it last read of an alias. An alias move returns after it, so that no "
        "gateway serves the old version afterwards; longer means fewer store reads",
    )
    stale_seconds: PositiveFloat = Field(
        default=3600.0, description="how long a known alias is served on when the store does not answer; afterwards requests get 503"
    )
    grace_seconds: PositiveFloat = Field(
        default=604800.0,
        description="how long the files of a retired version stay before `lorikeet adapters gc` may remove them; until then it can be "
        "undeleted",
    )
    timeout_seconds: PositiveFloat = Field(default=20.0, description="bound on one small store call, retries included")

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if url == "embedded" or re.match(r"(file:///|s3://[^/])", url):
            return url
        raise ValueError(f"{url!r} is not a store: use embedded, file:///folder or s3://bucket/prefix")


class CacheSettings(_Node):
    """A node's disk cache of adapters."""

    max_bytes: PositiveInt = Field(default=20 * GIB, description="adapters that nobody uses are evicted beyond this, oldest first")
    pulls_at_once: PositiveInt = Field(
        default=4, le=256, description="adapters downloaded at once by a replica; more of them slow the streams that run there"
    )
    pull_timeout_seconds: PositiveFloat = Field(default=300.0, description="a request waits no longer for its adapter's download")


class UploadSettings(_Node):
    """What an upload may be."""

    max_bytes: PositiveInt = Field(default=8 * GIB, description="the whole upload, unpacked; beyond it the upload is stopped with 413")
    max_files: PositiveInt = Field(default=64, description="files in one adapter")
    at_once: PositiveInt = Field(
        default=4, description="uploads a gateway receives whole or publishes at once, each with max_bytes of its disk; more get 429"
    )
    part_bytes: PositiveInt = Field(
        default=8 * MIB, le=1 * GIB, description="size of the parts of a resumable upload: what a broken connection costs at most"
    )
    parts_at_once: PositiveInt = Field(default=16, le=256, description="parts a gateway receives at once; more get 429")
    session_seconds: PositiveFloat = Field(
        default=86400.0, description="how long a resumable upload may take; what it had sent is removed afterwards"
    )
    sessions_per_key: PositiveInt = Field(default=16, le=256, description="resumable uploads that one key may have open; more get 429")
    try_on_replica: bool = Field(
        default=True, description="new versions are loaded and asked on a replica before they are served, and rejected if that fails"
    )
    trial_timeout_seconds: PositiveFloat = Field(default=60.0, description="a trial that takes longer is put off; the version is pending")
    bytes_per_key: PositiveInt = Field(
        default=32 * GIB, description="what the open resumable uploads of one key may hold together; more get 429"
    )


class ImportSettings(_Node):
    """Where adapters may be imported from, and how the hub is reached. Bounds on size are those of uploads."""

    buckets: tuple[str, ...] = Field(
        default=(),
        description="`s3://bucket` or `s3://bucket/prefix`: what may be imported from there, read with this platform's own credentials. "
        "None unless named: everybody with a key could read it",
    )
    hub_owners: tuple[str, ...] = Field(
        default=("*",), description="whose repositories may be imported from the hub: names, or `*` for anybody's; empty for none"
    )
    hub_url: str = Field(default="", description="the hub; empty means HF_ENDPOINT, or https://huggingface.co")
    hub_token: str = Field(
        default="",
        description="where the token for private and gated repositories is kept: `env:NAME` or `file:/path`, never the token. "
        "With one, everybody with a key can import what it may read: name hub_owners",
    )
    connect_timeout_seconds: PositiveFloat = Field(default=5.0, description="a hub that does not answer by then is told as away")
    timeout_seconds: PositiveFloat = Field(default=900.0, description="an import from the hub that takes longer is stopped")

    @field_validator("buckets")
    @classmethod
    def _s3_urls(cls, buckets: tuple[str, ...]) -> tuple[str, ...]:
        for bucket in buckets:
            if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[^?#]*)?", bucket):
                raise ValueError(f"{bucket!r} is not a bucket: use s3://bucket or s3://bucket/prefix")
        return buckets

    @model_validator(mode="after")
    def _token_by_reference(self) -> ImportSettings:
        # Checked on the whole node, so that a token that was pasted here is in no message.
        if self.hub_token and not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/.+", self.hub_token):
            raise ValueError(
                "hub_token does not say where the token is: use env:NAME or file:/path, and keep the token out of the settings"
            )
        return self

    @model_validator(mode="after")
    def _hub_by_http(self) -> ImportSettings:
        if self.hub_url and not re.match(r"https?://[^/@]+", self.hub_url):
            raise ValueError("hub_url is not a hub's address: use https://host, without credentials")
        return self


class GatewaySettings(_Node):
    """The HTTP ingress."""

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: Port = 8000
    replicas: PositiveInt = Field(default=1, description="gateway processes")
    max_body_bytes: PositiveInt = Field(default=4 * MIB, description="a chat request's JSON body")
    max_requests_at_once: PositiveInt = Field(default=2048, description="chat requests one gateway holds; more get 429")
    stream_buffer_bytes: PositiveInt = Field(
        default=4 * MIB, description="what one slow client may leave unread before its request is aborted"
    )
    request_timeout_seconds: PositiveFloat = Field(default=600.0, description="the longest a request may run")
    shadows_at_once: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=16, description="copies of requests that one gateway has under way for shadows (see adapters.md); more are dropped"
    )
    warm_timeout_seconds: PositiveFloat = Field(
        default=30.0,
        description="how long an alias's move waits at most for replicas to load the new version before it; what is not loaded by then "
        "is loaded by its first request",
    )
    first_token_timeout_seconds: PositiveFloat = Field(
        default=300.0, description="the longest a client waits for the first token, once its model has a replica"
    )


class LoraSettings(_Node):
    """Limits on adapters, per base-model replica."""

    max_loras: PositiveInt = Field(default=4, description="adapters in one engine batch (GPU slots)")
    max_cpu_loras: PositiveInt = Field(default=16, description="adapters kept in the engine's CPU memory; at least max_loras")
    max_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(
        default=16, description="memory is set aside for this rank in every slot"
    )

    @model_validator(mode="after")
    def _room_for_the_slots(self) -> LoraSettings:
        if self.max_cpu_loras < self.max_loras:
            raise ValueError(f"max_cpu_loras is {self.max_cpu_loras}, below max_loras {self.max_loras}: set it to {self.max_loras} or more")
        return self


class ResourceSettings(_Node):
    """What one replica of a base model takes."""

    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="GPUs in all; 0 serves on the CPU")
    cpus: PositiveFloat = Field(default=1.0, description="CPU cores set aside; on a CPU replica also the engine's threads")
    tensor_parallel: PositiveInt = Field(default=1, description="GPUs that hold one copy of the weights together")
    accelerator: str | None = Field(default=None, description="Ray's accelerator type, e.g. A10G, when nodes differ")

    @model_validator(mode="after")
    def _gpus_for_the_parts(self) -> ResourceSettings:
        if self.gpus and self.gpus != self.tensor_parallel:
            raise ValueError(
                f"gpus is {self.gpus} and tensor_parallel {self.tensor_parallel}: a replica takes one GPU per part, make them equal"
            )
        return self


class AutoscalingSettings(_Node):
    """How many replicas a base model has."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: PositiveInt = 1
    target_requests: PositiveFloat = Field(default=32.0, description="requests in flight per replica to aim for")
    target_kv_cache_use: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="part of a replica's KV cache in use to aim for: long chats fill it with few requests"
    )
    up_delay_seconds: Annotated[float, Field(ge=0)] = 10.0
    down_delay_seconds: Annotated[float, Field(ge=0)] = 300.0
    average_seconds: Annotated[float, Field(ge=3)] = Field(
        default=30.0,
        description="load is averaged over so long before a delay counts, so that a burst is no trend; a model that may sleep stays awake "
        "for both after its last request",
    )
    wake_timeout_seconds: PositiveFloat = Field(
        default=300.0,
        description="how long a request waits for a replica while there is none, then 503; gateway.request_timeout_seconds bounds it too",
    )
    max_waking_requests: PositiveInt = Field(
        default=256, description="requests that each gateway lets wait for a replica while there is none; more get 429"
    )
    surge_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0,
        description="extra replicas while changed ones take the old ones' place; with 0 an old replica stops before its successor starts",
    )

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingSettings:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below min_replicas {self.min_replicas}")
        return self


class ModelSettings(_Node):
    """One base model: one Serve application."""

    id: str = Field(description="its name in the API, e.g. llama-3.1-8b")
    source: str = Field(description="`embedded` (SmolLM2-135M-Instruct), a Hugging Face id, s3://bucket/folder, or an absolute path")
    names: tuple[str, ...] = Field(
        default=(), description="what adapters may call this base in base_model_name_or_path, besides id and source"
    )
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM engine arguments, passed through, e.g. max_model_len")
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables of the engine's process, e.g. VLLM_CPU_KVCACHE_SPACE"
    )
    resources: ResourceSettings = ResourceSettings()
    lora: LoraSettings = LoraSettings()
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    max_requests_at_once: PositiveInt = Field(
        default=512, description="requests one replica takes at once; more wait at the gateway for a replica to take them"
    )
    startup_timeout_seconds: PositiveFloat = Field(default=1800.0, description="a replica not ready by then has failed")

    @field_validator("id")
    @classmethod
    def _plain_id(cls, value: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?", value):
            return value
        raise ValueError(f"{value!r} is not a model id: use letters, digits, '.', '_', '-' and at most one '/'")

    @field_validator("engine")
    @classmethod
    def _not_ours(cls, engine: dict[str, Any]) -> dict[str, Any]:
        ours = {
            "model": "source", "tokenizer": "source", "served_model_name": "id", "enable_lora": "lora", "max_loras": "lora.max_loras",
            "max_cpu_loras": "lora.max_cpu_loras", "max_lora_rank": "lora.max_rank", "tensor_parallel_size": "resources.tensor_parallel",
            "data_parallel_size": "autoscaling.max_replicas",
        }  # fmt: skip
        for key in engine:
            if key in ours:
                raise ValueError(f"{key} is set by {ours[key]}, not under engine")
        return engine


class RaySettings(_Node):
    """The Ray cluster underneath."""

    address: str = Field(
        default="",
        description="empty starts a Ray of our own on this machine, which ends with us; `auto` or `host:port` joins a running cluster",
    )


class LogSettings(_Node):
    level: Literal["debug", "info", "warning", "error"] = "info"


class SharedSettings(_Node):
    """What is common to all base models: the tree without them."""

    home: str = Field(default="", description="folder of the embedded store, model and key; empty means LORIKEET_HOME, or ~/.lorikeet")
    store: StoreSettings = StoreSettings()
    cache: CacheSettings = CacheSettings()
    uploads: UploadSettings = UploadSettings()
    imports: ImportSettings = ImportSettings()
    gateway: GatewaySettings = GatewaySettings()
    demo_adapters: bool = Field(default=False, description="publish the adapters in examples/ for the embedded model when it is up")
    ray: RaySettings = RaySettings()
    log: LogSettings = LogSettings()


class Settings(SharedSettings):
    """The whole tree."""

    models: tuple[ModelSettings, ...] = Field(min_length=1, description="the base models")

    @field_validator("models")
    @classmethod
    def _distinct(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        seen: set[str] = set()
        for model in models:
            if model.id in seen:
                raise ValueError(f"two models have the id {model.id!r}: ids are distinct")
            seen.add(model.id)
        return models

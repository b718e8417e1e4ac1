"""Which base model an adapter belongs to, and whether it fits.

The question of `validate.py` that needs the base models' profiles. An adapter says its base by name; names are often a path on the
machine that trained it, so a name that nobody here has is settled by architecture and shapes, and only when exactly one base fits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adapters_store.base_model import UNKNOWN_SIZE, BaseProfile
from adapters_store.errors import InvalidAdapter
from adapters_store.lora_tensors import LoraPair, some
from adapters_store.peft_config import PeftConfig
from adapters_store.strict_json import quote

logger = logging.getLogger(__name__)

MAX_SHOWN_BASES = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter's parts that decide its base."""

    config: PeftConfig
    pairs: Sequence[LoraPair]


def choose_base(candidate: Candidate, bases: Sequence[BaseProfile], base_hint: str | None) -> BaseProfile:
    """The base model that serves this adapter.

    `base_hint` (a base's id or another of its names) decides before the adapter's own base_model_name_or_path.
    Raises InvalidAdapter with every reason: why the named base does not take it, or why no single base does.
    """
    if base_hint is not None:
        named = [base for base in bases if base_hint in (base.id, *base.names)]
        if not named:
            raise InvalidAdapter([f"base {quote(base_hint)} is not served here; served are {_ids(bases)}."], param="base")
        return _only_fit(candidate, named, f"the upload names base {quote(base_hint)}")
    declared = candidate.config.base_name
    named = _named(declared, bases)
    if named:
        return _only_fit(candidate, named, f"base_model_name_or_path is {quote(declared)}")
    base = _only_fit(candidate, bases, f"base_model_name_or_path is {quote(declared)}, which no base served here is called")
    logger.warning("adapter_base_assumed", extra={"declared_base": declared, "base": base.id})
    return base


def _named(declared: str | None, bases: Sequence[BaseProfile]) -> list[BaseProfile]:
    """The bases with exactly the declared name, else those that share its last path segment (`/tmp/x/smollm2-135m`)."""
    if declared is None:
        return []
    whole = _plain(declared)
    exact = [base for base in bases if whole in map(_plain, (base.id, *base.names))]
    if exact:
        return exact
    last = _last_segment(declared)
    return [base for base in bases if last and last in map(_last_segment, (base.id, *base.names))]


def _plain(name: str) -> str:
    return name.strip().replace("\\", "/").rstrip("/").casefold()


def _last_segment(name: str) -> str:
    return _plain(name).rpartition("/")[2]


def _only_fit(candidate: Candidate, bases: Sequence[BaseProfile], why: str) -> BaseProfile:
    """The one among `bases` that the adapter fits. Raises InvalidAdapter when none or several do; `why` says how they were chosen."""
    faults = {base.id: list(misfits(candidate, base)) for base in bases}
    fitting = [base for base in bases if not faults[base.id]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InvalidAdapter(
            [f"{why}, and it would fit {_ids(fitting)}: write the served id into base_model_name_or_path in adapter_config.json."],
            param="base",
        )
    if len(bases) == 1:
        raise InvalidAdapter([f"{why}; base {bases[0].id} does not take it:", *faults[bases[0].id]])
    shown = [f"base {base.id} does not take it: {' '.join(faults[base.id])}" for base in bases[:MAX_SHOWN_BASES]]
    raise InvalidAdapter([f"{why}; this is another base's adapter, served are {_ids(bases)}.", *shown])


def misfits(candidate: Candidate, base: BaseProfile) -> Iterator[str]:
    """Every reason why `base` cannot serve the adapter; none when it fits."""
    config, pairs = candidate.config, candidate.pairs
    if config.rank is not None and config.rank > base.max_rank:
        yield f"r is {config.rank}, base {base.id} takes up to {base.max_rank}: train with a lower r, or raise lora.max_rank."
    if config.base_class is not None and _is_other_class(config, base):
        yield f"it was trained on a {quote(config.base_class)}, base {base.id} is a {base.architecture}: train it on {base.id}."
    unknown = [pair.module for pair in pairs if pair.module not in base.modules]
    if unknown:
        yield f"modules that base {base.id} lacks or cannot adapt: {some(unknown)}; {_module_remedy(unknown[0], base)}."
    wrong = [text for pair in pairs if (text := _size_fault(pair, base))]
    if wrong:
        yield f"sizes that differ from base {base.id}: {some(wrong)}; this is another base's adapter, train it on {base.id}."
    missing = _untrained(config, pairs, base)
    if missing:
        yield (
            f"target_modules says that {some(missing)} are adapted, and the weights have nothing for them: upload the whole adapter, or "
            "name only what was trained."
        )


def untargeted_faults(candidate: Candidate) -> Iterator[str]:
    """Weights that the config does not target: PEFT leaves them unread, and an engine, which looks at the weights alone, applies them."""
    if not candidate.config.is_listed:
        return
    unread = [pair.module for pair in candidate.pairs if not candidate.config.adapts(pair.module)]
    if unread:
        yield (
            f"weights for {some(unread)}, which target_modules, exclude_modules and layers_to_transform leave out: PEFT would not read "
            "them; upload the config that belongs to these weights."
        )


def _is_other_class(config: PeftConfig, base: BaseProfile) -> bool:
    """PEFT's auto_mapping counts only where the name says nothing: training libraries put wrappers of their own there."""
    if _named(config.base_name, [base]) or config.base_class is None:
        return False
    return config.base_class.endswith(("ForCausalLM", "ForConditionalGeneration")) and config.base_class != base.architecture


def _module_remedy(module: str, base: BaseProfile) -> str:
    if f"model.{module}" in base.modules:
        return "it was trained on the model without its head; train through AutoModelForCausalLM"
    if ".experts." in f".{module}.":
        return "experts of a mixture are not served with LoRA; train on attention and dense layers"
    kinds = sorted({name.rpartition(".")[2] for name in base.modules})
    return f"it adapts {', '.join(kinds[:12])}"


def _size_fault(pair: LoraPair, base: BaseProfile) -> str | None:
    sizes = base.modules.get(pair.module)
    if sizes is None:
        return None
    got = (pair.b.shape[0], pair.a.shape[1])
    if all(want in (UNKNOWN_SIZE, have) for want, have in zip(sizes, got, strict=True)):
        return None
    return f"{pair.module} is for {got[0]} out, {got[1]} in, the base has {sizes[0]} out, {sizes[1]} in"


def _untrained(config: PeftConfig, pairs: Sequence[LoraPair], base: BaseProfile) -> list[str]:
    """Modules of the base that the config targets and the weights lack: a stripped file.

    A target that the base lacks is passed over, as PEFT does. Where the config has a pattern, the weights alone decide.
    """
    if not config.is_listed:
        return []
    present = {pair.module for pair in pairs}
    return [module for module in base.modules if module not in present and config.adapts(module)]


def _ids(bases: Sequence[BaseProfile]) -> str:
    return some([base.id for base in bases])

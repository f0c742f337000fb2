"""Engines by name.

    bundled:target   bundled:draft
    scripted:target  scripted:draft,disagreement=0.3,seed=7
    hf:FOLDER  hf:OWNER/MODEL,dtype=bfloat16,device=cuda:1
    llamacpp:FILE.gguf,gpu_layers=99,sessions=8,leaves=31,context=2048

Each engine is imported when it is asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wanspec.errors import ConfigError
from wanspec.extras import how_to_install, is_installed

if TYPE_CHECKING:
    from wanspec.engines.bundled_pair import BundledModel
    from wanspec.engines.choosing import LogitsBackend
    from wanspec.engines.tokenizer import Tokenizer

SCRIPTED_DISAGREEMENT = "0.25"
"""Default of a scripted draft: about what real pairs have on easy text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model as a person writes it: `kind:name` or `kind:name,option=value,...`, taken apart."""

    text: str
    """The text as written."""
    kind: str
    """The engine."""
    name: str
    """One of the engine's models: a name, a file or a folder."""
    options: Mapping[str, str]
    """Values by option."""

    def chosen(self, defaults: Mapping[str, str]) -> dict[str, str]:
        """The options with these defaults. Raises ConfigError on an option without a default."""
        for key in self.options:
            if key not in defaults:
                known = f"there is no option {key!r}; use {', '.join(defaults)}" if defaults else f"{self.kind} models take no options"
                raise ConfigError(f"{self.text!r}: {known}")
        return {**defaults, **self.options}

    def number(self, text: str) -> float:
        """An option's value as a finite number. Raises ConfigError."""
        try:
            number = float(text)
        except ValueError:
            raise ConfigError(f"{self.text!r}: {text!r} is not a number") from None
        if not math.isfinite(number):
            raise ConfigError(f"{self.text!r}: {text!r} is not a finite number")
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How to load one kind of models."""

    models: tuple[str, ...]
    """Names that may follow the colon; a word in capitals stands for any."""
    load: Callable[[ModelSpec, int], LogitsBackend]
    """Loads a model, on this many threads."""
    tokenizer: Callable[[ModelSpec], Tokenizer]
    """Loads the tokenizer alone."""
    check: Callable[[ModelSpec], None] = lambda _: None
    """Raises ConfigError for missing packages and files, without loading the model."""


def parse_spec(text: str) -> ModelSpec:
    """Parse a model's text. Raises ConfigError."""
    whole, *pairs = text.split(",")
    kind, _, name = whole.partition(":")
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"{pair!r} in {text!r} is not an option; write option=value")
        options[key.strip()] = value.strip()
    return ModelSpec(text=text, kind=kind, name=name, options=options)


def load_backend(text: str, *, threads: int = 1) -> LogitsBackend:
    """Load the model that `text` names, on `threads` threads. Raises ConfigError, which lists the known names, or BackendError."""
    spec = parse_spec(text)
    return engine_of(spec).load(spec, threads)


def load_tokenizer(text: str) -> Tokenizer:
    """Load the tokenizer of the model that `text` names. Raises as `load_backend` does."""
    spec = parse_spec(text)
    return engine_of(spec).tokenizer(spec)


def check_model(text: str) -> None:
    """Raise ConfigError for missing packages and files of the model that `text` names, without loading it."""
    spec = parse_spec(text)
    engine_of(spec).check(spec)


def engine_of(spec: ModelSpec) -> Engine:
    """The engine of a model. Raises ConfigError on an unknown kind or name."""
    engine = ENGINES.get(spec.kind)
    is_known = engine is not None and (spec.name in engine.models or (bool(spec.name) and any(model.isupper() for model in engine.models)))
    if engine is None or not is_known:
        names = [f"{kind}:{model}" for kind, engine in ENGINES.items() for model in engine.models]
        raise ConfigError(f"there is no model {spec.text.partition(',')[0]!r}; use one of {', '.join(names)}")
    return engine


def usable_processors(root: Path = Path("/")) -> int:
    """How many processors this process may use: those in its affinity, within the quotas of its control groups; at least 1.

    A quota of 2.5 processors allows two threads: a third would halt all of them half of the time. `root` has /proc and /sys/fs/cgroup.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Quotas, in processors, of the control groups around this process that have one."""
    for folder in _control_groups(root):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # cgroup 2, cgroup 1
            try:
                quota_us, period_us = " ".join((folder / name).read_text("ascii") for name in files).split()
            except (OSError, ValueError):
                continue
            if quota_us.isdecimal() and period_us.isdecimal() and int(quota_us) and int(period_us):  # "max" and -1: no limit
                yield int(quota_us) / int(period_us)


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders of this process's group and of all groups around it; in a container some do not exist, and the outermost is its own."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        yield from [group, *group.parents[: len(group.parts) - len(top.parts)]]


def _bundled(spec: ModelSpec, threads: int) -> LogitsBackend:
    from wanspec.engines.bundled_pair import load_bundled

    spec.chosen({})
    return load_bundled(cast("BundledModel", spec.name), threads=threads)


def _bundled_tokenizer(_spec: ModelSpec) -> Tokenizer:
    from wanspec.engines.bundled_pair import load_bundled_tokenizer

    return load_bundled_tokenizer()


def _scripted(spec: ModelSpec, _threads: int) -> LogitsBackend:
    from wanspec.engines.scripted import ScriptedBackend

    options = _scripted_options(spec)
    return ScriptedBackend(
        vocabulary_size=int(options["vocabulary"]),
        seed=int(options["seed"]),
        disagreement=options["disagreement"],
        context_length=int(options["context"]),
    )


def _scripted_tokenizer(spec: ModelSpec) -> Tokenizer:
    from wanspec.engines.scripted import ScriptedTokenizer

    return ScriptedTokenizer(int(_scripted_options(spec)["vocabulary"]))


def _scripted_options(spec: ModelSpec) -> Mapping[str, float]:
    defaults = {"vocabulary": "64", "seed": "0", "context": "4096", "disagreement": SCRIPTED_DISAGREEMENT if spec.name == "draft" else "0"}
    return {key: spec.number(text) for key, text in spec.chosen(defaults).items()}


def _hf(spec: ModelSpec, threads: int) -> LogitsBackend:
    try:
        from wanspec.engines.hf.loading import load_hf
    except ImportError as error:
        raise _hf_missing(spec, error) from error
    return load_hf(spec, threads=threads)


def _hf_check(spec: ModelSpec) -> None:
    from wanspec.engines.hf.folder import check_folder, local_folder

    for module in ("torch", "transformers", "jinja2"):
        if not is_installed(module):
            raise _hf_missing(spec, f"there is no {module}")
    folder = local_folder(spec.name)
    if folder is not None:
        check_folder(folder)


def _hf_missing(spec: ModelSpec, what: object) -> ConfigError:
    return ConfigError(f"{spec.text!r} needs transformers, PyTorch and Jinja ({what}): {how_to_install('hf')}")


def _hf_tokenizer(spec: ModelSpec) -> Tokenizer:
    try:
        from wanspec.engines.hf.tokenizer import load_hf_tokenizer
    except ImportError as error:
        raise ConfigError(f"{spec.text!r} needs Jinja ({error}): {how_to_install('hf')}") from error
    return load_hf_tokenizer(spec)


def _llamacpp(spec: ModelSpec, threads: int) -> LogitsBackend:
    from wanspec.engines.llamacpp.loading import load_llamacpp

    return load_llamacpp(spec, threads=threads)


def _llamacpp_check(spec: ModelSpec) -> None:
    from wanspec.engines.llamacpp.gguf_model import check_file
    from wanspec.engines.llamacpp.library import missing

    if not is_installed("llama_cpp"):
        raise missing("there is no llama_cpp")
    check_file(Path(spec.name))


def _llamacpp_tokenizer(spec: ModelSpec) -> Tokenizer:
    from wanspec.engines.llamacpp.loading import load_gguf_tokenizer

    return load_gguf_tokenizer(spec)


ENGINES: dict[str, Engine] = {
    "bundled": Engine(models=("target", "draft"), load=_bundled, tokenizer=_bundled_tokenizer),
    "scripted": Engine(models=("target", "draft"), load=_scripted, tokenizer=_scripted_tokenizer),
    "hf": Engine(models=("FOLDER_OR_HUB_NAME",), load=_hf, tokenizer=_hf_tokenizer, check=_hf_check),
    "llamacpp": Engine(models=("FILE",), load=_llamacpp, tokenizer=_llamacpp_tokenizer, check=_llamacpp_check),
}

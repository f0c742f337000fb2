"""Engines by name.

    bundled:target   bundled:draft
    scripted:target  scripted:draft,disagreement=0.3,seed=7
    hf:FOLDER  hf:OWNER/MODEL,dtype=bfloat16,device=cuda:1
    llamacpp:FILE.gguf,gpu_layers=99,sessions=8,leaves=31,context=2048

Each engine is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wanspec.engines.model_spec import ModelSpec, parse_spec
from wanspec.errors import ConfigError
from wanspec.extras import how_to_install, is_installed

if TYPE_CHECKING:
    from wanspec.engines.bundled_pair import BundledModel
    from wanspec.engines.interface import Backend
    from wanspec.engines.tokenizer import Tokenizer

SCRIPTED_DISAGREEMENT = "0.25"
"""Of a scripted draft that does not say otherwise: about what real pairs have on easy text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a kind of model is run by."""

    models: tuple[str, ...]
    """What may stand behind the colon; a word in capitals stands for what the user has."""
    load: Callable[[ModelSpec, int], Backend]
    """The model, on so many threads."""
    tokenizer: Callable[[ModelSpec], Tokenizer]
    check: Callable[[ModelSpec], None] = lambda _: None
    """Raises ConfigError for what can be known without loading the model: packages and files that are not there."""


def load_backend(text: str, *, threads: int = 1) -> Backend:
    """The model that `text` names, on `threads` threads. Raises ConfigError, which lists the known names, or BackendError."""
    spec = parse_spec(text)
    return engine_of(spec).load(spec, threads)


def load_tokenizer(text: str) -> Tokenizer:
    """The tokenizer of the model that `text` names. Raises as `load_backend` does."""
    spec = parse_spec(text)
    return engine_of(spec).tokenizer(spec)


def check_model(text: str) -> None:
    """Raise ConfigError where the model that `text` names could not be loaded here, as far as that shows without loading it."""
    spec = parse_spec(text)
    engine_of(spec).check(spec)


def engine_of(spec: ModelSpec) -> Engine:
    """The engine that runs a model. Raises ConfigError where there is none."""
    engine = ENGINES.get(spec.kind)
    is_known = engine is not None and (spec.name in engine.models or (bool(spec.name) and any(model.isupper() for model in engine.models)))
    if engine is None or not is_known:
        names = [f"{kind}:{model}" for kind, engine in ENGINES.items() for model in engine.models]
        raise ConfigError(f"there is no model {spec.text.partition(',')[0]!r}; use one of {', '.join(names)}")
    return engine


def _bundled(spec: ModelSpec, threads: int) -> Backend:
    from wanspec.engines.bundled_pair import load_bundled

    spec.chosen({})
    return load_bundled(cast("BundledModel", spec.name), threads=threads)


def _bundled_tokenizer(_spec: ModelSpec) -> Tokenizer:
    from wanspec.engines.bundled_pair import load_bundled_tokenizer

    return load_bundled_tokenizer()


def _scripted(spec: ModelSpec, _threads: int) -> Backend:
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


def _hf(spec: ModelSpec, threads: int) -> Backend:
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


def _llamacpp(spec: ModelSpec, threads: int) -> Backend:
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

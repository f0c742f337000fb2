"""Loads a model from a folder, and checks that it can score trees, before any request is accepted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS
from wanspec.core.speculation.types import NodeId, NodeSpec, SamplingParams, ScoreItem, SessionId
from wanspec.engines.choosing import Rows
from wanspec.engines.hf.backend import HfBackend, Model
from wanspec.engines.hf.folder import find_folder, read_json, weight_bytes
from wanspec.engines.hf.pool import FIRST_SLOTS
from wanspec.engines.hf.tokenizer import load_folder_tokenizer
from wanspec.engines.interface import ModelInfo, Residence
from wanspec.engines.registry import ModelSpec
from wanspec.engines.tokenizer import JsonTokenizer
from wanspec.errors import BackendError, ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Endings of the names of architectures that only continue text."""
DEFAULTS = {"dtype": "auto", "device": "auto", "device_map": "", "revision": "", "threads": "", "compile": "false"}
PROBE_SESSION, PROBE_COMPANY = SessionId((1 << 62) + 1), SessionId((1 << 62) + 2)
"""Beyond every id that a controller gives out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """A model's devices and precision."""

    dtype: torch.dtype | str
    """Precision; "auto": the checkpoint's own."""
    device_map: Any
    """Transformers' device_map: one device, "auto" for all GPUs, or None for the CPU."""
    device: torch.device
    """The device of the whole model, or of its first part."""


def load_hf(spec: ModelSpec, *, threads: int) -> HfBackend:
    """Load the model that `spec` names. Raises ConfigError or BackendError, naming the fault."""
    options = spec.chosen(DEFAULTS)
    placing, is_compiled = _placing(spec, options), _is_compiled(spec, options)
    torch.set_num_threads(_threads(spec, options["threads"]) if options["threads"] else threads)
    folder = find_folder(spec.name, options["revision"] or None)
    with _explained(spec):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    check_architecture(config, spec.name)
    tokenizer = load_folder_tokenizer(folder)
    rows = config.get_text_config().vocab_size
    if tokenizer.vocabulary_size > rows:
        raise ConfigError(f"{spec.name}: its tokenizer has {tokenizer.vocabulary_size} tokens, its model {rows}; they are not of one model")
    _check_room(spec, folder, placing)
    model = _loaded(spec, folder, config, placing)
    info = ModelInfo(
        name=_name(spec.name),
        vocabulary_size=tokenizer.vocabulary_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        context_length=min(config.get_text_config().max_position_embeddings, MAX_SEQUENCE_TOKENS),
        end_tokens=end_tokens(model, tokenizer),
        residence=_residence(model),
    )
    backend = HfBackend(model, info, is_compiled=is_compiled)
    check_tree(backend)
    if is_compiled:
        compile_passes(backend)
    return backend


def check_architecture(config: Model, name: str) -> None:
    """Raise ConfigError unless the model is a causal language model of text with full attention."""
    architecture = (config.architectures or [config.model_type])[0]
    if config.architectures and not architecture.endswith(CAUSAL):
        raise ConfigError(f"{name} is a {architecture}; only causal language models of text (...ForCausalLM) are run")
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) if not getattr(text, "layer_types", None) else None
    if kinds != {"full_attention"} or window is not None:
        what = ", ".join(sorted(kinds - {"full_attention"})) or f"a sliding window of {window} tokens"
        raise ConfigError(f"{name} ({architecture}) has {what}; trees are scored by full attention alone, choose another model")
    if not isinstance(getattr(text, "max_position_embeddings", None), int):
        raise ConfigError(f"{name} ({architecture}) does not say how long a text it takes (max_position_embeddings)")


def check_tree(backend: HfBackend) -> None:
    """Score a small tree and one of its paths alone. Raises ConfigError where they differ, as the model ignores masks or our cache."""
    size = backend.info.vocabulary_size
    first, second, third, fourth = size // 5, size // 4, size // 3, size // 2
    siblings = tuple(NodeSpec(node_id=NodeId(number), parent_id=None, token=token) for number, token in ((1, third), (2, fourth)))
    (tree,) = _probe(backend, append=(first, second), nodes=siblings)
    (alone,) = _probe(backend, append=(first, second, fourth))
    (chain,) = _probe(backend, append=(first, second, third, fourth))
    error, effect = float(np.abs(tree[2] - alone[0]).max()), float(np.abs(chain[0] - alone[0]).max())
    if not error < effect / 2:
        raise ConfigError(
            f"{backend.info.name} scores a tree otherwise than its paths (by {error:.2g}); its attention does not follow masks, "
            "or it has a state besides keys and values: choose another model"
        )


def compile_passes(backend: HfBackend) -> None:
    """Run a pass of each kind that `backend.Compiled` is compiled for, so that no request waits for that."""
    long, short = PROBE_SESSION, PROBE_COMPANY
    prompts = {long: (1,) * min(3 * FIRST_SLOTS, backend.info.context_length - 2), short: (1,)}
    try:
        for sessions in ([long], [short], [long, short], [long], [short]):  # both are opened first, which no graph is for
            backend.logits([ScoreItem(session_id=one, sampling=SamplingParams(), append=prompts.get(one, (1,))) for one in sessions])
            prompts = {one: prompt for one, prompt in prompts.items() if one not in sessions}
    finally:
        for session in (long, short):
            backend.close_session(session)


def _probe(backend: HfBackend, *, append: tuple[int, ...], nodes: tuple[NodeSpec, ...] = ()) -> list[Rows]:
    """The logits of a session that shares its pass, or a model that ignores masks would see what others left in the pool."""
    asked = ScoreItem(session_id=PROBE_SESSION, sampling=SamplingParams(), append=append, nodes=nodes)
    try:
        return backend.logits([asked, ScoreItem(session_id=PROBE_COMPANY, sampling=SamplingParams(), append=(1,))])[:1]
    finally:
        backend.close_session(PROBE_SESSION)
        backend.close_session(PROBE_COMPANY)


def _placing(spec: ModelSpec, options: dict[str, str]) -> Placing:
    if options["dtype"] not in {*DTYPES, "auto"}:
        raise ConfigError(f"{spec.text!r}: there is no dtype {options['dtype']!r}; use auto, {', '.join(DTYPES)}")
    dtype = DTYPES.get(options["dtype"], "auto")
    has_gpu = torch.cuda.is_available()
    if options["device_map"]:
        if options["device_map"] != "auto" or options["device"] != "auto":
            raise ConfigError(f"{spec.text!r}: device_map is auto, which spreads the model over all GPUs, and goes without device")
        return Placing(dtype=dtype, device_map="auto", device=torch.device("cuda" if has_gpu else "cpu"))
    try:
        device = torch.device(("cuda" if has_gpu else "cpu") if options["device"] == "auto" else options["device"])
    except RuntimeError:
        raise ConfigError(f"{spec.text!r}: there is no device {options['device']!r}; use auto, cpu, cuda or cuda:1") from None
    count = torch.cuda.device_count() if has_gpu else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"{spec.text!r}: PyTorch sees {count} GPUs here; use device=cpu, or install a PyTorch for your GPU")
    return Placing(dtype=dtype, device_map=None if device.type == "cpu" else {"": device}, device=device)


def _is_compiled(spec: ModelSpec, options: dict[str, str]) -> bool:
    if options["compile"] not in {"true", "false"}:
        raise ConfigError(f"{spec.text!r}: compile is {options['compile']!r}; use true or false")
    if options["compile"] == "true" and options["device_map"]:
        raise ConfigError(f"{spec.text!r}: compile is for a model on one device, and goes without device_map")
    return options["compile"] == "true"


def _threads(spec: ModelSpec, text: str) -> int:
    number = spec.number(text)
    if number < 1 or number != int(number):
        raise ConfigError(f"{spec.text!r}: threads is {text}; it is a number of threads, 1 or more")
    return int(number)


def _check_room(spec: ModelSpec, folder: Path, placing: Placing) -> None:
    """Raise ConfigError where the weights are larger than the free memory: loading would kill this process, or others."""
    if placing.device_map == "auto":
        return
    stored = read_json(folder / "config.json")
    of_store = DTYPES.get(str(stored.get("dtype", stored.get("torch_dtype"))), torch.float32)
    wanted = of_store if isinstance(placing.dtype, str) else placing.dtype
    needed = weight_bytes(folder) * wanted.itemsize // of_store.itemsize
    free = torch.cuda.mem_get_info(placing.device)[0] if placing.device.type == "cuda" else _free_memory()
    if free is not None and needed > free:
        raise ConfigError(
            f"{spec.name} takes {needed / 1e9:.1f} GB for its weights, and {placing.device} has {free / 1e9:.1f} GB free; "
            "use dtype=bfloat16, device_map=auto with several GPUs, or a smaller model"
        )


def _free_memory() -> int | None:
    """Memory available to a new process by Linux's estimate; None: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _loaded(spec: ModelSpec, folder: Path, config: Model, placing: Placing) -> Model:
    """Load the weights. Raises BackendError where some are missing, as they would be random."""
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    with _explained(spec):
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=placing.dtype,
            device_map=placing.device_map,
            attn_implementation="sdpa",
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
        )
    if found["missing_keys"] or found["mismatched_keys"]:
        lacking = sorted(str(key) for key in [*found["missing_keys"], *found["mismatched_keys"]])
        raise BackendError(
            f"{spec.name} lacks {len(lacking)} of the weights of a {type(model).__name__}, such as {lacking[0]}; "
            "its config.json is of another model, or it was not saved whole"
        )
    return model.eval()


@contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    """Turn any error of transformers on loading into one of ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f"{spec.name} does not fit into the GPU's memory; use dtype=bfloat16, device_map=auto, or a smaller model"
        ) from error
    except ImportError as error:
        raise ConfigError(f"{spec.name} needs a package that is not installed: {error}") from error
    except Exception as error:  # a model's own code may raise anything
        raise BackendError(f"transformers cannot load {spec.name}: {error}") from error


def _residence(model: Model) -> Residence:
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    return Residence(
        device=", ".join(devices),
        precision=str(model.dtype).removeprefix("torch."),
        weight_bytes=model.get_memory_footprint(),
        threads=torch.get_num_threads(),
    )


def end_tokens(model: Model, tokenizer: JsonTokenizer) -> tuple[int, ...]:
    """End tokens of the model (generation_config.json, else config.json) and of the tokenizer, which in many chat models ends a turn."""
    ends = model.generation_config.eos_token_id
    listed = [*([ends] if isinstance(ends, int) else ends or []), tokenizer.end_token]
    return tuple(sorted({token for token in listed if token is not None and 0 <= token < tokenizer.vocabulary_size}))


def _name(name: str) -> str:
    """A model's name: the hub's, or the last two parts of a folder's path."""
    path = Path(name).expanduser()
    return "/".join(path.resolve().parts[-2:]) if path.is_dir() else name

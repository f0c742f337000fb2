"""The flags that several commands share, and what is made of them."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wanspec.core.policy.parameters import MAX_DRAFT_TOKENS, POLICY_NAMES
from wanspec.core.speculation.types import MAX_BRANCH, MAX_WIDTH
from wanspec.errors import ConfigError, WanspecError
from wanspec.files import read_bounded, text_of
from wanspec.presets import preset

if TYPE_CHECKING:
    from wanspec.core.policy.registry import PolicyConfig
    from wanspec.transport.security import ControllerSecurity, WorkerSecurity

_log = logging.getLogger(__name__)

MAX_PROMPT_BYTES = 1 << 20
"""A prompt, or a file of a few; more is a mistake."""
PROMPT_SEPARATOR = re.compile(r"(?:\A|\n)---(?=\n|\Z)")
"""A line between the prompts of a prompt file; one before the first or after the last is no prompt's."""
DEMO_PROMPTS = 3
AUTO = "auto"
NO_MODEL = "none"
"""Instead of a draft model's name: there is none."""
MAX_THREADS = 512
"""ggml takes no more, and no engine gains from so many."""


def _only(is_allowed: Callable[[float], bool], what: str) -> Callable[[float], float]:
    """A check of a flag's value. typer has ranges of its own, but refuses without saying the value."""

    def check(value: float) -> float:
        if not is_allowed(value):
            raise typer.BadParameter(f"{value} is not {what}.")
        return value

    check.__doc__ = f"Only {what}."  # docs/reference.md shows it
    return check


def _up_to(most: int) -> Callable[[float], float]:
    return _only(lambda value: 1 <= value <= most, f"between 1 and {most}")


_nats = _only(lambda value: 0.0 <= value < math.inf, "a finite number, 0 or more")


def _threads(text: str) -> str:
    """A number of threads, or `auto`."""
    if text != AUTO and not (text.isdecimal() and 1 <= int(text) <= MAX_THREADS):
        raise typer.BadParameter(f"{text!r} is neither {AUTO} nor a whole number from 1 to {MAX_THREADS}.")
    return text


def _pace(name: str) -> str:
    """The name of a preset."""
    try:
        return preset(name).name
    except ConfigError as error:
        raise typer.BadParameter(f"{error}.") from error


def _preset(name: str) -> str:
    """The name of a preset, or nothing."""
    return name and _pace(name)


def _policy(name: str) -> str:
    """The name of a policy; whether there is one of that name, `create_policy` says."""
    from wanspec.lab.records.run_names import ALONE

    if name == ALONE:
        raise typer.BadParameter(f"{ALONE} is adaptive without a worker: give adaptive, and leave --listen out.")
    return name


TargetModel = Annotated[str, typer.Option("--target", help="Target model: bundled:target, hf:FOLDER, ...; docs/engines.md has all.")]
DraftModel = Annotated[str, typer.Option("--draft", help="Draft model, with the target's tokenizer.")]
LocalDraftModel = Annotated[
    str, typer.Option("--draft", help=f"Draft model here, with the target's tokenizer; {NO_MODEL}: leave drafting to workers.")
]
Policy = Annotated[str, typer.Option(callback=_policy, help=f"When to be redundant: {', '.join(POLICY_NAMES)}.")]
Temperature = Annotated[float, typer.Option(help="Below 0.001 greedy; above, sampling that depends on the seed alone.")]
TopK = Annotated[int, typer.Option(help="Sample from this many most probable tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Sample from the smallest set of tokens that has this probability; 0: greedy.")]
Seed = Annotated[int, typer.Option(help="Same prompt, parameters and seed: same text, whatever the network does.")]
DraftTokens = Annotated[
    int,
    typer.Option(
        "--draft-tokens",
        "-k",
        callback=_up_to(MAX_DRAFT_TOKENS),
        help="Draft tokens verified per target pass; of colocated-tree, levels of its tree.",
    ),
]
Branch = Annotated[
    int, typer.Option(callback=_up_to(MAX_BRANCH), help="paper, remote: children that the worker offers where the draft is uncertain (b).")
]
Leaves = Annotated[int, typer.Option(callback=_up_to(MAX_WIDTH), help="paper, remote: leaves that the worker expands per draft step (s).")]
Theta = Annotated[
    float,
    typer.Option(callback=_nats, help="paper, remote: draft entropy in nats below which the worker does not branch."),
]
Phi = Annotated[float, typer.Option(callback=_nats, help="paper: target entropy in nats above which a bonus token makes the worker stale.")]
Staleness = Annotated[str, typer.Option(help="paper: which reading of the rule for local drafting, printed or prose.")]
Width = Annotated[
    int, typer.Option(callback=_up_to(MAX_WIDTH), help="adaptive: leaves that the worker expands per draft step; also of colocated-tree.")
]
VerifyWidth = Annotated[
    int, typer.Option(callback=_up_to(MAX_WIDTH), help="adaptive: draft tokens verified per target pass; also of colocated-tree.")
]
_price = _only(lambda value: value >= 0.0, "0 or more")
Price = Annotated[
    float,
    typer.Option(
        "--price-ms",
        callback=_price,
        help="adaptive: what a local draft pass costs beyond its time; 0: fastest, inf: never with a worker.",
    ),
]
LocalPrice = Annotated[
    float,
    typer.Option(
        "--price-ms",
        callback=_price,
        help="With --draft: what a pass of it costs beyond its time where a worker drafts; 0: fastest, inf: never with a worker.",
    ),
]
Lookup = Annotated[
    bool | None,
    typer.Option(
        help="Also draft, for nothing, what followed the same words before. Default: adaptive does, colocated-tree does not.",
        show_default=False,
    ),
]
PromptFile = Annotated[Path | None, typer.Option(help="Prompts in UTF-8, separated by lines of three dashes.")]
AllowedLabels = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-label",
        help="Only workers with this label, such as region=eu, see texts; values of one key are alternatives. Repeatable.",
    ),
]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", help="Begin with what this file knows about the pair of models, and keep it up to date.")
]
Threads = Annotated[
    str,
    typer.Option(
        callback=_threads,
        help="CPU threads for each model; auto: all that this process may use. Where a server and a worker share a machine, divide them.",
    ),
]
Preset = Annotated[
    str, typer.Option(callback=_preset, help="Hold every pass to these step times, such as l40s-8b; empty: as fast as it goes.")
]
Pace = Annotated[str, typer.Option("--preset", callback=_pace, help="Hold every pass to these step times: l40s-8b, h100-70b, ...")]
TraceFile = Annotated[Path | None, typer.Option("--trace", help="Write down everything that happens, prompts too, as JSON lines.")]
Token = Annotated[str, typer.Option(envvar="WANSPEC_TOKEN", help="Bearer token. Better in the environment, where ps does not show it.")]
TlsCa = Annotated[Path | None, typer.Option(help="Authority that signs the peers' certificates, PEM.")]
TlsCert = Annotated[Path | None, typer.Option(help="This side's certificate, PEM.")]
TlsKey = Annotated[Path | None, typer.Option(help="The certificate's private key, PEM.")]
AllowPlaintext = Annotated[bool, typer.Option("--allow-plaintext", help="Go without TLS beyond this machine: only on a trusted network.")]


def policy_config(name: str, flags: Mapping[str, Any]) -> PolicyConfig:
    """The policy of that name, as the flags of a command describe it."""
    from wanspec.core.policy.registry import PolicyConfig

    return PolicyConfig(
        name=name,
        num_draft_tokens=flags["draft_tokens"],
        branch=flags["branch"],
        leaves=flags["leaves"],
        worker_entropy_threshold_nats=flags["theta"],
        controller_entropy_threshold_nats=flags["phi"],
        staleness=flags["staleness"],
        width=flags["width"],
        verify_width=flags["verify_width"],
        redundancy_price_s=flags["price_ms"] / 1e3,
        lookup=flags["lookup"],
    )


def comma_separated(texts: list[str] | None) -> tuple[str, ...]:
    """What is between the commas, of all occurrences of a flag."""
    return tuple([word.strip() for text in texts or [] for word in text.split(",")])


def numbers(flag: str, texts: list[str] | None) -> tuple[float, ...]:
    """The same, as numbers. Raises ConfigError."""
    found = []
    for word in comma_separated(texts):
        try:
            found.append(float(word))
        except ValueError as error:
            raise ConfigError(f"{flag}: {word!r} is no number; write numbers with commas, such as {flag} 15,70") from error
    return tuple(found)


def controller_security(token: str, ca: Path | None, cert: Path | None, key: Path | None, *, allow_plaintext: bool) -> ControllerSecurity:
    """What the flags of a controller ask for. Raises ConfigError when they do not make a whole."""
    from wanspec.transport.security import MutualTls, Plaintext, TokenTlsController

    check_certificate("--tls", cert, key)
    if cert is None or key is None:
        if ca is not None:
            raise ConfigError(f"--tls-ca {ca} alone does not make TLS; add --tls-cert and --tls-key")
        return Plaintext(token=token, allow_plaintext=allow_plaintext)
    if token and ca is not None:
        raise ConfigError(
            f"--tls-ca {ca} and a token (--token or WANSPEC_TOKEN) are two ways for workers to prove themselves; give only one: "
            "without the token workers need certificates, without --tls-ca they need the token"
        )
    if ca is None and not token:
        raise ConfigError("with --tls-cert and --tls-key, say how workers prove themselves: --tls-ca, or a token in WANSPEC_TOKEN")
    check_tls_files("--tls", ca, cert, key)
    if ca is None:
        return TokenTlsController(certificate_file=cert, key_file=key, token=token)
    return MutualTls(ca_file=ca, certificate_file=cert, key_file=key)


def worker_security(
    controller: str,
    token: str,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    *,
    allow_plaintext: bool,
    server_name: str = "",
) -> WorkerSecurity:
    """What the flags of a worker ask for, towards one controller. Raises ConfigError when they do not make a whole."""
    from wanspec.transport.security import MutualTls, Plaintext, TokenTlsWorker, parse_address

    check_certificate("--tls", cert, key)
    if cert is not None and key is not None:
        if ca is None:
            raise ConfigError("with --tls-cert and --tls-key, name the controller's authority: --tls-ca")
        check_tls_files("--tls", ca, cert, key)
        return MutualTls(ca_file=ca, certificate_file=cert, key_file=key, server_name=server_name)
    if token and (ca is not None or not (parse_address(controller).is_loopback or allow_plaintext)):
        check_tls_files("--tls", ca, None, None)
        return TokenTlsWorker(token=token, ca_file=ca, server_name=server_name)
    if ca is not None:
        raise ConfigError(f"--tls-ca {ca} needs a token in WANSPEC_TOKEN, or --tls-cert and --tls-key, to prove who this worker is")
    if server_name:
        raise ConfigError(f"--server-name {server_name}: without TLS nobody shows a certificate; leave it out, or configure TLS")
    return Plaintext(token=token, allow_plaintext=allow_plaintext)


def check_certificate(flags: str, cert: Path | None, key: Path | None) -> None:
    """Raise ConfigError where one of the two is missing. `flags`: what their names begin with."""
    if (cert is None) != (key is None):
        raise ConfigError(f"{flags}-cert and {flags}-key go together; one of them is missing")


def check_tls_files(flags: str, ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """Raise ConfigError, naming the flags, where these files do not make TLS. `flags`: what their names begin with.

    Raises TransportError where one of them has expired, and warns of one that soon does.
    """
    from wanspec.transport.certificates import check_dates
    from wanspec.transport.security import tls_context

    for names, files in ((f"{flags}-ca", {"ca_file": ca}), (f"{flags}-cert, {flags}-key", {"certificate_file": cert, "key_file": key})):
        try:
            if any(files.values()):
                tls_context(**files)
        except ConfigError as error:
            raise ConfigError(f"{names}: {error}") from error
    for warning in check_dates(cert, ca, now=datetime.now(UTC)):
        _log.warning("%s", warning)


def read_prompt(argument: str) -> str:
    """The prompt given as an argument, or `-` for standard input. Raises ConfigError where it is too long or no text."""
    if argument != "-":
        return _text(argument)
    if sys.stdin is None:
        raise WanspecError("standard input is closed; give the prompt as an argument")
    return _decoded(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1), "standard input")


def read_prompts(prompts: list[str], prompt_file: Path | None) -> tuple[str, ...]:
    """The prompts given by hand and in a file. Raises ConfigError on an empty prompt or a file that cannot be used."""
    texts = [_text(prompt) for prompt in prompts]
    if prompt_file is not None:
        data = read_bounded(prompt_file, max_bytes=MAX_PROMPT_BYTES, what="a file of prompts")
        lines = _decoded(data, str(prompt_file)).replace("\r\n", "\n").strip("\n")
        parts = [part.removeprefix("\n") for part in PROMPT_SEPARATOR.split(lines)]
        texts += [part for part in parts if part] or [""]
    if "" in texts:
        raise ConfigError("a prompt is empty; give it at least one character")
    return tuple(texts)


def _text(argument: str) -> str:
    """An argument of the command line as text, whatever the locale made of its bytes."""
    return _decoded(os.fsencode(argument), "the prompt")


def _decoded(data: bytes, source: str) -> str:
    if len(data) > MAX_PROMPT_BYTES:
        raise ConfigError(f"{source} has more than {MAX_PROMPT_BYTES} bytes (MAX_PROMPT_BYTES); shorten it")
    return text_of(data, source)


def demo_prompts() -> tuple[str, ...]:
    """Beginnings of functions that the bundled models have not seen in training."""
    from wanspec.engines.bundled_pair import held_out_prompts

    return tuple(held_out_prompts()[:DEMO_PROMPTS])

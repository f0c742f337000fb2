"""`wanspec generate`: one text, from the target model here and the drafts of workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wanspec.cli import options
from wanspec.cli.application import new_app
from wanspec.cli.loading import load_pair
from wanspec.cli.results import trace_sink
from wanspec.cli.running import exit_statuses, run, saving, standard_output, stderr
from wanspec.core.protocol.placement import Placement, check_labels
from wanspec.core.speculation.types import SamplingParams
from wanspec.errors import ConfigError

if TYPE_CHECKING:
    from wanspec.core.policy.registry import PolicyConfig
    from wanspec.engines.interface import Backend
    from wanspec.engines.tokenizer import Tokenizer
    from wanspec.serving.calibration_store import CalibrationStore
    from wanspec.telemetry.trace import TraceSink
    from wanspec.transport.security import ControllerSecurity

app = new_app()


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    target: options.TargetModel = "bundled:target",
    draft: options.LocalDraftModel = "bundled:draft",
    threads: options.Threads = options.AUTO,
    policy: options.Policy = "adaptive",
    draft_tokens: options.DraftTokens = 2,
    branch: options.Branch = 2,
    leaves: options.Leaves = 2,
    theta: options.Theta = 0.5,
    phi: options.Phi = 0.5,
    staleness: options.Staleness = "printed",
    width: options.Width = 64,
    verify_width: options.VerifyWidth = 32,
    price_ms: options.Price = 10.0,
    lookup: options.Lookup = None,
    listen: Annotated[str, typer.Option(help="Take workers at this HOST:PORT; empty: none.")] = "",
    workers: Annotated[int, typer.Option(min=0, max=64, help="Wait for this many workers before beginning.")] = 0,
    allowed_label: options.AllowedLabels = None,
    token: options.Token = "",
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    allow_plaintext: options.AllowPlaintext = False,
    preset: options.Preset = "",
    calibration: options.CalibrationFile = None,
    trace: options.TraceFile = None,
) -> None:
    """Write a text with a target model here and with workers.

    Text goes to standard output, everything else to standard error, the coming and going of workers among it.

    \b
        wanspec generate "def parse(" --listen 127.0.0.1:8500 --workers 1     # in one terminal
        wanspec worker --controller 127.0.0.1:8500                            # in another
    """
    flags = locals()  # every one of them, by name
    from wanspec.cli.announcer import Announcer
    from wanspec.core.policy.registry import check_policy
    from wanspec.core.speculation.sampling import check_sampling
    from wanspec.engines.registry import load_tokenizer
    from wanspec.serving.calibration_store import CalibrationStore
    from wanspec.transport.grpc_workarounds import check_can_listen
    from wanspec.transport.security import parse_address

    with exit_statuses():
        if workers and not listen:
            raise ConfigError(f"--workers {workers} waits for workers, but without --listen none can come; add --listen HOST:PORT")
        config = options.policy_config(policy, flags)
        store = CalibrationStore(calibration)
        check_policy(config, has_draft_model=draft != options.NO_MODEL)
        sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        check_sampling(sampling)
        placement = Placement(labels=check_labels(allowed_label or ()))
        security = options.controller_security(token, tls_ca, tls_cert, tls_key, allow_plaintext=allow_plaintext)
        text = options.read_prompt(prompt)
        if listen:
            check_can_listen(parse_address(listen))  # before models load, which may take minutes
        with trace_sink(trace) as kept:
            sink = Announcer(kept, say=lambda text: stderr.print(text, style="dim")) if listen else kept
            models = load_pair(target, draft, preset, threads=threads)
            tokenizer = load_tokenizer(target)
            with saving(store):
                run(_generate(text, tokenizer, max_tokens, sampling, config, placement, *models, listen, workers, security, store, sink))


async def _generate(
    text: str, tokenizer: Tokenizer, max_tokens: int, sampling: SamplingParams, policy: PolicyConfig, placement: Placement,
    target: Backend, draft: Backend | None, listen_at: str, workers: int, security: ControllerSecurity, store: CalibrationStore,
    sink: TraceSink | None,
) -> None:  # fmt: skip
    from wanspec.serving.engine import ControllerEngine, check_request, expected_of
    from wanspec.transport.grpc_wire import listen

    output = standard_output()
    tokens = tokenizer.encode(text, reads_controls=True)
    check_request(target.info, tokens, max_tokens=max_tokens)  # now: nobody should wait for workers and then be refused
    listener = await listen(listen_at, expected=expected_of(target.info), security=security) if listen_at else None
    async with ControllerEngine(
        target=target,
        draft=draft,
        listener=listener,
        trace=sink,
        calibrations=store.book(draft=draft.info.name, target=target.info.name) if draft is not None else None,
    ) as engine:
        if listener is not None and workers:
            stderr.print(f"waiting for {workers} worker(s) at {listener.address}", style="dim")
            await engine.wait_for_workers(workers)
        generation = engine.submit(tokens, max_tokens=max_tokens, sampling=sampling, policy=policy, placement=placement)
        stream = tokenizer.stream()
        output.write(text)
        async for news in generation:
            output.write(stream.push(news))
            output.flush()
        output.write(stream.finish() + "\n")
        output.flush()
        await engine.drain("the text is written")

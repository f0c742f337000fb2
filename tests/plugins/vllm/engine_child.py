"""A real vLLM engine in a process of its own, which answers one JSON line for each that it reads.

vLLM wants a process to itself: it changes logging, signals and the environment, and warns of many things, which are errors in our tests.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

ANSWER = "@answer "
"""Before an answer: vLLM writes to standard output, too."""


def answer(value: object) -> None:
    sys.stdout.write(f"\n{ANSWER}{json.dumps(value)}\n")
    sys.stdout.flush()


def counters(engine: Any) -> dict[str, float]:  # noqa: ANN401  # vLLM ships no types that are checked here
    return {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}


def main() -> None:
    vllm: Any = import_module("vllm")  # it takes seconds, and is not there everywhere

    options = json.loads(sys.argv[1])
    engine = vllm.LLM(
        dtype="float32", enforce_eager=True, max_model_len=1024, kv_cache_memory_bytes=64 << 20, disable_log_stats=False, **options
    )  # fmt: skip
    answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        prompts = [{"prompt_token_ids": tokens} for tokens in request["prompts"]]
        outputs = engine.generate(prompts, vllm.SamplingParams(**request["sampling"]), use_tqdm=False)
        texts = [list(choice.token_ids) for output in outputs for choice in output.outputs]
        answer({"texts": texts, "counters": counters(engine)})


if __name__ == "__main__":
    main()

"""The campaign file that `wanspec measure init` writes: every key, explained where it stands, ready to be edited."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wanspec.errors import ConfigError

TEMPLATE: Final = """\
# A campaign: the same questions, from many places, to many endpoints, at even intervals. docs/measuring.md explains it.
#
#     wanspec measure check {file}                          # what would it ask, what would it cost, is anything missing?
#     wanspec measure run {file} --probe us-east-1          # on each host; Ctrl-C and the same command again: it goes on
#     wanspec measure report us-east-1.jsonl ...             # tables, pictures and findings
#
# Give every host the same file. Keys are never written here: they come from the environment.

name = "my-campaign"


# ---- Probes: the places that ask. A name that is an AWS region needs nothing else; any other place needs its time zone.

[[probes]]
name = "us-east-1"

[[probes]]
name = "campus"
region = "zurich"                   # a label for the report; default: the name
timezone = "Europe/Zurich"


# ---- Targets: the endpoints that are asked. A probe in the region of a target is "at home" there.

[[targets]]
name = "us-east-1"
region = "us-east-1"                # default: the name; `timezone` as above, where it is no AWS region
api = "openai"                      # POST URL/chat/completions, streamed
url = "https://llm.us-east-1.example.org/v1"
model = "my-model"
key_env = "MY_API_KEY"              # the variable with the key, sent as a bearer token; leave it out where there is none
# ca_file = "ca.pem"                # an authority of your own
# tokens_field = "max_completion_tokens"    # for servers that refuse max_tokens
# stream_options = false            # for servers that refuse that field; left true, it is tried once and then left out
usd_per_million_prompt_tokens = 0.25    # prices are needed where [limits] has usd
usd_per_million_output_tokens = 1.25

# Bedrock, signed with the credentials that AWS's own tools find on the host: best, the role of its instance or container. Or with a
# Bedrock API key in the variable that key_env names. It needs the extra `aws`. An inference profile, such as "us.anthropic...", may be
# answered in another region: the report marks it as routed.
#
# [[targets]]
# name = "haiku-eu-west-2"
# region = "eu-west-2"
# api = "bedrock"
# model = "anthropic.claude-3-haiku-20240307-v1:0"
# aws_profile = "china"               # of AWS's settings, where one account does not reach all targets
# usd_per_million_prompt_tokens = 0.25
# usd_per_million_output_tokens = 1.25


# ---- Prompts: asked in turn. Short ones measure the way and the queue, long ones prefill too.

[[prompts]]
name = "short"
text = "Name a colour."
max_tokens = 16


# ---- Schedule. The preset "paper" is every 15 minutes 40 runs, for three days (arXiv 2602.18931); keys beside it win.

[schedule]
preset = "paper"
# interval_s = 900                  # from one round to the next
# runs = 40                         # requests to each target in a round
# rounds = 288                      # 0: until stopped
# spread = 0.9                      # the share of the interval over which they are spread, at random; they never wait for each other
# retries = 0                       # of throttled and failed requests; 0 measures what is there
# reuse_connections = false         # true: keep them open, which hides connect times


# ---- Limits of the whole campaign; each probe has an equal share. What would exceed them is refused at the start, or stopped there.

[limits]
requests = 100000
tokens = 10000000
usd = 10.0
timeout_s = 120                     # of one attempt
in_flight = 64                      # requests of one probe at a time
"""


def write_template(path: Path) -> None:
    """Write a file to begin with. Raises ConfigError where there is one already, or where it cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.replace("{file}", path.name))
    except FileExistsError:
        raise ConfigError(f"{path} is there already, and is not overwritten; name another file") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a file in a folder that you can write") from error

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.lab.measurement.campaigns import campaign, target

from wanspec.errors import ConfigError
from wanspec.lab.measurement.budget import Budget, Spending, check_budget, most, of_round
from wanspec.lab.measurement.campaign import TEMPLATE_FILE, Prompt, Target, first_round_s, plan_round, read_campaign, write_template

GOOD = """
name = "c"
[[probes]]
name = "us-east-1"
[[targets]]
name = "eu-west-2"
url = "https://host/v1"
model = "m"
[[prompts]]
name = "p"
text = "hi"
[schedule]
interval_s = 60
runs = 2
"""


def test_the_file_that_init_writes_is_a_campaign_with_the_papers_schedule(tmp_path: Path) -> None:
    write_template(tmp_path / "c.toml")
    found = read_campaign(tmp_path / "c.toml")
    assert (found.schedule.interval_s, found.schedule.runs, found.schedule.rounds) == (900, 40, 288)
    assert [probe.place for probe in found.probes] == ["us-east-1", "zurich"]
    assert "{file}" not in (tmp_path / "c.toml").read_text()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write_template(tmp_path / "c.toml")
    assert (tmp_path / "c.toml").read_text() == "mine"


TEMPLATE = TEMPLATE_FILE.read_text("utf-8")


def test_what_is_commented_out_in_the_template_is_valid_too(tmp_path: Path) -> None:
    begin = TEMPLATE.index("# [[targets]]")
    bedrock = "\n".join(line.removeprefix("# ") for line in TEMPLATE[begin : TEMPLATE.index("# ---- Prompts")].splitlines())
    (tmp_path / "c.toml").write_text(TEMPLATE[:begin] + bedrock + TEMPLATE[TEMPLATE.index("# ---- Prompts") :])
    assert read_campaign(tmp_path / "c.toml").targets[1].api == "bedrock"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "c"', 'name = "c d"', "name is 'c d': use letters"),
        ('name = "us-east-1"', 'name = "us-east1"', "probe 'us-east1': 'us-east1' is no AWS region that we know (did you mean 'us-east-1'"),
        ('name = "us-east-1"', 'name = "x"\ntimezone = "Europe/Atlantis"', "there is no time zone 'Europe/Atlantis'"),
        ('name = "us-east-1"', 'name = "x"\ntimezone = "../../etc/passwd"', "there is no time zone"),
        ('url = "https://host/v1"', 'url = "host:80"', "url = 'host:80': write the API's root"),
        ('url = "https://host/v1"', 'url = "https://me:secret@host/v1"', "a key has no place in a file"),
        ('url = "https://host/v1"', 'url = "http://host/v1"\nkey_env = "K"', "would carry a key in plaintext; use https"),
        ('url = "https://host/v1"', 'url = "http://127.0.0.1.host/v1"\nkey_env = "K"', "would carry a key in plaintext; use https"),
        ('url = "https://host/v1"', "", "url = '': write the API's root"),
        ('url = "https://host/v1"', 'url = "https://host/v1"\nca_file = "/nowhere.pem"', "ca_file = '/nowhere.pem' is no file"),
        ('model = "m"', 'model = ""', "targets[0].model is '': expected `str` of length >= 1"),
        ('model = "m"', 'modle = "m"', "contains unknown field `modle`"),
        ('model = "m"', 'model = "m"\napi = "grpc"', "targets[0].api is 'grpc': invalid enum value"),
        ('model = "m"', 'model = "m"\nusd_per_million_output_tokens = -1', "targets[0].usd_per_million_output_tokens is -1: expected"),
        ('text = "hi"', 'text = " "', "prompts[0].text is ' ': write what to ask"),
        ('text = "hi"', 'text = "hi"\nmax_tokens = 0', "prompts[0].max_tokens is 0: expected `int` >= 1"),
        ('text = "hi"', 'text = "hi"\n[[prompts]]\nname = "p"\ntext = "a"', "the name 'p' is there twice"),
        ("interval_s = 60", "interval_s = nan", "schedule.interval_s is nan; give a finite number"),
        ("interval_s = 60", 'preset = "papre"\ninterval_s = 60', "there is no preset 'papre'; use paper"),
        ("runs = 2", "runs = 2.5", "schedule.runs is 2.5: expected `int`"),
        ("runs = 2", "runs = 2\n[limits]\nusd = 5", "usd = 5 cannot be kept: target 'eu-west-2' has no prices"),
        ("runs = 2", "runs = 2\n[limits]\ntimeout_s = 0", "limits.timeout_s is 0: expected `float` >= 0.1"),
        ("runs = 2", "runs = = 2", "is not TOML"),
    ],
)  # fmt: skip
def test_bad_values_are_named_with_the_fix(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as found:
        read_campaign(path)
    assert words in str(found.value)
    assert str(path) in str(found.value)


def test_profiles_of_bedrock_are_marked_as_routed() -> None:
    def routed(model: str) -> bool:
        return Target(name="x", model=model, api="bedrock").is_routed

    assert not routed("anthropic.claude-3-haiku-20240307-v1:0")
    assert routed("us.anthropic.claude-3-haiku-20240307-v1:0")
    assert routed("global.anthropic.claude-sonnet-4-20250514-v1:0")
    assert routed("arn:aws:bedrock:us-east-1:1:inference-profile/us.x")
    assert not Target(name="x", model="us.llama", api="openai").is_routed


def test_a_probe_is_asked_for_by_name_unless_there_is_only_one() -> None:
    found = campaign(target(1))
    assert found.probe("").name == "us-east-1"
    with pytest.raises(ConfigError, match="--probe 'x': this campaign has no such probe; use one of us-east-1"):
        found.probe("x")


def test_limits_and_rounds_may_change_under_way_and_nothing_else() -> None:
    before = campaign(target(1), rounds=1)
    assert campaign(target(1), rounds=5, requests=100).digest() == before.digest()
    assert campaign(target(1), runs=5).digest() != before.digest()
    assert campaign(target(2)).digest() != before.digest()


def test_a_campaign_beyond_its_budget_is_refused_with_the_figures() -> None:
    with pytest.raises(ConfigError, match="requests = 7, but 2 rounds of 4 runs from 1 probes to 1 targets may take 8; raise"):
        check_budget(campaign(target(1), rounds=2, requests=7), 2)
    check_budget(campaign(target(1), rounds=2, requests=8), 2)
    with pytest.raises(ConfigError, match="tokens = 100, but one round"):
        check_budget(campaign(target(1), rounds=0, tokens=100), 0)


def test_the_most_that_a_request_takes_is_counted_until_it_is_known() -> None:
    priced = target(1, usd_per_million_prompt_tokens=1.0, usd_per_million_output_tokens=10.0)
    taken = most(priced, Prompt(name="p", text="abc", max_tokens=100))
    assert (taken.requests, taken.tokens) == (1, 3 + 32 + 100)
    assert taken.usd == pytest.approx((35 + 1000) / 1e6)
    assert of_round(campaign(priced, runs=2)).requests == 2


def test_each_probe_has_an_equal_share_of_a_limit() -> None:
    one = campaign(target(1), requests=4)
    budget = Budget(msgspec.structs.replace(one, probes=one.probes * 2))
    budget.add(Spending(requests=2))
    assert "requests = 2, this probe's share of 4, is used up" in budget.refusal(Spending(requests=1))


def test_rounds_begin_at_whole_intervals_and_runs_are_spread_over_them_the_same_way_each_time() -> None:
    made = campaign(target(1, "a"), target(1, "b"), interval_s=900, runs=40)
    at_s = first_round_s(made, 1_000_000_001.0)
    assert at_s % 900 == 0
    assert 0 <= at_s - 1_000_000_001 < 900
    plan = plan_round(made, "us-east-1", at_s)
    assert plan == plan_round(made, "us-east-1", at_s)
    assert len({due.id for due in plan}) == 80
    assert [due.due_at_s for due in plan] == sorted(due.due_at_s for due in plan)
    assert all(at_s <= due.due_at_s < at_s + 0.9 * 900 for due in plan)
    widths = [due.due_at_s - at_s - due.run * 0.9 * 900 / 40 for due in plan]
    assert all(0 <= width < 0.9 * 900 / 40 for width in widths)
    assert len({round(width, 3) for width in widths}) > 70

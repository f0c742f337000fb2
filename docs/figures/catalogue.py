"""Every figure of the docs, and the tables that show no figures."""

from __future__ import annotations

import other_pages
import planning_page
import simulation_page

FIGURES = {figure.name: figure for page in (simulation_page, planning_page, other_pages) for figure in page.FIGURES}
WORDS = frozenset(
    {
        ("README.md", "extra"),
        ("README.md", "you want to"),
        ("docs/adaptive.md", "flag, field"),
        ("docs/adaptive.md", "when"),
        ("docs/architecture.md", "file, in `core/`"),
        ("docs/benchmarking.md", "column"),
        ("docs/deploy.md", "folder"),
        ("docs/deploy.md", "file of `certs/`"),
        ("docs/deploy.md", "where"),
        ("docs/engines.md", "name"),
        ("docs/engines.md", "option"),
        ("docs/engines.md", "it sets"),
        ("docs/engines.md", "flag"),
        ("docs/engines.md", "vLLM"),
        ("docs/index.md", "you ask"),
        ("docs/measuring.md", "column"),
        ("docs/operating.md", "alert"),
        ("docs/operating.md", "what"),
        ("docs/operating.md", "metric"),
        ("docs/operating.md", "question"),
        ("docs/pairs.md", "pair"),
        ("docs/lab.md", "room"),
        ("docs/planning.md", "what"),
        ("docs/reference.md", "flag or argument"),
        ("docs/reference.md", "setting"),
        ("docs/security.md", "who"),
        ("docs/security.md", ""),
        ("docs/security.md", "what"),
        ("docs/serving.md", "route"),
        ("docs/serving.md", "parameter"),
        ("docs/serving.md", "status"),
    }
)
"""Tables of options, names and the like, by page and first heading: what stands there was not measured."""
DRAWN = frozenset({("README.md", "docs/idea.svg")})
"""Pictures that show an idea, and no figures."""

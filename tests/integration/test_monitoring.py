"""The alert rules of docs/monitoring: they fire when they should, on metrics that exist."""

import re
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from receiver.ledger.counters import Rejected, record_rejections
from receiver.ledger.store import Store
from tests.integration.test_metrics import BEARER, client_of
from tests.services.checkout import CHECKOUT

RULES = CHECKOUT / "docs" / "monitoring"
MISSING = "promtool is not installed (Debian and Ubuntu: apt-get install prometheus)"


@pytest.mark.skipif(shutil.which("promtool") is None, reason=MISSING)
@pytest.mark.parametrize("what", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_agrees(what: list[str]) -> None:
    """The rules load, and pass their own tests."""
    ended = subprocess.run(["promtool", *what], cwd=RULES, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_rules_ask_for_figures_that_there_are(store: Store) -> None:
    """Each metric in a rule is one that /metrics exposes."""
    record_rejections(store, [Rejected("stripe", "expired")])
    text = client_of(store).get("/metrics", headers=BEARER).text
    report = {family.name for family in text_string_to_metric_families(text)}
    asked = set(re.findall(r"\bfirstseen_[a-z_]+", (RULES / "alerts.yml").read_text()))
    assert len(asked) > 5
    assert {name.removesuffix("_total") for name in asked} <= report

"""Collects the errors that the parity tests measure and prints them as one table at the end."""

import importlib.util

import pytest

# torch has no small build for every Python; elsewhere the suite runs without parity.
collect_ignore = [] if importlib.util.find_spec("torch") else ["test_parity.py"]

_ERRORS = pytest.StashKey[dict[tuple[str, str], dict[str, float]]]()


@pytest.fixture
def parity_errors(pytestconfig: pytest.Config) -> dict[tuple[str, str], dict[str, float]]:
    """(case, form) → {"layers": largest error of any tap, "logits": …}, for the table."""
    return pytestconfig.stash.setdefault(_ERRORS, {})


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The parity table: families by scanned and unrolled."""
    errors = config.stash.get(_ERRORS, {})
    if not errors:
        return
    terminalreporter.section("parity with torch: max|Δ| over real tokens ÷ max|reference|")
    cases = list(dict.fromkeys(case for case, _ in errors))
    line = "{:<36}{:>14}{:>14}{:>14}{:>14}"
    terminalreporter.line(line.format("", "scanned", "", "unrolled", ""))
    terminalreporter.line(line.format("model", *("layers", "logits") * 2))
    for case in cases:
        found = [
            f"{errors[case, form][what]:.1e}" if (case, form) in errors else "-"
            for form in ("scanned", "unrolled")
            for what in ("layers", "logits")
        ]
        terminalreporter.line(line.format(case, *found))

# SPDX-License-Identifier: Apache-2.0
"""A second try for tests that depend on the clock, and for no others.

Under load such a test can time out.
A test is one of these where it says so, with the reason:

    @pytest.mark.timing("the answer must come within half a second")

If it fails it runs once more at once, beside the others as the first time. The number of such tests
is printed. More than three fail the run: that many are not due to load. No other failure is
retried: a test that fails only beside other tests has found a fault too.
"""

from __future__ import annotations

import pytest

AT_MOST = 3


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timing(reason): the verdict depends on the clock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("timing"):
            if len(marker.args) != 1 or not isinstance(marker.args[0], str):
                raise pytest.UsageError(f"{item.nodeid}: `timing` takes one argument, the reason")
            item.add_marker(pytest.mark.flaky(reruns=1))


def _tried_again(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    # A worker of xdist has no reporter, and sees only its share.
    return [report.nodeid for report in reporter.stats.get("rerun", [])] if reporter else []


def pytest_sessionfinish(session: pytest.Session) -> None:
    if len(_tried_again(session.config)) > AT_MOST:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    again = _tried_again(config)
    verdict = f"more than {AT_MOST} fail the run" if len(again) > AT_MOST else f"{AT_MOST} may be"
    terminalreporter.write_line(f"{len(again)} tried again ({verdict})", red=len(again) > AT_MOST)
    for name in again:
        terminalreporter.write_line(f"  {name}")

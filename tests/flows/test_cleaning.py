from __future__ import annotations

import pytest

from flows.cleaning import check_budget
from flows.errors import ConfigError


def test_no_more_rows_are_flagged_than_there_are() -> None:
    for budget in (None, 0.5, 1438):
        check_budget(budget, 1438)
    with pytest.raises(
        ConfigError, match="decide.budget: 100,000 rows are to be flagged, but there are 1,438 training"
    ):
        check_budget(100_000, 1438)

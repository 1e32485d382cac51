"""The table: mean and spread over seeds, and what is written is what was measured."""

import json
import math

import pytest

from cmma_jax.evaluation import table

TABLE = {"cmma": {"bound": (12345.6, 7.8), "parzen": (900.0, math.nan), "parzen_sigma": (0.1234, None)},
         "mean face": {"exact": (-3.0, 0.5)}}


def test_seeds_give_mean_and_standard_deviation():
    merged = table.over_seeds([{"bound": (1.0, 0.1)}, {"bound": (2.0, 0.1)}, {"bound": (6.0, 0.3)}])
    assert merged["bound"] == (pytest.approx(3.0), pytest.approx(math.sqrt(7.0)))
    assert merged["seeds"] == (3, None)
    assert table.over_seeds([TABLE["cmma"]]) is TABLE["cmma"]


def test_markdown_has_a_row_a_system_and_no_empty_column():
    head, rule, first, second = table.to_markdown(TABLE).strip().splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["", "bound", "exact log p", "Parzen", "sigma"]
    assert set(rule) == {"|", "-"} and len(rule) == len(head) == len(first) == len(second)
    assert [c.strip() for c in first.strip("|").split("|")] == ["cmma", "12,346 +- 8", "", "900", "0.123"]
    assert [c.strip() for c in second.strip("|").split("|")] == ["mean face", "", "-3 +- 0", "", ""]


def test_json_holds_every_figure(tmp_path):
    paths = table.write(TABLE, tmp_path / "results-lfw-test", "a heading")
    assert [path.name for path in paths] == [f"results-lfw-test.{s}" for s in ("json", "md")]
    read = json.loads(paths[0].read_text())
    assert read == {"cmma": {"bound": [12345.6, 7.8], "parzen": [900.0, None], "parzen_sigma": [0.1234, None]},
                    "mean face": {"exact": [-3.0, 0.5]}}
    assert paths[1].read_text().startswith("a heading\n\n|")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(path.name for path in paths)

from __future__ import annotations

from typing import Any

from node.cli.commands.experts import heat_lines, table_lines


def row(expert: str, **known: Any) -> dict[str, Any]:
    blank = dict.fromkeys(("epoch", "rows", "steps", "staleness", "age_seconds"))
    return {"expert": expert, "hosts": ["QmHost12345678"], "here": False, **blank, **known}


def test_the_table_says_who_hosts_what_and_a_dash_what_is_not_known_here() -> None:
    lines = table_lines(
        [
            row("ffn0.0.0", epoch=2, rows=17),
            row("ffn0.0.1", here=True, epoch=1, rows=5, steps=9, staleness=0.5, age_seconds=61.2),
            row("ffn0.0.2", hosts=[]),
            row("ffn0.0.3", hosts=["Qm\x1b[31mevil1234", "QmOther"]),
        ]
    )
    assert lines[1].split() == ["ffn0.0.0", "12345678", "2", "17", "-", "-", "-"]
    assert lines[2].split() == ["ffn0.0.1", "here", "1", "5", "9", "0.5", "61", "s"]
    assert lines[3].split()[1] == "nobody"
    assert "+1" in lines[4]
    assert "\x1b" not in "".join(lines)


def test_the_heat_map_is_darkest_where_most_rows_went_and_marks_places_without_a_host() -> None:
    section = {
        "grid": [2, 2],
        "layers": ["ffn0", "ffn1"],
        "table": [
            row("ffn0.0.0", rows=0), row("ffn0.0.1", rows=100),
            row("ffn0.1.0", rows=50), row("ffn0.1.1", hosts=[]),
            *(row(f"ffn1.{u}.{v}", rows=None) for u in range(2) for v in range(2)),
        ],
    }  # fmt: skip
    lines = heat_lines(section)
    assert lines[0] == "ffn0, at most 100 rows"
    assert lines[1] == "         0   ██"
    assert lines[2] == "         1 ▒▒ !"
    assert lines[3] == "ffn1, at most 0 rows"
    assert len(lines) == 7

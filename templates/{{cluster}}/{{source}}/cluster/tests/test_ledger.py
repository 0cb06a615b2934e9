"""The ledger of attempts: lost steps, ends, kinds; lines of another make; the command."""

import random
from pathlib import Path

import pytest

from ...commands.goodput import goodput
from ...errors import Exit, UserError
from ...records import store
from ...records.telemetry import Record
from ..ledger import KINDS, attempts, draw, totals


def line(began: float, first: int, last: int, code: int | None = None, **parts_s: float) -> Record:
    row: Record = {"first_step": first, "step": last, "began": began, "parts_s": parts_s}
    return row if code is None else row | {"code": code}


ROWS = [
    line(1000.0, 0, 10, startup=2.0, step=10.0),  # killed, saved at 4
    line(1020.0, 4, 12, Exit.PEER_LOST, startup=2.0, step=4.0, hang=4.0),  # saved at 8
    line(1035.0, 8, 20, Exit.DONE, startup=2.0, step=12.0, evaluate=1.0),
]


def test_attempts_tell_what_was_lost_and_how_they_ended() -> None:
    found = attempts(ROWS)
    assert [each.lost for each in found] == [6, 4, 0]
    assert [each.end for each in found] == ["killed", "peer lost (44)", "done (0)"]
    assert found[0].begin == "1970-01-01 00:16:40"
    assert totals(found) == pytest.approx(
        {"step": 18.0, "startup": 6.0, "evaluate": 1.0, "redone": 8.0, "hang": 4.0, "restart": 13.0}
    )
    assert sum(each.wall_s for each in found) == pytest.approx(50.0)
    back = line(1050.0, 2, 20, Exit.DONE, step=18.0)  # the saves after 2 were damaged
    assert [each.lost for each in attempts([*ROWS[:2], back])] == [8, 8, 0]
    assert attempts(ROWS[:1])[0].end == "killed, or goes on"


def test_lines_of_another_make_are_left_out() -> None:
    bad: list[Record] = [
        {},
        {"step": 3},
        line(1.0, 0, 1) | {"parts_s": 3},
        line(1.0, 0, 1) | {"step": "3"},
        line(float("nan"), 0, 1),
        line(1.0, 0, 1, step="x"),  # type: ignore[arg-type]
    ]
    mixed = [*bad, *ROWS, *bad]
    random.Random(0).shuffle(bad)
    assert attempts(mixed) == attempts(ROWS)
    assert attempts(bad) == []


def test_every_kind_has_a_colour_of_its_own_and_a_meaning() -> None:
    colours, meanings = zip(*KINDS.values(), strict=True)
    assert len({*colours}) == len({*meanings}) == len(KINDS)


def test_the_plot_shows_every_second_at_its_place() -> None:
    above, below = draw(attempts(ROWS)).axes
    begins = [line.get_xdata()[0] for line in above.lines]
    assert begins == pytest.approx([0.0, 20.0, 35.0])
    areas = [bar.get_width() * bar.get_height() for bar in below.patches]
    assert sum(areas) == pytest.approx(50.0)
    gaps = [(bar.get_x(), bar.get_width()) for bar in below.patches if bar.get_height() == 1]
    assert [gap for gap in gaps if gap[1]] == [
        pytest.approx((12.0, 8.0)),
        pytest.approx((30.0, 5.0)),
    ]


def test_the_command_prints_the_sum_and_keeps_the_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write_lines(tmp_path / "attempts.jsonl", ROWS)
    assert goodput(run_dir=str(tmp_path)) == Exit.DONE
    printed = capsys.readouterr().out
    assert "goodput 36.0% of 50.00 s in 3 attempts, 10 steps lost" in printed
    assert (tmp_path / "plots" / "goodput.png").stat().st_size > 10_000
    old = [{k: v for k, v in row.items() if k not in ("began", "code")} for row in ROWS]
    store.write_lines(tmp_path / "attempts.jsonl", old)
    assert goodput(run_dir=str(tmp_path)) == Exit.DONE


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "attempts.jsonl").write_text('{"a": 1}\nnot json\n[1]\n')
    for folder in ("full", "none"):
        with pytest.raises(UserError, match=r"has no attempts\.jsonl of a run"):
            goodput(run_dir=str(tmp_path / folder))
        assert not (tmp_path / folder / "plots").exists()

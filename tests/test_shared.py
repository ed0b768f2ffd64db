"""The workers' table: what one process writes, the others read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastserve._shared import BUCKETS_END_AT, Row, Table

TAKE = """
import sys
from fastserve._shared import Table
Table(int(sys.argv[1])).row(int(sys.argv[2])).take()
"""


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table.create(3)
    yield table
    table.close()


def test_what_one_process_writes_another_reads(table: Table) -> None:
    command = [sys.executable, "-c", TAKE, str(table.fd), "1"]
    popen = subprocess.Popen(command, pass_fds=[table.fd])
    assert popen.wait() == 0
    assert [table.row(index).pid for index in range(table.rows)] == [0, popen.pid, 0]


def test_a_row_is_nobodys_again(table: Table) -> None:
    row = table.row(2)
    row.take()
    assert table.row(2).pid == os.getpid()
    row.clear()
    assert table.row(2).pid == 0


@pytest.mark.parametrize("index", [-1, 3])
def test_there_are_no_more_rows(table: Table, index: int) -> None:
    with pytest.raises(IndexError):
        table.row(index)


def test_nothing_is_counted_in_a_new_row() -> None:
    row = Row.alone()
    row.add(Row.alone())
    assert (row.pid, row.accepted, row.responses) == (0, 0, {})
    assert row.duration == ([0] * (len(BUCKETS_END_AT) + 1), 0.0)
    assert list(BUCKETS_END_AT) == sorted(BUCKETS_END_AT)


def test_a_row_outlives_its_table() -> None:
    table = Table.create(1)
    row = table.row(0)
    table.close()
    table.close()
    del table
    row.take()
    assert row.pid == os.getpid()

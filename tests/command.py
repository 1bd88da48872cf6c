"""`qfmt` as somebody types it, in this process: exit code, what is printed, and facts."""

import json
from typing import Any

import pytest
from qfmt.__main__ import main


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Run a command; give its exit code, standard output and standard error."""
    capsys.readouterr()  # what was printed before
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any], str]:
    """Run a command with --json; give its exit code, the facts that it prints, and standard error."""
    code, out, err = run(capsys, *args, "--json")
    found: dict[str, Any] = json.loads(out)
    return code, found, err


def facts(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    """Give the facts of a command that has to be done without a word on standard error."""
    code, found, err = run_json(capsys, *args)
    assert (code, err) == (0, ""), err
    return found

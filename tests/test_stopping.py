"""Signals: at once before there is something to save, remembered afterwards."""

import signal
import subprocess
import sys

import pytest

from mstag.runtime import Ranks
from mstag.stopping import Stop, Stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_told_when_asked(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stop() as stop:
        stop.armed()
        assert not stop.is_due(Ranks())
        assert stop.is_due(Ranks(), something_else=True)
        signal.raise_signal(number)
        with pytest.raises(Stopped) as stopped:
            stop.is_due(Ranks())
        assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_it_is_armed_a_signal_ends_the_process(number: signal.Signals) -> None:
    with Stop(), pytest.raises(SystemExit) as end:
        signal.raise_signal(number)
    assert end.value.code == 128 + number


def test_supervisors_that_repeat_themselves_do_not_break_a_save() -> None:
    with Stop() as stop:
        stop.armed()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.number == signal.SIGTERM, "the first one counts"


def test_ctrl_c_twice_ends_at_once_but_not_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with Stop() as stop:
        stop.armed()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGINT)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with Stop() as stop:
        stop.armed()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT


DEAF = """
import os, signal, sys, threading
from mstag.stopping import Stop
import torch
with Stop():
    threading.Timer(1.0, os.kill, (os.getpid(), int(sys.argv[1]))).start()
    store = torch.distributed.TCPStore("localhost", 0, None, True)
    store.get("never")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_waits_inside_a_library_ends_too(number: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", DEAF, str(int(number))], timeout=60)
    assert done.returncode == 128 + number

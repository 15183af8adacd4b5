"""What a trial's last line, or its want, says against batching. The process is played by a few lines of Python."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from nexus_grpc.settings import load_settings
from nexus_grpc.supervisor import trial
from nexus_grpc.supervisor.trial import Trial

ANSWER = '{"ok": true, "metadata": "", "config": "", "inputs": [], "outputs": [], "probing": %s}'


class NoLog:
    def drain(self) -> None: ...


def tried(script: str, seconds: float = 20.0) -> Trial:
    async def talk() -> Trial:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdin=pipe, stdout=pipe, start_new_session=True
        )
        settings: Any = load_settings({"trial_seconds": seconds})
        log: Any = NoLog()
        try:
            return await trial._Conversation(process, log, settings, "version 1 of model 'm'").run(b"{}")
        finally:
            await trial._end(process)

    return asyncio.run(talk())


@pytest.mark.parametrize(
    ("probing", "then", "veto"),
    [
        ("false", "", ""),
        ("true", """print('{"veto": ""}')""", ""),
        ("true", """print('{"veto": "rows meet"}')""", "rows meet"),
        ("true", "import os; os.abort()", "sample rows run together ended the process that tried it"),
        ("true", "print('{')", "sample rows run together ended the process that tried it"),
        ("true", "import time; time.sleep(60)", "sample rows run together took too long"),
    ],
)
def test_the_veto(probing: str, then: str, veto: str, tmp_path: Path) -> None:
    script = f"print('''{ANSWER % probing}''', flush=True)\n{then}"
    assert tried(script, 2.0 if "sleep" in then else 20.0).findings.batching_veto == veto

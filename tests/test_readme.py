"""The README's examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0].strip("# "))
def test_python_blocks_run(block, tmp_path):
    check = "\nif 'data' in dir(): from heldout.problem import load_problem, check_problem; "
    check += "told = check_problem(load_problem(__file__)); "
    check += "assert told == [] or 'binary.py' in open(__file__).readline() and 'one logit' in told[0]\n"
    file = tmp_path / "block.py"
    file.write_text(block + check)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_readme_exist():
    from typer.main import get_command

    from heldout.cli import app

    commands = get_command(app).commands
    shown = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    for verb in re.findall(r"^heldout (\w+)", "\n".join(shown), flags=re.MULTILINE):
        assert verb in commands

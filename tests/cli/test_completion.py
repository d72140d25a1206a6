"""What the shell proposes, asked as bash and zsh ask."""

import os
import subprocess
import sys

import pytest

from heldout.catalog import method_factories
from heldout.cli.completion import built_systems, example_names, method_list, systems_and_methods
from heldout.problem import EXAMPLES

PROGRAM = "import sys; sys.argv[0] = 'heldout'; from heldout.cli import main; main()"


def asked(line):
    """The proposals of bash for the last word of a line."""
    words = {"_HELDOUT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, **words}, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "proposals"),
    [
        ("heldout im", ["improve"]),
        ("heldout eval scy", ["scylla"]),
        ("heldout improve dig", ["digits"]),
        ("heldout improve digits --methods tent,sa", ["tent,sam"]),
        ("heldout reproduce ps-", ["ps-kd"]),
        ("heldout show rm", ["rm3"]),
        ("heldout audit digits --thr", ["--threads"]),
    ],
)
def test_bash_is_told_what_may_follow(line, proposals):
    assert asked(line) == proposals


def test_the_script_for_a_shell_is_shown():
    plain = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", PROGRAM, "--show-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    assert "_HELDOUT_COMPLETE=complete_bash" in done.stdout


def test_proposals_are_what_the_commands_take():
    assert sorted(example_names("")) == sorted(EXAMPLES)
    assert {name for name, _ in method_list("")} == set(method_factories())
    assert "tent,tent" not in [name for name, _ in method_list("tent,")]
    assert {"sam", "ps-kd"} <= {name for name, _ in systems_and_methods("")}
    assert all(title for _, title in built_systems(""))


def test_completing_imports_no_torch():
    checked = "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    code = PROGRAM.replace("; main()", "").replace("; ", "\n") + "\n" + checked
    words = {"_HELDOUT_COMPLETE": "complete_bash", "COMP_WORDS": "heldout improve d", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["digits"], "")

# ruff: noqa: E501
"""Programs are tested from another process: right ones pass, and none passes without its answers being right."""

from __future__ import annotations

import pytest

from heldout.lm import run_tests

RIGHT = [
    ("def add(a,b): return a+b", "assert add(1,2)==3"),
    (
        "def add(a,b): return a+b",
        "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(add(1,2),3)\nunittest.main()",
    ),
    ("def sort(l): l.sort()", "x=[3,1,2]; sort(x); assert x==[1,2,3]"),
    (
        "class S:\n def __init__(s): s.i=[]\n def push(s,x): s.i.append(x)\n def pop(s): return s.i.pop()\n def __len__(s): return len(s.i)",
        "s=S(); s.push(1); s.push(2); assert len(s)==2; assert s.pop()==2; assert s.i==[1]; assert isinstance(s,S)",
    ),
    (
        "class S(list):\n def push(s,x): s.append(x)",
        "s=S(); s.push(1); s.push(2); assert s.pop()==2; assert s==[1] and len(s)==1; assert isinstance(s,list)",
    ),
    (
        "from collections import Counter\ndef f(x): return Counter(x)",
        "assert f('aab')=={'a':2,'b':1}; assert f('aab').most_common(1)==[('a',2)]; assert Counter(f('aab'))==Counter('aab'); assert sorted(f('aab').items())==[('a',2),('b',1)]",
    ),
    (
        "class E(ValueError):\n def __init__(s,m,code): super().__init__(m); s.code=code\ndef f(x): raise E('bad',7)",
        "try: f(1)\nexcept E as e: assert e.code==7 and 'bad' in str(e)\nelse: assert 0",
    ),
    (
        "def f(x):\n if x<0: raise ValueError('neg')\n return x",
        "try: f(-1)\nexcept ValueError as e: assert str(e)=='neg'\nelse: assert 0",
    ),
    ("def f(g,x): return g(x)+1", "assert f(lambda v: v*2, 3)==7; assert f(sum,[1,2])==4"),
    ("def f(n):\n for i in range(n): yield i", "assert list(f(3))==[0,1,2]; assert sum(f(4))==6"),
    (
        "import math\nfrom fractions import Fraction\ndef f(x): return Fraction(1,x)",
        "assert f(2)==Fraction(1,2); assert math.isclose(f(2),.5)",
    ),
    (
        "from typing import NamedTuple\nclass P(NamedTuple):\n x:int\n y:int",
        "p=P(1,2); assert p.x==1 and p==(1,2); a,b=p; assert b==2",
    ),
    ("import enum\nclass C(enum.IntEnum):\n R=1", "assert C.R.value==1; assert C.R==C.R; assert C.R.name=='R'"),
    (
        "class V:\n def __init__(s,x): s.x=x\n def __add__(s,o): return V(s.x+o.x)\n def __eq__(s,o): return s.x==o.x",
        "assert V(1)+V(2)==V(3); assert not V(1)==V(2)",
    ),
    ("async def f(x): return x+1", "import asyncio; assert asyncio.run(f(2))==3"),
    (
        "from dataclasses import dataclass\n@dataclass\nclass D:\n x:int=3",
        "d=D(); assert d.x==3; d.x=5; assert d.x==5; assert D(5)==d; assert 'x=5' in repr(d)",
    ),
    ("def f(n):\n while n: n=n.next\n return 4", "class N:\n def __init__(s): s.val=1; s.next=None\nassert f(N())==4"),
    ("def f(): return float('nan')", "assert f()!=f()"),
    ("from contextlib import contextmanager\n@contextmanager\ndef c():\n yield 5", "with c() as x: assert x==5"),
    ("def f(x): return 10**5000", "assert f(1)==10**5000"),
    ("def f(x): return {(1,2):{3}, 'a':b'x', None:1.5+2j}", "assert f(1)=={(1,2):{3}, 'a':b'x', None:1.5+2j}"),
    ("if __name__=='__main__': print('hi')\ndef f(): return 1", "assert f()==1"),
    ("def f(): return [[]]*3\n", "a=f(); assert a==[[],[],[]]"),
    (
        "def f(x):\n  import datetime; return datetime.date(2020,1,x)",
        "import datetime; assert f(2)==datetime.date(2020,1,2)",
    ),
    ("def f(d): d['k']=1", "d={}; f(d); assert d=={'k':1}"),
    (
        "def add(a,b):\n import sys\n sys.settrace(None)\n raise AssertionError",
        "try:\n add(1,2)\nexcept AssertionError: pass\nelse: raise ValueError",
    ),
]
WRONG = [
    ("raise SystemExit", "assert add(1,2)==3"),
    ("import sys; sys.exit(0)", "assert 1"),
    ("import os; os._exit(0)", "assert 1"),
    ("import atexit,os; atexit.register(lambda: os._exit(0)); add=lambda a,b:0", "assert add(1,2)==3"),
    (
        "class A:\n def __eq__(s,o): return True\n def __sub__(s,o): return 0.0\n def __abs__(s): return 0.0\n def __lt__(s,o): return True\ndef add(a,b): return A()",
        "assert add(1,2)==3",
    ),
    (
        "class A:\n def __eq__(s,o): return True\n def __sub__(s,o): return 0.0\n def __abs__(s): return 0.0\n def __lt__(s,o): return True\n __gt__=__lt__\ndef add(a,b): return A()",
        "assert abs(add(1,2)-3)<1e-6",
    ),
    ("class A(int):\n def __eq__(s,o): return True\ndef add(a,b): return A()", "assert add(1,2)==3"),
    (
        "class A(list):\n def __eq__(s,o): return True\n def __contains__(s,o): return True\ndef f(): return A()",
        "assert f()==[3]",
    ),
    ("class A(list):\n def __contains__(s,o): return True\ndef f(): return A()", "assert 3 in f()"),
    ("from unittest.mock import ANY\nadd=lambda a,b: ANY", "assert add(1,2)==3"),
    ("from unittest.mock import MagicMock as add", "assert add(1,2)==3"),
    ("import os\ntry: os.remove('.output')\nexcept OSError: pass\nadd=lambda a,b:0", "assert add(1,2)==3"),
    ("def add(a,b): import os; os._exit(0)", "assert add(1,2)==3"),
    ("def add(a,b): raise SystemExit(0)", "assert add(1,2)==3"),
    (
        "def add(a,b): raise SystemExit(0)",
        "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(add(1,2),3)\nunittest.main()",
    ),
    ("all=any=lambda x: True\nabs=lambda x:0\nlen=lambda x:3\nf=lambda:[1]", "assert all(x>5 for x in f())"),
    ("def f(g):\n return g.__globals__", "assert f(lambda: 1)"),
    ("def f(g):\n g.__globals__['abs']=lambda x:0\n return 1", "f(lambda: 1)\nassert abs(-3)==3"),
    ("def sum(a,b): return a+b", "assert sum(1,2)==3"),
    ("x = input()", "assert True"),
    ("def f(: pass", "assert True"),
    ("def f():\n  f()", "assert f() == 1"),
    (
        "import os,sys\nfor fd in range(3,64):\n  try: os.write(fd, b'=\\x00\\x00\\x00\\x01T'*3)\n  except OSError: pass\nadd=lambda a,b:0",
        "assert add(1,2)==3",
    ),
]


@pytest.mark.parametrize(("program", "tests"), RIGHT)
def test_right_programs_pass(program, tests):
    result = run_tests(program, tests)
    assert result.ok, result.error


@pytest.mark.parametrize(("program", "tests"), WRONG)
def test_nothing_passes_but_right_answers(program, tests):
    result = run_tests(program, tests, seconds=1)
    assert not result.ok
    assert result.error


def test_names_of_builtin_functions_are_tested_when_they_are_named():
    program = "def sum(a, b):\n    return a + b"
    assert run_tests(program, "assert sum(1, 2) == 3", entry_points=["sum"]).ok


def test_the_program_never_holds_the_tests():
    # It looks through everything that its interpreter knows, and through the open files that it may have.
    program = """
import gc, os
def answer():
    found = [o for o in gc.get_objects() if isinstance(o, dict) for o in o.values()]
    texts = [o for o in found if isinstance(o, (str, bytes))]
    for fd in range(64):
        try: os.lseek(fd, 0, 0); texts.append(os.read(fd, 10000))
        except OSError: pass
    return any("MARK" + "ER" in str(text) for text in texts)
"""
    assert run_tests(program, "# MARKER\nassert answer() is False").ok


def test_what_the_tests_print_is_the_output_and_what_fails_is_said():
    result = run_tests("print('program')\nf = lambda: 2", "print('tests', f())\nassert f() == 3")
    assert (result.ok, result.output) == (False, "tests 2\n")
    assert "AssertionError" in result.error
    assert "NameError" in run_tests("x = y", "assert True").error
    assert "line 2 of the program" in run_tests("x = 1\ny = z", "assert True").error

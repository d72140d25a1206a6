"""Streams of APIs."""

import textwrap

import pytest

from heldout.tasks import CallSite, api_functions, api_stream, python_sources, sources_digest

GROUPS = {"threads": ["threading"], "files": ["os", "shutil"]}


def functions(source: str):
    return api_functions(textwrap.dedent(source), GROUPS, file="a.py")


def apis(source: str) -> list[str]:
    return [call.api for function in functions(source)[0] for call in function.calls]


def test_calls_are_resolved_through_every_form_of_import():
    source = """
    import os, os.path as p
    from os.path import join as j
    from shutil import copy
    def f(x):
        os.path.exists(x); p.isdir(x); j(x, x)
        return copy(x, x), x.join(x), print(x)
    """
    assert apis(source) == ["os.path.exists", "os.path.isdir", "os.path.join", "shutil.copy"]


def test_objects_of_imported_classes_are_known_in_function_class_and_by_base():
    source = """
    import threading
    class A:
        def __init__(self):
            self.lock = threading.Lock()
        def f(self):
            self.lock.acquire()
            with threading.Event() as event:
                event.wait()
    class B(threading.Thread):
        def run(self):
            self.stop(); self.join()
        def stop(self):
            pass
    """
    assert apis(source) == [
        "threading.Lock",
        "threading.Lock.acquire",
        "threading.Event",
        "threading.Event.wait",
        "threading.Thread.join",
    ]


def test_what_a_function_returns_is_no_object_of_its_name():
    assert apis("import os\ndef f(x):\n    y = os.path.join(x)\n    return y.split()") == ["os.path.join"]


def test_positions_cut_out_usage_and_name():
    function = functions('''
    import os
    class A:
        def f(self, x):
            """Says os.remove(x)."""
            return [os.path.join(
                x, "a")]
    ''')[0][0]
    (call,) = function.calls
    assert function.text.startswith("def f(self, x):\n    return")
    assert function.text[call.start : call.end].replace(" ", "") == 'os.path.join(\nx,"a")'
    assert function.names() == ["join"]
    assert function.text[call.name_end] == "("
    assert call.api == "os.path.join"


def test_a_function_of_two_groups_belongs_to_the_first_and_keeps_its_sites_alone():
    used, plain = functions("import os, threading\ndef f():\n    os.getcwd(); threading.Lock()\ndef g(): return 1")
    assert [(function.group, function.names()) for function in used] == [("threads", ["Lock"])]
    assert plain == []  # the file imports a group


def test_functions_of_a_file_that_imports_no_group_are_plain():
    used, plain = functions("import math\ndef f(x): return math.sqrt(x)\ndef g(x): return 'é'")
    assert not used
    assert plain == ["def f(x): return math.sqrt(x)"]


def test_a_source_of_another_language_has_no_functions():
    assert functions("print 'a'") == ([], [])


def stream(sources: dict[str, str], **options: float):
    return api_stream(sources, GROUPS, **options)


def many(line: str = "", files: int = 60) -> dict[str, str]:
    body = "import os\ndef f{i}(x):\n    a{i} = os.listdir(x)\n    " + (line or "b{i} = os.stat(x)")
    return {f"{i}.py": body.replace("{i}", str(i)) for i in range(files)}


def test_files_are_split_and_none_is_in_two_parts():
    tasks = stream(many()).tasks["files"]
    files = {part: {function.file for function in some} for part, some in tasks.items()}
    assert sum(map(len, files.values())) == len(set().union(*files.values())) == 60
    assert len(files["train"]) > len(files["test"]) > 0


def test_a_call_whose_line_is_in_a_file_for_training_is_no_test():
    tasks = stream(many("os.remove( x )"), val=0.2, test=0.3).tasks["files"]
    assert all(function.names() == ["listdir", "remove"] for function in tasks["train"])
    assert all(function.names() == ["listdir"] for part in ("val", "test") for function in tasks[part])


def test_a_function_that_comes_twice_counts_once_in_training():
    sources = {f"{i}.py": "import os\ndef f(x):\n    return os.listdir(x)" for i in range(40)}
    tasks = stream(sources).tasks["files"]
    assert {part: len(some) for part, some in tasks.items()} == {"train": 1, "val": 0, "test": 0}


def test_pretraining_has_no_file_of_val_or_test():
    sources = {f"{i}.py": f"def f{i}(x): return x" for i in range(60)}
    pretrain = stream(sources).pretrain
    tested = stream(sources, val=0.0, test=0.999).pretrain
    assert 30 < len(pretrain) < 60
    assert len(tested) < 3


def test_exclusive_names_are_called_in_one_group_alone():
    sources = {"a.py": "import os, threading\ndef f(): os.close()\ndef g(): threading.close(); threading.Lock()"}
    found = stream(sources, val=0, test=0).exclusive_names()
    assert found == {"threads": {"Lock"}, "files": set()}


def test_sources_are_those_of_the_package_and_the_choice_is_stable(tmp_path):
    (tmp_path / "a").mkdir()
    for name, text in {"a/x.py": "import os", "b.py": "x = 1", "c.txt": ""}.items():
        (tmp_path / name).write_text(text)
    assert list(python_sources(tmp_path)) == [f"{tmp_path.name}/a/x.py", f"{tmp_path.name}/b.py"]
    assert list(python_sources(tmp_path, mentions=["os"])) == [f"{tmp_path.name}/a/x.py"]
    assert list(python_sources(tmp_path, skip=["a"])) == [f"{tmp_path.name}/b.py"]
    assert python_sources("json", most=2) == python_sources("json", most=2)
    assert len(python_sources("json", most=2)) == 2


def test_the_digest_depends_on_names_and_contents():
    digests = {sources_digest(sources) for sources in ({"a": "b"}, {"a": "c"}, {"b": "b"}, {"ab": ""})}
    assert len(digests) == 4


def test_bad_input_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="groups"):
        api_functions("x = 1", {})
    with pytest.raises(ValueError, match="files"):
        api_functions("x = 1", {"files": []})
    with pytest.raises(ValueError, match="val"):
        api_stream({"a": ""}, GROUPS, val=0.6, test=0.6)
    with pytest.raises(ValueError, match="val"):
        api_stream({"a": ""}, GROUPS, val=-0.1)
    with pytest.raises(ValueError, match="sources"):
        api_stream({}, GROUPS)
    with pytest.raises(ValueError, match="most"):
        python_sources("json", most=0)
    with pytest.raises(ValueError, match="package"):
        python_sources("os.path")
    with pytest.raises(FileNotFoundError, match="no_such"):
        python_sources("no_such_package")
    with pytest.raises(FileNotFoundError, match="package"):
        python_sources(tmp_path)
    assert CallSite("os.x", 0, 0, 1, 3).end == 3


def test_a_library_whose_name_begins_alike_is_another_one():
    assert functions("import osx\ndef f(): return osx.getcwd()") == ([], ["def f(): return osx.getcwd()"])


def test_relative_imports_and_several_bases_tell_nothing():
    assert apis("from .os import stat\nfrom . import os\ndef f(): stat(1); os.stat(1)") == []
    assert apis("import threading\nclass A(threading.Thread, B):\n    def f(self): self.start()") == []


def parted() -> dict[str, str]:
    """A file's name for each part, at the default shares."""
    names: dict[str, str] = {}
    for number in range(200):
        found = stream({f"{number}.py": "import os\ndef f(): os.stat(1)"}).tasks["files"]
        names.setdefault(next(part for part, some in found.items() if some), f"{number}.py")
    return names


def test_a_site_is_dropped_only_where_all_its_lines_are_known_from_training_or_validation():
    names = parted()
    sources = {
        names["train"]: "import os\ndef f(x):\n    a = os.stat(\n        x)",
        names["val"]: "import os\ndef g(x):\n    b = os.remove(x)",
        names["test"]: "import os\ndef h(x):\n    a = os.stat(\n        x + 1)\n    b = os.remove(x)\n    os.rmdir(x)",
    }
    tasks = stream(sources).tasks["files"]
    assert [function.names() for function in tasks["test"]] == [["stat", "rmdir"]]


def test_pretraining_holds_no_function_twice_nor_one_of_a_task():
    sources = {f"{i}.py": "def f(x): return x" for i in range(5)}
    assert stream(sources, val=0, test=0).pretrain == ["def f(x): return x"]


def test_pretraining_holds_no_text_of_a_task_from_a_file_without_the_import():
    sources = {"a.py": "import os\ndef f(): return os.stat(1)", "b.py": "def f(): return os.stat(1)\ndef g(): return 2"}
    assert stream(sources, val=0, test=0).pretrain == ["def g(): return 2"]

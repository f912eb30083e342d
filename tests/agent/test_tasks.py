"""Task folders, and everything that can be wrong with one."""

from pathlib import Path

import pytest

from agent import tasks
from sandbox.errors import TaskError


def edit(folder: Path, old: str, new: str, name: str = "task.toml") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("name", tasks.available())
@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_every_bundled_task_loads_with_two_seeds_or_more(name: str, target: tasks.Target) -> None:
    task = tasks.load(name, target)
    assert task.name == name
    assert task.held_out
    seeds = tasks.seeds(task)
    assert len(seeds) >= 2
    assert len({seed.id for seed in seeds}) == len(seeds)


def test_bundled_tasks_are_the_documented_ones() -> None:
    whole = ["attention", "attention_layernorm", "kv_cache", "layernorm", "mlp", "vector_add"]
    parts = ["decode_attention", "kv_append", "linear", "swiglu"]
    assert tasks.available() == sorted([*whole, *parts])


def test_task_that_writes_nothing_is_refused(toy_folder: Path) -> None:
    edit(toy_folder, 'outputs = [{ name = "out", shape = ["N"] }]\n', "")
    with pytest.raises(
        TaskError, match="got no outputs and no inouts, wanted at least one tensor that a kernel writes"
    ):
        tasks.load(str(toy_folder), "cpu")


def test_task_is_found_by_path_and_by_root(toy_folder: Path) -> None:
    by_path = tasks.load(str(toy_folder), "cpu")
    assert by_path == tasks.load("toy", "cpu", [tasks.bundled(), toy_folder.parent])
    assert by_path.folder == toy_folder


def test_seeds_come_in_numeric_order_with_default_tunables(toy_folder: Path) -> None:
    seeds = tasks.seeds(tasks.load(str(toy_folder), "cpu"))
    assert [seed.note for seed in seeds] == ["1_plain.cpp", "2_blocked.cpp", "10_other.cpp"]
    assert [seed.tunables for seed in seeds] == [{}, {"BLOCK": 64, "UNROLL": 1}, {"BLOCK": 64, "UNROLL": 1}]
    assert {(seed.operator, seed.proposer, seed.parents) for seed in seeds} == {("seed", "seed", ())}


def test_version_follows_definition_and_reference_but_not_kernels(toy_folder: Path) -> None:
    versions = [tasks.load(str(toy_folder), "cpu").version]
    for name in ("cpu/1_plain.cpp", "reference.py", "task.toml"):
        with (toy_folder / name).open("a") as file:
            file.write("\n")
        versions.append(tasks.load(str(toy_folder), "cpu").version)
    assert versions[0] == versions[1]
    assert len(set(versions[1:])) == 3
    assert len(versions[0]) == 12


def test_scalars_get_defaults_and_their_declared_type(toy_folder: Path) -> None:
    scalars = 'scalars = [{ name = "eps", type = "float", default = 1 }, { name = "causal", type = "int" }]\n\n[cpu]'
    edit(toy_folder, "[cpu]", scalars)
    text = (toy_folder / "task.toml").read_text()
    (toy_folder / "task.toml").write_text(text.replace("} }", "}, scalars = { causal = 1 } }"))
    edit(toy_folder, "(a, b)", "(a, b, *, eps, causal)", "reference.py")
    workload = tasks.load(str(toy_folder), "cpu").workloads[0]
    assert list(workload.scalars) == ["eps", "causal"]
    assert isinstance(workload.scalars["eps"], float)
    assert workload.name == "N1000 causal=1 float32"


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(TaskError, match="unknown task 'atention': did you mean 'attention'"):
        tasks.load("atention", "cpu")


def test_missing_folder_is_named() -> None:
    with pytest.raises(TaskError, match=r"task folder \./nowhere does not exist"):
        tasks.load("./nowhere", "cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def reference(a, b: return", "line 1: invalid syntax"),
        ("import torch\n", r"no function reference; wanted def reference\(a, b\)"),
        ("def reference(a):\n    return a\n", r"line 1: got reference\(a\), wanted reference\(a, b\)"),
    ],
)
def test_reference_that_cannot_serve_is_named_before_it_is_run(toy_folder: Path, text: str, message: str) -> None:
    (toy_folder / "reference.py").write_text(text)
    with pytest.raises(TaskError, match=message):
        tasks.load(str(toy_folder), "cpu")


@pytest.mark.parametrize("text", ["def reference(*tensors):\n    return tensors[0]\n", "from other import reference\n"])
def test_reference_may_be_written_in_other_ways(toy_folder: Path, text: str) -> None:
    (toy_folder / "reference.py").write_text(text)
    assert tasks.load(str(toy_folder), "cpu").name == "toy"


@pytest.mark.parametrize("name", ["task.toml", "reference.py"])
def test_missing_file_is_named(toy_folder: Path, name: str) -> None:
    (toy_folder / name).unlink()
    with pytest.raises(TaskError, match=f"task 'toy' has no {name} in "):
        tasks.load(str(toy_folder), "cpu")


def test_target_without_section_is_refused(toy_folder: Path) -> None:
    with pytest.raises(TaskError, match=r"has no \[cuda\] section"):
        tasks.load(str(toy_folder), "cuda")


def test_target_without_folder_is_refused(toy_folder: Path) -> None:
    (toy_folder / "cpu").rename(toy_folder / "elsewhere")
    with pytest.raises(TaskError, match=r"has no folder .*cpu"):
        tasks.load(str(toy_folder), "cpu")


def test_folder_without_kernels_is_refused(toy_folder: Path) -> None:
    for path in (toy_folder / "cpu").iterdir():
        path.unlink()
    with pytest.raises(TaskError, match=r"has no seed kernels: wanted files like cpu/1_naive\.cpp"):
        tasks.seeds(tasks.load(str(toy_folder), "cpu"))


def test_kernel_without_number_is_refused(toy_folder: Path) -> None:
    (toy_folder / "cpu" / "plain.cpp").write_text("")
    with pytest.raises(TaskError, match=r"plain\.cpp: wanted a name like 1_naive\.cpp"):
        tasks.seeds(tasks.load(str(toy_folder), "cpu"))


def test_bad_header_of_a_seed_names_file_and_line(toy_folder: Path) -> None:
    edit(toy_folder, "// tune: 1 2 4", "// tune: 2 4", "cpu/2_blocked.cpp")
    with pytest.raises(TaskError, match=r"2_blocked\.cpp: line 6: tunable UNROLL"):
        tasks.seeds(tasks.load(str(toy_folder), "cpu"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('summary = "a + b"', "summary = = 1", "line 2"),
        ("flops =", "flopz =", "key 'flops' is missing|unknown key 'flopz'"),
        ('flops = "N"', 'flops = "N"\ncolour = 1', "unknown key 'colour'"),
        ("{ N = 4096 } }", "{ N = 4096 }, dtyp = 1 }", "unknown key 'cpu.workloads.1.dtyp'"),
        ("{ N = 4096 }", "{ M = 4096 }", r"got axes \['M'\], wanted \['N'\]"),
        ("{ N = 4096 }", "{ N = 0 }", "every axis must be at least 1"),
        ("{ N = 4096 }", "{ N = 1000 }", "2 workloads are called 'N1000 float32'"),
        ("{ N = 77 }", "{ N = 1000 }", "2 workloads are called 'N1000 float32'"),
        ("{ N = 77 }", "{ N = 77 }, scalars = { eps = 1 }", "unknown scalar 'eps'"),
        ("{ N = 77 }", '{ N = 77 }, dtype = "float8"', r"cpu\.held_out\.0\.dtype"),
        ("{ N = 77 }", '{ N = 77 }, dtype = "int32"', "got dtype 'int32', wanted one of float16"),
        ('"3*N*itemsize"', '"3*N*"', "bytes: got the end"),
        ('"3*N*itemsize"', '"3*M"', "bytes: unknown name 'M'"),
        ('shape = ["N"]', 'shape = ["N+"]', "shape of out"),
        ('shape = ["N"]', 'shape = ["N"], dtype = "half"', "out has dtype 'half', wanted one of scalar_t"),
        ('name = "b"', 'name = "a"', "the name 'a' is used 2 times"),
        ('name = "b"', 'name = "b-c"', "'b-c' is no identifier"),
        ('name = "toy"', 'name = "doll"', "name is 'doll', wanted the folder's name 'toy'"),
        ("[cpu]", '[[scalars]]\nname = "eps"\ntype = "float"\n[cpu]', "scalar 'eps' has no value and no default"),
        (
            "[cpu]",
            '[[scalars]]\nname = "n"\ntype = "int"\ndefault = 1.5\n[cpu]',
            "scalar 'n' is 1.5, wanted an int",
        ),
    ],
)
def test_fault_in_the_definition_is_named(toy_folder: Path, old: str, new: str, message: str) -> None:
    edit(toy_folder, old, new)
    with pytest.raises(TaskError, match=message):
        tasks.load(str(toy_folder), "cpu")

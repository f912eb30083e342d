"""How kernels of another task are called differently."""

from pathlib import Path

from prompts.abi import differences
from sandbox.contract import Task, TensorSpec, Workload

OUT = TensorSpec(name="out", shape=("N", "D"))
X, WEIGHT = TensorSpec(name="x", shape=("N", "D")), TensorSpec(name="weight", shape=("D",))


def task(name: str = "norm", **given: object) -> Task:
    fields: dict[str, object] = {
        "version": "1",
        "summary": "",
        "target": "cuda",
        "axes": ("N", "D"),
        "outputs": (OUT,),
        "inputs": (X, WEIGHT),
        "workloads": (Workload(axes={"N": 1, "D": 1}, dtype="float16"),),
        "bytes_moved": "N",
        "flops": "N",
        "folder": Path("/nowhere"),
    }
    return Task.model_validate({"name": name, **fields, **given})


def test_same_parameters_are_no_difference() -> None:
    assert list(differences(task(), task("other"))) == []


def test_parameters_that_one_has_alone_are_named_with_their_types() -> None:
    found = list(differences(task(), task("other", axes=("N", "D", "K"), inputs=(X,))))
    assert found == ["only there: `int64_t K`", "only here: `const scalar_t* weight`"]


def test_input_that_is_an_output_elsewhere_is_named_on_both_sides() -> None:
    found = list(differences(task(), task("other", outputs=(OUT, WEIGHT), inputs=(X,))))
    assert found == ["only there: `scalar_t* weight`", "only here: `const scalar_t* weight`"]


def test_order_shapes_and_dtypes_are_compared() -> None:
    wide = X.model_copy(update={"shape": ("N", "2*D")})
    workload = Workload(axes={"N": 1, "D": 1}, dtype="float32")
    assert list(differences(task(), task("other", inputs=(WEIGHT, wide), workloads=(workload,)))) == [
        "the parameters that both have stand in another order",
        "`x` is [N, 2*D] there, [N, D] here",
        "`scalar_t` is float32 there, float16 here",
    ]

"""Whatever a person gets wrong in params.yaml is said in one line, before any work."""

import copy
import os
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from toycircuits.core.config import (
    InputError,
    Settings,
    at_key,
    exit_on_bad_input,
    experiment_tree,
    find_run,
    read_params,
    read_text,
)


class Inner(Settings):
    rate: float = Field(gt=0)


class Example(Settings):
    count: int = Field(ge=1)
    rate: float
    flag: bool
    kind: Literal["a", "b"]
    pair: tuple[float, float]
    inner: Inner | None


GOOD: dict[str, Any] = {
    **{"count": 3, "rate": 0.5, "flag": True, "kind": "a"},
    **{"pair": [1, 2.5], "inner": {"rate": 1e-3}},
}
NUMBER, INTEGER = "input should be a valid number", "input should be a valid integer"
FINITE, BOOLEAN = "input should be a finite number", "input should be a valid boolean"


def message_of(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_good_values_become_frozen_settings() -> None:
    settings = Example.parse(GOOD, "quick.exp.data")
    assert settings.pair == (1.0, 2.5)
    assert settings.inner == Inner(rate=1e-3)
    with pytest.raises(ValidationError, match="frozen"):
        settings.count = 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"count": 2.0}, f"count: found 2.0; {INTEGER}"),
        ({"count": True}, f"count: found true; {INTEGER}"),
        ({"count": "3"}, f'count: found "3"; {INTEGER}'),
        ({"count": None}, f"count: found null; {INTEGER}"),
        ({"count": 0}, "count: found 0; input should be greater than or equal to 1"),
        ({"rate": "1e-3"}, f'rate: found "1e-3"; {NUMBER}'),
        ({"rate": True}, f"rate: found true; {NUMBER}"),
        ({"rate": float("nan")}, f"rate: found NaN; {FINITE}"),
        ({"rate": float("-inf")}, f"rate: found -Infinity; {FINITE}"),
        ({"flag": 1}, f"flag: found 1; {BOOLEAN}"),
        ({"flag": "true"}, f'flag: found "true"; {BOOLEAN}'),
        ({"kind": "c"}, "kind: found \"c\"; input should be 'a' or 'b'"),
        ({"kind": "two\nlines"}, "kind: found \"two\\nlines\"; input should be 'a' or 'b'"),
        ({"kind": "x" * 99}, f"kind: found \"{'x' * 76}...; input should be 'a' or 'b'"),
        ({"pair": 3}, "pair: found 3; input should be a valid array"),
        ({"pair": [1]}, "pair.1: missing key"),
        ({"pair": [1, "x"]}, f'pair.1: found "x"; {NUMBER}'),
        ({"inner": 3}, "inner: found 3; input should be an object"),
        ({"inner": {}}, "inner.rate: missing key"),
        ({"inner": {"rate": -1}}, "inner.rate: found -1; input should be greater than 0"),
        ({"inner": {"rate": 1, "rat": 2}}, "inner.rat: unknown key"),
        (
            {"cuont": 3},
            "cuont: unknown key; allowed keys: count, rate, flag, kind, pair, inner",
        ),
        ({"count": 0, "flag": 1}, "count: found 0; input should be greater than or equal to 1 "),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(changes: Any, expected: str) -> None:
    with pytest.raises(InputError) as error:
        Example.parse(GOOD | changes, "quick.exp.data")
    expected += "(and 1 more)" if len(changes) == 2 else ""
    assert message_of(error) == f"quick.exp.data.{expected}"


@pytest.mark.parametrize("key", GOOD)
def test_every_key_is_required(key: str) -> None:
    values = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(InputError) as error:
        Example.parse(values, "data")
    assert message_of(error) == f"data.{key}: missing key"


@pytest.mark.parametrize("values", [None, 3, "x", [GOOD]])
def test_a_section_must_be_a_mapping(values: Any) -> None:
    with pytest.raises(InputError, match=r"^data: found .*; input should be an object$"):
        Example.parse(values, "data")


PARAMS: dict[str, Any] = {
    "scale": "quick",
    "experiments": {"exp": {"slice": "some_slice"}},
    "runs": {
        "plain": {"experiment": "exp", "slice": "some_slice", "final": "reports/weights/plain"},
        "changed": {
            **{"experiment": "exp", "slice": "some_slice", "final": "artifacts/changed"},
            **{"model": {"width": 8}, "train": {"steps": 5}},
            "variants": {"deep": {"depth": 4}, "narrow": {"width": 2}, "same": {}},
        },
    },
    "quick": {
        "exp": {
            "data": {"n": 1},
            "model": {"width": 1, "depth": 1},
            "train": {"steps": 1},
        },
    },
    "paper": {"exp": {"data": {"n": 1000}}},
}


class Model(Settings):
    width: int
    depth: int


class Train(Settings):
    steps: int


def params_with(path: str, value: Any) -> dict[str, Any]:
    params = copy.deepcopy(PARAMS)
    *parents, last = path.split("/")
    place = params
    for parent in parents:
        place = place[parent]
    place[last] = value
    return params


@pytest.mark.parametrize(
    ("run", "variant", "expected"),
    [
        ("plain", "", (1, 1)),
        ("changed", "", (8, 1)),
        ("changed", "same", (8, 1)),
        ("changed", "deep", (8, 4)),
        ("changed", "narrow", (2, 1)),  # the variant has the last word
    ],
)
def test_values_of_run_and_variant_are_laid_over_the_experiment(
    run: str, variant: str, expected: tuple[int, int]
) -> None:
    params = copy.deepcopy(PARAMS)
    model = find_run(params, run).section("model", Model, variant)
    assert (model.width, model.depth) == expected
    assert params == PARAMS


def test_a_run_knows_its_variants_and_its_own_training() -> None:
    plain, changed = find_run(PARAMS, "plain"), find_run(PARAMS, "changed")
    assert plain.variants == ("",)
    assert changed.variants == ("deep", "narrow", "same")
    assert (plain.section("train", Train).steps, changed.section("train", Train).steps) == (1, 5)
    assert plain.key == "quick.exp"


@pytest.mark.parametrize(("scale", "steps"), [("quick", 7), ("paper", 5)])
def test_a_run_may_have_values_for_one_scale(scale: str, steps: int) -> None:
    params = params_with("runs/changed/scales", {"quick": {"train": {"steps": 7}}})
    params |= {"scale": scale, "paper": {"exp": {"train": {"steps": 1}}}}
    assert find_run(params, "changed").section("train", Train).steps == steps


def test_a_bad_value_for_one_scale_is_said_to_stand_there() -> None:
    params = params_with("runs/changed/scales", {"quick": {"train": {"steps": "7"}}})
    message = re.escape(
        "quick.exp.train with runs.changed.train with runs.changed.scales.quick.train.steps: "
        'found "7"; '
    )
    with pytest.raises(InputError, match=message):
        find_run(params, "changed").section("train", Train)


def test_scale_chooses_the_tree() -> None:
    assert experiment_tree(PARAMS, "exp")[1]["data"] == {"n": 1}
    at_paper = params_with("scale", "paper")
    assert experiment_tree(at_paper, "exp") == ("paper", {"data": {"n": 1000}})


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("scale", None, "scale: found None; allowed: quick, paper"),
        ("scale", "qiuck", "scale: found 'qiuck'; allowed: quick, paper"),
        ("scale", ["quick"], "scale: found ['quick']; allowed: quick, paper"),
        ("runs", None, "runs: found None; allowed is a mapping of keys to values"),
        ("runs", {"a": {}, 1: {}}, "runs.changed: no such run; there are: a, 1"),
        ("runs/changed", [], "runs.changed: found []; input should be an object"),
        ("runs/changed/slice", 3, "runs.changed.slice: found 3; input should be a valid string"),
        (
            "runs/changed/modle",
            {},
            "runs.changed.modle: unknown key; "
            "allowed keys: model, train, experiment, slice, final, scales, variants",
        ),
        (
            "runs/changed/scales",
            {"papper": {"train": {"steps": 2}}},
            "runs.changed.scales.papper: no such scale; there are: quick, paper",
        ),
        (
            "runs/changed/variants/deep",
            None,
            "runs.changed.variants.deep: found null; input should be an object",
        ),
        ("runs/changed/experiment", "pex", "runs.changed.experiment: found 'pex'; there are: exp"),
        ("quick", {}, "quick.exp: missing key"),
        ("quick/exp", 3, "quick.exp: found 3; allowed is a mapping of keys to values"),
        (
            "quick/exp/modle",
            {},
            "quick.exp.modle: unknown key; allowed: data, model, train, measure, ablate, render",
        ),
        (
            "quick/exp/model",
            None,
            "quick.exp.model: found None; allowed is a mapping of keys to values",
        ),
        (
            "quick/exp/model/wdith",
            3,
            "quick.exp.model with runs.changed.model with runs.changed.variants.deep.wdith: "
            "unknown key; allowed keys: width, depth",
        ),
        (
            "runs/changed/variants/deep/depth",
            4.0,
            "quick.exp.model with runs.changed.model with runs.changed.variants.deep.depth: "
            f"found 4.0; {INTEGER}",
        ),
    ],
)
def test_a_bad_run_is_named(path: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError) as error:
        find_run(params_with(path, value), "changed").section("model", Model, "deep")
    assert message_of(error) == expected


def test_a_bad_value_of_a_run_without_variants_names_the_run_only() -> None:
    params = params_with("runs/plain/model", {"width": "8"})
    with pytest.raises(InputError) as error:
        find_run(params, "plain").section("model", Model)
    assert message_of(error) == f'quick.exp.model with runs.plain.model.width: found "8"; {INTEGER}'


def test_a_missing_section_is_named() -> None:
    with pytest.raises(InputError, match=r"^paper\.exp\.model: missing key$"):
        find_run(params_with("scale", "paper"), "plain").section("model", Model)


def test_yaml_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: 1e-3\nb: on\nc: 1.0\nd: 1\ne: 017\nf: true\ng: no\n")
    values = read_params(path)
    assert values == {"a": 0.001, "b": "on", "c": 1.0, "d": 1, "e": 17, "f": True, "g": "no"}
    assert [type(value) for value in values.values()] == [float, str, float, int, int, bool, str]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1, 2", "not valid YAML"),
        (b"a: 1\na: 2", 'found duplicate key "a"'),
        (b"a: {b: 1, b: 1}", 'found duplicate key "b"'),
        (b"a: 1\n---\nb: 2", "found another document"),
        (b"a: *missing", "line 1: found the anchor or alias 'missing'"),
        (b"a: !!python/object/apply:os.getcwd []", "line 1: found the tag 'tag:yaml.org,2002:"),
        (b"a: 2020-13-45", "not valid YAML"),
        (b"", "found None; allowed is a mapping"),
        (b"- 1", "found [1]; allowed is a mapping"),
        (b"a: \xff", "can't decode byte"),
    ],
)
def test_unreadable_params_are_said_in_one_line(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_params(path)
    assert message_of(error).startswith(f"{path}: ")
    assert expected in message_of(error)


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_absent_params_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as error:
        read_params(tmp_path / name)
    assert message_of(error).startswith(f"{tmp_path / name}: ")


def test_bad_input_ends_with_exit_code_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_bad_input():
        raise InputError("scale: missing key")
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: scale: missing key\n")


def test_errors_of_ours_are_not_taken_for_bad_input() -> None:
    with pytest.raises(KeyError), exit_on_bad_input():
        raise KeyError("a bug")


def test_at_key_completes_the_path() -> None:
    with (
        pytest.raises(InputError, match=r"^quick\.exp\.train\.lr: missing key$"),
        at_key("quick.exp"),
    ):
        raise InputError("train.lr: missing key")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """Git carries links to devices, and reading a device or a pipe may never end."""
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("zero.yaml", "/dev/zero"), ("pipe.yaml", "pipe")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(InputError, match=f"{name}: cannot be read: it is a device, pipe or"):
            read_params(tmp_path / name)
    (tmp_path / "file.yaml").write_text("a: 1")
    (tmp_path / "link.yaml").symlink_to("file.yaml")
    assert read_params(tmp_path / "link.yaml") == {"a": 1}


def test_a_file_is_read_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("abc")
    assert read_text(path, limit=3) == "abc"
    with pytest.raises(InputError, match="cannot be read: found more than 2 bytes; allowed: at"):
        read_text(path, limit=2)
    os.truncate(path, 2**40)  # a sparse file: it takes no room
    with pytest.raises(InputError, match="found more than 4000000 bytes"):
        read_params(path)
    with pytest.raises(InputError, match="found more than 64000000 bytes"):
        read_text(path)

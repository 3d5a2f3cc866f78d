"""Every slice, and the template of new ones, keeps the contract of core/slices.py.

The lists below are typed: mypy checks each module in them against its protocol. The tests check
that no slice is missing from them.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
from imports import SRC, texts
from project import ROOT, python

from toycircuits.commands.template import ablations as template_ablations
from toycircuits.commands.template import model as template_model
from toycircuits.commands.template import task as template_task
from toycircuits.commands.template.figures import draw as template_figures
from toycircuits.commands.template.metrics import measure as template_metrics
from toycircuits.core import analyses, slices
from toycircuits.core.config import InputError, Settings, TaskSettings
from toycircuits.experiments.linear_regression import ablations as linear_regression_ablations
from toycircuits.experiments.linear_regression import model as linear_regression_model
from toycircuits.experiments.linear_regression import task as linear_regression_task
from toycircuits.experiments.linear_regression.figures import draw as linear_regression_figures
from toycircuits.experiments.linear_regression.metrics import measure as linear_regression_metrics
from toycircuits.experiments.list_copy import ablations as list_copy_ablations
from toycircuits.experiments.list_copy import model as list_copy_model
from toycircuits.experiments.list_copy import task as list_copy_task
from toycircuits.experiments.list_copy.figures import draw as list_copy_figures
from toycircuits.experiments.list_copy.metrics import measure as list_copy_metrics
from toycircuits.experiments.modular_arithmetic import ablations as modular_arithmetic_ablations
from toycircuits.experiments.modular_arithmetic import model as modular_arithmetic_model
from toycircuits.experiments.modular_arithmetic import task as modular_arithmetic_task
from toycircuits.experiments.modular_arithmetic.figures import draw as modular_arithmetic_figures
from toycircuits.experiments.modular_arithmetic.metrics import measure as modular_arithmetic_metrics
from toycircuits.experiments.reverse_increment import ablations as reverse_increment_ablations
from toycircuits.experiments.reverse_increment import model as reverse_increment_model
from toycircuits.experiments.reverse_increment import task as reverse_increment_task
from toycircuits.experiments.reverse_increment.figures import draw as reverse_increment_figures
from toycircuits.experiments.reverse_increment.metrics import measure as reverse_increment_metrics

TASKS: list[slices.Task] = [
    linear_regression_task,
    list_copy_task,
    modular_arithmetic_task,
    reverse_increment_task,
    template_task,
]
MODELS: list[slices.Model] = [
    linear_regression_model,
    list_copy_model,
    modular_arithmetic_model,
    reverse_increment_model,
    template_model,
]
METRICS: list[analyses.Metrics] = [
    linear_regression_metrics,
    list_copy_metrics,
    modular_arithmetic_metrics,
    reverse_increment_metrics,
    template_metrics,
]
ABLATIONS: list[analyses.Ablations] = [
    linear_regression_ablations,
    list_copy_ablations,
    modular_arithmetic_ablations,
    reverse_increment_ablations,
    template_ablations,
]
FIGURES: list[analyses.Figures] = [
    linear_regression_figures,
    list_copy_figures,
    modular_arithmetic_figures,
    reverse_increment_figures,
    template_figures,
]
SLICES = sorted(path.parent.name for path in SRC.glob("toycircuits/experiments/*/__init__.py"))
# By the function that loads such modules: their protocol, the modules, and their name in a slice.
KINDS: dict[str, tuple[Callable[[str], Any], type, Sequence[Any], str]] = {
    "task": (slices.load_task, slices.Task, TASKS, "task"),
    "model": (slices.load_model, slices.Model, MODELS, "model"),
    "metrics": (analyses.load_metrics, analyses.Metrics, METRICS, "metrics.measure"),
    "ablations": (analyses.load_ablations, analyses.Ablations, ABLATIONS, "ablations"),
    "figures": (analyses.load_figures, analyses.Figures, FIGURES, "figures.draw"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_slice_on_disk_is_checked_and_loaded(kind: str) -> None:
    load, _, modules, name = KINDS[kind]
    assert [load(slice_name) for slice_name in SLICES] == modules[:-1]
    loaded = [f"toycircuits.experiments.{slice_name}.{name}" for slice_name in SLICES]
    expected = [*loaded, f"toycircuits.commands.template.{name}"]
    assert [module.__name__ for module in modules] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_modules_define_what_their_protocol_names(kind: str) -> None:
    """The names of arguments, too: stages may pass any of them by name."""
    _, protocol, modules, _ = KINDS[kind]
    members = {name: value for name, value in vars(protocol).items() if not name.startswith("_")}
    assert members
    for module in modules:
        for name, member in members.items():
            defined = getattr(module, name)
            if isinstance(member, property):
                assert issubclass(defined, Settings), (module, name)
                continue
            _, *expected = inspect.signature(member).parameters  # the first is self
            assert [*inspect.signature(defined).parameters][: len(expected)] == expected, module


@pytest.mark.parametrize("module", METRICS, ids=lambda module: module.__name__)
def test_a_table_of_the_start_takes_what_the_stage_passes(module: ModuleType) -> None:
    if start := getattr(module, "training_start", None):
        names = [*inspect.signature(start).parameters]
        assert names == ["data", "task", "train", "model"]


@pytest.mark.parametrize("module", TASKS, ids=lambda module: module.__name__)
def test_settings_of_data_describe_the_task(module: slices.Task) -> None:
    assert issubclass(module.DataSettings, TaskSettings)
    for name in ("shapes", "metrics"):
        assert getattr(module.DataSettings, name) is not getattr(TaskSettings, name)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_slice_is_named(kind: str) -> None:
    load = KINDS[kind][0]
    with pytest.raises(InputError) as error:
        load("induction")
    text = "slice: found 'induction'; there is no such folder under toycircuits/experiments"
    assert str(error.value) == text


def test_a_missing_library_is_not_taken_for_a_missing_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="scipy"):
        slices.load_task("list_copy")


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("list_copy.ablations", "toycircuits/experiments/list_copy/ablations: missing"),
        ("list_copy.metrics", "toycircuits/experiments/list_copy/metrics: missing"),
        ("list_copy.metrics.measure", "toycircuits/experiments/list_copy/metrics/measure: missing"),
    ],
)
def test_a_missing_module_of_a_slice_is_named(
    monkeypatch: pytest.MonkeyPatch, missing: str, text: str
) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError(name=f"toycircuits.experiments.{missing}")

    monkeypatch.setattr("importlib.import_module", fail)
    load = analyses.load_metrics if "metrics" in missing else analyses.load_ablations
    with pytest.raises(InputError, match=text):
        load("list_copy")


def test_what_a_slice_imports_is_not_taken_for_the_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError(name="toycircuits.core.nothing")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ModuleNotFoundError):
        slices.load_task("list_copy")


def test_the_contract_needs_neither_torch_nor_pandas() -> None:
    code = "import sys, toycircuits.core.slices; print({'torch', 'pandas'} & {*sys.modules})"
    assert python(SRC, "-c", code, PYTHONPATH=str(SRC)).strip() == "set()"


def imports_by_name(text: str) -> list[str]:
    """The calls in `text` that import a module whose name is built at run time."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")
        and not (node.args and isinstance(node.args[0], ast.Constant))
    ]


def test_imports_by_name_are_seen() -> None:
    text = "importlib.import_module(f'a.{b}')\nimport_module(name)\n__import__(name)\n"
    assert len(imports_by_name(text)) == 3
    assert imports_by_name("importlib.import_module('torch')\nrun(name)\n") == []


def test_the_only_import_of_a_slice_by_name_is_in_the_contract() -> None:
    """The scheduler imports optional libraries by name, but knows nothing of toycircuits."""
    by_name = {
        path: imports_by_name(text)
        for path, text in texts().items()
        if not path.startswith("src/dvc_parallel/")
    }
    where = {path: calls for path, calls in by_name.items() if calls}
    assert where == {
        "src/toycircuits/core/slices.py": [
            "importlib.import_module(f'{PACKAGE}.{slice_name}.{module}')"
        ]
    }


def test_the_outline_of_a_model_does_not_load_the_compiler() -> None:
    """It would take seconds in each stage that reads weights."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from toycircuits.core.trained_models import load_final_models\n"
        "for file in sorted(Path('reports/weights').glob('*.safetensors')):\n"
        "    [*load_final_models(file, torch.device('cpu'))]\n"
        "print('torch._dynamo' in sys.modules)"
    )
    fast = "from toycircuits.core.fast_import import import_transformer_lens as f; f(); "
    assert python(ROOT, "-c", fast + code, PYTHONPATH=str(SRC)).strip() == "False"

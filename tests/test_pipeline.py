"""The pipeline as a whole: what dvc.yaml declares is what happens, and no more than needed runs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from imports import SRC, graph, module_name, texts
from project import PARAMS, ROOT, Project, python
from ruamel.yaml import YAML

SLICES = sorted(path.parent.name for path in SRC.glob("toycircuits/experiments/*/task.py"))
# The modules of a slice's contract, by the function of core/slices.py that imports them.
SLICE_MODULES = {
    **{"task": "task", "model": "model", "ablations": "ablations"},
    **{"metrics": "metrics.measure", "figures": "figures.draw"},
}
RELEASES = {f"release@{name}" for name in PARAMS["released"]}
PICTURES = ".resume/pictures"  # those last drawn, by what they were drawn from
STAGES = {path.stem: path for path in sorted((ROOT / "stages").glob("*.py"))}

# A slice may have an architecture of its own; dvc.yaml cannot say which slices have.
OF_TRANSFORMERS = ("fast_attention", "fast_form", "plans", "products", "rows", "transformer")
OPTIONAL = {f"src/toycircuits/core/{name}.py" for name in OF_TRANSFORMERS}


FILES = texts()
IMPORTS = graph(FILES)
PATHS = {module_name(path): path for path in FILES}
INITS = {path for path, text in FILES.items() if path.endswith("__init__.py") and not text}


def closure(path: str, slice_name: str) -> set[str]:
    """Files of the project that run when the stage in `path` runs, itself among them.

    Slices are imported by name, through the functions `load_*` of core/slices.py.
    """
    seen, todo = set[str](), [module_name(path)]
    while todo:
        if (module := todo.pop()) not in PATHS or module in seen:
            continue
        seen.add(module)
        todo += [*IMPORTS[module], module.partition(".")[0]]  # the package's own __init__.py
        loaded = re.findall(
            r"(?<!def )\bload_(task|model|metrics|ablations|figures)\(", FILES[PATHS[module]]
        )
        todo += [f"toycircuits.experiments.{slice_name}.{SLICE_MODULES[name]}" for name in loaded]
    return {PATHS[module] for module in seen} - INITS


def stages_of_dvc_yaml() -> dict[str, dict[str, Any]]:
    """Each stage of dvc.yaml, its `foreach` body taken out."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def code_of(dep: str) -> set[str]:
    """The Python files that a dep stands for: itself, or those of a folder."""
    return {path for path in FILES if path == dep or path.startswith(f"{dep}/")} - INITS


@pytest.mark.parametrize("slice_name", SLICES)
@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_equal_the_import_closure(stage: str, slice_name: str) -> None:
    deps = stages_of_dvc_yaml()[stage]["deps"]
    code = [
        d.replace("${item.slice}", slice_name) for d in deps if d.startswith(("src/", "stages/"))
    ]
    declared = set().union(*map(code_of, code))
    needed = closure(f"stages/{stage}.py", slice_name)
    assert declared in (needed, needed | OPTIONAL)


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_sections_that_the_stage_reads(stage: str) -> None:
    declared = set(stages_of_dvc_yaml()[stage].get("params", []))
    text = STAGES[stage].read_text()
    text += (SRC / "toycircuits/core/render.py").read_text() if stage == "render" else ""
    text += (SRC / "toycircuits/core/train_run.py").read_text() if stage == "train" else ""
    name = "${key}" if "read_section" in text else "${item.experiment}"
    sections = re.findall(r'section\((?:params, experiment, )?"(\w+)"', text)
    read = {f"${{scale}}.{name}.{section}" for section in sections}
    if sections:
        read.add("scale")
    if " pin(" in text:
        read |= {"portable.${scale}", "scale"}
    if "find_run" in text:
        read.add("runs.${key}")
    if "find_slice" in text:
        read.add("experiments.${key}.slice")
    if "runs_of" in text:
        read.add("experiments.${key}.runs")
    read |= {
        "judge": {"scale"},
        "section": {"runs", "scale", "${scale}.${key}"},
        "report": {"experiments", "released", "runs", "scale", "${scale}"},
    }.get(stage, set())
    assert read or stage == "release"
    assert declared == read


def test_every_stage_says_what_it_does_and_is_tested() -> None:
    stages = stages_of_dvc_yaml()
    assert set(stages) == set(STAGES)
    assert all(stage["desc"] for stage in stages.values())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The copy, after one run of everything."""
    copy = Project(tmp_path_factory.mktemp("pipeline") / "project")
    # No byte depends on how many threads there are. Those of OpenBLAS are not to spin meanwhile.
    ran = copy.repro(OMP_NUM_THREADS="2", OPENBLAS_THREAD_TIMEOUT="4")
    verbs = ("generate", "render", "judge", "section")
    experiments = {f"{verb}@{name}" for verb in verbs for name in PARAMS["experiments"]}
    runs = {
        f"{stage}@{name}" for stage in ("train", "measure", "ablate") for name in PARAMS["runs"]
    }
    assert ran == experiments | runs | RELEASES | {"report"}
    return copy


@pytest.mark.slow
def test_nothing_runs_twice(project: Project) -> None:
    assert project.repro() == set()


@pytest.mark.slow
def test_two_at_a_time_in_another_order_leave_the_same_bytes(
    project: Project, tmp_path: Path
) -> None:
    """All experiments, by forks of a warm interpreter: as `dvc repro` leaves them, lock and all.

    Except for the records of what ran where, which `dvc repro` does not keep, and the page, which
    shows them. Pictures are drawn only where the figure is not the same, for time's sake.
    """
    parallel = Project(tmp_path / "parallel")
    shutil.copytree(project.folder / PICTURES, parallel.folder / PICTURES)
    code, _, err = parallel.run("toycircuits", "repro", "-j", "2")
    assert code == 0, err
    assert len(project.results()) > 150
    results, locks = [], []
    for copy in (parallel, project):
        results.append(copy.results())
        lock = YAML(typ="safe").load((copy.folder / "dvc.lock").read_text())["stages"]
        assert [*lock][-1] == "report"
        locks.append([entry for entry in lock.items() if entry[0] != "report"])
    assert results[0] == results[1]
    assert locks[0] == locks[1]
    recorded = json.loads((parallel.folder / "reports/stages.json").read_text())
    assert {*recorded} == {name for name, _ in locks[0]}
    assert parallel.repro() == set()
    # A fork's interpreter started before it knew of its stage, so that the audit missed it.
    assert 2 <= len(list(parallel.audit.glob("*.json"))) < len(list(project.audit.glob("*.json")))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PARAMS["experiments"])
def test_every_experiment_leaves_tables_metrics_and_figures(
    project: Project, experiment: str
) -> None:
    reports = project.folder / "reports" / experiment
    for run in (name for name, run in PARAMS["runs"].items() if run["experiment"] == experiment):
        tables = reports / "tables" / run
        assert (tables / "training.csv").read_text().count("\n") > 1
        assert (tables / "ablations.csv").read_text().count("\n") > 1
        assert (tables / "measure/metrics.csv").read_text().count("\n") > 1
    drawn = {path.stem for path in (project.folder / f"artifacts/figures/{experiment}").iterdir()}
    pictures = {path.stem for path in (reports / "figures").iterdir()}
    assert drawn
    assert pictures in (drawn, {"NOT_DRAWN"})


@pytest.mark.slow
def test_stages_open_the_files_that_they_declare(project: Project) -> None:
    """At run time, too: no undeclared read or write, and no idle code dep."""
    lock = YAML(typ="safe").load((project.folder / "dvc.lock").read_text())["stages"]
    for name, stage in lock.items():
        log = project.log(name)
        read, written = set(log["read"]), set(log["written"])
        deps = {dep["path"] for dep in stage["deps"]}
        outs = {out["path"] for out in stage["outs"]}
        unknown = {
            file for file in read if not under(file, deps | outs | {"params.yaml", ".resume"})
        }
        unknown = {file for file in unknown if not re.search(r"__init__\.py$|__pycache__", file)}
        assert unknown == set(), name
        assert {file for file in written if not under(file, outs | {".resume"})} == set(), name
        assert {dep for dep in deps if dep.endswith(".py")} - read <= OPTIONAL, name


@pytest.mark.slow
def test_stages_import_nothing_heavy_that_they_do_not_need(project: Project) -> None:
    for log in project.audit.glob("*.json"):
        modules = set(json.loads(log.read_text())["modules"])
        assert not modules & {"transformers", "datasets", "torch._dynamo"}, log.stem
        without = log.stem.startswith(("render", "judge", "section", "report"))
        assert ("torch" in modules) == (not without), log.stem
        assert "sklearn" not in modules or log.stem == "measure@list_copy_10", log.stem


def under(file: str, paths: set[str]) -> bool:
    return any(file == path or file.startswith(f"{path}/") for path in paths)


@pytest.mark.slow
def test_stages_import_the_code_of_their_own_tree(project: Project) -> None:
    """Not that of the installed package: DVC's temporary experiments run in another folder."""
    installed = python(ROOT.parent, "-c", "import toycircuits; print(toycircuits.__file__)")
    assert not Path(installed.strip()).is_relative_to(project.folder)
    for log in project.audit.glob("*.json"):
        code = [Path(file) for file in json.loads(log.read_text())["code"]]
        assert code, log.stem
        assert all(file.is_relative_to(project.folder / "src") for file in code), log.stem


# --- edits; each comes on top of those before ---


@pytest.mark.slow
def test_an_edited_figure_reruns_only_the_rendering_of_its_slice(project: Project) -> None:
    folder = project.folder / "src/toycircuits/experiments/modular_arithmetic/figures"
    title = 'title="Loss over training"'
    (path,) = [path for path in folder.glob("*.py") if title in path.read_text()]
    path.write_text(path.read_text().replace(title, 'title="Loss while training"'))
    name = "modular_subtraction"
    assert project.repro() == {f"render@{name}", f"section@{name}", "report"}


@pytest.mark.slow
def test_a_changed_hyperparameter_reruns_only_what_depends_on_it(project: Project) -> None:
    params = project.read_params()
    params["quick"]["modular_subtraction"]["train"]["weight_decay"] = 0.125
    project.write_params(params)
    verbs = ("train", "release", "measure", "ablate", "render", "judge", "section")
    assert project.repro() == {f"{verb}@modular_subtraction" for verb in verbs} | {"report"}

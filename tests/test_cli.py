"""The command line: what help costs and teaches, what each kind of failure exits with, what scripts read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner, Result

from pose import config_loading
from pose.cli import app
from pose.config import ROOT
from pose.errors import ConfigError, DataError, ExportError, RegistryError, TrainingError
from pose.skeleton import LSP14
from pose.systems import SYSTEMS, create

HEAVY = ("torch", "mlflow", "ray", "prefect", "dvc", "onnxruntime", "matplotlib", "numpy", "pydantic")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def pose(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pose.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def commands() -> list[tuple[str, ...]]:
    """Every command by its words."""
    found: list[tuple[str, ...]] = []

    def walk(command, words: tuple[str, ...]) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            found.append(words)
            return
        for name, child in children.items():
            walk(child, (*words, name))

    walk(get_command(app), ())
    return found


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with params.yaml and profiles of its own, for commands that write beside them."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["demo"]["synthetic"] |= {"images": 24, "width": 64, "height": 64}
    params["data"]["demo"]["crop"]["size"] = 48
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    profiles = tmp_path / "infra" / "profiles"
    profiles.mkdir(parents=True)
    for path in (ROOT / "infra/profiles").glob("*.yaml"):
        (profiles / path.name).write_text(path.read_text())
    monkeypatch.setattr("pose.config.ROOT", tmp_path)
    # MLflow leaves the address it was last told in the environment, for its children.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


# ---------------------------------------------------------------- help


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom pose.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command() -> None:
    text = invoke("--help").output
    expected = {"data", "systems", "config", "train", "train-all", "evaluate", "export", "predict", "registry"}
    assert expected <= set(re.findall(r"^│ ([\w-]+) ", text, flags=re.MULTILINE))


def test_commands_are_those_that_are_promised() -> None:
    assert set(commands()) == {
        ("data", "fetch"), ("data", "prepare"), ("data", "check"), ("data", "preview"),
        ("systems", "list"), ("systems", "show"), ("config", "show"), ("config", "check"),
        ("train",), ("train-all",), ("evaluate",), ("export",), ("import",), ("predict",),
        *(("registry", name) for name in ("list", "show", "promote", "rollback", "history", "trace", "sync")),
    }  # fmt: skip


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_help_has_an_example_that_parses(words: tuple[str, ...]) -> None:
    """The example's own command exists and every option in it is one the command has."""
    command = get_command(app)
    for word in words:
        command = command.commands[word]
    help_text = command.help or ""
    example = re.search(r"Example:\s+`(.+?)`", help_text, flags=re.DOTALL)
    assert example is not None, f"{' '.join(words)} has no example"
    text = example[1]
    assert f"pose {' '.join(words)}" in text
    options = {name for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", text)) <= options


# ---------------------------------------------------------------- exit codes


def test_exit_codes_differ_by_kind() -> None:
    kinds = (ConfigError, DataError, TrainingError, ExportError, RegistryError)
    assert [kind.exit_code for kind in kinds] == [2, 3, 4, 5, 6]


def test_expected_failure_is_one_paragraph_and_its_code() -> None:
    done = pose("data", "fetch", "lspett")
    assert done.returncode == ConfigError.exit_code
    assert done.stdout == ""
    assert re.fullmatch(r"ConfigError: unknown dataset 'lspett'; [^\n]*did you mean 'lspet'\?\)\n", done.stderr)


def test_unexpected_failure_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(config_loading, "load", broken)
    with pytest.raises(ZeroDivisionError):
        invoke("config", "show")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("config", "show", "--profile", "demoo"), 2, "did you mean 'demo'"),
        (("config", "show", "--set", "training.precison=bf16"), 2, "did you mean 'precision'"),
        (("config", "show", "--set", "training.precision=fp8"), 2, "training.precision is 'fp8'"),
        (("config", "show", "systems.vgg18"), 2, "no key 'vgg18' under systems"),
        (("config", "show", "seed.deeper"), 2, "it is a single value"),
        (("systems", "show", "vgg18"), 2, "did you mean vgg19?"),
        (("train", "vgg18"), 2, "unknown architecture 'vgg18'"),
        (
            ("train", "alphapose", "--set", "systems.alphapose.proposals.detections=detector"),
            2,
            "systems.alphapose.proposals.detections is 'detector'",
        ),
        (("data", "preview", "demo", "--split", "training"), 2, "Invalid value for '--split'"),
        (("predict", "nothing-*.jpg", "--model", "m"), 2, "'nothing-*.jpg' names no picture"),
    ],
)
def test_impossible_requests_are_named(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == code
    assert words in " ".join(result.stderr.split())


def test_unknown_option_is_refused() -> None:
    assert invoke("systems", "list", "--jsn").exit_code == 2


# ---------------------------------------------------------------- configuration and systems


def test_config_show_is_what_a_run_would_use() -> None:
    shown = json.loads(invoke("config", "show", "--profile", "demo", "--set", "seed=21", "--json").stdout)
    assert shown == config_loading.load("demo", ["seed=21"]).model_dump(mode="json")
    part = yaml.safe_load(invoke("config", "show", "training.checkpoint", "--profile", "demo").stdout)
    assert part == shown["training"]["checkpoint"]


def test_config_check_finds_the_bad_profile(elsewhere: Path) -> None:
    (elsewhere / "infra/profiles/bad.yaml").write_text("training: {loader_treads: 2}\n")
    result = invoke("config", "check", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 2
    assert {name for name, error in found.items() if error is not None} == {"bad"}
    assert "training.loader_treads" in found["bad"]
    (elsewhere / "infra/profiles/bad.yaml").unlink()
    assert invoke("config", "check").exit_code == 0


def test_systems_list_counts_for_the_joints_asked_for() -> None:
    fourteen = {card["name"]: card for card in json.loads(invoke("systems", "list", "--json").stdout)}
    assert list(fourteen) == list(config_loading.load().systems)
    assert fourteen["vgg16_regressor"]["parameters"] == 27_583_068
    seventeen = json.loads(invoke("systems", "show", "vgg16_regressor", "--joints", "17", "--json").stdout)
    # Three more joints are six more outputs of a layer with 512 inputs and a bias.
    assert seventeen["parameters"] - 27_583_068 == 6 * 513
    assert seventeen["macs"] - fourteen["vgg16_regressor"]["macs"] == 6 * 512


# ---------------------------------------------------------------- data


def test_data_goes_from_nothing_to_a_picture(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("data", "fetch", "demo").exit_code == 0
    assert (elsewhere / "data/raw/demo/demo.zip").is_file()
    assert invoke("data", "prepare", "demo").exit_code == 0
    counts = {s: len(json.loads((elsewhere / f"data/prepared/demo/{s}.json").read_text())["images"])
              for s in ("train", "val", "test")}  # fmt: skip
    assert sum(counts.values()) == 24
    checked = invoke("data", "check", "demo", "--json", "--sheet", str(elsewhere / "worst.png"))
    assert checked.exit_code == 0
    assert isinstance(json.loads(checked.stdout), dict)
    assert (elsewhere / "worst.png").is_file()
    picture = elsewhere / "seen.png"
    assert invoke("data", "preview", "demo", "--profile", "demo", "--out", str(picture)).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    drawn: list[tuple] = []
    monkeypatch.setattr("pose.data.preview.sheet", lambda *given: drawn.append(given))
    assert invoke("data", "preview", "demo", "--system", "deeppose", "--out", str(picture)).exit_code == 0
    assert drawn[0][-1] == SYSTEMS["deeppose"].preview


def test_preparing_what_was_not_fetched_says_what_to_do(elsewhere: Path) -> None:
    result = invoke("data", "prepare", "demo")
    assert result.exit_code == DataError.exit_code
    assert "pose data fetch demo" in " ".join(result.stderr.split())


# ---------------------------------------------------------------- registry


def test_empty_registry_is_an_empty_list(elsewhere: Path) -> None:
    assert json.loads(invoke("registry", "list", "--json").stdout) == []
    missing = invoke("registry", "trace", "pose-nothing@champion")
    assert missing.exit_code == RegistryError.exit_code
    assert "pose-nothing" in missing.stderr


# ---------------------------------------------------------------- official weights


def test_a_release_becomes_a_bundle_that_answers_as_it_does(elsewhere: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from pose.decoding.settling import from_json
    from pose.inference.weights import trained
    from pose.official import taken_over

    small = {"depth": 18, "input_size": [64, 64], "deconvolutions": [8], "flip_test": True}
    params = yaml.safe_load((elsewhere / "params.yaml").read_text())
    params["systems"]["simple_baseline"] |= small
    params["export"] |= {"parity_images": 4, "latency_runs": 1, "tolerance_px": 32}
    (elsewhere / "params.yaml").write_text(yaml.safe_dump(params))
    for word in ("fetch", "prepare"):
        assert invoke("data", word, "demo").exit_code == 0
    block = config_loading.load(root=elsewhere).systems["simple_baseline"]
    torch.manual_seed(0)
    theirs = create("simple_baseline", block, LSP14).network
    torch.nn.init.normal_(theirs.final_layer.weight, std=1.0)
    buffers = ("input_gain", "input_shift")
    state = {f"module.{key}": value for key, value in theirs.state_dict().items() if key not in buffers}
    release, out = elsewhere / "release.pth.tar", elsewhere / "bundle"
    torch.save({"epoch": 140, "state_dict": state}, release)

    done = invoke("import", "simple_baseline", str(release), "--out", str(out), "--dataset", "demo", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["parity_images"] > 0
    ours, wanted = trained(out).system, taken_over("simple_baseline", block, LSP14, str(release))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.network(images)["maps"], wanted.network(images)["maps"])
        assert torch.equal(ours.joints(ours.network(images)).keypoints, wanted.joints(wanted.network(images)).keypoints)
    settled = from_json(json.loads((out / "model.json").read_text())["settling"])
    assert settled == wanted.settling == ours.settling
    assert settled.name == "oks 0.9, released"

    once = ("--dataset", "demo", "--set", "systems.simple_baseline.flip_test=false")
    assert invoke("export", str(out), "--out", str(elsewhere / "quick"), *once).exit_code == 0
    assert json.loads((elsewhere / "quick" / "model.json").read_text())["params"]["flip_test"] is False
    single = trained(elsewhere / "quick").system
    with torch.no_grad():
        assert not torch.equal(single.network(images)["maps"], wanted.network(images)["maps"])
    figures = [
        json.loads(invoke("evaluate", str(model), *words, "--json").stdout)["pck_image_12"]
        for model, words in ((out, once), (elsewhere / "quick", once[:2]), (out, once[:2]))
    ]
    assert figures[0] == figures[1] != figures[2]
    tried = invoke("evaluate", str(out), *once, "--json", "--out", str(elsewhere / "tried"))
    assert json.loads(tried.stdout)["overrides"] == [once[-1]]
    assert json.loads((elsewhere / "tried" / "overrides.json").read_text()) == [once[-1]]
    assert invoke("evaluate", str(out), *once[:2], "--out", str(elsewhere / "tried")).exit_code == 0
    assert not (elsewhere / "tried" / "overrides.json").exists()
    assert f"evaluated with {once[-1]}, not with the model's own numbers" in " ".join(tried.stderr.split())
    for words in (("evaluate", str(out)), ("export", str(out), "--out", str(elsewhere / "other"))):
        fixed = invoke(*words, "--dataset", "demo", "--set", "systems.simple_baseline.depth=34")
        assert fixed.exit_code == ConfigError.exit_code
        said = " ".join(fixed.stderr.split())
        assert "depth=34 would change nothing" in said
        assert "of simple_baseline flip_test can be set; leave it away, or train or import again" in said

    weights = load_file(elsewhere / "quick" / "model.safetensors")
    weights["final_layer.bias"][3] = float("nan")
    save_file(weights, elsewhere / "quick" / "model.safetensors")
    damaged = invoke("evaluate", str(elsewhere / "quick"), *once[:2])
    assert damaged.exit_code == TrainingError.exit_code
    said = " ".join(damaged.stderr.split())
    assert "weights of simple_baseline hold values that are not numbers, the first final_layer.bias" in said

    strange = invoke("import", "baseline1", str(release), "--out", str(elsewhere / "other"), "--dataset", "demo")
    assert strange.exit_code == ConfigError.exit_code
    assert "no official release" in strange.stderr
    release.write_bytes(b"no checkpoint")
    broken = invoke("import", "simple_baseline", str(release), "--out", str(elsewhere / "other"), "--dataset", "demo")
    assert broken.exit_code == TrainingError.exit_code
    assert str(release) in "".join(broken.stderr.split("\n"))


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "a.jpg", "-m", "folder"),
        ("registry", "promote", "pose-any", "1"),
    ],
    ids=lambda words: words[0],
)
def test_numbers_of_a_trained_system_cannot_be_set(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(elsewhere)
    Path("a.jpg").touch()
    given = "systems.simple_baseline.flip_test=false"
    result = invoke(*words, "--set", "evaluation.split=val", "--set", given)
    assert result.exit_code == ConfigError.exit_code
    said = " ".join(result.stderr.split())
    assert f"--set {given} would change nothing" in said
    assert "train or import again" in said


def test_evaluate_takes_the_detections_of_the_params_unless_it_is_given_others(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[Path | None] = []

    def noted(folder: Path, dataset: str, params: object, detections: Path | None, overrides: object) -> None:
        evaluated.append(detections)
        raise DataError("enough")

    monkeypatch.setattr("pose.commands.models.evaluate_folder", noted)
    monkeypatch.setattr("pose.commands.models._require_boxes_to_be_of_use", lambda *_: None)
    ours, theirs = elsewhere / "ours.json", elsewhere / "theirs.json"
    ours.write_text("[]")
    configured = ("--set", f"evaluation.detections={ours}")
    for words in ((), configured, (*configured, "--detections", str(theirs))):
        assert invoke("evaluate", "folder", *words).exit_code == DataError.exit_code
    assert evaluated == [None, ours, theirs]


def test_numbers_of_a_models_use_are_held_against_the_model_alone(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def noted(folder: Path, dataset: str, params: object, detections: object, overrides: list[str]) -> None:
        given.append(overrides)
        raise DataError("enough")

    monkeypatch.setattr("pose.commands.models.evaluate_folder", noted)
    flips = "systems.kapao.test_flips=[false, true, false]"  # params.yaml has one scale, the model may have three
    assert invoke("evaluate", "folder", "--set", flips, "--set", "seed=3").exit_code == DataError.exit_code
    assert given == [[flips]]


@pytest.mark.parametrize(
    ("scene", "dataset", "said"), [(True, "crowd", "finds people by itself"), (False, "lspet", "in the whole image")]
)
def test_detections_that_evaluate_cannot_use_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scene: bool, dataset: str, said: str
) -> None:
    monkeypatch.setattr("pose.inference.choice.system_of", lambda folder: ("openpose", scene))
    monkeypatch.setattr("pose.commands.models.model_folder", lambda *_: tmp_path)
    words = ["evaluate", "models:/any@champion", "--dataset", dataset, "--detections", str(tmp_path / "boxes.json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == ConfigError.exit_code
    assert said in " ".join(result.stderr.split())

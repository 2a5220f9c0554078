"""Check Dockerfiles, compose file and manifests for form: nothing here can build or start them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[3]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
SCRIPTS = [*sorted((ROOT / "docker").glob("*.sh")), *sorted((ROOT / "deploy" / "slurm").iterdir())]
JOB = ROOT / "deploy" / "kubernetes" / "indexed-job.yaml"
ids = {"ids": lambda path: path.name}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", DOCKERFILES, **ids)
def test_images_keep_to_the_rules(path: Path) -> None:
    """Two stages, no compiler and no root in the second, doctor as health check, labels of OCI."""
    build, runtime, *_ = re.split(r"^FROM ", path.read_text(), flags=re.MULTILINE)[1:]
    assert "g++" in build and "g++" not in runtime and "devel" not in runtime
    assert re.findall(r"^USER (.*)", runtime, re.MULTILINE)[-1] == "10001"
    assert re.search(r'^HEALTHCHECK .*CMD \["gsdist", "doctor"\]$', runtime, re.MULTILINE)
    for name in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{name}=" in runtime
    for script in re.findall(r"(?:docker|/scripts)/(\w+\.sh)", path.read_text()):
        assert (ROOT / "docker" / script).stat().st_mode & 0o100
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and f"ARG VERSION={version[1]}\n" in runtime


def test_the_image_without_a_target_is_not_the_lab() -> None:
    last = (ROOT / "docker" / "cpu.Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert last.strip() == "runtime"


@pytest.mark.parametrize("path", DOCKERFILES, **ids)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    command = [
        str(hadolint),
        "--failure-threshold",
        "warning",
        "--config",
        ".hadolint.yaml",
        str(path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, **ids)
def test_scripts_parse(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=20)


def commands() -> list[list[str]]:
    """Return every `gsdist train` command line in scripts and manifests, from its workload on."""
    found = []
    for path in SCRIPTS:
        text = path.read_text().replace("\\\n", " ")
        found += [shlex.split(line) for line in re.findall(r"-m gsdist train (.*)", text)]
    for document in (d for path in MANIFESTS for d in documents(path)):
        found += [args[args.index("train") + 1 :] for args in _arguments(document)]
    return found


def _arguments(node: Any) -> list[list[str]]:
    if isinstance(node, dict):
        own = [node["args"]] if "train" in node.get("args", []) else []
        return own + [args for value in node.values() for args in _arguments(value)]
    return [a for value in node for a in _arguments(value)] if isinstance(node, list) else []


def test_their_commands_are_understood() -> None:
    from gsdist.cli.train import parse

    assert len(commands()) == 6
    for workload, *options in commands():
        parse(workload, options)


def test_the_job_is_valid_for_kubernetes() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for document in documents(JOB):
        validate.validate(document, "1.33", strict=True)


@pytest.mark.parametrize("path", MANIFESTS, **ids)
def test_manifests_have_kind_version_and_name(path: Path) -> None:
    for document in documents(path):
        assert document["metadata"]["name"] == "gsdist"
        assert re.fullmatch(r"([\w.]+/)?v\d(\w*\d)?", document["apiVersion"]), document["kind"]


def test_the_nodes_of_the_demo_differ_in_rank_only() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    assert [one.pop("command") for one in services.values()] == [["0"], ["1"]]
    services["node1"].pop("depends_on")
    assert services["node0"] == services["node1"]
    assert services["node0"]["cap_add"] == ["NET_ADMIN"]

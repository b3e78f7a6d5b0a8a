"""The Dockerfile's form. That it builds and serves is seen by deploy/container/build.sh."""

import re
import subprocess
from pathlib import Path

from support.tools import tool

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def test_hadolint_is_content() -> None:
    run = subprocess.run(
        [tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_run_time_is_not_root_and_in_exec_form() -> None:
    text = DOCKERFILE.read_text()
    for target in ("cpu", "cuda"):
        assert _user(text, target) == "10001:0"
    assert re.search(r'^ENTRYPOINT \["/usr/bin/tini", "--", ', text, re.M)
    assert re.search(r'CMD \["tiercel", "healthcheck"\]', text)
    labels = re.findall(r"org\.opencontainers\.image\.(\w+)=", text)
    assert {"title", "licenses", "source", "version", "revision", "created"} <= set(labels)
    *_, last = re.findall(r"^FROM \S+ AS (\S+)$", text, re.M)
    assert last == "cpu"  # what a build without --target makes


def test_bills_are_of_the_images_themselves() -> None:
    """What is installed for the build alone is in none of them."""
    text = DOCKERFILE.read_text()
    parents = {name: parent for parent, name in re.findall(r"^FROM (\S+) AS (\S+)$", text, re.M)}
    for sbom, image in (("sbom", "cpu"), ("sbom-cuda", "cuda")):
        (bill,) = re.findall(r"^COPY --from=(\S+) /sbom /$", _stage(text, sbom), re.M)
        assert parents[bill] in (image, parents[image])
        assert _added(_stage(text, image)) == set() or parents[bill] == image
        assert {"python.cdx.json", "debian.txt"} <= set(re.findall(r"[\w.]+", _stage(text, bill)))


def test_only_sources_are_sent_to_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE.read_text(), re.M)
    assert lines[0] == "*"
    assert {name for line in copied for name in line.split()} == {
        line[1:] for line in lines if line.startswith("!")
    }


def test_the_build_script_is_sound() -> None:
    script = ROOT / "deploy" / "container" / "build.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111
    # It starts what the image says, and does not say it again.
    assert "text-generation-launcher" not in script.read_text()


def _stage(text: str, target: str) -> str:
    (body,) = [
        each
        for each in re.split(r"^FROM ", text, flags=re.M)
        if re.match(rf"\S+ AS {target}\n", each)
    ]
    return body


def _added(stage: str) -> set[str]:
    """Instructions of a stage that put something into it."""
    return set(re.findall(r"^(RUN|COPY|ADD) ", stage, re.M))


def _user(text: str, target: str) -> str:
    """The last USER of a stage, or of the stage it is made from."""
    body = _stage(text, target)
    users = re.findall(r"^USER (\S+)$", body, re.M)
    return users[-1] if users else _user(text, body.split()[0])

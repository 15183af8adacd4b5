"""A configuration that changes reaches every version in memory: also the one that a rollback goes back to, and arms."""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest

from nexus_grpc.pb.nexus.v1 import inference_pb2 as pb
from tests.harness import running_server
from tests.integration.test_decisions import add_classifier
from tests.lifecycle import Admin, wait_for

NAME = "from_file"
OPTIONS = ("--fronts=1", "--workers=1", "--poll-seconds=0.3")
# What predicts 0.6 of the second class.
Decision = tuple[str, float]


def configure(repository: pathlib.Path, second: str, threshold: float, label_file: str = "labels.txt") -> None:
    """Labels in the file that is named by the configuration."""
    (repository / NAME / label_file).write_text(f"ham\n{second}\n")
    parameters = {"positive_class": second, "decision_threshold": f"{threshold}"}
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' for key, text in parameters.items()]
    lines.append(f'output {{ name: "probabilities" data_type: TYPE_FP32 dims: [2] label_filename: "{label_file}" }}')
    (repository / NAME / "config.pbtxt").write_text("\n".join(lines))


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two versions, of which the second answers."""
    folder = tmp_path / "models"
    add_classifier(folder, NAME, 2, {})
    shutil.copytree(folder / NAME / "1", folder / NAME / "2")
    configure(folder, "spam", 0.5)
    return folder


@contextlib.contextmanager
def serving(repository: pathlib.Path, control: str) -> Iterator[Admin]:
    options = (*OPTIONS, f"--model-control={control}")
    with (
        running_server(repository.parent, *options, repository=repository) as server,
        Admin(server.address) as admin,
    ):
        yield admin


def decided(admin: Admin, version: str = "") -> Decision:
    request = pb.PredictRequest(model_id=NAME, features=[0.6], model_version=version)
    answer = admin.client.predict(request)
    return answer.predicted_class, answer.threshold_used


LOOKS: dict[str, tuple[str, Callable[[Admin], object]]] = {
    "poll": ("poll", lambda admin: None),
    "reload": ("none", lambda admin: admin.reload()),
    "load": ("explicit", lambda admin: admin.models("Load", id=NAME, version="2")),
}


@pytest.mark.parametrize("look", ["poll", "load", pytest.param("reload", marks=pytest.mark.long)])
def test_a_rollback_keeps_the_labels_and_the_threshold(repository: pathlib.Path, look: str) -> None:
    control, take_up = LOOKS[look]
    with serving(repository, control) as admin:
        for version in ("1", "2"):
            admin.models("Activate", id=NAME, version=version)
        assert decided(admin) == decided(admin, "1") == ("spam", 0.5)
        configure(repository, "junk", 0.25)
        take_up(admin)
        wait_for(lambda: decided(admin) == decided(admin, "1") == ("junk", 0.25))
        admin.models("Rollback", id=NAME)
        assert decided(admin) == ("junk", 0.25)
        admin.traffic("Setup", model=NAME, candidate_version="2", percent=100)
        configure(repository, "scam", 0.125)
        take_up(admin)
        wait_for(lambda: decided(admin) == decided(admin, "1") == ("scam", 0.125))


def test_labels_that_change_alone_and_a_configuration_that_is_broken_for_a_while(repository: pathlib.Path) -> None:
    with serving(repository, "none") as admin:
        (repository / NAME / "labels.txt").write_text("eggs\nspam\n")
        admin.reload()
        request = pb.PredictRequest(model_id=NAME, features=[0.1])
        assert admin.client.predict(request).predicted_class == "eggs"
        (repository / NAME / "config.pbtxt").write_text("nonsense {")
        admin.reload()
        assert decided(admin) == ("spam", 0.5)
        configure(repository, "junk", 0.25)
        admin.reload()
        assert decided(admin) == ("junk", 0.25)

"""`nexus predict`: one row through a running server."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_grpc.cli.output import print_json, print_table
from nexus_grpc.cli.remote import DEFAULT_ADDRESS, Address, AsJson, Timeout, call, connected

if TYPE_CHECKING:
    from nexus_grpc.pb.nexus.v1.inference_pb2 import PredictResponse

# So that a negative number is taken for a feature, not for an option; a mistyped option then is no number.
CONTEXT_SETTINGS: dict[str, Any] = {"ignore_unknown_options": True}
OPTIONS = ("--text", "--version", "--address", "--timeout", "--json", "--tls-ca", "--help")


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    features: Annotated[
        list[str] | None, typer.Argument(metavar="[FEATURES]...", help="Numbers: 5.1,3.5,1.4,0.2 or 5.1 3.5 1.4 0.2.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Text, for a model that takes text; may be given several times.")
    ] = None,
    version: Annotated[str, typer.Option("--version", help="A version; the newest ready one if left out.")] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Predict one row: nexus predict iris 5.1,3.5,1.4,0.2"""
    numbers = parse_features(features or ())
    if numbers and text:
        raise typer.BadParameter("expected either numbers, such as 5.1,3.5,1.4,0.2, or --text", param_hint="FEATURES")
    from google.protobuf.json_format import MessageToDict

    from nexus_grpc.pb.nexus.v1.inference_pb2 import PredictRequest, PredictResponse

    request = PredictRequest(model_id=model, model_version=version, features=numbers, texts=text or ())
    with connected(address) as channel:
        answer = call(channel, "/nexus.v1.Inference/Predict", request, PredictResponse, timeout)
    if as_json:
        print_json(MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
    else:
        _print_answer(answer)


def parse_features(words: Sequence[str]) -> list[float]:
    """Reads numbers separated by commas or spaces.

    Raises:
        typer.BadParameter: one is no number.
    """
    numbers: list[float] = []
    for word in words:
        # As JSON has it, too.
        for part in word.replace(",", " ").replace("[", " ").replace("]", " ").split():
            try:
                numbers.append(float(part))
            except ValueError:
                raise _no_number(part) from None
    return numbers


def _no_number(word: str) -> Exception:
    """What is wrong with a word where numbers are expected."""
    if word.startswith("-"):
        close = difflib.get_close_matches(word.partition("=")[0], OPTIONS, n=1)
        return typer.BadParameter(
            f"there is no option {word}" + (f"; did you mean {close[0]}?" if close else ""), param_hint="OPTIONS"
        )
    return typer.BadParameter(
        f"{word!r} is not a number; expected such as 5.1,3.5,1.4,0.2, or, for a model that takes text, --text {word!r}",
        param_hint="FEATURES",
    )


def _print_answer(answer: "PredictResponse") -> None:
    rows: list[tuple[str, object]] = [
        ("prediction", ", ".join(answer.labels) or ", ".join(f"{value:g}" for value in answer.prediction))
    ]
    if answer.probabilities:
        rows.append(("probabilities", ", ".join(f"{value:.4f}" for value in answer.probabilities)))
        rows.append(("confidence", f"{answer.confidence:.4f}"))
    if answer.predicted_class:
        rows.append(("class", answer.predicted_class))
    if answer.decision:
        rows.append(("decision", f"{answer.decision} (threshold {answer.threshold_used:g})"))
    if answer.variant not in ("", "default"):
        rows.append(("variant", answer.variant))
    rows += [("model version", answer.model_version), ("latency", f"{answer.latency_ms:.3f} ms")]
    print_table((answer.model_id, ""), rows)

"""`nexus ab`: experiments. A candidate beside the version that answers, with a share of the traffic."""

from typing import TYPE_CHECKING, Annotated

import typer

from nexus_grpc.cli.ab_status import print_status
from nexus_grpc.cli.arguments import parse_duration, parse_percent, parse_shares, parse_steps
from nexus_grpc.cli.credentials import RemoteTyper
from nexus_grpc.cli.remote import CHANGE_SECONDS, DEFAULT_ADDRESS, Address, AsJson, Timeout, ask

if TYPE_CHECKING:
    from google.protobuf.message import Message

app = RemoteTyper(
    help="Split a model's traffic between versions: A/B tests, canaries, shadows. A usual course:\n\n"
    "nexus ab start iris --candidate 2 --percent 5\n\n"
    "nexus ab ramp iris 5,25,50,100 --every 10m --guard 'error_rate<1%' --guard 'p99<20ms'\n\n"
    "nexus ab status iris",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")]
MaybeModel = Annotated[
    str, typer.Argument(metavar="[MODEL]", help="The model's id; may be left out where one experiment runs.")
]


def _send(method: str, request: "Message", address: str, timeout: float, as_json: bool) -> None:
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import ExperimentStatus

    print_status(ask(address, f"/nexus.v1.Traffic/{method}", request, ExperimentStatus, timeout), as_json)


@app.command("start")
def start(
    model: Model,
    candidate: Annotated[str, typer.Option("--candidate", metavar="VERSION", help="The version to try, such as 2.")],
    percent: Annotated[str, typer.Option("--percent", metavar="PERCENT", help="Its share, 0 to 100.")] = "0",
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="VERSION=PERCENT", help="One more variant; may be given several times."),
    ] = None,
    sticky_header: Annotated[
        str, typer.Option("--sticky-header", metavar="NAME", help="Same value of this request header, same variant.")
    ] = "",
    sticky_parameter: Annotated[
        str,
        typer.Option(
            "--sticky-parameter",
            metavar="NAME",
            help="Same value of this request parameter, same variant; of /predict it is the field sticky_key.",
        ),
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = CHANGE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Start an experiment.

    nexus ab start iris --candidate 2 --percent 5

    The version that answers now becomes variant A and keeps the rest of the traffic; the candidate is loaded first.
    """
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import SetupExperimentRequest, StickyKey, VariantShare

    if sticky_header and sticky_parameter:
        raise typer.BadParameter("either --sticky-header or --sticky-parameter", param_hint="--sticky-parameter")
    more = [VariantShare(version=version, percent=share) for version, share in parse_shares(also or (), "--also")]
    request = SetupExperimentRequest(
        model=model, candidate_version=candidate, percent=parse_percent(percent), more=more
    )
    if sticky_header or sticky_parameter:
        request.sticky.CopyFrom(StickyKey(header=sticky_header, parameter=sticky_parameter))
    _send("Setup", request, address, timeout, as_json)


@app.command("split")
def split(
    model: Model,
    percent: Annotated[str, typer.Argument(metavar="[PERCENT]", help="The candidate's share, 0 to 100.")] = "",
    shares: Annotated[
        list[str] | None,
        typer.Option("--share", metavar="VERSION=PERCENT", help="With several candidates: the share of each."),
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Change the shares of an experiment.

    nexus ab split iris 25

    Statistics go on; sticky requests that need not move stay where they are.
    """
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import SplitTrafficRequest, VariantShare

    if bool(percent) == bool(shares):
        raise typer.BadParameter("expected either a percentage or --share", param_hint="PERCENT")
    request = SplitTrafficRequest(model=model, percent=parse_percent(percent) if percent else None)
    request.shares.extend(
        VariantShare(version=version, percent=share) for version, share in parse_shares(shares or (), "--share")
    )
    _send("Split", request, address, timeout, as_json)


@app.command("ramp")
def ramp(
    model: Model,
    steps: Annotated[str, typer.Argument(metavar="STEPS", help="The candidate's shares, rising, such as 5,25,50,100.")],
    every: Annotated[str, typer.Option("--every", metavar="DURATION", help="Time between steps: 30s, 10m, 1h.")],
    guards: Annotated[
        list[str] | None,
        typer.Option(
            "--guard",
            metavar="GUARD",
            help="What must hold, such as 'error_rate<1%', 'p99<20ms', or 'p99<1.2x' (of variant A's). "
            "May be given several times; when one fails, all traffic goes back.",
        ),
    ] = None,
    min_requests: Annotated[
        int, typer.Option("--min-requests", min=0, help="Requests of the candidate that a step takes; 0 means 50.")
    ] = 0,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Raise the candidate's share step by step.

    After 100 the server promotes it; when a guard fails, it takes all back and says why.

    nexus ab ramp iris 5,25,50,100 --every 10m --guard 'error_rate<1%' --guard 'p99<20ms'
    """
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import RampTrafficRequest

    request = RampTrafficRequest(
        model=model,
        steps=parse_steps(steps),
        every_seconds=parse_duration(every),
        guards=guards or (),
        min_requests=min_requests,
    )
    _send("Ramp", request, address, timeout, as_json)


@app.command("promote")
def promote(
    model: MaybeModel = "",
    version: Annotated[str, typer.Option("--version", help="With several candidates: which.")] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Have the candidate answer all requests.

    The experiment ends. `nexus rollback` undoes it.
    """
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import PromoteRequest

    _send("Promote", PromoteRequest(model=model, version=version), address, timeout, as_json)


@app.command("abort")
def abort(
    model: MaybeModel = "", address: Address = DEFAULT_ADDRESS, timeout: Timeout = 60.0, as_json: AsJson = False
) -> None:
    """Send all traffic back to variant A; the experiment ends."""
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import AbortRequest

    _send("Abort", AbortRequest(model=model), address, timeout, as_json)


@app.command("status")
def status(
    model: MaybeModel = "", address: Address = DEFAULT_ADDRESS, timeout: Timeout = 10.0, as_json: AsJson = False
) -> None:
    """Show shares, statistics and significance."""
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import ExperimentStatusRequest

    _send("Status", ExperimentStatusRequest(model=model), address, timeout, as_json)


@app.command("shadow")
def shadow(
    model: Model,
    percent: Annotated[str, typer.Argument(metavar="PERCENT", help="Share of the requests to copy; 0 ends it.")],
    candidate: Annotated[str, typer.Option("--candidate", metavar="VERSION", help="The version that gets them.")] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = CHANGE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Send copies of requests to a candidate.

    Its answers are compared and thrown away; clients notice nothing.

    nexus ab shadow iris 10 --candidate 2
    """
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import ShadowTrafficRequest

    share = parse_percent(percent)
    if share and not candidate:
        raise typer.BadParameter("which version gets the copies?", param_hint="--candidate")
    request = ShadowTrafficRequest(model=model, candidate_version=candidate, percent=share)
    _send("Shadow", request, address, timeout, as_json)


@app.command("balance")
def balance(
    model: Model,
    how: Annotated[str, typer.Argument(metavar="HOW", help="least_busy, round_robin or least_latency.")],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Choose how workers share the requests."""
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import BalanceRequest

    _send("Balance", BalanceRequest(model=model, balance=how), address, timeout, as_json)

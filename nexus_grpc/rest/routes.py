"""Envoy's routes, made from the annotations in proto/, the list of planned routes and the static files."""

import base64
import dataclasses
from collections.abc import Iterable
from typing import Any

from nexus_grpc.rest.http_rules import Binding, HttpMethod, http_methods
from nexus_grpc.rest.local_replies import REQUEST_ID
from nexus_grpc.rest.planned import PLANNED
from nexus_grpc.rest.static_files import StaticFile, static_files

JSON_TYPE = "(?i)application/json[ \\t]*(;.*)?"
FORM_TYPE = "(?i)multipart/form-data[ \\t]*(;.*)?"
# None at all, or what curl -d says of any body. The front reads it as JSON, and only an object will do.
UNTYPED = "(?i)(application/x-www-form-urlencoded[ \\t]*(;.*)?)?"
# A body of any other type a page may have its visitor's browser send anywhere, without asking first.
_NOT_ASKED_FIRST = {
    "name": "content-type",
    "string_match": {"safe_regex": {"regex": JSON_TYPE}},
    "invert_match": True,
    "treat_missing_header_as_empty": True,
}
_NOT_JSON = "the body must be JSON; send it with Content-Type: application/json (which pages of a browser must)"
_NOT_A_FORM = "the body must be a form (Content-Type: multipart/form-data) with the model as `file`, and `id`"
# gRPC and gRPC-web clients may use the same port. The twin (nexus.http.v1) is not among them.
GRPC_PREFIXES = ("/nexus.v1.", "/inference.", "/grpc.")
METRICS_PATHS = ("/metrics", "/metrics/prom", "/metrics/json")
# A body in pieces is kept to be sent again for so many bytes only. Should a front be away, Envoy must turn to another
# before more than these have come: it says 507 otherwise (tested; it waits for up to 25 ms by itself).
PIECES_KEPT_BYTES, PIECES_BACK_OFF = 8 << 20, "0.001s"
# What was not begun, surely. A prediction that was cut short is not tried again, pure as it is: the front does that
# with a worker, and knows how often. Nor is any answer a reason: 429 and 503 (UNAVAILABLE) ask for less, not for more.
NOT_BEGUN = "connect-failure,refused-stream,reset-before-request"
# For all that may change the server, only what never left Envoy: gRPC's core resets a stream with REFUSED_STREAM also
# when it ends a call with UNAVAILABLE that had been begun.
NOT_SENT = "connect-failure,reset-before-request"
RETRIES = 2
BACK_OFF = {"base_interval": "0.01s", "max_interval": "0.1s"}
# How often a front is drawn anew that is one which has failed: the least busy is drawn more often than others.
REDRAWS = 10
# Browsers say what kind of page has a request made. Those that don't yet say which, at least.
_FROM_ELSEWHERE = {"name": "sec-fetch-site", "string_match": {"safe_regex": {"regex": "cross-site|same-site"}}}
_FROM_UNKNOWN = {"name": "sec-fetch-site", "present_match": True, "invert_match": True}
_FROM_A_PAGE = {"name": "origin", "present_match": True}
_FOREIGN = "pages of other origins may not change this server; cors_origins names those that may"
_FOREIGN_V2 = "pages of other origins send JSON here, as application/json, and cors_origins names those that may"
# A page cannot have its visitor's browser send these elsewhere without a preflight, which only cors_origins pass: who
# sends them is no stranger's page. Of authorization `Bearer` alone: browsers write `Basic` of a URL by themselves.
_WITHOUT_CREDENTIAL = (
    {"name": "x-api-key", "present_match": True, "invert_match": True},
    {
        "name": "authorization",
        "string_match": {"prefix": "bearer ", "ignore_case": True},
        "invert_match": True,
        "treat_missing_header_as_empty": True,
    },
)
# Browsers let any page send a body with no type, or a form's, without asking (CSRF). So from a page JSON must be called
# so, which takes a preflight. All browsers say with a POST that a page sends it; what says nothing is a program. (Those
# of before 2020 did not with forms, whose bodies are no JSON objects: their braces are escaped, or there is nothing.)
_FROM_NO_PAGE = (
    {"name": "origin", "present_match": True, "invert_match": True},
    {"name": "sec-fetch-site", "present_match": True, "invert_match": True},
    {"name": "content-length", "string_match": {"exact": "0"}, "invert_match": True},
)
# A body of unknown length may come all the same (Envoy shows no transfer-encoding here): the front reads it as JSON.
_NO_BODY = (
    {"name": "content-type", "present_match": True, "invert_match": True},
    {"name": "content-length", "string_match": {"safe_regex": {"regex": "0?"}}, "treat_missing_header_as_empty": True},
)
# Tells the script in bootstrap.yaml to take the body away.
HEAD_HEADER = "x-nexus-head"
_IS_GRPC = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
_PREVIOUS_HOSTS = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
_ANY = {"safe_regex": {"regex": ".*"}}
_CORS = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"
_DISABLED = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
# For all but the transcoded routes: what the transcoder knows it would make a gRPC call, and all else it would refuse.
_UNTOUCHED = {"typed_per_filter_config": {"envoy.filters.http.grpc_json_transcoder": _DISABLED}}
# A REST client has no use for what the transcoder leaves of gRPC, nor a front for these headers of a request, which it
# would read one by one. (Of those of Envoy's own, one says that Envoy has accepted a request, two are for its log.)
# And gRPC-web has nothing to do here.
_MUTATION = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"
_PLAIN_HTTP = {
    "typed_per_filter_config": {
        "envoy.filters.http.header_mutation": {
            "@type": _MUTATION,
            "mutations": {"response_mutations": [{"remove": "grpc-status"}, {"remove": "grpc-message"}]},
        },
        "envoy.filters.http.grpc_web": _DISABLED,
    },
    "request_headers_to_remove": ["accept", "accept-encoding", "accept-language", "user-agent", "x-forwarded-proto"],
}
# The front says how an answer may be encoded.
_V2_HTTP = {
    **_PLAIN_HTTP,
    "request_headers_to_remove": ["accept", "accept-language", "user-agent", "x-forwarded-proto"],
}
# Envoy's script (bootstrap.yaml) makes errors of the protocol's shape where a route has this name.
V2_ROUTE = "v2"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@dataclasses.dataclass(frozen=True)
class _Answer:
    """A route that answers, and what its requests must have: a body of some type, or no query string.

    Attributes:
        body_type: a regular expression for the content type; empty where there is no body.
        body_optional: a request without a body and a content type is fine, too.
        query: the only names that the query string may have; None for any (Envoy refuses those that the twin has not).
    """

    binding: Binding
    action: dict[str, Any]
    body_type: str = ""
    body_optional: bool = False
    query: tuple[str, ...] | None = None
    is_v2: bool = False

    @property
    def takes_any_body(self) -> bool:
        """A body need not be JSON, and need not say what it is: the protocol's clients don't."""
        return self.is_v2 and self.binding.verb == "POST"


def virtual_host(
    timeout_s: float, change_timeout_s: float, cors_origins: tuple[str, ...], *, certificates: bool = False
) -> dict[str, Any]:
    """All routes. The first that matches wins: exact paths stand before templates, refusals last.

    Args:
        timeout_s: how long a request may take.
        change_timeout_s: how long one may take that changes the server: an upload, a load.
        cors_origins: whose pages may call.
        certificates: callers may be known by a certificate, which their browser shows for any page.
    """
    host: dict[str, Any] = {
        "name": "rest",
        "domains": ["*"],
        "routes": [*_preflights(cors_origins), *_routes(timeout_s, change_timeout_s, cors_origins, certificates)],
        # Where the server gave none: static files, metrics, a front that is away.
        "response_headers_to_add": [_header("x-request-id", REQUEST_ID, "ADD_IF_ABSENT")],
        "response_headers_to_remove": ["grpc-accept-encoding"],
    }
    if cors_origins:
        host["typed_per_filter_config"] = {"envoy.filters.http.cors": _cors(cors_origins)}
    return host


def _preflights(origins: tuple[str, ...]) -> Iterable[dict[str, Any]]:
    """Envoy's CORS filter answers these, on a route that leads somewhere alone; none arrives there."""
    for origin in origins:
        came_from = {"present_match": True} if origin == "*" else {"string_match": {"exact": origin}}
        headers = [
            {"name": ":method", "string_match": {"exact": "OPTIONS"}},
            {"name": "access-control-request-method", "present_match": True},
            {"name": "origin", **came_from},
        ]
        yield {"match": {"prefix": "/", "headers": headers}, "route": {"cluster": "fronts"}, **_UNTOUCHED}


def overwrite_headers(routes: list[dict[str, Any]], headers: tuple[tuple[str, str], ...]) -> None:
    """Give each request to a front these headers, in place of its client's. The metrics' server does not get them."""
    for route in routes:
        if headers and route.get("route", {}).get("cluster") == "fronts":
            route["request_headers_to_add"] = [_header(key, value) for key, value in headers]


def _routes(
    timeout_s: float, change_timeout_s: float, cors_origins: tuple[str, ...], certificates: bool
) -> Iterable[dict[str, Any]]:
    methods = http_methods()
    answers = [answer for method in methods if not method.is_change for answer in _transcoded(method, timeout_s)]
    metrics = {"route": {"cluster": "metrics", "timeout": f"{timeout_s:g}s"}, **_UNTOUCHED}
    answers += [_Answer(Binding("GET", path), metrics) for path in METRICS_PATHS]
    answers += [_Answer(binding, _refusal(501, text)) for binding, text in PLANNED]
    for file in static_files():
        answers.append(_Answer(Binding("GET", file.path), _static(file)))
    heads = [_head_of(answer) for answer in answers if answer.binding.verb == "GET"]
    # Behind the others, so that predictions need not be held against them first.
    changes = [answer for method in methods if method.is_change for answer in _transcoded(method, change_timeout_s)]
    guarded = "*" not in cors_origins or certificates
    yield from _served([answer for answer in answers if not answer.takes_any_body])
    any_body = [answer for answer in answers if answer.takes_any_body]
    if guarded:
        yield from _foreign_pages(any_body, cors_origins, _FOREIGN_V2, [_NOT_ASKED_FIRST])
    yield from _served(any_body)
    for prefix in GRPC_PREFIXES:
        yield {"match": {"prefix": prefix, "headers": [_IS_GRPC]}, **_to_fronts(0, NOT_SENT), **_UNTOUCHED}
    if guarded:
        yield from _foreign_pages(changes, cors_origins, _FOREIGN, [])
    yield from _served(changes)
    yield from _served(heads)
    yield from _served_untyped([*answers, *changes])
    yield from _refusals([*answers, *heads, *changes])
    yield {"match": {"prefix": "/"}, **_refusal(404, "no such path; GET /docs lists the routes")}


def _transcoded(method: HttpMethod, timeout_s: float) -> Iterable[_Answer]:
    action = {**_to_fronts(timeout_s, NOT_SENT if method.is_change else NOT_BEGUN), **_PLAIN_HTTP}
    if method.is_v2:
        action |= {**_V2_HTTP, "name": V2_ROUTE}
    if method.client_streaming:
        action["route"]["retry_policy"]["retry_back_off"] = {"base_interval": PIECES_BACK_OFF}
        action["request_body_buffer_limit"] = PIECES_KEPT_BYTES
    for binding in method.bindings:
        yield _Answer(
            binding,
            action,
            _body_type(method),
            body_optional=method.is_change and not method.client_streaming,
            query=method.query if binding.parameters or method.has_body else None,
            is_v2=method.is_v2,
        )


def _head_of(answer: _Answer) -> _Answer:
    """HEAD where GET works (RFC 9110, 9.3.2). What Envoy and the metrics answer has no body already."""
    binding = dataclasses.replace(answer.binding, verb="HEAD")
    if answer.action.get("route", {}).get("cluster") != "fronts":
        return dataclasses.replace(answer, binding=binding)
    action = {**answer.action, "response_headers_to_add": [_header(HEAD_HEADER, "1")]}
    return dataclasses.replace(answer, binding=binding, action=action)


def _body_type(method: HttpMethod) -> str:
    if not method.has_body or method.is_v2:
        return ""
    return FORM_TYPE if method.client_streaming else JSON_TYPE


def _served(answers: list[_Answer]) -> Iterable[dict[str, Any]]:
    # Exact before template: /models/info before /models/{id}.
    for answer in sorted(answers, key=lambda answer: not answer.binding.is_exact):
        yield {"match": {**_path_match(answer.binding), "headers": _wanted(answer)}, **answer.action}
        if answer.body_type and answer.body_optional:
            headers = [_verb_is(answer.binding.verb), *_query_fits(answer), *_NO_BODY]
            yield {"match": {**_path_match(answer.binding), "headers": headers}, **answer.action}


def _served_untyped(answers: list[_Answer]) -> Iterable[dict[str, Any]]:
    """JSON that is not called so, from programs. Behind all others, which need not be held against these first."""
    is_untyped = {
        "name": "content-type",
        "string_match": {"safe_regex": {"regex": UNTYPED}},
        "treat_missing_header_as_empty": True,
    }
    for answer in sorted(answers, key=lambda answer: not answer.binding.is_exact):
        if answer.body_type == JSON_TYPE:
            headers = [_verb_is(answer.binding.verb), *_query_fits(answer), is_untyped, *_FROM_NO_PAGE]
            yield {"match": {**_path_match(answer.binding), "headers": headers}, **answer.action}


def _foreign_pages(
    answers: list[_Answer], cors_origins: tuple[str, ...], text: str, further: list[dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Refusals of what a page from elsewhere has its visitor's browser send: forms need no permission to be sent.

    Not of requests with a credential in a header: no page can forge those (Source: "Employing Custom Request Headers").
    Source: https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
    """
    strangers = [
        {
            "name": "origin",
            "string_match": {"exact": origin},
            "invert_match": True,
            "treat_missing_header_as_empty": True,
        }
        for origin in cors_origins
        if origin != "*"
    ]
    for answer in answers:
        for signs in ([_FROM_ELSEWHERE], [_FROM_A_PAGE, _FROM_UNKNOWN]):
            headers = [_verb_is(answer.binding.verb), *signs, *strangers, *further, *_WITHOUT_CREDENTIAL]
            yield {"match": {**_path_match(answer.binding), "headers": headers}, **_refusal(403, text)}


def _refusals(answers: list[_Answer]) -> Iterable[dict[str, Any]]:
    """For each path: where the verb was right, what was wrong beside it; 405 for any other verb."""
    for answer in answers:
        path, verb = _path_match(answer.binding), _verb_is(answer.binding.verb)
        if answer.query is not None:
            text = f"query parameters here: {', '.join(answer.query)}" if answer.query else "no query parameters here"
            yield {"match": {**path, "headers": [verb, *_query_fits(answer, False)]}, **_refusal(400, text)}
        if answer.body_type:
            text = _NOT_A_FORM if answer.body_type == FORM_TYPE else _NOT_JSON
            yield {"match": {**path, "headers": [verb]}, **_refusal(415, text)}
    verbs: dict[str, set[str]] = {}
    for answer in answers:
        verbs.setdefault(answer.binding.template, set()).add(answer.binding.verb)
    for template, allowed in verbs.items():
        names = ", ".join(sorted(allowed))
        route = {"match": _path_match(Binding("GET", template)), **_refusal(405, f"this path takes {names}")}
        route["response_headers_to_add"] = [_header("allow", names)]
        yield route


def _wanted(answer: _Answer) -> list[dict[str, Any]]:
    headers = [_verb_is(answer.binding.verb), *_query_fits(answer)]
    if answer.body_type:
        headers.append({"name": "content-type", "string_match": {"safe_regex": {"regex": answer.body_type}}})
    return headers


def _query_fits(answer: _Answer, fits: bool = True) -> list[dict[str, Any]]:
    """Whether its query string is as it may be, as a condition on the path; none where Envoy's transcoder sees to that.

    A path's own parameters must not be given a second time (the last one counts in protobuf), nor a body in pieces.
    """
    if answer.query is None:
        return []
    if not answer.query:
        return [{"name": ":path", "string_match": {"contains": "?"}, "invert_match": fits}]
    one = f"({'|'.join(answer.query)})=[^&]*"
    allowed = f"[^?]*([?]{one}(&{one})*)?"
    return [{"name": ":path", "string_match": {"safe_regex": {"regex": allowed}}, "invert_match": not fits}]


def _verb_is(verb: str) -> dict[str, Any]:
    return {"name": ":method", "string_match": {"exact": verb}}


def _path_match(binding: Binding) -> dict[str, Any]:
    return {"path": binding.template} if binding.is_exact else {"safe_regex": {"regex": binding.regex}}


def _to_fronts(timeout_s: float, retry_on: str) -> dict[str, Any]:
    """Within `timeout_s`, body included: 408 when that has not come, 504 when the answer has not; 0 for no limit.

    Another attempt goes to another front, if there is one. How many there are at a time, the cluster's budget says.
    """
    # One timer for all: those for the answer and for silence could only end later, and cost Envoy 3 % of its work for a
    # prediction. Streams of gRPC have the listener's stream_idle_timeout.
    silence = {"idle_timeout": "0s"} if timeout_s else {}
    return {
        "route": {
            "cluster": "fronts",
            "timeout": "0s",
            **silence,
            "max_stream_duration": {"max_stream_duration": f"{timeout_s:g}s"},
            "retry_policy": {
                "retry_on": retry_on,
                "num_retries": RETRIES,
                "retry_back_off": BACK_OFF,
                "retry_host_predicate": [
                    {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": _PREVIOUS_HOSTS}}
                ],
                "host_selection_retry_max_attempts": REDRAWS,
            },
        }
    }


def _refusal(status: int, message: str) -> dict[str, Any]:
    return {"direct_response": {"status": status, "body": {"inline_string": message}}, **_UNTOUCHED}


def _static(file: StaticFile) -> dict[str, Any]:
    headers = {"content-type": file.content_type, **_PAGE_HEADERS}
    return {
        "direct_response": {"status": 200, "body": {"inline_bytes": base64.b64encode(file.content).decode()}},
        "response_headers_to_add": [_header(key, value) for key, value in headers.items()],
        **_UNTOUCHED,
    }


def _header(key: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> dict[str, Any]:
    return {"header": {"key": key, "value": value}, "append_action": action}


def _cors(origins: tuple[str, ...]) -> dict[str, Any]:
    return {
        "@type": _CORS,
        "allow_origin_string_match": [_ANY if origin == "*" else {"exact": origin} for origin in origins],
        "allow_methods": "GET, POST, PUT, DELETE, OPTIONS",
        "allow_headers": "content-type, x-request-id, traceparent, tracestate, authorization, x-api-key, x-grpc-web,"
        " x-user-agent, grpc-timeout",
        "expose_headers": "x-request-id, grpc-status, grpc-message, grpc-status-details-bin, retry-after,"
        " ratelimit-limit, ratelimit-remaining, ratelimit-reset, ratelimit-policy",
        "max_age": "3600",
    }

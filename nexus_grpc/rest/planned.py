"""REST routes of the systems we replace that are still to come: each answers 501 and says so. The list shrinks."""

from nexus_grpc.rest.http_rules import Binding

_JOBS = "batch jobs are not built yet; send several rows in one request (POST /v2/models/{model_name}/infer)"
_DRIFT = "drift detection is not built yet"

PLANNED: tuple[tuple[Binding, str], ...] = (
    (Binding("POST", "/v1/batch"), _JOBS),
    (Binding("GET", "/v1/jobs/{id}"), _JOBS),
    (Binding("GET", "/admin/drift"), _DRIFT),
)

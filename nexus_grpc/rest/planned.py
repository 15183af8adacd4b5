"""REST routes of the systems we replace that are still to come: each answers 501 and says so. The list shrinks."""

from nexus_grpc.rest.http_rules import Binding

_UPLOAD = "uploading models over the network is not built yet; put the model into the repository directory"
_REGISTRY = "changing models over REST is not built yet; change the repository directory and restart"
_JOBS = "batch jobs are not built yet; send several rows in one request (POST /v2/models/{model_name}/infer)"
_TRAFFIC = "traffic splitting is not built yet; name a version in the request"
_DRIFT = "drift detection is not built yet"

PLANNED: tuple[tuple[Binding, str], ...] = (
    (Binding("POST", "/models/upload"), _UPLOAD),
    (Binding("POST", "/v1/batch"), _JOBS),
    (Binding("GET", "/v1/jobs/{id}"), _JOBS),
    (Binding("GET", "/v1/models"), _REGISTRY),
    (Binding("POST", "/v1/models"), _REGISTRY),
    (Binding("GET", "/v1/models/{id}"), _REGISTRY),
    (Binding("PUT", "/v1/models/{id}"), _REGISTRY),
    (Binding("DELETE", "/v1/models/{id}"), _REGISTRY),
    (Binding("POST", "/admin/reload"), _REGISTRY),
    (Binding("GET", "/admin/drift"), _DRIFT),
    (Binding("POST", "/admin/ab/setup"), _TRAFFIC),
    (Binding("POST", "/admin/ab/split"), _TRAFFIC),
    (Binding("POST", "/admin/ab/promote"), _TRAFFIC),
    (Binding("POST", "/admin/ab/abort"), _TRAFFIC),
    (Binding("GET", "/admin/ab/status"), _TRAFFIC),
)

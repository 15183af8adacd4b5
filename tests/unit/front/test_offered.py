"""What is announced follows from what is there."""

import pytest

from nexus_grpc.front.cold_methods import HOT, METHODS, REPOSITORY_OPERATIONS, InferenceService
from nexus_grpc.front.offered import REFUSED, check_log_change, check_trace_change, extensions, log_settings
from nexus_grpc.ipc.errors import InvalidInput, Unsupported
from nexus_grpc.ipc.wire import ANSWER_HEADERS_TAG, answer_headers, fields, http_body


def test_every_method_is_there_or_refused() -> None:
    for name in METHODS:
        assert name in HOT or name in REPOSITORY_OPERATIONS or hasattr(InferenceService, name), name
    assert set(REFUSED) <= set(METHODS)


def test_an_extension_goes_with_its_methods() -> None:
    assert "statistics" in extensions(METHODS)
    assert "statistics" not in extensions(name for name in METHODS if name != "ModelStatistics")
    assert not {"system_shared_memory", "trace", "logging"} & set(extensions(METHODS))
    assert extensions(()) == ()


def test_settings_may_be_set_to_what_they_are() -> None:
    check_trace_change({"trace_level": ["OFF"], "trace_rate": []})
    check_log_change(log_settings())
    for check, asked in ((check_trace_change, {"trace_count": ["5"]}), (check_log_change, {"log_file": "/tmp/x"})):
        with pytest.raises(Unsupported, match=next(iter(asked))):
            check(asked)  # type: ignore[operator]
    for check in (check_trace_change, check_log_change):
        with pytest.raises(InvalidInput, match="unknown"):
            check({"nothing": ["1"]})


def test_an_answer_brings_its_headers_along() -> None:
    body = http_body(b"x/y", [b"a" * 200, b"b"], {"one": "1", "two": "a:b"})
    assert body[0] == ANSWER_HEADERS_TAG
    assert answer_headers(body) == (("one", "1"), ("two", "a:b"))
    found = {number: body[start:end] for number, _, start, end in fields(body)}
    assert (found[1], found[2]) == (b"x/y", b"a" * 200 + b"b")
    assert http_body(b"x/y", [], {})[0] != ANSWER_HEADERS_TAG

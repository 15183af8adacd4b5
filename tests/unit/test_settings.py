"""Settings: sources and their order, bounds, messages, and the way to child processes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nexus_grpc.settings import (
    ConfigurationError,
    Settings,
    flag_name,
    is_loopback,
    load_settings,
    variable_name,
)


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and no NEXUS_ variables."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("NEXUS_"):
            monkeypatch.delenv(name)


def complaint(**overrides: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(overrides)
    return caught.value.message


def test_defaults() -> None:
    settings = load_settings({})
    assert (settings.host, settings.grpc_port, settings.metrics_port) == ("127.0.0.1", 8001, 8002)
    assert (settings.workers, settings.fronts, settings.ring_bytes) == (0, 1, 4 << 20)
    assert settings.model_repository == Path("models")


def test_every_setting_is_described() -> None:
    assert all((field.description or "").endswith(".") for field in Settings.model_fields.values())


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nexus.toml").write_text("workers = 2\nfronts = 2\nstream_window = 2\n")
    monkeypatch.setenv("NEXUS_FRONTS", "3")
    monkeypatch.setenv("NEXUS_STREAM_WINDOW", "3")
    settings = load_settings({"stream_window": "4", "max_in_flight": None})
    assert (settings.workers, settings.fronts, settings.stream_window, settings.max_in_flight) == (2, 3, 4, 1024)


def test_the_file_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nexus.toml").write_text("workers = 1\n")
    Path("variable.toml").write_text("workers = 2\n")
    Path("flag.toml").write_text("workers = 3\n")
    monkeypatch.setenv("NEXUS_CONFIG", "variable.toml")
    assert load_settings({}).workers == 2
    assert load_settings({"config": Path("flag.toml")}).workers == 3


def test_a_named_file_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaint(config="none.toml") == "--config = 'none.toml': there is no such file"
    monkeypatch.setenv("NEXUS_CONFIG", "gone.toml")
    assert complaint() == "NEXUS_CONFIG = 'gone.toml': there is no such file"


@pytest.mark.parametrize("content", [b"workers = \n", b"\xff\xfe"])
def test_a_broken_file(content: bytes) -> None:
    Path("nexus.toml").write_bytes(content)
    assert complaint().startswith("nexus.toml: not a TOML file: ")


def test_a_folder_for_a_file(tmp_path: Path) -> None:
    assert complaint(config=tmp_path).endswith("cannot be read: Is a directory")


def test_the_log_format_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 2)
    assert load_settings({}).log_format == "console"
    text = load_settings({"log_format": "auto"}).model_dump_json()
    assert load_settings({"log_format": "json"}).log_format == "json"
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    assert load_settings({}).log_format == "json"
    assert load_settings({"log_format": "console"}).log_format == "console"
    assert Settings.restore(text).log_format == "console"


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_WORKERS", "")
    assert load_settings({}).workers == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("workers", "many", "workers = 'many' (from --workers): expected a whole number"),
        ("workers", "-1", "workers = '-1' (from --workers): expected greater than or equal to 0"),
        ("workers", True, "workers = True (from --workers): expected a number, not true or false"),
        ("grpc_port", "0", "grpc_port = '0' (from --grpc-port): expected greater than or equal to 1"),
        ("metrics_port", "65536", "metrics_port = '65536' (from --metrics-port): expected less than or equal to 65535"),
        ("host", "", "host = '' (from --host): expected some text"),
        ("log_format", "xml", "log_format = 'xml' (from --log-format): expected 'auto', 'json' or 'console'"),
        ("log_sample", "1.5", "log_sample = '1.5' (from --log-sample): expected less than or equal to 1"),
        ("insecure_allow_anonymous", "?", "expected true or false"),
        ("watchdog_seconds", "nan", "watchdog_seconds = 'nan' (from --watchdog-seconds): expected"),
        ("drain_seconds", "inf", "drain_seconds = 'inf' (from --drain-seconds): expected"),
        ("ring_bytes", "100000", "expected a power of two, such as 4194304 (4 MiB)"),
        ("ring_bytes", "32KiB", "expected greater than or equal to 65536"),
        ("max_message_bytes", "64 MB", "expected a whole number"),
        ("cpus", "3-1", "cpus = '3-1' (from --cpus): the range '3-1' runs backwards"),
        ("auth", "on", "auth = 'on' (from --auth): expected 'off', 'optional' or 'required'"),
    ],
)
def test_a_wrong_value(name: str, value: object, message: str) -> None:
    found = complaint(**{name: value})
    assert message in found
    assert "\n" not in found


def test_one_line_per_problem_with_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nexus.toml").write_text("fronts = 0\nfrontz = 1\n")
    monkeypatch.setenv("NEXUS_WORKERS", "many")
    assert complaint(log_level="loud").splitlines() == [
        "workers = 'many' (from NEXUS_WORKERS): expected a whole number",
        "fronts = 0 (from nexus.toml): expected greater than or equal to 1",
        "log_level = 'loud' (from --log-level): expected 'debug', 'info', 'warning' or 'error'",
        "frontz: there is no such setting (in nexus.toml)",
    ]


def test_a_variable_of_kubernetes_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_GRPC_PORT", "tcp://10.0.0.1:8001")
    assert "enableServiceLinks: false" in complaint()


def test_sizes_may_have_units() -> None:
    settings = load_settings({"max_message_bytes": "32MiB", "ring_bytes": "64 kib", "max_in_flight_bytes": 1 << 21})
    assert (settings.max_message_bytes, settings.ring_bytes) == (32 << 20, 64 << 10)


def test_ports_differ_unless_off() -> None:
    assert "expected three different ports" in complaint(rest_port="8001")
    assert load_settings({"rest_port": "0", "metrics_port": "0"}).metrics_port == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "localhost.example.org"])
def test_other_machines_need_an_explicit_word(host: str) -> None:
    assert "--insecure-allow-anonymous" in complaint(host=host)
    assert load_settings({"host": host, "insecure_allow_anonymous": True}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert load_settings({"host": host}).host == host


def test_frozen() -> None:
    settings = load_settings({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.workers = 3


def test_a_child_gets_the_same_settings_and_reads_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"workers": "2", "data_dir": "elsewhere"})
    text = settings.model_dump_json()
    monkeypatch.setenv("NEXUS_WORKERS", "7")
    monkeypatch.setenv("NEXUS_FRONTS", "rubbish")
    Path("nexus.toml").write_text("rubbish = 1\n")
    assert Settings.restore(text) == settings
    # What the dump leaves out gets the default, not the environment's value.
    assert Settings.restore("{}").workers == 0


@pytest.mark.parametrize("text", ["", "[]", "3", '{"workers": "many"}', '{"bogus": 1}'])
def test_restore_refuses(text: str) -> None:
    with pytest.raises(ConfigurationError, match="passed to this process"):
        Settings.restore(text)


def test_a_list_is_text_with_commas_or_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = ("https://a.example", "http://localhost:3000")
    assert load_settings({}).cors_origins == ()
    assert load_settings({"cors_origins": " https://a.example, http://localhost:3000,"}).cors_origins == origins
    Path("nexus.toml").write_text('cors_origins = ["https://a.example", "http://localhost:3000"]\n')
    assert load_settings({}).cors_origins == origins
    monkeypatch.setenv("NEXUS_CORS_ORIGINS", "*")
    settings = load_settings({})
    assert settings.cors_origins == ("*",)
    assert Settings.restore(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "origin", ["a.example", "https://", "https://a.example/", "https://a.example/p", "https://a@b", "https://*.a", "*a"]
)
def test_what_is_no_origin_is_refused_by_name(origin: str) -> None:
    assert f"{origin!r} is no web origin" in complaint(cors_origins=origin)


def test_a_list_of_something_else() -> None:
    assert complaint(cors_origins=3) == "cors_origins = 3 (from --cors-origins): expected a list"


def test_the_rest_port_has_a_host_of_its_own() -> None:
    assert load_settings({"host": "::1"}).rest_address == "::1"
    assert load_settings({"rest_host": "127.0.0.2"}).rest_address == "127.0.0.2"
    assert complaint(rest_host="0.0.0.0").startswith("rest_host = '0.0.0.0': other machines")
    assert load_settings({"rest_host": "0.0.0.0", "insecure_allow_anonymous": True}).rest_address == "0.0.0.0"
    assert complaint(host="0.0.0.0", rest_host="::1").startswith("host = '0.0.0.0'")


def test_a_certificate_needs_its_key() -> None:
    assert "expected both or neither" in complaint(rest_tls_certificate="a.pem")
    assert "expected both or neither" in complaint(rest_tls_key="a.key")


def test_as_dict_is_plain_json() -> None:
    plain = load_settings({}).as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["model_repository"] == "models"


def test_names() -> None:
    assert flag_name("grpc_port") == "--grpc-port"
    assert variable_name("grpc_port") == "NEXUS_GRPC_PORT"

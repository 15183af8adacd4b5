"""Each complaint once."""

from nexus_grpc.supervisor.said import Said


def test_news() -> None:
    said = Said()
    assert said.news({"a": "broken", "b": "empty"}) == {"a": "broken", "b": "empty"}
    assert said.news({"a": "broken", "b": "empty"}) == {}
    assert said.news({"a": "gone", "b": "empty"}) == {"a": "gone"}
    assert said.news({"b": "empty"}) == {}
    assert said.news({"a": "gone", "b": "empty"}) == {"a": "gone"}

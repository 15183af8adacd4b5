"""Why a version is not in memory, in words: by whom, when and how it was unloaded, or why nobody wanted it. Pure.

The words come from the record alone, so a restart says the same.
"""

import datetime

from nexus_grpc.registry.records import VersionRow
from nexus_grpc.registry.store import time_text
from nexus_grpc.traffic.residency import Record

STORE_ONLY = "store_only"
_HOW = {STORE_ONLY: "stored only, not loaded,"}


def reason_of(record: Record, number: int, row: VersionRow | None) -> str:
    """Of a version that is not in memory and did not fail.

    Args:
        row: its record in the registry.
    """
    traffic = record.traffic
    if traffic.closed is not None:
        return _said("unloaded with the whole model", traffic.closed.by, traffic.closed.at)
    if row is not None and number in record.refused:
        how = _HOW.get(row.decided.get("how", ""), "unloaded")
        return _said(how, row.decided.get("by", ""), row.decided.get("at", ""))
    for left in traffic.left:
        if left.version == number and number not in record.kept:
            at = time_text(datetime.datetime.fromtimestamp(left.at_s, datetime.UTC))
            return f"unloaded by the server: another version answers since {at} (--keep-previous-seconds is over)"
    if record.on_request:
        return "not loaded: nobody asked for it (--model-control explicit)"
    selected = ", ".join(map(str, sorted(record.by_policy)))
    return f"not loaded: the version policy selects {selected or 'none'}, and nobody asked for this one"


def _said(how: str, by: str, at: str) -> str:
    return how + (f" by {by}" if by else "") + (f" at {at}" if at else "")

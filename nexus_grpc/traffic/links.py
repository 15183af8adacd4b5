"""A `current` link says once which version is to answer: when it leads elsewhere than before.

Who activates, promotes or rolls back later has the last word until the link is changed again, also over a restart.
"""

import dataclasses

from nexus_grpc.traffic.policy import LINK_UNSEEN, ModelTraffic


def is_news(traffic: ModelTraffic, link: int | None) -> bool:
    """Whether the link is to be followed.

    Args:
        link: where it leads; None = there is none.
    """
    if link is None or link in (traffic.link, traffic.primary):
        return False
    return traffic.link != LINK_UNSEEN or traffic.primary is None


def noted(traffic: ModelTraffic, link: int | None) -> ModelTraffic:
    """The link as it is now was taken into account."""
    return dataclasses.replace(traffic, link=link)

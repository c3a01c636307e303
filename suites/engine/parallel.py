"""Which methods a model shared by ranks can run: those whose lists no other rank has a say in."""

from __future__ import annotations

from ...kernels import DecodeMethod, Unsupported
from ..model.config import ModelConfig


def check_policy(kind: type[DecodeMethod], policy: str, config: ModelConfig) -> None:
    """Selection exchanges nothing: a rank has whole KV heads, and lists are per KV head, or per query head.

    Two ways of sharing lists are not so: one list for all heads; and, where several ranks hold the same KV head, one
    list for its group of query heads, which lie on these ranks.

    Args:
        policy: how the method's lists are shared, where it has a choice.

    Raises:
        Unsupported: the lists would span ranks; the method and its policy are named.
    """
    if config.ranks == 1 or kind.is_dense or kind.ranks_by == "window":
        return
    policy = policy if "gqa_policy" in kind.uses else "one list per KV head"
    if policy == "per-head":
        return
    if policy == "all-heads":
        raise Unsupported(f"gqa_policy: {policy} needs the queries of all {config.ranks} ranks; take per-head")
    if config.kv_replicas > 1:
        raise Unsupported(
            f"gqa_policy: under {policy} the lists span ranks, since each KV head lies on {config.kv_replicas} of "
            f"{config.ranks}; take per-head, or fewer ranks"
        )

"""Dynamic sampling: groups that teach nothing make room for others within the step."""

from collections.abc import Callable, Sequence

from rlpipe.data.flow import Group, Score


def is_flat(group: Group) -> bool:
    """Whether the rewards of a group, before any shaping, are all equal: it has fewer than two, or no spread."""
    return len({o.value for o in group.outcomes if isinstance(o, Score)}) < 2


def replace_flat(
    groups: Sequence[Group],
    max_rounds: int,
    drop: Callable[[list[str], str], None],
    sample: Callable[[int], list[Group]],
) -> tuple[list[Group], list[Group]]:
    """The groups to train on, as many as were given, and those dropped on the way (DAPO, Yu et al. 2025,
    arXiv 2503.14476, section 3.2).

    Flat groups are dropped and as many sampled anew, up to `max_rounds` times; flat ones of the last round stay. `drop`
    gets the ids of dropped groups and the reason, before `sample` is asked for replacements.
    """
    kept, dropped = list(groups), []
    for _ in range(max_rounds):
        flat = [group for group in kept if is_flat(group)]
        if not flat:
            break
        drop([group.group_id for group in flat], "no signal: its rewards are all equal")
        dropped += flat
        kept = [group for group in kept if not is_flat(group)] + sample(len(flat))
    return kept, dropped

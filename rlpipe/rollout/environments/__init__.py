"""What answers the policy between its turns. An environment of your own needs these three, and nothing else of ours."""

from rlpipe.rollout.environments.environment import End, Reply, Response

__all__ = ["End", "Reply", "Response"]

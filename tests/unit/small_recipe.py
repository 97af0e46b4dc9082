"""The smallest RL recipe, for tests of what a recipe may say."""

RL = """\
task: rl
model: {scratch: qwen2}
data: {kind: arithmetic}
rewards: {mix: [{kind: exact}]}
algorithm: {name: grpo}
schedule: {steps: 3}
"""

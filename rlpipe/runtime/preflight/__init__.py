"""Looks at a cluster before a run loads anything: what it could never give, and where its nodes differ.

wanted.py      what a run is going to ask for, as plain values
nodes.py       the nodes as Ray knows them
look.py        what one node shows of itself; runs there
probe.py       the process on each node that looks, listens, and shakes hands
resources.py   \\
agreement.py    } findings: pure functions of what was wanted and what was seen
places.py      /
gpus.py        those about GPUs, which take a process that has one reserved
survey.py      asks all nodes side by side, under one deadline
"""

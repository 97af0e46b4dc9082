"""What controller.py measures with: engines without compute, and a clock that skips what they would have taken."""

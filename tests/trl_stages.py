"""What the tests of the offline stages share: the tiny model, settings that take seconds, and what was reported."""

TINY = {"scratch": "qwen2", "hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 128}


def train_settings(**changes):
    """The section `train`: five steps of 16 with one thread."""
    return {"max_steps": 5, "per_device_train_batch_size": 16, "logging_steps": 1, "threads": 1} | changes


class Figures(list):
    """Collects what is reported."""

    def __call__(self, step, values):
        self.append((step, values))

    def of(self, name):
        return [values[name] for _, values in self if name in values]

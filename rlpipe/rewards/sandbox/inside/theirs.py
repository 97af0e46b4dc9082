"""An object of the program, as tests see it.

It can be called, read, changed, walked through and combined with others of the program. With plain data it is only
compared for equality, here, by its plain value if its class derives from a plain one: were the program asked, it would
hear what is expected and answer itself.
"""

UNARY = (
    "neg pos abs invert round int float complex index bool hash str repr len iter next reversed enter"
).split()  # fmt: skip
COMPARISONS = "lt le gt ge".split()
ARITHMETIC = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()


class Unsupported(BaseException):
    """A test does what cannot be checked from outside of the program. No test is to catch it by accident."""


class Theirs:
    """An object of the program."""

    __slots__ = ("_rlpipe_asked", "_rlpipe_number")

    def __init__(self, asked, number):
        object.__setattr__(self, "_rlpipe_asked", asked)
        object.__setattr__(self, "_rlpipe_number", number)

    def __getattr__(self, name):
        return _ask(self, "getattr", name)

    def __setattr__(self, name, value):
        _ask(self, "setattr", name, value)

    def __delattr__(self, name):
        _ask(self, "delattr", name)

    def __call__(self, *args, **kwargs):
        return self._rlpipe_asked.ask("call", self._rlpipe_number, args, kwargs)

    def __getitem__(self, key):
        return _ask(self, "getitem", key)

    def __setitem__(self, key, value):
        _ask(self, "setitem", key, value)

    def __delitem__(self, key):
        _ask(self, "delitem", key)

    def __eq__(self, other):
        if isinstance(other, Theirs):
            return bool(_ask(self, "eq", other))
        value = _ask(self, "plain")
        return value is not NotImplemented and value == other

    def __contains__(self, item):
        if isinstance(item, Theirs):
            return bool(_ask(self, "contains", item))
        if _ask(self, "has", "__iter__"):
            return any(each == item for each in self)
        raise Unsupported("a test asks an object of the program whether it holds a value")

    def __format__(self, how):
        return _ask(self, "format", how)

    def __instancecheck__(self, thing):
        return bool(_ask(self, "isinstance", thing))

    def __exit__(self, *error):
        _ask(self, "exit")


def _ask(theirs, do, *args):
    return theirs._rlpipe_asked.ask(do, theirs._rlpipe_number, args)


def _unary(do):
    return lambda self, *args: _ask(self, do, *args)


def _binary(name, do):
    def method(self, other):
        if isinstance(other, Theirs):
            return _ask(self, do, other)
        if _ask(self, "has", name):
            raise Unsupported(f"a test combines an object of the program and a value by {name}")
        return NotImplemented

    return method


for _do in UNARY:
    setattr(Theirs, f"__{_do}__", _unary(_do))
for _do in COMPARISONS + ARITHMETIC:
    _operation = _do + "_" * (_do in ("and", "or"))
    setattr(Theirs, f"__{_do}__", _binary(f"__{_do}__", _operation))
for _do in ARITHMETIC:
    setattr(Theirs, f"__r{_do}__", _binary(f"__r{_do}__", _do))

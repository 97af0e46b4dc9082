"""The program's side: runs it, then answers what the checker asks. All in here is the program's to change, which gains
it nothing: whatever it does, the checker sees values."""

import operator

import wire

MUTABLE = (list, dict, set, bytearray)
SAME = (
    "lt le gt ge eq add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift "
    "neg pos abs invert getitem setitem delitem contains index"
).split()
OPERATIONS = {name: getattr(operator, name) for name in SAME} | {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr, "setattr": setattr, "delattr": delattr, "iter": iter, "next": next, "len": len, "bool": bool,
    "hash": hash, "str": str, "repr": repr, "format": format, "int": int, "float": float, "complex": complex,
    "round": round, "reversed": reversed,
    "isinstance": lambda kind, thing: isinstance(thing, kind),
    "enter": lambda thing: type(thing).__enter__(thing), "exit": lambda thing: type(thing).__exit__(thing, *[None] * 3),
    "has": lambda thing, name: hasattr(type(thing), name),
}  # fmt: skip


def serve(program, reads, writes):
    """Answer until there are no more questions."""
    Served(program, wire.Wire(reads, writes)).until_the_end()


class Served:
    def __init__(self, program, connection):
        self._program, self._wire = program, connection
        self._things = []
        self._numbers = {}

    def until_the_end(self):
        try:
            while True:
                self._answer(self._wire.receive())
        except wire.Closed:
            return

    def _answer(self, question):
        try:
            answer = self._done(question)
            self._wire.send(answer)
        except Exception as error:
            self._wire.send(self._error(error))
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            self._wire.send(self._error(error))

    def _done(self, question):
        do = question["do"]
        if do == "run":
            return {"value": self._program.run()}
        if do == "name":
            return {"value": self._encode(self._program.names[question["name"]])}
        thing = self._things[question["of"]]
        if do == "plain":
            return {"value": self._encode(plain(thing))}
        if do == "await":
            import asyncio  # a quarter of a second, which few programs need

            return {"value": self._encode(asyncio.run(thing))}
        return self._operated(OPERATIONS[do], thing, question)

    def _operated(self, operation, thing, question):
        """Lists and the like that were handed over go back where the call has changed them."""
        given = dict(enumerate(question["args"])) | question["kwargs"]
        args, kwargs = self._decode(question["args"]), {k: self._decode(v) for k, v in question["kwargs"].items()}
        value = operation(thing, *args, **kwargs)
        now = dict(enumerate(args)) | kwargs
        new = {key: self._encode(held) for key, held in now.items() if type(held) in MUTABLE}
        changed = [[key, data] for key, data in new.items() if data != given[key]]
        return {"value": self._encode(value), "changed": changed}

    def _error(self, error):
        """What was raised, as far as it has a meaning over there."""
        kind = self._program.cause(error)
        try:
            args = [self._encode(arg) for arg in error.args]
        except Exception:
            args = []
        return {"error": self._encode(type(error)), "args": args, "text": f"{error!s:.300}", "kind": kind}

    def _encode(self, value):
        return wire.encode(value, self._number)

    def _number(self, value):
        if isinstance(value, Theirs):
            return {"yours": value.number}
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._things)
            self._things.append(value)  # which keeps it alive, and its id its own
        spoken = {"mine": self._numbers[id(value)]}
        if type(value).__name__ == "coroutine":
            return spoken | {"awaits": True}
        if isinstance(value, type) and issubclass(value, BaseException):
            named = next(base.__name__ for base in value.__mro__ if wire.NAMED.get(base.__name__) is base)
            return spoken | {"exception": [value.__name__, named]}
        return spoken

    def _decode(self, data):
        return wire.decode(data, self._object)

    def _object(self, data):
        return self._things[data["yours"]] if "yours" in data else THEIRS[data["is"]](self, data["mine"])

    def ask(self, do, number, args=()):
        """Ask the checker for something of a test's; what it wants to know meanwhile is answered."""
        self._wire.send({"do": do, "of": number, "args": self._encode(list(args))})
        while "do" in (message := self._wire.receive()):
            self._answer(message)
        if "error" in message:
            raise wire.NAMED[message["error"]](message["text"])
        return self._decode(message["value"])


class Theirs:
    """Something of a test's."""

    def __init__(self, served, number):
        self._ask, self.number = served.ask, number


class Function(Theirs):
    def __call__(self, *args):
        return self._ask("call", self.number, args)


class Iterator(Theirs):
    def __iter__(self):
        return self

    def __next__(self):
        return self._ask("next", self.number)


THEIRS = {"function": Function, "iterator": Iterator}


def plain(thing):
    """The value of an object whose class derives from a plain one, such as a named tuple; else NotImplemented."""
    base = next((base for base in type(thing).__mro__ if base in wire.TYPES and base is not object), None)
    if base in (set, frozenset):
        return base(base.__iter__(thing))
    if base is dict:
        return dict(dict.items(thing))
    return NotImplemented if base is None else base.__add__(thing, base())

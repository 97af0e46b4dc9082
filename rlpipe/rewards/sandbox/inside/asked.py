"""The program, as its checker knows it: asks for names and operations, and takes values for an answer."""

import wire
from theirs import Theirs, Unsupported

LIMITS = ("memory", "processes", "files", "forbidden")


class Asked:
    """Objects of the program stand here as `Theirs`, and everything else as itself."""

    def __init__(self, connection):
        self.questions = 0
        self._wire, self._open = connection, True
        self._known, self._ours = {}, []

    def must_be_open(self):
        if not self._open:
            raise wire.Closed

    def ask(self, do, of=None, args=(), kwargs=None, name=""):
        """The program's answer. Raises what the program raised, with the `limit` that it means."""
        self.must_be_open()
        self.questions += 1
        given = dict(enumerate(args)) | (kwargs or {})
        question = {"do": do, "of": of, "name": name, "args": self._encode(list(args))}
        question["kwargs"] = {key: self._encode(value) for key, value in (kwargs or {}).items()}
        try:
            return self._answer(self._exchange(question), given)
        except wire.Closed:
            self._open = False
            raise

    def _exchange(self, question):
        self._wire.send(question)
        while "do" in (message := self._dictionary()):
            self._wire.send(self._served(message))
        return message

    def _dictionary(self):
        message = self._wire.receive()
        if not isinstance(message, dict):
            raise wire.Closed
        return message

    def _answer(self, message, given):
        try:
            value = self._raised(message) if "error" in message else self._decode(message["value"])
            changed = [(given[key], self._decode(data)) for key, data in message.get("changed", ())]
        except Exception as error:
            raise wire.Closed(f"no answer: {error}") from None
        if "error" in message:
            raise value
        for old, new in changed:
            _replace(old, new)
        return value

    def _raised(self, message):
        kind, args, text = self._decode(message["error"]), self._decode(message["args"]), str(message["text"])
        try:
            error = kind(*args)
        except Exception:
            error = Exception(text)
        error.limit = message["kind"] if message["kind"] in LIMITS else "exception"
        error.said = text
        return error

    def _served(self, message):
        """A function or an iterator of a test's, for the program; nothing else of this process is to be had."""
        try:
            kind, thing = self._ours[message["of"]]
            value = next(thing) if kind == "iterator" else thing(*self._decode(message["args"]))
            return {"value": self._encode(value)}
        except Exception as error:
            named = next(base.__name__ for base in type(error).__mro__ if base.__name__ in wire.NAMED)
            return {"error": named, "text": f"{error!s:.300}"}

    def _encode(self, value):
        return wire.encode(value, self._number)

    def _number(self, value):
        number = object.__getattribute__(value, "_rlpipe_number") if isinstance(value, Theirs) else None
        number = getattr(value, "rlpipe_number", None) if isinstance(value, type) else number
        if number is not None:
            return {"yours": number}
        if not callable(value) and not hasattr(type(value), "__iter__"):
            raise Unsupported(f"a test hands the program an object of {type(value).__name__}")
        kind = "function" if callable(value) else "iterator"
        self._ours.append((kind, value if kind == "function" else iter(value)))
        return {"mine": len(self._ours) - 1, "is": kind}

    def _decode(self, data):
        return wire.decode(data, self._object)

    def _object(self, data):
        if "yours" in data:
            return self._ours[data["yours"]][1]
        number = int(data["mine"])
        if number not in self._known:
            self._known[number] = self._new(number, data)
        return self._known[number]

    def _new(self, number, data):
        if "exception" in data:
            name, base = data["exception"]
            return type(str(name), (wire.NAMED[base],), {"rlpipe_number": number})
        if "awaits" in data:
            return self._awaited(number)
        return Theirs(self, number)

    async def _awaited(self, number):
        return self.ask("await", number)


def _replace(old, new):
    """The content of a list and the like, as the program has changed it."""
    if type(old) is not type(new):
        return
    if isinstance(old, (list, bytearray)):
        old[:] = new
    else:
        old.clear()
        old.update(new)

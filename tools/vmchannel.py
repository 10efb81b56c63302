# SPDX-License-Identifier: BSD-3-Clause
"""The sockets of a VM: lines, QEMU's control protocol, the guest channel."""
import collections
import json
import os
import re
import socket
import time

from bootlib import VmError

MAX_SOCKET_PATH = 107
MAX_ANSWER_BYTES = 4096  # of a guest's web server, header included


class VmTimeout(VmError):
    """Nothing came in time."""


class LineSocket:
    """A unix socket that carries lines. Connects as soon as somebody listens."""
    MAX_LINE = 1 << 20  # bytes; who sends a longer one has lost the protocol, and is not listened to any more

    def __init__(self, path, timeout_s, alive=lambda: True):
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise VmError(f"{path}: too long for a unix socket (at most {MAX_SOCKET_PATH} bytes)")
        self.path, self.pending = path, b""
        deadline = time.monotonic() + timeout_s
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.sock.connect(str(path))
                return
            except OSError as error:
                self.sock.close()
                if not alive() or time.monotonic() > deadline:
                    raise VmError(f"cannot connect to {path}: {error.strerror}") from error
                time.sleep(0.002)

    def send(self, line):
        try:
            self.sock.settimeout(None)
            self.sock.sendall(line.encode() + b"\n")
        except OSError as error:
            raise VmError(f"cannot write to {self.path}: {error.strerror}") from error

    def line(self, timeout_s):
        """The next line, without its end."""
        deadline = time.monotonic() + timeout_s
        while (end := self.pending.find(b"\n")) < 0 and len(self.pending) <= self.MAX_LINE:
            self.pending += self._receive(deadline, timeout_s)
        if not 0 <= end <= self.MAX_LINE:
            raise VmError(f"{self.path} sends a line longer than {self.MAX_LINE} bytes")
        line, self.pending = self.pending[:end], self.pending[end + 1:]
        return line.decode(errors="replace").rstrip("\r")

    def _receive(self, deadline, timeout_s):
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self.sock.settimeout(left)
            data = self.sock.recv(65536)
        except TimeoutError as error:
            raise VmTimeout(f"no line came from {self.path} for {timeout_s:.0f} s") from error
        except OSError as error:
            raise VmError(f"cannot read from {self.path}: {error.strerror}") from error
        if not data:
            raise VmError(f"{self.path} was closed")
        return data

    def close(self):
        self.sock.close()


class Qmp:
    """QEMU's control socket: one command, one answer. Events gather in `events`, the latest of them."""
    MAX_EVENTS = 1000

    def __init__(self, path, timeout_s, alive=lambda: True):
        self.timeout_s, self.events, self.nb_sent = timeout_s, collections.deque(maxlen=self.MAX_EVENTS), 0
        self.migration = "none"
        self.socket = LineSocket(path, timeout_s, alive)
        greeting = json.loads(self.socket.line(timeout_s))
        can = greeting.get("QMP", {}).get("capabilities", [])
        self("qmp_capabilities", **({"enable": ["oob"]} if "oob" in can else {}))

    def __call__(self, command, *, ahead=False, **arguments):
        """@param ahead  answered also while QEMU's main loop waits for a page; few commands may be sent so"""
        self.nb_sent += 1
        how = "exec-oob" if ahead else "execute"
        self.socket.send(json.dumps({how: command, "arguments": arguments, "id": self.nb_sent}))
        deadline = time.monotonic() + self.timeout_s
        while True:
            answer = self._take(deadline)
            if answer.get("id") != self.nb_sent:  # an event; or what was given up waiting for
                continue
            if "error" in answer:
                raise VmError(f"QEMU refused {command}: {answer['error'].get('desc')}")
            return answer["return"]

    def _take(self, deadline):
        """The next message, which is kept if it is an event. Past the deadline VmTimeout, though there be more."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise VmTimeout(f"what was waited for did not come from {self.socket.path}")
        message = json.loads(self.socket.line(left))
        if "event" in message:
            self.events.append(message)
            if message["event"] == "MIGRATION":
                self.migration = message["data"]["status"]
        return message

    def wait_event(self, name, timeout_s):
        """The first event of that name since the last one taken."""
        deadline = time.monotonic() + timeout_s
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            self._take(deadline)

    def wait_migration(self, statuses, timeout_s):
        """Blocks until `migration`, the state as QEMU calls it, is one of these. Needs events to be on.
        @return  whether it came to that"""
        deadline = time.monotonic() + timeout_s
        while self.migration not in statuses:
            try:
                self._take(deadline)
            except VmTimeout:
                return False
        return True

    def close(self):
        self.socket.close()


def ask_web(connection, host, timeout_s):
    """What a VM's web server says to GET /, as a dict. Guests are not trusted to come to an end, or to make sense.
    Raises OSError or ValueError."""
    deadline, heard = time.monotonic() + timeout_s, b""
    connection.settimeout(timeout_s)
    connection.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    while piece := connection.recv(MAX_ANSWER_BYTES):
        heard += piece
        if len(heard) > MAX_ANSWER_BYTES:
            raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
        if (left_s := deadline - time.monotonic()) <= 0:
            raise TimeoutError(f"no end within {timeout_s} s")
        connection.settimeout(left_s)
    try:
        answer = json.loads(heard.partition(b"\r\n\r\n")[2])
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")
    return answer


def fields(text):
    """{key: value} of "key=value key=value", whole numbers as such."""
    pairs = (word.partition("=") for word in text.split() if "=" in word)
    return {key: int(value) if re.fullmatch(r"-?\d+", value) else value for key, _, value in pairs}


class Channel(LineSocket):
    """The host's end of the guest channel (docs/guest-channel.md)."""
    MAX_LINE = 511

    def expect(self, word, timeout_s=30.0):
        """The next line must begin with `word`: what follows it. The guest's ERROR is raised as it says it."""
        line = self.line(timeout_s)
        head, _, rest = line.partition(" ")
        if head == "ERROR":
            raise VmError(f"the guest at {self.path} says: {rest}")
        if head != word:
            raise VmError(f"the guest at {self.path} says {line!r}, not {word}")
        return rest

    def ask(self, command, word, timeout_s=30.0):
        """Sends a command and takes its answer."""
        self.send(command)
        return self.expect(word, timeout_s)
